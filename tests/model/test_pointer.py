"""What a pointer predicts is a distribution."""

import math

import pytest
import torch

from common.constants import PADDING
from model.losses import NEVER
from tests.conftest import tiny_config, tiny_model
from tests.model.variants import BM25, MEMORY_VARIANTS

POINTERS = {name: variant for name, variant in MEMORY_VARIANTS.items() if variant.get("pointer")}


@torch.no_grad()
@pytest.mark.parametrize(
    "copies, vocab_size", [("as it starts", 61), ("as it starts", 6400), ("always", 6400), ("never", 61)]
)
@pytest.mark.parametrize("variant", POINTERS.values(), ids=POINTERS)
def test_drawing_and_copying_together_have_probability_one_at_every_position(variant, vocab_size, copies):
    model = tiny_model(**variant | {"vocab_size": vocab_size})
    token_NL = torch.randint(8, 61, model.bank.tokens.shape)
    token_NL[0] = 7  # one token many times: its copies add up
    model.bank.fill(token_NL)
    model.pointer.gate.bias.fill_({"as it starts": 0.0, "always": 30.0, "never": -30.0}[copies])
    if copies == "always":
        model.pointer.attention.nothing.bias.fill_(-30.0)
    ids = torch.randint(3, 61, (3, 24))
    ids[0, 10:] = 7
    ids[1] = PADDING  # no entry is found for it
    documents = torch.arange(24).expand(3, 24) // 9
    for options in ({}, {"document_ids": documents}):
        out = model(ids, **options)
        assert out.logits.dtype == torch.float32
        total_BT = out.logits.exp().sum(dim=-1)
        assert (total_BT - 1).abs().max() < 1e-6 + 1.1 * vocab_size * NEVER  # no token has less than NEVER
        copied_BT = out.readings[-1].weight_BTS.sum(dim=-1)
        assert float(copied_BT[1].max()) == 0
        if copies == "always":
            assert float(copied_BT[0, 16]) > 0.99


@torch.no_grad()
@pytest.mark.parametrize("name", ["bm25-pointer", "ngram-pointer"])
def test_an_edited_entry_counts_more_by_as_much_as_the_flag_says_and_nothing_else_does(name):
    plain, model = (tiny_model(**MEMORY_VARIANTS[name] | {"pointer_edited": nats}) for nats in (0.0, 2.0))
    model.load_state_dict(plain.state_dict())
    token_NL, ids = torch.randint(8, 61, model.bank.tokens.shape), torch.randint(8, 61, (1, 24))
    token_NL[:4, :3] = ids[0, 10:13]  # four entries that the text has found
    row_X, new_XL = torch.tensor([2]), token_NL[[2]]
    token_NL[2, 3:] = 7
    for one in (plain, model):
        one.bank.fill(token_NL)
    before = model(ids).logits
    assert torch.equal(before, plain(ids).logits)
    old_XL = token_NL[row_X]
    for one in (plain, model):
        one.bank.write(row_X, new_XL)
    readings = [one(ids).readings[-1] for one in (plain, model)]
    assert torch.equal(readings[0].entry_BTS, readings[1].entry_BTS)
    is_new_BTS = (readings[0].entry_BTS == 2) & (readings[0].weight_BTS > 0)
    factor_BTS = readings[1].weight_BTS / readings[0].weight_BTS.clamp(min=1e-30)
    some_BT = is_new_BTS.any(dim=-1) & (~is_new_BTS & (readings[0].weight_BTS > 0)).any(dim=-1)
    assert some_BT.any()
    for factor_S, is_new_S, weight_S in zip(
        factor_BTS[some_BT], is_new_BTS[some_BT], readings[0].weight_BTS[some_BT], strict=True
    ):
        others_S = ~is_new_S & (weight_S > 0)
        expected = factor_S[others_S][0] * torch.tensor(2.0).exp()
        torch.testing.assert_close(factor_S[is_new_S], expected.expand(int(is_new_S.sum())), rtol=1e-3, atol=0)
    model.bank.write(row_X, old_XL)
    assert torch.equal(model(ids).logits, before)


