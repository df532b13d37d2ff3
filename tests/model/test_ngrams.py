"""Retrieval by n-grams against a slow rendering of its definition."""

from collections import Counter
from itertools import combinations
from math import log

import pytest
import torch
from transformers import DynamicCache

from common.constants import NO_ENTRY
from model.memory.ngram_index import (
    FEW_POSITIONS,
    PAIR_POSTINGS,
    PAIRS_USED,
    Matches,
    NgramIndex,
    shared_rarity,
)
from model.memory.ngram_search import find_matches
from model.ops import keep_best
from tests.conftest import tiny_config, tiny_model

CONFIG = {
    "retrieval": "ngram",
    "ngram_lengths": [1, 2, 3],
    "ngram_max_places": 5,
    "num_candidates": 7,
    "ngram_window": 5,
}


def hints(token_NL, text, config):
    """The definition, over Python lists: what the last n-grams of a text say for each entry."""
    entries, scores = [[t for t in row if t] for row in token_NL.tolist()], {}
    left = config.ngram_max_matches or 10**9
    for n in sorted(config.ngram_lengths, reverse=True):
        places = [
            (row[i : i + max(config.ngram_lengths)], e)
            for e, row in enumerate(entries)
            for i in range(len(row))
            if n <= len(text) and row[i : i + n] == text[-n:]
        ]
        places, taken = [e for _, e in sorted(places)], min(left, len(places))
        if len(places) <= config.ngram_max_places:
            for e in (places[i * len(places) // taken] for i in range(taken)):
                scores[e] = scores.get(e, 0.0) + log(len(entries) / len(places))
            left = max(left - len(places), 0)
    for places in rarest_pairs(entries, text, config):
        for e in places:
            scores[e] = scores.get(e, 0.0) + log(len(entries) / len(places))
    return scores


def rarest_pairs(entries, text, config):
    """For pairs of the last token with one of the window: the entries that hold both among their rarest."""
    count = Counter(t for row in entries for t in row)
    rarity = {t: (-count[t], t) for t in range(1, config.vocab_size)}  # among equals the higher token is the rarer
    places = {}
    for e, row in enumerate(entries):
        rare = sorted(set(row), key=rarity.get, reverse=True)[: config.ngram_pairs]
        for pair in combinations(rare, 2):
            places.setdefault(pair, []).append(e)
    near = {tuple(sorted((text[-1], t), key=rarity.get, reverse=True)) for t in text[-config.ngram_window :]}
    known = [(pair, places[pair]) for pair in near if len(places.get(pair, [])) in range(1, PAIR_POSTINGS + 1)]
    known.sort(key=lambda item: (len(item[1]), [rarity[t] for t in item[0]]))
    return [entries for _, entries in known[:PAIRS_USED]]


def random_bank(config, seed=0):
    generator = torch.Generator().manual_seed(seed)
    token_NL = torch.randint(1, config.vocab_size, (config.knowledge_num, config.knowledge_length), generator=generator)
    length_N = torch.randint(0, config.knowledge_length + 1, (config.knowledge_num,), generator=generator)
    return token_NL * (torch.arange(config.knowledge_length) < length_N[:, None])


@pytest.mark.parametrize("pairs, limit", [(0, 0), (3, 0), (0, 6), (3, 2), (0, 1), (0, 14), (3, 15)])
@pytest.mark.parametrize("seed", range(4))
def test_matches_equal_the_definition(seed, pairs, limit):
    config = tiny_config(**CONFIG, vocab_size=23, ngram_pairs=pairs, ngram_max_matches=limit)
    token_NL = random_bank(config, seed)
    ids = torch.randint(1, 23, (3, 40), generator=torch.Generator().manual_seed(seed))
    ids[:, 10:15] = token_NL[(token_NL > 0).all(dim=1)][0]  # an entry word for word
    document = torch.tensor([0] * 8 + [1] * 19 + [2] * 13).expand(3, -1)
    index, start = NgramIndex(token_NL, config), torch.zeros(3, 40, dtype=torch.bool)
    start[:, [0, 8, 27]] = True
    nothing = torch.full((3, 7), NO_ENTRY), torch.zeros(3, 7)
    kept_matches = Matches(*keep_best(*index.matches(ids, start), start, *nothing, config.ngram_decay))
    ranked, previous = find_matches(index, ids, document, None, 0)
    places = Counter(token_NL.flatten().tolist())
    for row in range(3):
        kept, text = {}, []
        for t in range(40):
            if start[row, t]:
                kept, text = {}, []
            text.append(int(ids[row, t]))
            expected = {e: score * config.ngram_decay for e, score in kept.items()}
            for e, score in hints(token_NL, text, config).items():
                expected[e] = expected.get(e, 0.0) + score
            # Which of the entries that tie for the last place is kept is open: go on from what was kept.
            kept = as_dict(kept_matches, row, t)
            assert list(kept.values()) == pytest.approx(sorted(expected.values(), reverse=True)[:7], rel=1e-4)
            assert kept == pytest.approx({e: expected[e] for e in kept}, rel=1e-4)
            shared = {
                e: sum(max(0, log(49 / places[x])) for x in token_NL[e].tolist() if x and x in text[-5:]) for e in kept
            }
            assert as_dict(ranked, row, t) == pytest.approx({e: kept[e] + shared[e] for e in kept}, rel=1e-4)
            scores = ranked.score_BTC[row, t].tolist()
            assert scores == sorted(scores, reverse=True)
    assert previous[0, [0, 8, 27]].tolist() == [0, 0, 0]
    assert torch.equal(previous[:, 1:8], ids[:, :7])


def as_dict(matches, row, t):
    pairs = zip(matches.entry_BTC[row, t].tolist(), matches.score_BTC[row, t].tolist(), strict=True)
    return {e: score for e, score in pairs if e != NO_ENTRY}


def test_the_largest_vocabulary_that_fits_is_packed_without_collision():
    config = tiny_config(**{**CONFIG, "ngram_lengths": [4]}, vocab_size=32768, knowledge_num=4)
    top = 32767
    token_NL = torch.tensor([[top] * 5, [top, top, top, top - 1, 0], [1, 1, 1, 1, 0], [1, 1, 1, 0, 0]])
    matches, _ = find_matches(NgramIndex(token_NL, config), torch.tensor([[top] * 4, [1] * 4]), None, None, 0)
    assert matches.entry_BTC[0, -1, :2].tolist() == [0, NO_ENTRY]
    assert matches.entry_BTC[1, -1, :2].tolist() == [2, NO_ENTRY]
    with pytest.raises(ValueError, match="ngram_lengths"):
        tiny_config(**{**CONFIG, "ngram_lengths": [5]}, vocab_size=32768)


def test_edits_are_found_and_undo_is_exact():
    longer = {**CONFIG, "ngram_lengths": [2, 3], "vocab_size": 61}  # so rare that an edit makes none too common
    config = tiny_config(**longer)
    model = tiny_model(**longer, fusion="words", keep_ffn=True)
    model.bank.fill(random_bank(config))
    text = torch.randint(1, 61, (1, 12), generator=torch.Generator().manual_seed(0))
    before = model(text).logits
    rows = torch.tensor([3, 17])
    old = model.bank.write(rows, text[0, :10].view(2, 5))
    edited = find_matches(model.bank.ngrams(), text, None, None, 0)[0]
    fresh = find_matches(NgramIndex(model.bank.tokens, config), text, None, None, 0)[0]
    assert set(edited.entry_BTC[0, 9].tolist()) >= {3, 17}
    # How rare a word is, is not counted anew at an edit: in a bank this small one place more makes a difference.
    torch.testing.assert_close(edited.score_BTC[0, 9, :2], fresh.score_BTC[0, 9, :2], rtol=0.25, atol=0)
    # Entry 1 says as much as the edited 17: the edited one comes first.
    assert edited.entry_BTC[0, 9, :2].tolist() == [17, 1] and fresh.entry_BTC[0, 9, :2].tolist() == [1, 17]
    assert not torch.equal(model(text).logits, before)
    model.bank.write(rows, old)
    assert torch.equal(model(text).logits, before)
    assert not model.bank.ngrams().edits


def test_an_edit_leaves_the_search_as_narrow_as_its_limit():
    few = {**CONFIG, "ngram_lengths": [1, 2], "vocab_size": 7, "ngram_max_places": 10**6, "ngram_max_matches": 3}
    config = tiny_config(**few)
    token_NL = random_bank(config)
    index, text = NgramIndex(token_NL, config), torch.randint(1, 7, (1, 12))
    start = torch.zeros_like(text, dtype=torch.bool)
    assert index.matches(text, start)[0].shape == (1, 12, 3)
    old = token_NL[:20].clone()
    token_NL[:20] = text[0, :5]
    index.edit(torch.arange(20), old)
    entry_BTX, weight_BTX = index.matches(text, start)
    assert entry_BTX.shape == weight_BTX.shape == (1, 12, 9)  # of each length as many edited entries on top
    assert len({e for e in entry_BTX[0, 4].tolist() if 0 <= e < 20}) >= 3
    token_NL[:20] = old
    index.edit(torch.arange(20), text[:, :5].expand(20, -1))
    assert index.matches(text, start)[0].shape == (1, 12, 3)


def test_a_pair_finds_what_no_rare_ngram_does_also_after_an_edit():
    # Every bigram is common; 5 and 6 stand together in entry 4 alone.
    token_NL = torch.tensor([[7, 8, 5, 7, 8], [7, 8, 6, 7, 8]] * 10 + [[7, 8, 5, 7, 6]] * 1 + [[7, 8, 9, 7, 8]] * 15)
    text = torch.tensor([[5, 3, 4, 6]])
    sizes = {**CONFIG, "ngram_lengths": [2], "knowledge_num": len(token_NL), "vocab_size": 61}
    for pairs, found in ((0, NO_ENTRY), (2, 20)):
        index = NgramIndex(token_NL, tiny_config(**sizes, ngram_pairs=pairs))
        assert find_matches(index, text, None)[0].entry_BTC[0, -1, 0] == found
    old, token_NL[20] = token_NL[20].clone()[None], torch.tensor([7, 8, 9, 7, 8])
    index.edit(torch.tensor([20]), old)
    assert find_matches(index, text, None)[0].entry_BTC[0, -1, 0] == NO_ENTRY
    token_NL[3] = torch.tensor([6, 7, 8, 5, 7])
    index.edit(torch.tensor([3]), torch.tensor([[7, 8, 6, 7, 8]]))
    assert find_matches(index, text, None)[0].entry_BTC[0, -1].tolist()[:2] == [3, NO_ENTRY]


def test_nothing_stands_before_a_text_that_a_cache_goes_on_with():
    config = tiny_config(**{**CONFIG, "ngram_lengths": [3], "ngram_window": 4})
    token_NL = torch.randint(20, 60, (config.knowledge_num, config.knowledge_length))
    token_NL[7, :3] = torch.tensor([5, 5, 6])
    index, text, cache = NgramIndex(token_NL, config), torch.tensor([[5, 6]]), DynamicCache()
    for token in text.split(1, dim=1):
        matches, previous = find_matches(index, token, None, cache, 0)
    assert matches.entry_BTC[0, 0, 0] == NO_ENTRY and previous.item() == 5


def test_common_words_do_not_point_to_an_edited_entry():
    config = tiny_config(**{**CONFIG, "ngram_lengths": [2]}, knowledge_num=36)
    token_NL = torch.tensor([[7, 8, 20 + n, 0, 0] for n in range(36)])  # 7 8 stands in more places than 5
    index = NgramIndex(token_NL, config)
    old, token_NL[4] = token_NL[4].clone()[None], torch.tensor([7, 8, 5, 6, 0])
    index.edit(torch.tensor([4]), old)
    matches, _ = find_matches(index, torch.tensor([[7, 8], [5, 6]]), None, None, 0)
    assert matches.entry_BTC[:, -1, 0].tolist() == [NO_ENTRY, 4]


def test_what_many_edits_say_points_to_none_of_them():
    sizes = {**CONFIG, "ngram_lengths": [2], "ngram_pairs": 2, "knowledge_num": 36, "vocab_size": 61}
    token_NL = torch.tensor([[7, 8, 20 + n, 0, 0] for n in range(36)])
    text = torch.tensor([[5, 6]])
    for n_edits, found in ((4, {0, 1, 2, 3}), (6, set())):
        index, rows = NgramIndex(token_NL.clone(), tiny_config(**sizes)), torch.arange(n_edits)
        old_XL, index.token_NL[rows] = index.token_NL[rows].clone(), torch.tensor([5, 6, 0, 0, 0])
        index.edit(rows, old_XL)
        assert set(find_matches(index, text, None)[0].entry_BTC[0, -1].tolist()) - {NO_ENTRY} == found


def ranks_after_edits_and_a_move(model, move):
    """Before the move, after it and after the undo: the index, what it finds in a text, and how rare tokens are."""
    text, rows = torch.tensor([[7, 8, 5, 6, 7, 8, 20, 21]]), torch.tensor([4, 9])

    def seen():
        index = model.bank.ngrams()
        found, _ = find_matches(index, text.to(index.stale_N.device), None)
        return [x.cpu().clone() for x in (*found, index.rarity_V, index.rank_V, index.stale_N)]

    trained = seen()
    old_XL = model.bank.write(rows, torch.tensor([[7, 8, 5, 6, 0], [5, 6, 5, 6, 0]]))
    edited = seen()
    model = move(model)
    moved, n_edited = seen(), len(model.bank.ngrams().edited)
    model.bank.write(rows.to(model.device), old_XL.to(model.device))
    return trained, edited, moved, n_edited, seen()


def to_another_device(model):
    """Without a GPU: the index alone is taken elsewhere, which the bank sees as a move."""
    index = model.bank.ngrams()
    index.stale_N = index.stale_N.to("meta")
    return model


@pytest.mark.parametrize(
    "move",
    [
        to_another_device,
        pytest.param(
            lambda model: model.to("cuda"),
            marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")],
        ),
    ],
    ids=["index", "cuda"],
)
def test_an_index_that_moves_still_counts_the_bank_as_trained(move):
    sizes = {**CONFIG, "ngram_lengths": [1, 2], "ngram_pairs": 2, "knowledge_num": 36, "vocab_size": 61}
    model = tiny_model(**sizes, fusion="words", keep_ffn=True)
    model.bank.fill(torch.tensor([[7 + n % 9, 8, 20 + n, 0, 0] for n in range(36)]))
    trained, edited, moved, n_edited, undone = ranks_after_edits_and_a_move(model, move)
    assert n_edited == 2 and not torch.equal(edited[0], trained[0])
    for before, after in zip(edited + trained, moved + undone, strict=True):
        torch.testing.assert_close(after, before)
    assert not model.bank.ngrams().edits


def test_a_row_that_is_named_twice_is_undone_too():
    model = tiny_model(**{**CONFIG, "ngram_pairs": 2}, fusion="words", keep_ffn=True)
    text, rows = torch.arange(3, 15)[None], torch.tensor([5, 5])
    before = model(text).logits
    old = model.bank.write(rows, torch.stack([text[0, :5], text[0, 5:10]]))
    model.bank.write(rows, old)
    assert torch.equal(model(text).logits, before)
    assert not model.bank.ngrams().edited and not model.bank.ngrams().stale_N.any()


def test_noise_replaces_entries_in_training_only():
    model = tiny_model(**CONFIG, fusion="words", keep_ffn=True, retrieval_noise=0.5)
    ids = torch.randint(3, 61, (4, 16))
    assert torch.equal(model(ids).logits, model(ids).logits)
    quiet = model(ids).readings[0].entry_BTS
    noisy = model.train()(ids).readings[0].entry_BTS
    changed = (noisy != quiet).float().mean()
    assert 0.3 < changed < 0.7


def test_many_positions_share_the_words_that_few_share():
    token_BTCL, recent_BTW = torch.randint(9, (2, FEW_POSITIONS, 4, 5)), torch.randint(9, (2, FEW_POSITIONS, 3))
    rarity_V = torch.rand(9)
    few = [shared_rarity(*part, rarity_V) for part in zip(token_BTCL.split(7, 1), recent_BTW.split(7, 1), strict=True)]
    assert torch.equal(shared_rarity(token_BTCL, recent_BTW, rarity_V), torch.cat(few, dim=1))
