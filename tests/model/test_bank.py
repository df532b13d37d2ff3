"""Frozen rows, rewriting, use counts, and the order by content."""

from types import SimpleNamespace

import pytest
import torch

from common.constants import PADDING
from model.memory import bank as memory_bank
from model.memory.bank import access_histogram, usage_statistics
from model.memory.ema import nearest_tokens
from model.memory.grid_order import content_order, order_by_rarest_tokens, weighted_tokens
from tests.conftest import tiny_model


def rewrite_once(model):
    ids = torch.randint(3, 61, (4, 32))
    return model.ema_update(model(ids).readings)


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
    assert sorted(nearest_tokens(goal_UD, embedding_VD, 3)[0].tolist()) == [4, 7, 9]


@pytest.mark.parametrize("most", [9, 256])
def test_common_tokens_are_the_most_frequent_of_the_bank(most, monkeypatch):
    monkeypatch.setattr(memory_bank, "COMMON_TOKENS", most)
    bank = tiny_model().bank
    bank.tokens[:, 0] = 7  # in every entry
    bank.tokens[:, 1:3] = PADDING
    count_V = torch.bincount(bank.tokens.flatten().long(), minlength=61)
    token_K, rank_V = bank.common_tokens()
    assert len(token_K) == min(most, 60) and token_K[0] == 7 and PADDING not in token_K
    rest = [word for word in range(61) if word != PADDING and word not in token_K]
    assert max(count_V[rest], default=0) <= count_V[token_K].min()
    assert torch.equal(rank_V[token_K].long(), torch.arange(len(token_K)))
    assert (rank_V[[PADDING, *rest]] == -1).all() and bank.common_tokens().token_K is token_K


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


def test_what_has_no_weight_is_no_read():
    bank, (entry_BTS, weight_BTS) = (
        tiny_model().bank,
        (torch.tensor([[[0, 48, -1]]]), torch.tensor([[[0.0, 1.0, 0.0]]])),
    )
    bank.count([SimpleNamespace(entry_BTS=entry_BTS, weight_BTS=weight_BTS)] * 2)
    assert bank.take_counts(2).nonzero().tolist() == [[0, 48], [1, 48]]


def test_each_reader_counts_its_own_reads_over_windows_of_equal_length():
    model = tiny_model(fusion="words", keep_ffn=True)
    model.train()
    token_BT = torch.randint(3, 61, (2, 9))
    one = SimpleNamespace(reduce=lambda counts: counts)

    def steps(n: int) -> tuple[dict, torch.Tensor]:
        count_MN = torch.zeros(2, 49, dtype=torch.int64)
        for step in range(n):
            readings = model(token_BT, labels=token_BT).readings
            for count_N, reading in zip(count_MN, readings, strict=True):
                count_N += torch.bincount(reading.entry_BTS[reading.weight_BTS > 0], minlength=49)
            model.after_step(step, SimpleNamespace(readings=readings, skipped=False), one)
        return model.metrics(one, 3), count_MN

    told, count_MN = steps(3)
    assert not torch.equal(*count_MN)
    for name, count_N in zip(("block_0", "block_1"), count_MN, strict=True):
        assert told[f"memory/uses/{name}"] == access_histogram(count_N)
        assert told[f"memory/used_share/{name}"] == int((count_N > 0).sum()) / 49
    short, _ = steps(2)  # the last interval of a run
    assert "memory/selection_entropy" in short and not any("used" in name or "uses" in name for name in short)
    again, count_MN = steps(3)
    assert again["memory/uses/block_1"] == access_histogram(count_MN[1])


def test_an_entry_that_both_readers_read_once_is_read_once():
    model = tiny_model(retrieval="ngram", fusion="words", keep_ffn=True, knowledge_num=50, ngram_lengths=[2])
    model.train()
    model(model.bank.tokens[7:8, :2].long())  # both blocks read what the n-grams of this text found
    count_MN = model.bank.take_counts(2)
    assert torch.equal(*count_MN) and count_MN[0, 7] == 1


def test_the_content_order_is_a_permutation_with_clusters_as_rows():
    centre_RD = torch.randn(9, 16) * 10
    vector_ND = (centre_RD[:, None] + torch.randn(9, 9, 16) * 0.01).flatten(0, 1)
    shuffle = torch.randperm(81)
    order = content_order(vector_ND[shuffle], 9)
    assert sorted(order.tolist()) == list(range(81))
    clusters = (shuffle[order] // 9).view(9, 9)
    assert (clusters == clusters[:, :1]).all()


def test_rows_hold_the_entries_that_share_their_rarest_word():
    model = tiny_model(vocab_size=200, knowledge_num=64, knowledge_length=4)
    common_N, rare_N = torch.randint(100, 200, (64,)), torch.arange(64) // 8 + 3  # 8 entries of each of 8 rare words
    # Words 3 and 4 of an entry are rarer still, and not looked at; which of the first two is the rare one differs.
    first_N2 = torch.stack([common_N, rare_N], dim=-1)
    first_N2[::2] = first_N2[::2].flip(-1)
    common_N2 = torch.arange(20, 24).repeat(32).view(64, 2)
    tokens = torch.cat([first_N2, common_N2], dim=-1)
    count_V = torch.full((200,), 900)
    count_V[3:11], count_V[20:24] = 8, 1
    order_N = order_by_rarest_tokens(tokens[:, :2], count_V)
    assert (rare_N[order_N].view(8, 8) == rare_N[order_N].view(8, 8)[:, :1]).all()

    vector_ND = weighted_tokens(tokens[:, :2], torch.where(count_V == 8, 2.0, 0.0), model.embedding.weight)
    torch.testing.assert_close(vector_ND, 2 * model.embedding.weight[rare_N])
    row_RR = rare_N[content_order(torch.randn(64, 16), 8, order_N)].view(8, 8)
    assert (row_RR == row_RR[:, :1]).all() and row_RR[:, 0].unique().numel() == 8


def test_columns_are_clusters_of_what_the_entries_of_a_row_do_not_share():
    row_RD, column_RD = torch.randn(8, 16) * 10, torch.randn(8, 16)
    row_RD[:, :8] = column_RD[:, :8] = 0  # all of it in the half that columns are made of
    shuffle = torch.stack([torch.randperm(8) for _ in range(8)])
    vector_ND = (row_RD[:, None] + column_RD[shuffle]).flatten(0, 1)
    vector_ND[:, 0] = 100.0  # so long that bringing them to unit length changes no direction
    order_N = content_order(vector_ND, 8, torch.arange(64))
    column_RR = shuffle.flatten()[order_N].view(8, 8)
    assert (column_RR == column_RR[:1]).all()


@pytest.mark.parametrize("change", ["write", "swap"])
def test_the_bank_indexes_its_entries_as_trained_before_it_is_changed(change):
    banks = [tiny_model(retrieval="ngram", ngram_lengths=[2], fusion="words", keep_ffn=True).bank for _ in range(2)]
    banks[0].ngrams()  # a forward pass has built it
    for bank in banks:
        rows = torch.tensor([3, 17])
        old = bank.write(rows, bank.tokens[rows].flip(-1)) if change == "write" else bank.swap(bank.tokens.flip(0))
        assert old.shape == (bank.tokens[rows] if change == "write" else bank.tokens).shape
    first, second = (bank.ngrams() for bank in banks)
    assert torch.equal(first.base["ngrams"].key_P, second.base["ngrams"].key_P)
    assert torch.equal(first.rarity_V, second.rarity_V) and torch.equal(first.stale_N, second.stale_N)
    assert set(second.edited) == ({3, 17} if change == "write" else set())
