"""Fusion: what cross-attention keeps between calls is never older than its parameters."""

import copy

import pytest
import torch

from tests.conftest import tiny_model


def logits(model, autocast=False):
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        return model(input_ids=torch.arange(3, 19).view(2, 8)).logits


def rebuilt(model):
    """A model of the same parameters that has never been called."""
    other = tiny_model(seed=9).to(model.dtype)
    other.load_state_dict(model.state_dict())
    return other


def scale(model, linear):
    with torch.no_grad():
        linear.weight.mul_(1.5)


def load(model, linear, **how):
    state = {name: value.clone() for name, value in model.state_dict().items()}
    name = next(name for name, module in model.named_modules() if module is linear)
    state[f"{name}.weight"] *= 2
    model.load_state_dict(state, **how)


def train(model, linear, fused):
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, fused=fused)
    ids = torch.arange(3, 19).view(2, 8)
    model.train()(input_ids=ids, labels=ids).loss.backward()
    model.eval()
    optimizer.step()
    if fused:  # as the training loop does
        torch.autograd.graph.increment_version(model.parameters())


def replace(model, linear):
    linear.weight = torch.nn.Parameter(linear.weight.detach() * 1.1)


CHANGES = {
    "an edit": scale,
    "loading": load,
    "loading by assignment": lambda model, linear: load(model, linear, assign=True),
    "training": lambda model, linear: train(model, linear, fused=False),
    "fused training": lambda model, linear: train(model, linear, fused=True),
    "another parameter": replace,
    "rounding": lambda model, linear: model.bfloat16().float(),
    "another precision": lambda model, linear: model.double(),
}


@pytest.mark.parametrize("projection", ["q_proj", "k_proj", "v_proj"])
@pytest.mark.parametrize("change", CHANGES)
def test_a_call_without_gradient_sees_every_change_of_a_weight(change, projection):
    model = tiny_model()
    before = logits(model)
    CHANGES[change](model, getattr(model.blocks[0].fusion, projection))
    after = logits(model)
    assert not torch.equal(after, before)
    assert torch.equal(after, logits(rebuilt(model)))


def test_a_parameter_in_the_memory_of_an_old_one_is_seen():
    model = tiny_model()
    for _ in range(20):
        for _ in range(2):  # the second may be put where the first of the last call lay
            replace(model, model.blocks[0].fusion.k_proj)
        assert torch.equal(logits(model), logits(rebuilt(model)))


def test_padded_weights_are_kept_while_nothing_changes():
    model = tiny_model()
    kept = model.blocks[0].fusion.kept
    logits(model)
    weights = kept.made[-1]
    logits(model)
    assert kept.made[-1] is weights
    logits(model, autocast=True)
    assert {weight.dtype for weight in kept.made[-1]} == {torch.bfloat16}
    assert torch.equal(logits(model), logits(rebuilt(model)))  # in float32 again


def test_a_copy_does_not_share_what_was_kept():
    model = tiny_model()
    logits(model)
    scale(model, model.blocks[0].fusion.k_proj)  # what was kept is old
    other = copy.deepcopy(model)
    assert torch.equal(logits(other), logits(rebuilt(model)))


def test_gradients_reach_the_weights_after_a_call_without_gradient():
    model, ids = tiny_model(), torch.arange(3, 19).view(2, 8)
    logits(model)
    model(input_ids=ids, labels=ids).loss.backward()
    other = rebuilt(model)
    other(input_ids=ids, labels=ids).loss.backward()
    for projection in ("q_proj", "k_proj", "v_proj"):
        gradient, expected = (getattr(m.blocks[0].fusion, projection).weight.grad for m in (model, other))
        assert torch.equal(gradient, expected) and gradient.any()
