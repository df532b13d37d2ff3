"""Muon against torch.optim.Muon, its skipped steps, its state, and whole runs with it."""

import copy

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from tests.conftest import tiny_model
from tests.tiny_runs import metrics
from trainer.checkpoint import load_optimizer_tensors, optimizer_tensors
from trainer.config import OptimConfig, parse_cli
from trainer.muon import Muon, compiled_nesterov, nesterov, orthogonalized, pieces_of
from trainer.optim import make_optimizer, parameter_groups
from trainer.step import step_if_finite

CONFIG = OptimConfig(optimizer="muon", learning_rate=3e-3, muon_lr_scale=2.0)
CPU = torch.device("cpu")


def muon_of(*matrices: nn.Parameter, rows: list[list[int]], lr=0.02) -> Muon:
    return Muon([{"params": list(matrices), "rows": rows, "momentum": 0.9, "weight_decay": 0.1}], lr=lr, fused=True)


def steps_with(optimizer, parameters, n: int = 4, seed: int = 1) -> None:
    generator = torch.Generator().manual_seed(seed)
    for _ in range(n):
        for parameter in parameters:
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        optimizer.step()


def in_float64(matrix: torch.Tensor, lr: float, decay: float, weight_decay: float, n: int = 4, seed: int = 1):
    """The matrix after `steps_with`, by the formulas of Jordan et al. 2024 and Liu et al. 2025."""
    generator, matrix, momentum = torch.Generator().manual_seed(seed), matrix.double(), 0.0
    for _ in range(n):
        gradient = torch.randn(matrix.shape, generator=generator).double()
        momentum = decay * momentum + (1 - decay) * gradient
        update = (1 - decay) * gradient + decay * momentum
        update = update / update.norm()
        for _ in range(5):
            gram = update @ update.T
            update = 3.4445 * update + (-4.7750 * gram + 2.0315 * gram @ gram) @ update
        matrix = (1 - lr * weight_decay) * matrix - lr * 0.2 * max(matrix.shape) ** 0.5 * update
    return matrix


@pytest.mark.parametrize("shape", [(24, 24), (48, 16), (16, 48), (9, 31)], ids=str)
def test_one_matrix_steps_as_with_torch_optim_muon(shape):
    if not hasattr(torch.optim, "Muon"):
        pytest.skip("torch.optim.Muon came with torch 2.9")
    ours, theirs = (nn.Parameter(torch.linspace(-1, 1, shape[0] * shape[1]).view(shape)) for _ in range(2))
    start = ours.detach().clone()
    muon = muon_of(ours, rows=[[shape[0]]])
    reference = torch.optim.Muon(
        [theirs], lr=0.02, momentum=0.9, weight_decay=0.1, nesterov=True, adjust_lr_fn="match_rms_adamw"
    )
    steps_with(muon, [ours])
    steps_with(reference, [theirs])
    exact = in_float64(start, lr=0.02, decay=0.9, weight_decay=0.1)
    our_error, their_error = ((each.detach().double() - exact).norm() for each in (ours, theirs))
    assert our_error < 1.2 * their_error < 0.03 * (exact - start.double()).norm()  # both multiply in bfloat16


def test_the_update_is_nearly_orthogonal_and_has_the_size_of_adamws():
    matrix_MIO = orthogonalized(torch.randn(3, 32, 64).bfloat16()).float()
    assert 0.6 < torch.linalg.svdvals(matrix_MIO).min() and torch.linalg.svdvals(matrix_MIO).max() < 1.3
    matrix = nn.Parameter(torch.zeros(32, 64))
    muon = muon_of(matrix, rows=[[32]], lr=1.0)
    steps_with(muon, [matrix], n=1)
    assert float(matrix.detach().square().mean().sqrt()) == pytest.approx(0.2, rel=0.2)


