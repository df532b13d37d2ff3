"""Readings of a run."""

import time
from types import SimpleNamespace

import pytest
import torch

from model.memory.bank import access_histogram
from trainer.meters import Meter, Stopwatch
from trainer.state import TrainState


def test_entries_are_counted_by_powers_of_two_of_their_reads():
    uses_N = torch.tensor([0, 0, 1, 2, 3, 4, 7, 8])
    assert access_histogram(uses_N) == [2, 1, 2, 2, 1]
    assert access_histogram(torch.zeros(3)) == [3]


def test_a_part_and_a_pause_that_fail_are_counted():
    watch = Stopwatch(torch.device("cpu"))
    watch.begin_step(measure=True)
    with pytest.raises(OSError), watch("data"):
        raise OSError
    assert watch.shares() == {"time_share/data": 1.0}
    state = TrainState(total_steps=2, steps_per_epoch=2, tokens_per_step=8, split={})
    with Meter(state, SimpleNamespace(is_main_process=False), str) as meter:
        before = meter.clock
        with pytest.raises(OSError), meter.paused():
            time.sleep(0.01)
            raise OSError
    assert meter.clock >= before + 0.01


def test_a_part_waits_for_the_stream_of_the_step_alone(monkeypatch):
    """Another stream searches for the next batch meanwhile, which is no part of this step."""
    waited, device = [], torch.device("cuda")
    stream = SimpleNamespace(synchronize=lambda: waited.append("stream"))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda of: stream)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda of=None: waited.append("device"))
    watch = Stopwatch(device)
    with watch("data"):
        pass
    assert waited == []
    watch.begin_step(measure=True)
    with watch("data"):
        pass
    assert waited == ["stream", "stream"]
