"""Product keys that n-grams teach: the loss, what is shown to be right, and that it is learnt."""

import math

import pytest
import torch
import torch.nn.functional as F

from common.constants import IGNORED, NO_ENTRY, PADDING
from model.losses import retrieval_loss
from model.memory.ngram_search import find_matches
from tests.conftest import tiny_model

TAUGHT = {
    "retrieval_loss_coef": 1.0, "ngram_lengths": [2], "keep_ffn": True, "fusion_scope": "token", "memory_layers": [1],
    "attention_dropout": 0.0, "fusion_dropout": 0.0, "balance_loss_coef": 0.0,
}  # fmt: skip


def distinct_entries(model) -> torch.Tensor:
    """A bank in which every pair of neighbouring tokens stands once: 49 entries of 5."""
    firsts, seconds = torch.arange(49) // 7 + 3, torch.arange(49) % 7 + 10
    rest = torch.stack([firsts + 20, seconds + 30, firsts + 40], dim=-1)
    model.bank.fill(torch.cat([torch.stack([firsts, seconds], dim=-1), rest], dim=-1))
    return model.bank.tokens.long()


def test_a_guess_costs_the_logarithm_of_the_choices_and_nothing_known_costs_nothing():
    score_BTHX, right_BTH = torch.zeros(2, 3, 2, 7), torch.randint(0, 7, (2, 3, 2))
    assert float(retrieval_loss(score_BTHX, right_BTH)) == pytest.approx(math.log(7))
    assert float(retrieval_loss(score_BTHX, torch.full_like(right_BTH, IGNORED))) == 0
    # Positions without a right entry change nothing, whatever they score.
    score_BTHX, right_BTH = torch.randn(2, 3, 2, 7), right_BTH.clone()
    alone = retrieval_loss(score_BTHX[:1], right_BTH[:1])
    right_BTH[1] = IGNORED
    torch.testing.assert_close(retrieval_loss(score_BTHX, right_BTH), alone)


def test_the_right_place_is_that_of_the_entry_which_the_text_repeats():
    model, seen = tiny_model(**TAUGHT).train(), {}
    tokens_NL = distinct_entries(model)
    model.blocks[1].register_forward_pre_hook(
        lambda module, arguments: seen.update(right=arguments[1].shared.targets.index_BTH)
    )
    text_BT = torch.cat([torch.full((49, 1), 60), tokens_NL[:, :2], torch.full((49, 3), 59)], dim=1)
    labels_BT = torch.full_like(text_BT, IGNORED)
    labels_BT[:, -1] = text_BT[:, -1]  # what is to be learnt teaches the retrieval nothing
    model(text_BT, labels=labels_BT)
    rows, columns = seen["right"][:, 2:-1].unbind(dim=-1)
    assert (rows * 7 + columns == torch.arange(49)[:, None]).all()
    assert (seen["right"][:, :2] == IGNORED).all() and (seen["right"][:, -1] == IGNORED).all()


def test_padding_teaches_nothing():
    """It has no label either, and what the text before it found is still kept there."""
    model, seen = tiny_model(**TAUGHT).train(), {}
    text_BT = F.pad(distinct_entries(model)[:, :3], (0, 4))
    model.blocks[1].register_forward_pre_hook(
        lambda module, arguments: seen.update(right=arguments[1].shared.targets.index_BTH)
    )
    model(text_BT, labels=text_BT.masked_fill(text_BT == PADDING, IGNORED))
    assert (seen["right"] == IGNORED).all()