@pytest.mark.parametrize("heights", [[16, 16, 16], [16, 8, 8], [24, 24]], ids=str)
def test_joined_matrices_step_as_separate_ones(heights):
    whole = torch.randn(sum(heights), 16)
    joined, apart = nn.Parameter(whole.clone()), [nn.Parameter(part.clone()) for part in whole.split(heights)]
    one, several = muon_of(joined, rows=[heights]), muon_of(*apart, rows=[[height] for height in heights])
    for step in range(3):
        joined.grad = torch.randn(whole.shape, generator=torch.Generator().manual_seed(step))
        for part, gradient in zip(apart, joined.grad.split(heights), strict=True):
            part.grad = gradient.clone()
        one.step()
        several.step()
    assert torch.equal(joined, torch.cat(apart)) and not torch.equal(joined, whole)


@pytest.mark.parametrize("skip", [0.0, 1.0])
@pytest.mark.slow
def test_the_compiled_momentum_equals_the_plain_one(skip):
    for n in (100, 1, 333):
        gradient_X, momentum_X, made = torch.randn(n), torch.randn(n), []
        for make in (nesterov, compiled_nesterov):
            momentum = momentum_X.clone()
            made.append((make(gradient_X, momentum, 0.9, torch.tensor(skip)), momentum))
        (plain, plain_momentum), (compiled, compiled_momentum) = made
        torch.testing.assert_close(compiled, plain, rtol=1e-2, atol=1e-5)
        torch.testing.assert_close(compiled_momentum, plain_momentum)
        assert plain.dtype == torch.bfloat16 and bool(plain.any()) == (skip == 0)
        assert torch.equal(plain_momentum, momentum_X) == (skip == 1)


def test_rows_that_do_not_fill_a_parameter_are_refused():
    with pytest.raises(ValueError, match="do not fill"):
        list(pieces_of(torch.zeros(10, 4), [4, 4]))


@pytest.mark.parametrize("design", [{"model_type": "model_original", "n_kv_heads": 2}, {"keep_ffn": True}], ids=str)
def test_muon_has_the_matrices_of_the_blocks_and_adamw_the_rest(design):
    model = tiny_model(**design)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = {group["name"]: group for group in parameter_groups(model, CONFIG)}
    assert sum(len(group["params"]) for group in groups.values()) == len(names)
    by_muon = {names[id(p)]: rows for p, rows in zip(groups["muon"]["params"], groups["muon"]["rows"], strict=True)}
    kv = 16 if "n_kv_heads" in design else 32
    assert by_muon["blocks.0.attention.qkv_proj.weight"] == [32, kv, kv]
    F = model.settings.hidden_dim
    assert by_muon["blocks.1.feed_forward.gate_up_proj.weight"] == [F, F]
    assert not any(part in name for name in by_muon for part in ("norm", "embedding", "keys_2RK", "query_proj"))
    assert groups["muon"]["lr_scale"] == 2.0 and groups["muon"]["weight_decay"] == CONFIG.weight_decay


def guarded(model):
    optimizer = make_optimizer(model, CONFIG, CPU)
    optimizer.optimizer = optimizer  # step_if_finite expects accelerate's wrapper
    return optimizer


def fill_gradients(model, step: int) -> None:
    generator = torch.Generator().manual_seed(step)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)


def test_a_skipped_step_changes_nothing_but_the_versions():
    model = tiny_model()
    optimizer = guarded(model)
    fill_gradients(model, 0)
    step_if_finite(optimizer, torch.tensor(1.0), torch.tensor(1.0))
    before, versions = copy.deepcopy(model.state_dict()), [p._version for p in model.parameters()]
    state = {name: tensor.clone() for name, tensor in optimizer_tensors(model, optimizer).items()}
    fill_gradients(model, 1)
    for parameter in model.parameters():
        parameter.grad.fill_(float("nan"))
    assert step_if_finite(optimizer, torch.tensor(float("nan")), torch.tensor(1.0))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(torch.equal(tensor, state[name]) for name, tensor in optimizer_tensors(model, optimizer).items())
    assert all(p._version > version for p, version in zip(model.parameters(), versions, strict=True))
    fill_gradients(model, 2)
    assert not step_if_finite(optimizer, torch.tensor(1.0), torch.tensor(1.0))
    assert not any(torch.equal(p, before[name]) for name, p in model.named_parameters())


