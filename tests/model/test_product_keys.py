"""Product keys against brute force, selection, and the entries' vectors."""

from collections import Counter

import pytest
import torch

from model.memory import product_keys
from model.memory.product_keys import cosine_to_entries, mixed_entries, select
from model.ops import best_of_rows, read_entries, search_grid
from model.ops.search_grid import product_key_topk
from tests.conftest import tiny_config, tiny_model

T = 16


def random_ids(*shape: int) -> torch.Tensor:
    return torch.randint(3, 61, shape)


@pytest.mark.parametrize("R, C", [(7, 7), (33, 16), (10, 1), (5, 4)])
@pytest.mark.parametrize("tied", [False, True])
def test_product_keys_equal_brute_force(R, C, tied):
    score_BT2R = torch.randint(4, (2, 3, 2, R)).float() if tied else torch.randn(2, 3, 2, R)
    score_BTC, entry_BTC, _ = product_key_topk(score_BT2R, C)
    every_BTN = (score_BT2R[..., 0, :, None] + score_BT2R[..., 1, None, :]).flatten(-2)
    assert torch.equal(score_BTC, every_BTN.topk(C).values)
    assert torch.equal(every_BTN.gather(-1, entry_BTC), score_BTC)
    assert all(len(set(row.tolist())) == C for row in entry_BTC.flatten(0, 1))


def test_scaling_what_was_found_equals_scaling_every_score():
    score_BT2R = torch.randn(2, 3, 2, 7)
    found, wanted = search_grid(score_BT2R, 4, usage=True, scale=0.3), search_grid(0.3 * score_BT2R, 4, usage=True)
    assert torch.equal(found[1], wanted[1])
    torch.testing.assert_close((found[0], *found[2]), (wanted[0], *wanted[2]))


def test_more_candidates_than_sub_keys_are_refused():
    with pytest.raises(ValueError, match=r"\[1, 5\], got 6"):
        product_key_topk(torch.randn(1, 1, 2, 5), 6)


def test_an_entry_is_the_mean_of_its_words_without_padding():
    embedding_VD = torch.randn(9, 4)
    vector_XD = read_entries(torch.tensor([[3, 5, 0], [0, 0, 0]]), embedding_VD)
    torch.testing.assert_close(vector_XD[0], (embedding_VD[3] + embedding_VD[5]) / 2)
    assert vector_XD[1].abs().max() == 0


def test_the_cosine_in_logit_space_is_the_cosine():
    embedding_VD, query_BTD = torch.randn(20, 8), torch.randn(2, 3, 8)
    token_BTCL = torch.randint(0, 20, (2, 3, 5, 4))
    token_BTCL[..., 0] = 7  # no entry of padding alone
    vector_BTCD = read_entries(token_BTCL.flatten(0, 2), embedding_VD).view(2, 3, 5, 8)
    expected = torch.cosine_similarity(query_BTD[:, :, None], vector_BTCD, dim=-1)
    actual = cosine_to_entries(query_BTD, token_BTCL, vector_BTCD.norm(dim=-1), embedding_VD)
    torch.testing.assert_close(actual, expected)


def test_the_mixture_is_the_weighted_sum_of_the_entries():
    embedding_VD, token_BTCL, weight_BTC = torch.randn(20, 8), torch.randint(0, 20, (2, 3, 5, 4)), torch.rand(2, 3, 5)
    vector_BTCD = read_entries(token_BTCL.flatten(0, 2), embedding_VD).view(2, 3, 5, 8)
    expected = (weight_BTC[..., None] * vector_BTCD).sum(dim=2)
    torch.testing.assert_close(mixed_entries(token_BTCL, weight_BTC, embedding_VD), expected)