@torch.no_grad()
@pytest.mark.parametrize("is_said", [True, False])
def test_an_edited_entry_counts_more_only_where_the_text_has_said_what_stands_before_a_token(is_said):
    variant = MEMORY_VARIANTS["bm25-pointer"] | {"unsaid_tokens": True, "pointer_edited": 2.0}
    plain, model = (tiny_model(**variant | {"pointer_edited_said": said}) for said in (False, True))
    plain.pointer.edited = 0.0
    model.load_state_dict(plain.state_dict())
    for one in (plain, model):
        one.pointer.attention.unsaid.bias.fill_(3.0)  # each token weighs 3 nats
        one.pointer.gate.bias.fill_(30.0)
        one.pointer.attention.nothing.bias.fill_(-30.0)
    token_NL = torch.full_like(model.bank.tokens, PADDING)
    token_NL[0] = torch.tensor([20, 21, 22, 23, 40])
    token_NL[1] = torch.tensor([20, 21, 22, 23, 41])
    for one in (plain, model):
        one.bank.fill(token_NL)
    new_XL = torch.tensor([[20, 21, 22, 23, 42]] if is_said else [[20, 31, 32, 23, 42]])
    for one in (plain, model):
        one.bank.write(torch.tensor([1]), new_XL)
    ids = torch.tensor([[50, 20, 21, 22, 23]])
    before, after = (one(ids).logits[0, -1].exp() for one in (plain, model))
    factor = float(((after[42] / before[42]) / (after[40] / before[40])).log())
    assert abs(factor - (2.0 if is_said else 0.0)) < 0.02, factor
    for p_V in (before, after):
        assert p_V[40] > 1e-4 and p_V[42] > 1e-6 and abs(float(p_V.sum()) - 1) < 1e-5


@torch.no_grad()
@pytest.mark.parametrize("nats", [0.0, 2.0])
@pytest.mark.parametrize("is_said", [True, False])
def test_what_is_unsaid_counts_more_in_an_edited_entry(is_said, nats):
    variant = MEMORY_VARIANTS["bm25-pointer"] | {"unsaid_tokens": True, "pointer_edited": nats}
    variant |= {"pointer_edited_said": bool(nats)}
    plain, model = (tiny_model(**variant | {"pointer_edited_unsaid": x}) for x in (0.0, 2.0))
    model.load_state_dict(plain.state_dict())
    token_NL = torch.full_like(plain.bank.tokens, PADDING)
    token_NL[0] = torch.tensor([20, 21, 22, 23, 40])
    token_NL[1] = torch.tensor([20, 21, 22, 23, 41])
    for one in (plain, model):
        one.pointer.attention.unsaid.bias.fill_(1.0)  # each token weighs ln(1 + e) nats
        one.pointer.gate.bias.fill_(30.0)
        one.pointer.attention.nothing.bias.fill_(-30.0)
        one.bank.fill(token_NL)
        one.bank.write(torch.tensor([1]), torch.tensor([[20, 21, 22, 23, 42]] if is_said else [[20, 31, 22, 23, 42]]))
    ids = torch.tensor([[50, 20, 21, 22, 23]])
    before, after = (one(ids).logits[0, -1].exp() for one in (plain, model))
    loss = float(((before[42] / before[40]) / (after[42] / after[40])).log())
    unsaid = math.log1p(math.e)
    expected = 2 * unsaid + nats * (math.exp(-unsaid) - math.exp(-3 * unsaid))  # these nats are for what is said
    assert abs(loss - (0.0 if is_said else expected)) < 0.02, loss


@torch.no_grad()
def test_blocks_may_read_the_first_entries_alone_while_the_pointer_reads_all():
    variant = MEMORY_VARIANTS["bm25-pointer"]
    few, all_read = (tiny_model(**variant | {"block_selected": n}) for n in (2, None))
    fewer_read = tiny_model(**variant | {"num_selected": 2})
    for model in (few, fewer_read):
        model.load_state_dict(all_read.state_dict())
    ids = torch.randint(3, 61, (2, 24))
    *blocks, pointer = few(ids).readings
    *expected, _ = fewer_read(ids).readings
    assert pointer.entry_BTS.shape[-1] == 3 and (pointer.weight_BTS[..., 2:] > 0).any()
    for block, other in zip(blocks, expected, strict=True):
        if block is not None:
            torch.testing.assert_close(block.weight_BTS[..., :2], other.weight_BTS)
            assert torch.equal(block.entry_BTS[..., :2], other.entry_BTS) and not block.weight_BTS[..., 2:].any()