@pytest.mark.parametrize("fusion", ["words", "cross_attention"])
def test_teacher_forcing_reads_what_the_ngrams_find_and_its_share_says_how_often(fusion):
    ids = torch.randint(3, 61, (8, 32))
    for share in (0.0, 0.5, 1.0):
        model = tiny_model(**TAUGHT | {"fusion": fusion, "teacher_forcing": share, "ngram_lengths": [1]}).train()
        found_BT = find_matches(model.bank.ngrams(), ids, None, n_kept=16)[0].entry_BTC[..., 0]
        first_BT = model(ids, labels=ids).readings[1].entry_BTS[..., 0]
        assert float((first_BT == found_BT)[found_BT != NO_ENTRY].float().mean()) == pytest.approx(share, abs=0.2)
        assert float((first_BT == found_BT)[found_BT != NO_ENTRY].float().mean()) < 1 or share == 1
        assert not (first_BT == found_BT)[found_BT == NO_ENTRY].any()


@pytest.mark.parametrize("fusion", ["words", "cross_attention"])
def test_what_is_forced_comes_from_no_later_position(fusion):
    model = tiny_model(**TAUGHT | {"fusion": fusion, "teacher_forcing": 1.0, "ngram_lengths": [1]}).train()
    a = torch.randint(3, 61, (2, 16))
    b = torch.cat([a[:, :9], torch.randint(3, 61, (2, 7))], dim=1)
    logits_a, logits_b = model(a, labels=a).logits, model(b, labels=b).logits
    assert torch.equal(logits_a[:, :9], logits_b[:, :9]) and not torch.allclose(logits_a[:, 9:], logits_b[:, 9:])


def test_forcing_leaves_the_weights_of_other_positions_and_their_gradients():
    """With one entry drawn by Gumbel the keys learn through the normaliser over all candidates alone."""
    ids = torch.randint(3, 61, (4, 32))
    for share in (0.0, 1e-9):
        model = tiny_model(**TAUGHT, selection="gumbel", num_selected=1, teacher_forcing=share).train()
        model(ids, labels=ids).lm_loss.backward()
        assert model.blocks[1].retrieval.keys_2RK.grad.abs().sum() > 0


def test_candidates_are_taught_where_they_are_chosen_by_more_than_their_keys():
    model = tiny_model(**TAUGHT, selection="cosine")
    entry_BTC, place_BTH = (
        torch.tensor([[[9, 30, 4], [9, 30, 4], [9, 30, 4]]]),
        torch.tensor([[[4, 2], [6, 6], [-100, -100]]]),
    )
    assert model.blocks[1].retrieval.slot_of_target(entry_BTC, place_BTH).tolist() == [[[1], [IGNORED], [IGNORED]]]

    def loss(**changes) -> float:
        model = tiny_model(**TAUGHT | changes).train()
        text_BT = distinct_entries(model)
        return float(model(text_BT, labels=torch.full_like(text_BT, IGNORED)).aux_losses["retrieval"].detach())

    assert loss(similarity_loss_coef=0.1) == loss()
    assert loss(selection="cosine") > loss()


def test_nothing_is_taught_outside_of_training():
    model = tiny_model(**TAUGHT)
    text_BT = distinct_entries(model)
    given_BT = torch.full_like(text_BT, IGNORED)
    assert set(model(text_BT, labels=given_BT).aux_losses) == set()
    assert not model.bank._indexes
    assert model.train()(text_BT, labels=given_BT).aux_losses["retrieval"] > 0
    assert model(text_BT, labels=text_BT).aux_losses["retrieval"] == 0


@pytest.mark.parametrize("selection", ["product_key", "cosine"])
def test_what_is_taught_is_found(selection):
    """Neither the language-model loss nor chance finds the entry; 60 steps of this loss alone find it nearly always."""
    model = tiny_model(**TAUGHT, selection=selection)
    text_BT = distinct_entries(model)

    def share_read() -> float:
        entry_BS = model.eval()(text_BT).readings[1].entry_BTS[:, 2]
        return float((entry_BS == torch.arange(49)[:, None]).any(dim=-1).float().mean())

    before, optimizer = share_read(), torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(60):
        model.train()(text_BT, labels=torch.full_like(text_BT, IGNORED)).aux_losses["retrieval"].backward()
        optimizer.step()
        optimizer.zero_grad()
    assert before < 0.3 and share_read() > 0.9
