"""Frozen rows, rewriting, use counts, and the order by content."""

import pytest
import torch

from model import memory_bank
from model.clustering import cached_content_order, content_order
from model.memory_bank import spell, usage_statistics
from model.retrieval import PADDING
from tests.conftest import tiny_model


def rewrite_once(model):
    ids = torch.randint(3, 61, (4, 32))
    return model.rewrite_bank(model(ids).readings)


def test_frozen_rows_never_change_and_others_do():
    model = tiny_model(ema_interval=1, ema_decay=0.0, freeze_ratio=0.5)
    before, frozen = model.bank.tokens.clone(), model.bank.frozen
    assert rewrite_once(model) > 0
    changed = (model.bank.tokens != before).any(dim=-1)
    assert not changed[frozen].any()
    assert changed.any()


def test_a_bank_frozen_whole_is_never_rewritten():
    model = tiny_model(ema_interval=1, ema_decay=0.0, freeze_ratio=1.0)
    assert rewrite_once(model) == 0


def test_equal_reads_rewrite_equally():
    banks = []
    for _ in range(2):
        model = tiny_model(ema_interval=1, ema_decay=0.5)
        torch.manual_seed(7)
        rewrite_once(model)
        banks.append(model.bank.tokens)
    assert torch.equal(*banks)


def test_spelling_finds_the_words_of_a_mean():
    embedding_VD = torch.eye(12)
    goal_UD = (embedding_VD[4] + embedding_VD[7] + embedding_VD[9])[None]
    assert sorted(spell(goal_UD, embedding_VD, 3)[0].tolist()) == [4, 7, 9]


@pytest.mark.parametrize("most", [9, 256])
def test_common_words_are_the_most_frequent_of_the_bank(most, monkeypatch):
    monkeypatch.setattr(memory_bank, "COMMON_WORDS", most)
    bank = tiny_model().bank
    bank.tokens[:, 0] = 7  # in every entry
    bank.tokens[:, 1:3] = PADDING
    count_V = torch.bincount(bank.tokens.flatten().long(), minlength=61)
    token_K, place_V = bank.common_words()
    assert len(token_K) == min(most, 60) and token_K[0] == 7 and PADDING not in token_K
    rest = [word for word in range(61) if word != PADDING and word not in token_K]
    assert max(count_V[rest], default=0) <= count_V[token_K].min()
    assert torch.equal(place_V[token_K].long(), torch.arange(len(token_K)))
    assert (place_V[[PADDING, *rest]] == -1).all() and bank.common_words().token_K is token_K


def test_a_bank_of_another_shape_or_vocabulary_is_refused():
    bank = tiny_model().bank
    with pytest.raises(ValueError, match="holds"):
        bank.fill(torch.zeros(4, 5))
    with pytest.raises(ValueError, match="outside the vocabulary"):
        bank.fill(torch.full((49, 5), 61))


def test_usage_of_an_even_and_of_a_single_use():
    even, single = usage_statistics(torch.full((100,), 3)), usage_statistics(torch.eye(100)[0].int() * 7)
    assert even["used_share"] == 1 and even["kl_uniform"] == pytest.approx(0, abs=1e-9)
    assert even["top50_share"] == 0.5 and even["top90_share"] == 0.9
    assert single["used_share"] == 0.01 and single["kl_uniform"] == pytest.approx(4.60517, abs=1e-4)
    assert usage_statistics(torch.zeros(5, dtype=torch.int32))["used_share"] == 0


def test_the_content_order_is_a_permutation_with_clusters_as_rows():
    centre_RD = torch.randn(9, 16) * 10
    vector_ND = (centre_RD[:, None] + torch.randn(9, 9, 16) * 0.01).flatten(0, 1)
    shuffle = torch.randperm(81)
    order = content_order(vector_ND[shuffle], 9)
    assert sorted(order.tolist()) == list(range(81))
    clusters = (shuffle[order] // 9).view(9, 9)
    assert (clusters == clusters[:, :1]).all()


def test_a_cached_order_of_another_bank_is_refused(tmp_path):
    path, tokens = tmp_path / "order.npz", torch.randint(0, 9, (16, 3))
    order = cached_content_order(path, tokens, torch.randn(16, 8), 4)
    assert torch.equal(cached_content_order(path, tokens, torch.randn(16, 8), 4), order)
    with pytest.raises(ValueError, match="orders another bank"):
        cached_content_order(path, tokens + 1, torch.randn(16, 8), 4)
