"""The flags of the strong baseline, one by one; `variants.py` has them together under every invariant."""

import pytest
import torch
import torch.nn.functional as F

from common.constants import IGNORED
from model import ModelConfig
from model.losses import copying_loss, drawing_losses, language_model_loss, softcapped
from tests.conftest import tiny_config, tiny_model
from tests.model.variants import RECIPE
from trainer.config import OptimConfig, parse_cli
from trainer.optim import parameter_groups

PLAIN = {"model_type": "model_original"}
BOTH = pytest.mark.parametrize("design", [PLAIN, {"keep_ffn": True}], ids=["plain", "memory"])


def random_ids(*shape: int) -> torch.Tensor:
    return torch.randint(3, 61, shape)


def with_weights_of(model, **changes):
    """A model with further flags and the weights of another, its own where that has none."""
    other = tiny_model(seed=1, **changes)
    missing, unexpected = other.load_state_dict(model.state_dict(), strict=False)
    assert not unexpected
    return other, missing


def test_without_the_flags_a_model_has_no_further_parameters():
    names = set(tiny_model(**PLAIN).state_dict())
    with_flags = set(tiny_model(**PLAIN, **RECIPE).state_dict())
    assert {name for name in with_flags - names if "blocks.1" not in name} == {
        "blocks.0.enter_scale", "blocks.0.attention.q_gain_E", "blocks.0.attention.k_gain_E",
        "blocks.0.attention.value_embedding.weight", "blocks.0.feed_forward.up_proj.weight",
    }  # fmt: skip


@BOTH
def test_scalars_of_the_stream_start_as_if_they_were_not_there_and_add_the_embeddings(design):
    model, ids = tiny_model(**design), random_ids(2, 12)
    scaled, missing = with_weights_of(model, residual_scalars=True, **design)
    assert missing == ["blocks.0.enter_scale", "blocks.1.enter_scale"]
    assert torch.equal(scaled(ids).logits, model(ids).logits)
    with torch.no_grad():
        scaled.blocks[0].enter_scale.copy_(torch.tensor([0.0, 1.0]))
        model.embedding.weight.copy_(F.rms_norm(model.embedding.weight, (32,), eps=1e-8))
    seen = {}
    for each, place in ((scaled, "scaled"), (model, "normed")):
        each.blocks[0].attention_norm.register_forward_pre_hook(
            lambda module, args, place=place: seen.update({place: args[0]})
        )
        each(ids)
    torch.testing.assert_close(seen["scaled"], seen["normed"])


@BOTH
def test_outputs_that_start_at_zero_leave_the_stream_as_it_is(design):
    model, ids = tiny_model(zero_init_out=True, **design), random_ids(2, 12)
    stream_BTD = model.embedding(ids)
    torch.testing.assert_close(model(ids).logits, model.lm_head(model.norm(stream_BTD)))
    model.train()
    model(ids, labels=ids).loss.backward()
    assert model.blocks[0].attention.out_proj.weight.grad.abs().max() > 0


@pytest.mark.parametrize("sizes", [{"dim": 512, "n_heads": 8}, {"dim": 768, "n_heads": 12}, {"ffn_dim": 100}], ids=str)
def test_a_squared_relu_has_the_parameters_of_swiglu(sizes):
    gated, squared = (ModelConfig(**PLAIN, ffn_activation=name, **sizes) for name in ("swiglu", "relu2"))
    if "ffn_dim" in sizes:
        assert gated.hidden_dim == squared.hidden_dim == 100
    else:
        assert 3 * gated.hidden_dim == 2 * squared.hidden_dim


def test_the_squared_relu_is_that():
    ffn = tiny_model(**PLAIN, ffn_activation="relu2").blocks[0].feed_forward
    x_BTD = torch.randn(1, 3, 32)
    expected = (x_BTD @ ffn.up_proj.weight.T).clamp(min=0) ** 2 @ ffn.out_proj.weight.T
    torch.testing.assert_close(ffn(x_BTD)[0], expected)


def test_normed_queries_and_keys_forget_their_scale_and_mind_the_gain():
    model, ids = tiny_model(**PLAIN, qk_norm=True), random_ids(2, 12)
    logits = model(ids).logits
    with torch.no_grad():
        for block in model.blocks:
            block.attention.qkv_proj.weight[:64] *= 50  # D rows of queries, then D of keys
    torch.testing.assert_close(model(ids).logits, logits, rtol=1e-2, atol=1e-3)
    with torch.no_grad():
        model.blocks[0].attention.q_gain_E *= 50
    assert not torch.allclose(model(ids).logits, logits, rtol=1e-2, atol=1e-3)


def test_value_embeddings_of_zero_change_nothing_and_others_do():
    model, ids = tiny_model(**PLAIN, n_kv_heads=2), random_ids(2, 12)
    valued, missing = with_weights_of(model, value_embeddings=[1], n_kv_heads=2, **PLAIN)
    assert missing == ["blocks.1.attention.value_embedding.weight"]
    assert not torch.allclose(valued(ids).logits, model(ids).logits)
    with torch.no_grad():
        valued.blocks[1].attention.value_embedding.weight.zero_()
    assert torch.equal(valued(ids).logits, model(ids).logits)