@pytest.mark.parametrize(
    "flags, reason",
    [
        ({"fusion": "words", "pointer": True, "block_selected": 5}, "must lie in"),
        ({"fusion": "words", "block_selected": 2}, "needs --pointer"),
        ({"fusion": "gated_mlp", "pointer": True, "block_selected": 2}, "needs --fusion words"),
    ],
)
def test_fewer_entries_for_blocks_are_refused_where_they_make_no_sense(flags, reason):
    with pytest.raises(ValueError, match=f"--block_selected .*{reason}"):
        tiny_config(**BM25 | flags)


@torch.no_grad()
@pytest.mark.parametrize("name", ["bm25-pointer", "ngram-pointer", "suffix-pointer"])
def test_the_state_scales_the_scores_from_1_up_to_4(name):
    plain, four, model = (
        tiny_model(**MEMORY_VARIANTS[name] | flags)
        for flags in ({}, {"pointer_scale": 4.0}, {"pointer_state_scale": True})
    )
    four.load_state_dict(plain.state_dict())
    assert model.load_state_dict(plain.state_dict(), strict=False).missing_keys == [
        "pointer.state_scale.weight", "pointer.state_scale.bias",
    ]  # fmt: skip
    ids = torch.randint(8, 61, (2, 24))
    token_NL = torch.randint(8, 61, plain.bank.tokens.shape)
    token_NL[:4, :3] = ids[0, 10:13]
    for one in (plain, four, model):
        one.bank.fill(token_NL)
    assert (four(ids).logits - plain(ids).logits).abs().max() > 1e-4  # else nothing is found
    assert (model(ids).logits - plain(ids).logits).abs().max() < 1e-5
    model.pointer.state_scale.bias.fill_(30.0)
    assert (model(ids).logits - four(ids).logits).abs().max() < 1e-5


@torch.no_grad()
def test_word_dropout_hides_the_tokens_of_entries_in_training_alone():
    model = tiny_model(**MEMORY_VARIANTS["bm25-pointer"] | {"pointer_word_dropout": 1 - 1e-9})
    ids = torch.randint(8, 61, (2, 24))
    token_NL = torch.randint(8, 61, model.bank.tokens.shape)
    token_NL[:4, :3] = ids[0, 10:13]
    model.bank.fill(token_NL)
    attention, scores = model.pointer.attention, {}
    for changed in (False, True):
        if changed:
            for project in (attention.k_proj, attention.previous_k_proj, attention.entry_k_proj):
                project.weight.copy_(torch.randn_like(project.weight))
        torch.manual_seed(0)  # other dropout
        scores[changed] = model.train()(ids).logits, model.eval()(ids).logits
    assert torch.equal(scores[False][0], scores[True][0])
    assert (scores[False][1] - scores[True][1]).abs().max() > 1e-3


@torch.no_grad()
def test_where_the_state_trusts_the_search_the_pointer_copies_more_readily():
    """Nothing's logit falls, and that of the gate rises, by as many nats as the flag says for the scale's logarithm."""
    flags = MEMORY_VARIANTS["bm25-pointer"] | {"pointer_state_scale": True}
    plain, model, opened = (tiny_model(**flags | more) for more in ({}, {"pointer_asked": 2.0}, {}))
    token_NL, ids = torch.randint(8, 61, plain.bank.tokens.shape), torch.randint(8, 61, (2, 24))
    token_NL[:4, :3] = ids[0, 10:13]
    for bias in (-5.0, 0.0):  # a scale of 4 sigmoid(bias): below 1, and 2
        for one in (plain, model, opened):
            one.load_state_dict(plain.state_dict())
            one.bank.fill(token_NL)
            one.pointer.state_scale.bias.fill_(bias)
        nats = 2.0 * math.log(2) if bias == 0 else 0.0
        opened.pointer.gate.bias.add_(nats)
        opened.pointer.attention.nothing.bias.sub_(nats)
        assert (model(ids).logits - opened(ids).logits).abs().max() < 1e-5
        assert ((model(ids).logits - plain(ids).logits).abs().max() > 1e-4) == (bias == 0)
