"""Scoring, intervals, controls of the bank and statistics of usage."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import eval_model
from dataset.questions import read_questions, split_question
from editing.trace import trace
from evaluation.config import EvalConfig, wilson_interval
from evaluation.controls import BANK_CONTROLS
from evaluation.generation import distinct, repetition_rate
from evaluation.language import language
from evaluation.likelihood import encode, log_likelihoods
from evaluation.report import compare, table
from evaluation.usage import bank_usage, gini
from runs.outcomes import outcomes_of
from tests.conftest import tiny_model


@pytest.fixture(scope="module")
def model():
    return tiny_model(vocab_size=6400)


def test_batched_scores_equal_scores_one_by_one(model, tokenizer):
    pairs = [("The river", " Seine is long."), ("A", " b"), ("", "Nothing before it"), ("He was born in", " 1984")]
    batched = log_likelihoods(model, tokenizer, pairs, batch_size=4)
    for (prompt, option), (score, n) in zip(pairs, batched, strict=True):
        ((ids, start),) = encode(tokenizer, [(prompt, option)])
        log_p = model(torch.tensor([ids])).logits[0].log_softmax(dim=-1)
        expected = sum(float(log_p[place - 1, ids[place]]) for place in range(start, len(ids)))
        assert n == len(ids) - start
        assert score == pytest.approx(expected, abs=1e-4)


def test_an_option_begins_where_its_prompt_ends(tokenizer):
    pairs = [("The river", " Seine"), ("The river", " Rhine"), ("", "Nothing")]
    for (prompt, option), (ids, start) in zip(pairs, encode(tokenizer, pairs), strict=True):
        assert ids[0] == tokenizer.bos_token_id and tokenizer.decode(ids[1:start]).strip() == prompt
        assert tokenizer.decode(ids[start:]).strip() == option.strip()


def test_a_comparison_shows_the_main_controls_and_names_the_others(tmp_path):
    asked = {"object": {"accuracy": 0.5, "ci95": [0.4, 0.6], "chance": 0.2, "planted": {"accuracy": 0.1}}}
    controls = ("bank shuffled", "bank zeroed", "bank counterfactual", "gold in prompt")
    for name, more in (("x_plain", {}), ("x_memory", {"arms": dict.fromkeys(controls, asked)})):
        (tmp_path / name).mkdir()
        without = (
            {"lookup": {"object": {"accuracy": 0.97}}, "frequency": {"object": {"accuracy": 0.21}}} if more else {}
        )
        (tmp_path / name / "eval.json").write_text(json.dumps(asked | without | more))
    paths = [str(tmp_path / name) for name in ("x_plain", "x_memory")]
    told, every = compare(paths), compare(paths, every_control=True)
    assert told.splitlines()[0].split() == ["plain", "memory", "memory", "memory", "chance", "chance", "look-up"]
    assert "counterfactual" in told and told.endswith("\n--all_arms shows also: bank zeroed, gold in prompt")
    row = next(line.split() for line in told.splitlines() if line.startswith("object "))
    assert row == ["object", *["50.0%", "±10.0%"] * 4, "20.0%", "21.0%", "97.0%"]
    assert every.splitlines()[0].count("memory") == 5 and "--all_arms" not in every


def test_the_table_shows_a_look_up_that_no_model_was_asked_beside():
    found = {"object": {"accuracy": 0.97}, "reworded_0": {"accuracy": 0.785}, "seconds": 2.0, "limit": None}
    lines = [line.split() for line in table({"run": {"arms": {}, "about": {}, "lookup": found}}).splitlines()]
    assert lines == [["run", "look-up"], ["object", "-", "97.0%"], ["reworded_0", "-", "78.5%"]]
    guesses = table({"run": {"frequency": {"relation": {"accuracy": 0.8}, "seconds": 0.1}}})
    assert guesses.splitlines()[-1].split() == ["relation", "-", "80.0%"]


def test_a_question_is_split_at_its_blank():
    assert split_question("It is in the ___ style.", ["old"]) == ("It is in the", [" old style."])
    assert split_question("___ is red.", ["Mars"]) == ("", ["Mars is red."])


@pytest.fixture
def text(tmp_path) -> EvalConfig:
    rows = [{"text": f"The village of number {n} has {n * 7} houses. " * (1 + n % 4)} for n in range(12)]
    (tmp_path / "text.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return EvalConfig(val_path=str(tmp_path / "text.jsonl"), cache_dir=str(tmp_path / "cache"), batch_size=3)


def test_the_losses_of_documents_make_up_the_loss(model, tokenizer, text):
    result = language(model, tokenizer, text)
    kept = outcomes_of(result)
    assert len(kept.value_X) == 12 and kept.weight_X.sum() == result["n"]
    assert float(kept.value_X @ kept.weight_X) / result["n"] == pytest.approx(result["loss"], rel=1e-6)
    part = outcomes_of(language(model, tokenizer, replace(text, limit=4)))
    assert part.key != kept.key and part.weight_X.sum() < kept.weight_X.sum()
    assert outcomes_of(language(tiny_model(vocab_size=6400, seed=1), tokenizer, text)).key == kept.key
    # The first document alone, as a person would work it out.
    ids = [tokenizer.bos_token_id, *tokenizer(read_text(text)[0], add_special_tokens=False).input_ids]
    ids = torch.tensor([[*ids, tokenizer.eos_token_id]])
    first = torch.nn.functional.cross_entropy(model(ids).logits[0, :-1], ids[0, 1:])
    assert kept.weight_X[0] == ids.shape[1] - 1 and kept.value_X[0] == pytest.approx(float(first), rel=1e-4)


def read_text(config: EvalConfig) -> list[str]:
    return [json.loads(line)["text"] for line in Path(config.val_path).read_text().splitlines()]


def test_the_use_of_the_bank_is_told_of_each_reader(model, tokenizer, text):
    result = bank_usage(model, tokenizer, text)
    layers = result["layers"].values()
    assert list(result["layers"]) == ["block 0", "block 1"]
    assert all(sum(own["uses"]) == 49 and own["uses"][0] == round(49 * (1 - own["used_share"])) for own in layers)
    shares = [own["used_share"] for own in layers]
    assert max(shares) <= result["used_share"] <= min(1, sum(shares))


def test_wilson_intervals_of_known_cases():
    assert wilson_interval(5, 10) == pytest.approx([0.2366, 0.7634], abs=1e-3)
    assert wilson_interval(0, 10)[0] == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("control", BANK_CONTROLS.values(), ids=BANK_CONTROLS)
def test_a_control_changes_the_bank_and_puts_it_back(model, tokenizer, control):
    ids, before = torch.randint(3, 6400, (2, 8)), model.bank.tokens.clone()
    logits = model(ids).logits
    with control(model, tokenizer, EvalConfig()):
        assert not torch.equal(model.bank.tokens, before)
        assert not torch.equal(model(ids).logits, logits)
    assert torch.equal(model.bank.tokens, before)
    assert torch.equal(model(ids).logits, logits)


def test_a_trace_names_what_each_block_read(model, tokenizer):
    traced = trace(model, tokenizer, "The city of", new_tokens=3)
    assert 1 <= len(traced) <= 3
    for token in traced:
        for layer in model.settings.reading_layers:
            own = [lookup for lookup in token.lookups if lookup.layer == layer]
            assert len(own) == model.settings.num_selected
            assert sum(lookup.weight for lookup in own) == pytest.approx(1, abs=1e-4)


def test_a_plain_model_has_nothing_to_trace(tokenizer):
    with pytest.raises(ValueError, match="no memory to trace"):
        trace(tiny_model(vocab_size=6400, model_type="model_original"), tokenizer, "x")


def test_the_extremes_of_the_sample_statistics():
    assert repetition_rate([1, 2, 3, 4] * 5) > 0.7 and repetition_rate(list(range(20))) == 0
    assert distinct([[1, 1, 1, 1]]) == pytest.approx(1 / 3) and distinct([[1, 2, 3]]) == 1
    assert gini(torch.full((10,), 4)) == pytest.approx(0) and gini(torch.eye(10)[0] * 5) == pytest.approx(0.9)


def test_a_broken_question_file_is_named_with_its_line(tmp_path):
    path = tmp_path / "q.jsonl"
    path.write_text('{"question": "a ___"}\n{"question": \n')
    with pytest.raises(ValueError, match="line 2: not valid JSON"):
        read_questions(path, ("question",), None, "object_path")
    with pytest.raises(ValueError, match="line 1: no field 'answer'"):
        read_questions(path, ("question", "answer"), None, "object_path")


@pytest.mark.parametrize(
    ("flags", "left_out"),
    [((), {"cost", "absent", "overlap"}), (("--plain", "p"), {"cost", "absent"}),
     (("--tasks", "absent", "object"), set(eval_model.TASKS) - {"absent", "object"})],
)  # fmt: skip
def test_long_tasks_run_where_they_are_asked_for(monkeypatch, capsys, flags, left_out):
    monkeypatch.setattr(sys, "argv", ["eval_model.py", "--run", "r", *flags])
    assert set(eval_model.TASKS) - set(eval_model.parse_cli().tasks) == left_out
    monkeypatch.setattr(sys, "argv", ["eval_model.py", "--help"])
    with pytest.raises(SystemExit):
        eval_model.parse_cli()
    assert "default: all but cost, absent, overlap" in " ".join(capsys.readouterr().out.split())
