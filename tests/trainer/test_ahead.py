"""Batches that are prepared ahead: the same, in order, once each, and no further ahead than one."""

from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file

from model.model_memory import MemoryTransformer
from tests.conftest import tiny_model
from tests.tiny_runs import metrics
from trainer.ahead import prepared_ahead
from trainer.config import DataConfig, Flags, OptimConfig, RunConfig
from trainer.step import TrainStep

CPU = torch.device("cpu")


def numbered(n: int, log: list):
    try:
        for number in range(n):
            yield {"input_ids": torch.tensor([number])}
    finally:
        log.append("closed")


@pytest.mark.parametrize("n", [0, 1, 2, 5])
def test_each_batch_is_prepared_once_and_before_the_one_before_it_is_used(n):
    log = []

    def prepare(input_ids):
        log.append(f"prepare {int(input_ids)}")
        return {"double": 2 * input_ids}

    seen = []
    for batch in prepared_ahead(numbered(n, log), prepare, CPU):
        log.append(f"use {int(batch['input_ids'])}")
        seen.append(int(batch["double"]))
    assert seen == [2 * number for number in range(n)]
    expected = [f"prepare {number}" for number in range(n)]
    for number in range(n):
        expected.insert(2 * number + min(2, n - number), f"use {number}")
    log.remove("closed")
    assert log == expected


@pytest.mark.parametrize("n", [0, 1, 3, 7])
def test_several_batches_are_prepared_as_one_and_each_gets_its_rows(n):
    def batches():
        for number in range(n):
            yield {"input_ids": torch.full((1 + number % 2, 3), number), "labels": torch.arange(1 + number % 2)}

    log = []

    def prepare(input_ids, labels):
        log.append(input_ids[:, 0].tolist())
        return {"double": 2 * input_ids, "same": labels}

    seen = list(prepared_ahead(batches(), prepare, CPU, n_together=3))
    for batch, expected in zip(seen, batches(), strict=True):
        assert torch.equal(batch["double"], 2 * expected["input_ids"]) and torch.equal(
            batch["same"], expected["labels"]
        )
        assert torch.equal(batch["input_ids"], expected["input_ids"])
    assert log == [[0, 1, 1, 2], [3, 3, 4, 5, 5], [6]][: -(-n // 3)] or n == 1 and log == [[0]]


def test_closing_it_closes_the_batches():
    log = []
    batches = prepared_ahead(numbered(5, log), lambda input_ids: {}, CPU)
    next(batches)
    batches.close()
    assert log == ["closed"]


def test_what_cannot_be_prepared_is_an_error_of_its_batch_and_not_lost():
    def prepare(input_ids):
        if input_ids == 2:
            raise RuntimeError("no search")
        return {}

    batches = prepared_ahead(numbered(5, []), prepare, CPU)
    with pytest.raises(RuntimeError, match="no search"):
        list(batches)


@pytest.mark.parametrize(
    "variant, searches",
    [
        ({"model_type": "model_original"}, False),
        ({}, False),
        ({"retrieval_loss_coef": 1.0, "ngram_lengths": [2]}, True),
        ({"retrieval": "ngram", "ngram_lengths": [2]}, True),
        ({"retrieval": "ngram", "ngram_lengths": [2], "memory_layers": [-1]}, False),
    ],
    ids=["original", "product_key", "taught", "ngram", "unread"],
)
def test_only_what_searches_the_text_prepares_batches(variant, searches):
    model = tiny_model(**variant)
    flags = Flags(model.settings, DataConfig(), OptimConfig(dtype="float32"), RunConfig())
    step, batches = TrainStep(model, flags, Accelerator(cpu=True), SimpleNamespace(received=None)), numbered(1, [])
    assert (step.prepared(batches) is not batches) == searches


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device: another stream")
@pytest.mark.parametrize("n_together", [1, 3])
def test_on_another_stream_nothing_is_overwritten_before_it_is_used(n_together):
    device, log = torch.device("cuda"), []

    def prepare(input_ids):
        large = input_ids[:, None].expand(-1, 1 << 22).clone()
        for _ in range(50):
            large = large + 1 - 1
        return {"large": large}

    for number, batch in enumerate(prepared_ahead(numbered(40, log), prepare, device, n_together)):
        total = torch.zeros((), dtype=torch.int64, device=device)
        for _ in range(50):
            total += (batch["large"] != number).sum()
        del batch
        assert int(total) == 0


WORDS = ("--retrieval", "ngram", "--fusion", "words", "--pointer", "--keep_ffn", "--retrieval_noise", "0.3")
TAUGHT = ("--retrieval_loss_coef", "1", "--teacher_forcing", "0.5", "--ngram_lengths", "2", "--entry_rows", "2")


def search_inside_the_step() -> None:
    MemoryTransformer.search_text = lambda self, **batch: {}


@pytest.mark.slow
@pytest.mark.parametrize("flags", [WORDS, TAUGHT], ids=["ngram", "taught"])
def test_a_run_that_searches_ahead_equals_one_that_searches_in_each_step(runs, flags):
    ended = runs.start("ahead", *flags), runs.start("inside", *flags, fault=search_inside_the_step)
    assert [run.code for run in ended] == [0, 0], ended[0].output + ended[1].output
    ahead, inside = runs.folder / "ahead", runs.folder / "inside"
    for name in ("loss", "val_loss", "grad_norm"):
        assert metrics(ahead, name) == metrics(inside, name)
    weights = [load_file(out / "model.safetensors") for out in (ahead, inside)]
    assert all((weights[0][name] == weights[1][name]).all() for name in weights[0])