def test_capped_logits_stay_below_the_cap_and_their_loss_is_that_of_the_logits():
    logits_BTV, labels_BT = 40 * torch.randn(2, 6, 61), random_ids(2, 6)
    capped_BTV = softcapped(logits_BTV, 15.0)
    assert capped_BTV.abs().max() <= 15 and softcapped(logits_BTV, 0.0) is logits_BTV
    torch.testing.assert_close(softcapped(logits_BTV, 1e6), logits_BTV, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(
        language_model_loss(logits_BTV, labels_BT, 15.0), language_model_loss(capped_BTV, labels_BT)
    )
    copy_BTW, token_BTW = torch.rand(2, 6, 3) / 4, random_ids(2, 6, 3)
    torch.testing.assert_close(
        copying_loss(drawing_losses(logits_BTV, labels_BT, 15.0), copy_BTW, token_BTW, labels_BT),
        copying_loss(drawing_losses(capped_BTV, labels_BT), copy_BTW, token_BTW, labels_BT),
    )


@pytest.mark.parametrize("cap", [0.05, 15.0, 64.0])
@pytest.mark.parametrize("scale", [1.0, 60.0])
def test_the_loss_to_compile_is_as_near_to_float64_as_cross_entropy_is(cap, scale, monkeypatch):
    logits_BTV, labels_BT = (scale * torch.randn(4, 50, 700)).bfloat16(), random_ids(4, 50)
    labels_BT[:, 20:30] = IGNORED

    def of_reference(logits_BTV):
        capped_NV = (cap * (logits_BTV / cap).tanh())[:, :-1].flatten(0, 1)
        return F.cross_entropy(capped_NV, labels_BT[:, 1:].flatten(), ignore_index=IGNORED)

    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    monkeypatch.setattr("model.losses.softcapped", None)  # it takes another way
    results = []
    for loss_of, dtype in ((of_reference, torch.float64), (of_reference, torch.float32), (None, torch.float32)):
        given_BTV = logits_BTV.to(dtype).requires_grad_()
        loss = loss_of(given_BTV) if loss_of else language_model_loss(given_BTV, labels_BT, cap)
        results.append((loss.detach().double(), *(g.double() for g in torch.autograd.grad(loss, given_BTV))))
    for exact, reference, ours in zip(*results, strict=True):
        assert (ours - exact).norm() <= 2 * (reference - exact).norm() + 2e-7 * exact.norm()


@BOTH
def test_a_model_with_a_cap_returns_capped_logits_and_their_loss(design):
    model, ids = tiny_model(logit_softcap=0.05, **design), random_ids(2, 12)
    out = model(ids, labels=ids)
    assert out.logits.dtype == torch.float32 and out.logits.abs().max() <= 0.05
    torch.testing.assert_close(out.lm_loss, language_model_loss(out.logits, ids))


def test_an_untied_head_has_weights_of_its_own_that_train():
    model, ids = tiny_model(**PLAIN, tie_embeddings=False), random_ids(2, 12)
    assert model.lm_head.weight is not model.embedding.weight
    assert {"lm_head.weight", "embedding.weight"} <= model.state_dict().keys()
    model(ids, labels=ids).loss.backward()
    unread = torch.ones(61, dtype=bool).index_fill(0, ids.flatten(), False)
    assert model.embedding.weight.grad[unread].abs().max() == 0 < model.lm_head.weight.grad[unread].abs().max()


def test_adamw_steps_tables_gains_and_scalars_and_only_the_tables_decay():
    model = tiny_model(**PLAIN, **RECIPE)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = {
        group["name"]: {names[id(parameter)] for parameter in group["params"]}
        for group in parameter_groups(model, OptimConfig(optimizer="muon"))
    }
    assert groups["matrices"] == {
        "embedding.weight", "lm_head.weight", "blocks.0.attention.value_embedding.weight"
    }  # fmt: skip
    assert {"blocks.1.enter_scale", "blocks.1.attention.q_gain_E"} <= groups["norms"]
    assert "blocks.1.feed_forward.up_proj.weight" in groups["muon"]


@pytest.mark.parametrize(
    "flags, sentence",
    [
        ("--value_embeddings 8", r"--value_embeddings 8 must lie in \[0, 7\]"),
        ("--logit_softcap -1", "--logit_softcap must not be negative, got -1"),
        ("--ffn_activation gelu", "invalid choice"),
    ],
)
def test_wrong_values_are_refused(flags, sentence):
    with pytest.raises(ValueError, match=sentence):
        parse_cli(flags.split())


def test_the_config_knows_its_flags_after_a_round_trip():
    config = tiny_config(**RECIPE)
    model = tiny_model(**RECIPE)
    assert model.config.unwrap() == config and model.config.tie_word_embeddings is False


RECIPE_FLAGS = (
    "--qk_norm --residual_scalars --zero_init_out --ffn_activation relu2 --tie_embeddings False --value_embeddings 1 "
    "--logit_softcap 15 --optimizer muon --lr_schedule wsd --keep_ffn"
).split()


@pytest.mark.slow
def test_a_run_with_the_whole_recipe_goes_on_where_it_was_and_can_be_loaded(runs, tmp_path):
    from model import load_run

    assert runs.start("whole", *RECIPE_FLAGS).code == 0
    ended = runs.start("parts", *RECIPE_FLAGS, fault=end_at_eight)
    assert ended.code == 1 and "an end in the middle" in ended.output
    assert (tmp_path / "parts" / "checkpoint_00000008").exists()
    assert runs.start("parts", *RECIPE_FLAGS).code == 0
    models = [load_run(tmp_path / name) for name in ("whole", "parts")]
    assert models[0].lm_head.weight is not models[0].embedding.weight
    assert all(map(torch.equal, models[0].parameters(), models[1].parameters()))


def end_at_eight() -> None:
    import trainer.step as step

    plain, calls = step.MicroStep.__call__, []

    def call(self, *arguments):
        calls.append(1)
        if len(calls) > 2 * 8:
            raise ValueError("an end in the middle")
        return plain(self, *arguments)

    step.MicroStep.__call__ = call
