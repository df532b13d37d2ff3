"""Scoring, intervals, controls of the bank and statistics of usage."""

import pytest
import torch

from dataset.questions import read_questions, split_question
from dataset.tokenizer import load_tokenizer
from editing.trace import trace
from evaluation.config import EvalConfig, wilson_interval
from evaluation.controls import BANK_CONTROLS
from evaluation.generation import distinct, repetition_rate
from evaluation.likelihood import encode, log_likelihoods
from evaluation.usage import gini
from tests.conftest import tiny_model


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer("dataset/tokenizer")


@pytest.fixture(scope="module")
def model():
    return tiny_model(vocab_size=6400)


def test_batched_scores_equal_scores_one_by_one(model, tokenizer):
    pairs = [("The river", " Seine is long."), ("A", " b"), ("", "Nothing before it"), ("He was born in", " 1984")]
    batched = log_likelihoods(model, tokenizer, pairs, batch_size=4)
    for (prompt, option), (score, n) in zip(pairs, batched, strict=True):
        ids, start = encode(tokenizer, prompt, option)
        log_p = model(torch.tensor([ids])).logits[0].log_softmax(dim=-1)
        expected = sum(float(log_p[place - 1, ids[place]]) for place in range(start, len(ids)))
        assert n == len(ids) - start
        assert score == pytest.approx(expected, abs=1e-4)


def test_a_question_is_split_at_its_blank():
    assert split_question("It is in the ___ style.", ["old"]) == ("It is in the", [" old style."])
    assert split_question("___ is red.", ["Mars"]) == ("", ["Mars is red."])


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
