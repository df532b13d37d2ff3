"""The state of a run, and what its log lines say."""

import json
import math

import pytest
import torch

from trainer.state import SAVED, Outcome, TrainState

DUE = [3, 6, 9, 10]


def fresh() -> TrainState:
    return TrainState(total_steps=10, steps_per_epoch=4, tokens_per_step=8, split={"--seed": 1})


def outcome(loss: float, skipped: bool) -> Outcome:
    return Outcome(0.1, torch.tensor(loss), torch.tensor(1.0), torch.tensor(skipped), [], {}, None, {})


def test_a_skipped_loss_is_counted_and_not_summed_and_a_restored_state_is_the_same():
    state = fresh()
    for loss, skipped in ((2.0, False), (math.nan, True), (3.0, False), (math.inf, True), (math.nan, True)):
        state.advance(outcome(loss, skipped))
    state.note(4.0)
    saved = json.loads(json.dumps(state.saved()))
    assert tuple(saved) == SAVED and saved["loss_sum"] == 5.0 and saved["loss_steps"] == 5
    assert (saved["skipped"], saved["skipped_in_row"], saved["step"], saved["best_step"]) == (3, 2, 5, 5)
    other = fresh()
    other.restore(saved | {"checksums": {}, "scaler": None})
    assert other.saved() == saved
    other.start_interval()
    assert (other.saved()["loss_sum"], other.loss_steps, other.skipped_at_log) == (0.0, 0, 3)


def test_an_interval_is_due_at_its_multiples_and_at_the_end():
    state, now, ahead = fresh(), [], []
    for _ in range(10):
        ahead.append(state.due(3, ahead=1))
        state.advance(outcome(1.0, False))
        now.append(state.due(3))
    assert now == ahead and [step for step, due in enumerate(now, 1) if due] == DUE


def test_the_best_validation_is_the_lowest_finite_one_and_that_of_its_step_alone():
    state, best = fresh(), []
    for val_loss in (math.nan, 3.0, 3.0, 2.0, math.inf, 2.5):
        state.advance(outcome(1.0, False))
        state.note(val_loss)
        best.append(state.is_best)
    assert best == [False, True, False, True, False, False]
    assert (state.best_val_loss, state.best_step) == (2.0, 4)


def test_too_many_skipped_steps_in_a_row_end_the_run():
    state = fresh()
    for skipped in (True, False, True, True):
        state.advance(outcome(math.nan, skipped))
    state.refuse_divergence(3, None)
    with pytest.raises(FloatingPointError, match=r"2 steps in a row, to step 4, .* \(first in a.weight\)"):
        state.refuse_divergence(2, "a.weight")
