"""With `memory_every` training reads the memory in every n-th row, and learns the others as a plain model does."""

from dataclasses import replace

import pytest
import torch

from common.constants import IGNORED
from model import build_model
from tests.conftest import tiny_model
from tests.model.variants import VARIANTS, each
from trainer.config import DataConfig, Flags, OptimConfig, RunConfig, check_together

QUIET = {"dropout": 0.0, "attention_dropout": 0.0, "fusion_dropout": 0.0, "retrieval_noise": 0.0}
READING = [
    "bm25-coverage-pointer", "bm25-words", "ngram-words-pointer", "bm25-pointer", "ngram-continuations",
    "word_keys-pointer",
]  # fmt: skip
BOTH = ["bm25-and-suffix", "ngram-and-suffix"]


def model_and_batch(name: str, every: int | None, rows: int = 6, **more):
    model = tiny_model(**VARIANTS[name] | QUIET | {"memory_every": every} | more).train()
    ids = torch.randint(3, 61, (rows, 32), generator=torch.Generator().manual_seed(0))
    labels = ids.masked_fill(torch.rand(ids.shape, generator=torch.Generator().manual_seed(1)) < 0.3, IGNORED)
    return model, {"input_ids": ids, "labels": labels, "document_ids": (torch.arange(32) // 11).expand(rows, -1)}


def some(batch: dict, rows: slice) -> dict:
    return {name: value[rows] for name, value in batch.items()}


def summed(model, batch: dict) -> torch.Tensor:
    return model(**batch).lm_loss.detach() * (batch["labels"][:, 1:] != IGNORED).sum()


def plain_twin(model):
    twin = build_model(replace(model.settings, model_type="model_original")).train()
    assert not twin.load_state_dict(model.state_dict(), strict=False).missing_keys
    return twin


@each({name: name for name in READING}, "name")
@pytest.mark.parametrize("every", [2, 3])
def test_loss_is_that_of_a_memory_in_the_rows_that_are_read_and_of_a_plain_model_in_the_others(name, every):
    model, batch = model_and_batch(name, every)
    alone, read = tiny_model(**VARIANTS[name] | QUIET).train(), some(batch, slice(None, None, every))
    alone.load_state_dict(model.state_dict())
    others = {key: value[[row for row in range(6) if row % every]] for key, value in batch.items()}
    expected = summed(alone, read) + summed(plain_twin(model), others)
    assert summed(alone, batch) != pytest.approx(float(expected), rel=1e-5)
    torch.testing.assert_close(summed(model, batch), expected, rtol=3e-6, atol=0.0)


@each({name: name for name in [*READING, *BOTH]}, "name")
def test_matches_found_ahead_for_several_batches_change_no_bit(name):
    model, batch = model_and_batch(name, 2)
    found = model.search_text(**batch)  # six rows: those of three batches of two
    for first in range(0, 6, 2):
        part = slice(first, first + 2)
        ahead = {key: value[part] for key, value in found.items()}
        assert torch.equal(model(**some(batch, part), **ahead).lm_loss, model(**some(batch, part)).lm_loss)
    changed = {key: value.roll(7, dims=1) if key.startswith("match") else value for key, value in found.items()}
    assert model(**batch, **changed).lm_loss != model(**batch, **found).lm_loss


@each({name: name for name in BOTH}, "name")
def test_suffixes_are_read_in_all_rows(name):
    model, batch = model_and_batch(name, 2)
    found = model.search_text(**batch)
    expected = model(**batch, **found).loss
    for key in ("match_entry_BTC", "suffix_entry_BTC"):
        value = found[key].clone()
        value[1::2] = value[1::2].roll(5, dims=1)
        assert (model(**batch, **found | {key: value}).loss == expected) == key.startswith("match")


@each({name: name for name in ["bm25-coverage-pointer", "bm25-and-suffix"]}, "name")
def test_evaluation_reads_every_row(name):
    model, batch = model_and_batch(name, 2)
    whole = tiny_model(**VARIANTS[name] | QUIET).eval()
    whole.load_state_dict(model.state_dict())
    for found in ({}, model.eval().search_text(**batch)):
        ours, theirs = model(**batch, **found), whole(**batch)
        assert torch.equal(ours.logits, theirs.logits) and torch.equal(ours.loss, theirs.loss)


def test_logits_of_training_are_those_of_a_plain_model_in_rows_that_are_not_read():
    model, batch = model_and_batch("bm25-coverage-pointer", 3)
    logits, plain = model(**batch).logits, plain_twin(model)(**batch).logits.log_softmax(dim=-1)
    is_read = torch.arange(6) % 3 == 0
    torch.testing.assert_close(logits[~is_read], plain[~is_read])
    assert not torch.allclose(logits[is_read], plain[is_read], atol=1e-3)


def test_a_micro_batch_of_other_rows_is_refused():
    model, batch = model_and_batch("bm25-pointer", 4)
    for read in (model, model.search_text):
        with pytest.raises(ValueError, match="--memory_every 4 does not divide the 6 rows"):
            read(**batch)
    others = DataConfig(), OptimConfig(batch_size=50), RunConfig()
    with pytest.raises(ValueError, match="--memory_every 4 does not divide the 50 rows"):
        check_together(Flags(model.settings, *others))
    check_together(Flags(replace(model.settings, model_type="model_original"), *others))  # there the flag does nothing


@pytest.mark.parametrize(
    "more, sentence",
    [({"fusion": "cross_attention"}, "does not suit --fusion"), ({"keep_ffn": False}, "needs --keep_ffn")],
)
def test_what_it_does_not_suit_is_refused(more, sentence):
    with pytest.raises(ValueError, match=f"--memory_every {sentence}"):
        tiny_model(**VARIANTS["bm25-pointer"] | {"memory_every": 2} | more)