@pytest.mark.parametrize("way", ["checkpoint", "state_dict"])
def test_a_restored_optimizer_goes_on_bit_for_bit(way):
    model = tiny_model(n_kv_heads=2)
    optimizer = guarded(model)
    finite = torch.tensor(1.0), torch.tensor(1.0)
    for step in range(2):
        fill_gradients(model, step)
        step_if_finite(optimizer, *finite)
    other = copy.deepcopy(model)
    restored = guarded(other)
    if way == "checkpoint":
        tensors = {name: tensor.clone() for name, tensor in optimizer_tensors(model, optimizer).items()}
        fill_gradients(other, 7)
        restored.step()  # what it holds by now is overwritten
        other.load_state_dict(model.state_dict())
        load_optimizer_tensors(other, restored, tensors)
    else:
        restored.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for step in range(2, 4):
        for each, its in ((model, optimizer), (other, restored)):
            fill_gradients(each, step)
            step_if_finite(its, *finite)
    assert all(map(torch.equal, model.parameters(), other.parameters()))


def test_a_parameter_without_gradient_is_stepped_by_a_zero_one():
    used, unused = nn.Parameter(torch.ones(16, 16)), nn.Parameter(torch.ones(16, 16))
    muon = muon_of(used, unused, rows=[[16], [16]], lr=0.1)
    used.grad = torch.randn(16, 16)
    muon.step()
    torch.testing.assert_close(unused.detach(), torch.full((16, 16), 0.99))  # the decay alone


def test_a_scaled_gradient_is_refused():
    matrix = nn.Parameter(torch.ones(8, 8))
    muon = muon_of(matrix, rows=[[8]])
    muon.grad_scale = torch.tensor(2.0)
    with pytest.raises(ValueError, match="unscale"):
        muon.step()


def test_a_momentum_of_one_is_refused():
    with pytest.raises(ValueError, match="--muon_momentum must lie in .0, 1., got 1.0"):
        parse_cli(["--muon_momentum", "1"])


MUON = ("--optimizer", "muon", "--learning_rate", "2e-3")


def weights(run):
    return load_file(run / "model.safetensors")


@pytest.mark.slow
def test_a_run_with_muon_that_stops_and_resumes_equals_one_that_never_stopped(runs, tmp_path):
    assert runs.start("whole", *MUON).code == 0
    assert runs.start("parts", *MUON, "--max_steps", "12", fault=stop_after_six).code == 143
    assert runs.start("parts", *MUON).code == 0
    whole, parts = weights(tmp_path / "whole"), weights(tmp_path / "parts")
    assert all(torch.equal(tensor, parts[name]) for name, tensor in whole.items())
    assert metrics(tmp_path / "whole", "loss") == metrics(tmp_path / "parts", "loss")
    adamw = runs.start("parts", "--max_steps", "14")
    assert adamw.code == 1 and "was written with --optimizer muon: use the same" in adamw.output


def stop_after_six() -> None:
    import os
    import signal

    import train_pretrain_accelerate as script

    plain = script.lr_at

    def lr_at(step, *rest):
        if step == 6:
            os.kill(os.getpid(), signal.SIGTERM)
        return plain(step, *rest)

    script.lr_at = lr_at


@pytest.mark.slow
def test_two_processes_with_muon_equal_one(runs, tmp_path):
    assert runs.start("one", *MUON, "--batch_size", "8").code == 0
    assert [rank.code for rank in runs.start_ranks("two", *MUON)] == [0, 0]
    one, two = (torch.tensor([loss for _, loss in metrics(tmp_path / name, "loss")]) for name in ("one", "two"))
    torch.testing.assert_close(two, one, rtol=2e-3, atol=0)
    assert one[-1] < one[0] - 0.1
