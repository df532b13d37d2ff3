"""Language sets are scored as lm-evaluation-harness scores them, and read in one form."""

import json
import math
import re
from pathlib import Path

import pytest
import torch

from dataset.language_sets import joined, read_sets
from evaluation.config import EvalConfig
from evaluation.language_sets import encoded_pairs, language_sets, score, windows
from evaluation.report import table
from runs.metrics import metric
from tests.conftest import tiny_model

QUESTIONS = [
    {"context": "The river", "choices": [" Seine is long.", " sea", " a"], "answer": "A"},
    {"context": "A word of one", "choices": [" letter", " b is here and there", " x"], "answer": "C"},
    {"context": "He was born in", "choices": [" 1984", " Rome, where he lived for years", " y"], "answer": "B"},
    {"context": "It goes", "choices": [" a 1 b 2", " a"], "answer": "A"},  # by characters, if a space is none
]
PAIRS = [
    {"context": "", "choices": ["She sings.", "She sing."], "answer": "A", "field": "syntax/semantics"},
    {"context": "", "choices": ["They sings.", "They sing."], "answer": "B", "field": "syntax_semantics"},
    {"context": "", "choices": ["A dogs.", "A dog."], "answer": "B", "field": "morphology"},
]
WORDS = [{"context": "Once upon a", "choices": [" time"], "answer": "A"}] * 2
TEXTS = [{"text": "A well @-@ known town , with 1 @,@ 000 houses . " * 6}, {"text": "Short . "}]


@pytest.fixture(scope="module")
def model():
    return tiny_model(vocab_size=6400)


