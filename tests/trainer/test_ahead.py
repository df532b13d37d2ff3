"""Batches that are prepared ahead: the same, in order, once each, and no further ahead than one."""

import pytest
import torch

from trainer.ahead import prepared_ahead

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


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device: another stream")
def test_on_another_stream_nothing_is_overwritten_before_it_is_used():
    device, log = torch.device("cuda"), []

    def prepare(input_ids):
        large = input_ids.expand(1 << 22).clone()
        for _ in range(50):
            large = large + 1 - 1
        return {"large": large}

    for number, batch in enumerate(prepared_ahead(numbered(40, log), prepare, device)):
        total = torch.zeros((), dtype=torch.int64, device=device)
        for _ in range(50):
            total += (batch["large"] != number).sum()
        del batch
        assert int(total) == 0
