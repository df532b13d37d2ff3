"""No number is wrong: what is not finite is skipped and counted, what repeats repeats bit for bit."""

import json
import math
from functools import partial

import pytest
import torch

from tests.conftest import tiny_model
from tests.tiny_runs import metrics
from trainer.checkpoint import checkpoint_dirs, read_state
from trainer.config import OptimConfig
from trainer.optim import make_optimizer
from trainer.state import Outcome, TrainState
from trainer.step import step_if_finite

from .faults import poison_gradient, poison_losses, run_out_of_gpu_memory


def fresh_state(device="cpu") -> TrainState:
    return TrainState(9, 9, 1, {}, torch.device(device))


def outcome_of(loss: torch.Tensor, grad_norm: torch.Tensor, skipped: torch.Tensor) -> Outcome:
    return Outcome(0.1, loss, grad_norm, skipped, [], {}, None, {})


def skips_of(state: TrainState) -> dict[str, int]:
    return {name: value for name, value in state.saved().items() if name in ("skipped", "skipped_in_row")}


class Accelerated:
    """The part of accelerate's optimizer that `step_if_finite` uses."""

    def __init__(self, optimizer):
        self.optimizer, self.param_groups, self.step = optimizer, optimizer.param_groups, optimizer.step


@pytest.mark.parametrize("loss, grad", [(math.nan, 1.0), (math.inf, 1.0), (1.0, math.nan), (1.0, math.inf)])
def test_a_step_that_is_not_finite_changes_nothing_and_is_counted(loss, grad):
    model = torch.nn.Linear(3, 3)
    optimizer = make_optimizer(model, OptimConfig(), torch.device("cpu"))
    state = fresh_state()

    def step(loss, grad):
        for parameter in model.parameters():
            parameter.grad = torch.full_like(parameter, grad)
        loss, grad_norm = torch.tensor(loss), torch.tensor(grad)
        state.advance(outcome_of(loss, grad_norm, step_if_finite(Accelerated(optimizer), loss, grad_norm)))
        everything = [*model.parameters(), *(v for values in optimizer.state.values() for v in values.values())]
        return [tensor.detach().clone() for tensor in everything]

    before, after = step(1.0, 1.0), step(loss, grad)
    assert all(map(torch.equal, before, after)) and skips_of(state) == {"skipped": 1, "skipped_in_row": 1}
    again = step(1.0, 1.0)
    assert not any(map(torch.equal, after, again)) and skips_of(state) == {"skipped": 1, "skipped_in_row": 0}


def test_the_lengths_of_the_entries_follow_every_optimizer_step():
    model = tiny_model()
    optimizer = make_optimizer(model, OptimConfig(learning_rate=0.1), torch.device("cpu"))
    old_N = model.bank.norms(model.embedding.weight).clone()
    model.embedding.weight.grad = torch.randn_like(model.embedding.weight)
    step_if_finite(Accelerated(optimizer), torch.tensor(1.0), torch.tensor(1.0))
    new_N = model.bank.norms(model.embedding.weight)
    assert not torch.equal(new_N, old_N)
    model.bank._norm_of = None
    assert torch.equal(new_N, model.bank.norms(model.embedding.weight))


def test_one_bad_step_is_skipped_and_the_run_goes_on(runs, survives):
    with survives("a loss that is not finite"):
        ended = runs.start("run", fault=partial(poison_losses, 9, 10))  # step 5, two micro-batches a step
        assert ended.code == 0, ended.output
    out = runs.folder / "run"
    losses = dict(metrics(out, "loss"))
    assert [step for step, loss in losses.items() if loss is None] == [5]
    assert [count for _, count in metrics(out, "skipped_steps")] == [0] * 4 + [1] * 8
    assert "1 of these 1 steps were skipped" in (out / "train.log").read_text()
    assert losses[12] < losses[1]


@pytest.mark.slow
def test_many_bad_steps_stop_the_run_and_the_last_good_checkpoint_goes_on_bit_for_bit(runs, survives):
    rewritten = ("--selection", "gumbel", "--ema_interval", "1")
    assert runs.start("whole", *rewritten).code == 0
    ended = runs.start("run", *rewritten, "--max_skipped_in_row", "3", fault=partial(poison_losses, 9, 999))
    assert ended.code == 1 and "Traceback" not in ended.output
    assert "error: 3 steps in a row, to step 7, had a loss or gradient that is not finite" in ended.output
    out = runs.folder / "run"
    assert "to step 7" in json.loads((out / "run.json").read_text())["error"]
    assert [path.name for path in checkpoint_dirs(out)] == ["checkpoint_00000004"]
    with survives("losses that are not finite, until the run stops"):
        assert runs.start("run", *rewritten).code == 0
        states = [read_state(checkpoint_dirs(runs.folder / name)[-1]) for name in ("whole", "run")]
        assert states[0] == states[1]  # with the checksums of weights, optimizer, random state and bank


@pytest.mark.parametrize("in_row", ["1", pytest.param("3", marks=pytest.mark.slow)])
def test_the_parameter_whose_gradient_is_bad_is_named(runs, in_row):
    ended = runs.start(
        "run", "--max_skipped_in_row", in_row, fault=partial(poison_gradient, "blocks.1.attention.qkv_proj.weight")
    )
    assert ended.code == 1 and "(first in blocks.1.attention.qkv_proj.weight)" in ended.output


def test_too_little_gpu_memory_ends_with_the_flag_to_change(runs):
    ended = runs.start("run", fault=run_out_of_gpu_memory)
    assert ended.code == 1 and "Traceback" not in ended.output
    assert (
        "too small for --batch_size 4 rows of --max_seq_len 32: --batch_size 2 --accumulation_steps 4" in ended.output
    )


@pytest.mark.slow
def test_the_same_seed_gives_the_same_fifty_losses(runs):
    fifty = ("--max_steps", "50", "--deterministic", "--eval_interval", "50", "--save_interval", "50")
    for name, seed in (("a", "1"), ("b", "1"), ("c", "2")):
        assert runs.start(name, *fifty, "--seed", seed).code == 0
    a, b, c = (metrics(runs.folder / name, "loss") for name in "abc")
    assert len(a) == 50 and a == b
    assert all(x != y for x, y in zip(a, c, strict=True))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_guard_does_not_wait_for_the_gpu():
    device = torch.device("cuda")
    model = torch.nn.Linear(3, 3, device=device)
    optimizer, state = make_optimizer(model, OptimConfig(), device), fresh_state(device)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    loss = torch.ones((), device=device)
    torch.cuda.set_sync_debug_mode("error")
    try:
        state.advance(outcome_of(loss, loss, step_if_finite(Accelerated(optimizer), loss, loss)))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert skips_of(state) == {"skipped": 0, "skipped_in_row": 0}
