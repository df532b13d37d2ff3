"""Retrieved entries in the prompt: which stand there, in training as in the evaluation, and what they cost."""

import json
import sys
from dataclasses import replace

import pytest
import torch

from evaluation import facts, in_context
from evaluation.config import EvalConfig
from evaluation.controls import controls_of
from evaluation.in_context import EntryFinder, write_questions
from evaluation.likelihood import after_context
from evaluation.report import table
from tests.conftest import tiny_model
from tests.evaluation.conftest import FACTS
from tests.model.variants import SUFFIX


@pytest.fixture
def settings(tmp_path):
    rows = [{"question": f"{f.subject} is in ___.", "choices": [f.object, "Chile"], "answer": "A"} for f in FACTS[:6]]
    (tmp_path / "o.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return EvalConfig(object_path=str(tmp_path / "o.jsonl"), batch_size=4)


@pytest.fixture(params=["run", "words"])
def finder(model, tokenizer, request):
    return EntryFinder(model, tokenizer, request.param)


def test_the_best_entry_stands_last_and_no_more_than_a_position_reads(finder):
    oslo, nothing, two = finder.texts(["Oslo is in", "Quito: 1", "Lyon and Paris is in"])
    assert oslo.endswith("Oslo is in Norway.") and oslo.count(".") <= finder.model.settings.num_selected
    assert nothing == "" and "Paris is in France." in two and "Lyon is in France." in two


def test_entries_are_those_that_the_memory_model_reads_after_an_edit_too(model, tokenizer, settings):
    prompts = ["Oslo is in", "Lima is in"]
    finder = EntryFinder(model, tokenizer)
    model.bank.write(torch.tensor([5]), model.bank.tokens[6:7].long())
    input_XT, mask_XT = finder.batches(prompts, 2)[0]
    reading = model(input_XT, attention_mask=mask_XT, logits_to_keep=1).readings[-1]
    for rows, entry_S, weight_S in zip(
        finder.search((input_XT, mask_XT)), reading.entry_BTS[:, -1], reading.weight_BTS[:, -1], strict=True
    ):
        assert rows == entry_S[: len(rows)].tolist() and (weight_S[len(rows) :] == 0).all()
    assert "Lima" not in finder.texts(prompts)[1]


def test_training_questions_have_the_form_in_which_the_evaluation_asks(finder, settings, tmp_path):
    source, out = tmp_path / "q.jsonl", tmp_path / "out.jsonl"
    lines = [
        {"text": "A text."}, {"prompt": "Oslo is in", "answer": " Norway."}, {"prompt": "", "answer": "Oslo, Peru."},
    ]  # fmt: skip
    source.write_text("".join(json.dumps(line) + "\n" for line in lines))
    write_questions(finder, source, out)
    learnt = [json.loads(line) for line in out.read_text().splitlines()]
    asked = [("Oslo is in", [" Norway."]), ("", ["Oslo, Peru."])]
    as_asked = after_context([{}, {}], asked, replace(settings, oracle="found", finder=finder))
    assert learnt == [lines[0], *({"prompt": prompt, "answer": answer} for prompt, (answer,) in as_asked)]
    assert learnt[1]["prompt"].endswith("Oslo is in Norway. Oslo is in")
    source.write_text('{"text": "no question"}\n')
    with pytest.raises(ValueError, match="has no line with a prompt and an answer"):
        write_questions(finder, source, out)


def test_a_plain_model_is_asked_with_entries_and_told_what_that_costs(model, settings, tokenizer, monkeypatch):
    plain, asked = tiny_model(vocab_size=6400, model_type="model_original", max_seq_len=64), []
    settings = replace(settings, finder=EntryFinder(model, tokenizer))
    batches = facts.left_padded_batches
    monkeypatch.setattr(facts, "left_padded_batches", lambda *args: asked.extend(args[2]) or batches(*args))
    for name in ("TIMED_ALONE", "REPEATS", "ANSWER_TOKENS", "NEW_TOKENS"):
        monkeypatch.setattr(facts, name, 1)
    alone = facts.cost(plain, tokenizer, settings)
    with controls_of(plain, settings)["entries in prompt"](plain, tokenizer, settings) as changed:
        costs = facts.cost(plain, tokenizer, changed)
        asked.clear()
        facts.exact_match(plain, tokenizer, changed)
    assert len(asked) == 6 and all(prompt.count(" is in") >= 2 for prompt in asked)
    lengths = [1 + len(tokenizer(prompt).input_ids) for prompt in asked]
    assert costs["prompt_tokens"] == sum(lengths) / 6 > alone["prompt_tokens"]
    for part, n in (("batched", 6), ("alone", 1)):
        assert alone[part]["search_ms"] == 0 and costs[part]["n"] == n
        assert 0 < costs[part]["search_ms"] < costs[part]["first_token_ms"] and costs[part]["answer_ms"] > 0
    told = table({"plain": {"cost": alone}, "plain, entries in prompt": {"cost": costs}})
    assert "tokens of a prompt" in told and "ms a question, answer, batch 1" in told


def test_a_run_of_suffixes_is_told_what_can_be_searched(tokenizer):
    suffixes = tiny_model(vocab_size=6400, **SUFFIX)
    with pytest.raises(
        ValueError, match="--retrieval suffix, and only the indexes of --retrieval ngram and bm25 can be"
    ):
        EntryFinder(suffixes, tokenizer)


def test_runs_whose_entries_cannot_be_found_are_refused(tokenizer, monkeypatch):
    with pytest.raises(ValueError, match="a run without a memory"):
        EntryFinder(tiny_model(vocab_size=6400, model_type="model_original"), tokenizer)
    keys = tiny_model(vocab_size=6400)
    with pytest.raises(ValueError, match="give --retriever words"):
        EntryFinder(keys, tokenizer)
    assert EntryFinder(keys, tokenizer, "words").texts(["Oslo"]) == [""]
    monkeypatch.setattr(sys, "argv", ["x", "--entries_from", "a", "--questions", "nowhere.jsonl", "--out", "b"])
    with pytest.raises(FileNotFoundError, match="there is no file nowhere.jsonl: give another --questions"):
        in_context.main()
