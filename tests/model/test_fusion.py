"""Fusion: what is kept between calls without gradient is never older than the parameters that it was made of."""

import copy
from itertools import product
from types import SimpleNamespace

import pytest
import torch

from model import build_model
from model.layers import DerivedWeights
from model.memory import FUSIONS, entry_vectors
from model.memory.entry_vectors import VectorFusion
from model.memory.interfaces import Found
from tests.conftest import tiny_config, tiny_model
from tests.model.variants import VARIANTS

VECTOR_FUSIONS = [name for name, fusion in FUSIONS.items() if issubclass(fusion, VectorFusion)]
KEEPERS = {
    f"{path}.weight": variant
    for variant, paths in {
        "cross_attention-sequence-product_key": [
            *(f"blocks.0.fusion.{name}_proj" for name in "qkv"), "blocks.0.fusion.entry_norm",
        ],
        "gated_mlp-token-product_key": ["blocks.0.fusion.gate_up_proj", "blocks.0.fusion.entry_norm"],
        "ngram-words-pointer": [
            "embedding", "blocks.0.fusion.v_proj", "pointer.attention.k_proj",
            *(f"blocks.0.fusion.attention.{name}_proj" for name in ("k", "previous_k", "entry_k")),
        ],
    }.items()
    for path in paths
}  # fmt: skip


def logits(model, autocast=False):
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        return model(input_ids=torch.arange(3, 19).view(2, 8)).logits


def rebuilt(model):
    """A model of the same parameters that has never been called."""
    other = build_model(model.settings, seed=9).eval().to(model.dtype)
    other.load_state_dict(model.state_dict())
    return other


def scale(model, weight):
    with torch.no_grad():
        weight.mul_(1.5)


def names_of(model, weight):
    return [name for name, parameter in model.named_parameters(remove_duplicate=False) if parameter is weight]


def load(model, weight, **how):
    state = {name: value.clone() for name, value in model.state_dict().items()}
    for name in names_of(model, weight):
        state[name] *= 2
    model.load_state_dict(state, **how)


def train(model, weight, fused):
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, fused=fused)
    ids = torch.arange(3, 19).view(2, 8)
    model.train()(input_ids=ids, labels=ids).loss.backward()
    model.eval()
    optimizer.step()
    if fused:  # as the training loop does
        torch.autograd.graph.increment_version(model.parameters())


def replace(model, weight):
    other = torch.nn.Parameter(weight * 2)
    for name in names_of(model, weight):
        model.get_submodule(name.removesuffix(".weight")).weight = other


CHANGES = {
    "an edit": scale,
    "loading": load,
    "loading by assignment": lambda model, weight: load(model, weight, assign=True),
    "training": lambda model, weight: train(model, weight, fused=False),
    "fused training": lambda model, weight: train(model, weight, fused=True),
    "another parameter": replace,
    "rounding": lambda model, weight: model.bfloat16().float(),
    "another precision": lambda model, weight: model.double(),
}


def pairs():
    """Each way with the first weight of each model, and each weight with an edit; the others are slow."""
    first = {variant: name for name, variant in reversed(KEEPERS.items())}.values()
    for name, change in product(KEEPERS, CHANGES):
        often = name in first or change == "an edit"
        yield pytest.param(change, name, marks=[] if often else pytest.mark.slow, id=f"{change}-{name}")


@pytest.mark.parametrize("change, name", list(pairs()))
def test_a_call_without_gradient_sees_every_change_of_a_weight(change, name):
    model = tiny_model(**VARIANTS[KEEPERS[name]])
    before = logits(model)
    CHANGES[change](model, model.get_parameter(name))
    after = logits(model)
    assert not torch.equal(after, before)
    assert torch.equal(after, logits(rebuilt(model)))


def test_padded_weights_are_kept_while_nothing_changes():
    model = tiny_model()
    kept = model.blocks[0].fusion.derived
    logits(model)
    weights = kept.stored[-1]
    logits(model)
    assert kept.stored[-1] is weights
    logits(model, autocast=True)
    assert {weight.dtype for weight in kept.stored[-1]} == {torch.bfloat16}
    assert torch.equal(logits(model), logits(rebuilt(model)))  # in float32 again


def test_a_copy_does_not_share_what_was_kept():
    model = tiny_model()
    logits(model)
    scale(model, model.blocks[0].fusion.k_proj.weight)  # what was kept is old
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


def test_what_was_kept_is_not_taken_for_that_of_new_parameters_in_freed_memory():
    kept = DerivedWeights()
    with torch.no_grad():
        for value in range(20):
            weight = torch.nn.Parameter(torch.full((1000,), float(value)))
            assert kept(weight.mean, weight) == value
            del weight


def test_a_model_that_was_made_for_inference_alone_runs():
    with torch.inference_mode():
        model = tiny_model(**VARIANTS["ngram-words-pointer"])
    assert torch.equal(logits(model), logits(model))


@pytest.mark.parametrize("kind", VECTOR_FUSIONS)
@pytest.mark.parametrize("scope", ["token", "sequence"])
def test_a_gain_in_the_weights_is_one_of_the_vectors(kind, scope, monkeypatch):
    model, ids = tiny_model(fusion=kind, fusion_scope=scope, memory_layers=[0]).double(), torch.arange(3, 19).view(2, 8)
    gain = 1 + torch.randn(model.settings.dim, dtype=torch.float64) / 2
    gain[::3] = 0
    with torch.no_grad():
        model.blocks[0].fusion.entry_norm.weight.copy_(gain)
        actual = model(input_ids=ids).logits
        model.blocks[0].fusion.entry_norm.weight.fill_(1)
        unit_entries = entry_vectors.unit_entries

        def with_gain(token_BTSL, *rest):
            vectors = unit_entries(token_BTSL, *rest)
            vectors[:, :, -token_BTSL.shape[2] :] *= gain
            return vectors

        monkeypatch.setattr(entry_vectors, "unit_entries", with_gain)
        torch.testing.assert_close(actual, model(input_ids=ids).logits)


@pytest.mark.parametrize("kind", VECTOR_FUSIONS)
def test_the_first_position_is_the_same_in_both_scopes(kind):
    ids, logits = torch.tensor([[5], [7]]), []
    for scope in ("token", "sequence"):
        model = tiny_model(fusion=kind, fusion_scope=scope).double()
        with torch.no_grad():
            for block in model.blocks:
                block.fusion.entry_norm.weight.copy_(torch.linspace(-1, 2, model.settings.dim))
            logits.append(model(input_ids=ids).logits)
    torch.testing.assert_close(*logits)


@pytest.mark.parametrize("is_normalised", [True, False])
def test_weights_are_normed_where_the_retrieval_has_not_and_never_because_an_entry_is_missing(is_normalised):
    class LogWeights(VectorFusion):
        def fuse(self, x_BTD, entries, log_weight_BTS, context):
            return log_weight_BTS

    weight_BTS, missing_BTS = torch.tensor([[[0.3, 0.2, 0.1]]]), torch.tensor([[[False, False, True]]])
    found = Found(torch.zeros(1, 1, 3).long(), None, weight_BTS.log(), missing_BTS, is_normalised=is_normalised)
    fused_BTS, read_BTS = LogWeights(tiny_config(), 0)(None, found, SimpleNamespace(embedding_VD=None, common=None))
    expected_BTS = weight_BTS if is_normalised else weight_BTS / 0.6
    torch.testing.assert_close(fused_BTS.exp(), expected_BTS)
    torch.testing.assert_close(read_BTS, expected_BTS * ~missing_BTS)