@pytest.mark.parametrize("selection", ["product_key", "cosine"])
def test_selection_takes_the_best_and_its_weights_sum_to_one(selection):
    score_BTC, entry_BTC = torch.randn(2, 3, 6), torch.randint(49, (2, 3, 6))
    if selection == "product_key":  # the search hands them out best first
        score_BTC = score_BTC.sort(dim=-1, descending=True).values
    entry_BTS, log_weight_BTS = select(entry_BTC, score_BTC, tiny_config(selection=selection), training=False)
    best_BTS, slot_BTS = best_of_rows(score_BTC.softmax(dim=-1), 3)
    assert torch.equal(entry_BTS, entry_BTC.gather(-1, slot_BTS))
    torch.testing.assert_close(log_weight_BTS.exp(), best_BTS / best_BTS.sum(dim=-1, keepdim=True))


def test_gumbel_noise_is_for_training_only_and_draws_by_probability():
    config = tiny_config(selection="gumbel", num_selected=1)
    score_BTC = torch.tensor([0.7, 0.2, 0.1]).log().expand(1, 4000, 3) + 5.0
    place_BTC = torch.arange(3).expand_as(score_BTC)
    drawn = select(place_BTC, score_BTC, config, training=True)[0]
    share = torch.bincount(drawn.flatten(), minlength=3) / 4000
    torch.testing.assert_close(share, torch.tensor([0.7, 0.2, 0.1]), atol=0.03, rtol=0)
    assert select(place_BTC, score_BTC, config, training=False)[0].max() == 0


def test_the_scale_of_a_normed_query_changes_nothing():
    model, ids = tiny_model(query_norm=True), random_ids(2, T)
    logits, query_BTD = model(ids).logits, model(ids).readings[0].query_BTD
    torch.testing.assert_close(
        query_BTD.unflatten(-1, (2, -1)).square().mean(dim=-1), torch.ones(2, T, 2), atol=0.05, rtol=0
    )
    with torch.no_grad():
        for block in model.blocks:
            block.retrieval.query_proj.weight *= 3
    torch.testing.assert_close(model(ids).logits, logits, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("selection", ["product_key", "cosine"])
def test_losses_that_nobody_asks_for_are_not_worked_out(selection, monkeypatch):
    asked_of, names = Counter(), ["balance_loss", "similarity_loss", "diversity_loss", "cosine_to_entries"]
    for name in names:
        original = getattr(product_keys, name)
        monkeypatch.setattr(product_keys, name, lambda *a, f=original, name=name: asked_of.update([name]) or f(*a))
    coefs = dict.fromkeys(("balance_loss_coef", "similarity_loss_coef", "diversity_loss_coef"), 0.1)
    model, ids = tiny_model(selection=selection, **coefs), random_ids(2, T)
    out = model(ids)
    assert (out.aux_losses, set(asked_of)) == ({}, {"cosine_to_entries"} if selection == "cosine" else set())
    labelled, training = model(ids, labels=ids), model.train()(ids)
    assert set(labelled.aux_losses) == set(training.aux_losses) == {"balance", "similarity", "diversity"}
    assert torch.equal(labelled.logits, out.logits)


def test_an_entry_that_no_position_proposes_changes_nothing():
    model, ids = tiny_model(selection="cosine", num_candidates=3, num_selected=2), random_ids(1, 2)
    before = model(ids).logits
    changed = []
    for entry in range(49):
        old = model.bank.tokens[entry].clone()
        model.bank.tokens[entry] = (old + 7) % 61
        changed.append(not torch.equal(model(ids).logits, before))
        model.bank.tokens[entry] = old
    assert 0 < sum(changed) <= 3 * 2 * 2  # at most C candidates at each position of each block


def test_permuting_keys_and_bank_together_changes_nothing():
    model, ids = tiny_model(), random_ids(2, T)
    before = model(ids).logits
    rows, columns = torch.randperm(7), torch.randperm(7)
    model.bank.tokens.copy_(model.bank.tokens.view(7, 7, -1)[rows][:, columns].reshape(49, -1))
    for block in model.blocks:
        keys_2RK = block.retrieval.keys_2RK
        keys_2RK.data = torch.stack([keys_2RK[0][rows], keys_2RK[1][columns]])
    torch.testing.assert_close(model(ids).logits, before, rtol=1e-4, atol=1e-5)