@pytest.fixture
def folder(tmp_path) -> Path:
    for name, rows in (("choose", QUESTIONS), ("blimp", PAIRS), ("lambada", WORDS), ("wikitext", TEXTS)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


@torch.no_grad()
def by_hand(model, tokenizer, context: str, choice: str) -> tuple[float, bool]:
    """Log-probability of a choice, and whether each token of it is the likeliest, one sequence at a time."""
    given = [tokenizer.bos_token_id, *tokenizer(context, add_special_tokens=False).input_ids] if context else [1]
    ids = [tokenizer.bos_token_id, *tokenizer(context + choice, add_special_tokens=False).input_ids]
    log_p = model(torch.tensor([ids])).logits[0].log_softmax(dim=-1)
    places = range(len(given), len(ids))
    return sum(float(log_p[i - 1, ids[i]]) for i in places), all(int(log_p[i - 1].argmax()) == ids[i] for i in places)


def test_choices_are_made_as_a_person_would_work_them_out(model, tokenizer, folder):
    config = EvalConfig(language_sets=(str(folder / "choose.jsonl"), str(folder / "blimp.jsonl")))
    found = language_sets(model, tokenizer, config)["sets"]
    for name, rows in (("choose", QUESTIONS), ("blimp", PAIRS)):
        right, per_character = [], []
        for row in rows:
            log_p = [by_hand(model, tokenizer, row["context"], choice)[0] for choice in row["choices"]]
            a_character = [p / (len(c) - c.startswith(" ")) for p, c in zip(log_p, row["choices"], strict=True)]
            answer = "ABC".index(row["answer"])
            right.append(log_p.index(max(log_p)) == answer)
            per_character.append(a_character.index(max(a_character)) == answer)
        assert found[name]["accuracy"] == pytest.approx(sum(right) / len(rows))
        assert found[name]["stderr"] == pytest.approx(torch.tensor(right).double().std().item() / len(rows) ** 0.5)
        if name == "choose":
            assert found[name]["per_character"]["accuracy"] == pytest.approx(sum(per_character) / 4)
            assert (
                right != per_character and per_character[3] and found[name]["chance"] == pytest.approx((1 + 1 / 2) / 4)
            )
    assert "per_character" not in found["blimp"] and found["blimp"]["chance"] == 0.5
    assert {part: share["n"] for part, share in found["blimp"]["parts"].items()} == {
        "morphology": 1, "syntax_semantics": 2,
    }  # fmt: skip


def test_scores_do_not_depend_on_the_batch_and_long_contexts_lose_their_beginning(model, tokenizer):
    pairs = [(row["context"], choice) for row in QUESTIONS for choice in row["choices"]]
    pairs += [("word " * 90 + "He was born in ", " Rome"), ("", "She sings.")]
    encoded = encoded_pairs(tokenizer, pairs, 32)
    together, apart = score(model, tokenizer, encoded, 4), [score(model, tokenizer, [own], 1)[0] for own in encoded]
    for (context, choice), one, other in zip(pairs[:11], together, apart, strict=False):
        log_p, is_greedy = by_hand(model, tokenizer, context, choice)
        assert one.log_p == pytest.approx(log_p, abs=1e-4) and one.is_greedy is is_greedy
        assert one.log_p == pytest.approx(other.log_p, abs=1e-4) and one[1:] == other[1:]
    ids, start = encoded[11]
    assert len(ids) == 33 and tokenizer.decode(ids[start:]) == "  Rome"  # 32 tokens are read, the last is predicted
    greedy = [2, *model(torch.tensor([[2, 7]])).logits[0].argmax(dim=-1).tolist()]
    assert score(model, tokenizer, [([2, 7, greedy[2]], 2), ([2, 7, 9], 2)], 2)[0].is_greedy


def test_windows_score_every_token_once_as_the_harness_does():
    found = list(windows(["bos", *range(10)], 4))  # the example of lm-evaluation-harness
    read = [(ids[:-1], ids[start:]) for ids, start in found]
    assert read == [
        (["bos", 0, 1, 2], [0, 1, 2, 3]), ([3, 4, 5, 6], [4, 5, 6, 7]), ([5, 6, 7, 8], [8, 9]),
    ]  # fmt: skip


@torch.no_grad()
def test_last_words_and_running_text(model, tokenizer, folder):
    found = language_sets(model, tokenizer, EvalConfig(language_sets=(str(folder),)))["sets"]
    log_p, is_greedy = by_hand(model, tokenizer, "Once upon a", " time")
    assert found["lambada"]["word"]["perplexity"] == pytest.approx(math.exp(-log_p), rel=1e-3)
    assert found["lambada"]["accuracy"] == is_greedy and found["lambada"]["word"]["stderr"] == pytest.approx(
        0, abs=1e-2
    )
    text, total = found["wikitext"], 0.0
    for row in TEXTS:
        ids = [tokenizer.bos_token_id, *tokenizer(joined(row["text"]), add_special_tokens=False).input_ids]
        for own, start in windows(ids, 32):
            log_p_TV = model(torch.tensor([own])).logits[0].log_softmax(dim=-1)
            total -= sum(float(log_p_TV[i - 1, own[i]]) for i in range(start, len(own)))
    words = sum(len(row["text"].split(" ")) for row in TEXTS)  # as the harness counts: the empty last one too
    assert text["nats_per_word"] == pytest.approx(total / words, rel=1e-5) and text["words"] == words
    size = sum(len(row["text"]) for row in TEXTS)
    assert text["bits_per_byte"] == pytest.approx(total / math.log(2) / size, rel=1e-5)
    assert text["nats_per_token"] * text["tokens"] == pytest.approx(total, rel=1e-5) and text["n_documents"] == 2


def test_wikitext_is_joined_as_people_write():
    written = 'The " well @-@ known " town ( 3 @.@ 5 km ) , with 1 @,@ 000 houses .\n = = Early = =\n'
    assert joined(written) == 'The "well-known" town (3.5 km), with 1,000 houses .\n== Early ==\n'


def test_the_table_shows_chance_and_errors_and_the_metrics_find_their_scores(model, tokenizer, folder):
    result = language_sets(model, tokenizer, EvalConfig(language_sets=(str(folder),), limit=2))
    lines = table({"run": {"language_sets": result}}).splitlines()
    told = {name: cells for name, *cells in (re.split(r"\s{2,}", line.strip()) for line in lines)}
    assert {"blimp", "blimp, syntax_semantics", "choose, per character", "lambada, perplexity"} <= set(told)
    assert "±" in told["blimp"][0] and told["blimp"][1:] == ["50.0%", "2"]
    assert "wikitext, bits per byte" in told and "morphology" not in str(told) and result["n"] > 6
    for name in ("set_*", "set_characters_*", "set_perplexity_*", "set_words_*", "set_bytes_*"):
        assert list(metric(name).scores({"language_sets": result})), name


@pytest.mark.parametrize(
    "line, message",
    [
        ({"context": 3, "choices": [" a"], "answer": "A"}, "line 1: 'context' must be a text"),
        ({"context": "x", "choices": [" a", " b"], "answer": "C"}, "line 1: the answer 'C' names no choice"),
        ({"context": "x", "choices": [" a", ""], "answer": "A"}, "line 1: 'choices' must be a list of 1 to 26 texts"),
        ({"text": " "}, "line 1: neither a question .* with words in it"),
        ({"question": "x ___"}, "line 1: neither a question .* nor"),
    ],
)
def test_a_line_of_another_form_is_named(tmp_path, line, message):
    (tmp_path / "x.jsonl").write_text(json.dumps(line) + "\n")
    with pytest.raises(ValueError, match=message):
        read_sets([tmp_path], None)


def test_mixed_lines_and_equal_names_are_refused(folder):
    (folder / "blimp.jsonl").write_text(json.dumps(PAIRS[0]) + "\n" + json.dumps(WORDS[0]) + "\n")
    with pytest.raises(ValueError, match="line 2: a line of last word in a file of choices"):
        read_sets([folder], None)
    with pytest.raises(ValueError, match="two sets of the name 'choose'"):
        read_sets([folder / "choose.jsonl"] * 2, None)
    with pytest.raises(FileNotFoundError, match="give another --language_sets"):
        read_sets(["nowhere.jsonl"], None)
