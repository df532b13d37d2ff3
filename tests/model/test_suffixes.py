"""Retrieval by suffixes against a slow rendering of its definition."""

import pytest
import torch

from common.constants import NO_ENTRY
from model.memory.suffix_index import SuffixIndex
from model.memory.suffixes import place_in_entry
from model.ops import suffix_bounds
from model.ops.own_places import Own
from model.ops.place_counts import pack_score, unpack_score
from tests.conftest import tiny_config, tiny_model

CONFIG = {"retrieval": "suffix", "fusion": "continuations", "keep_ffn": True, "suffix_length": 5, "suffix_tokens": 2}


def common(a, b, most):
    """How many of the last tokens of two texts are equal, `most` of them at most."""
    n = 0
    while n < min(len(a), len(b), most) and a[-1 - n] == b[-1 - n]:
        n += 1
    return n


def matches(token_NL, text, most):
    """The definition: for each place of a bank that a token follows, the tokens that it has in common with a text."""
    rows, L = token_NL.tolist(), token_NL.shape[1]
    return {
        e * L + i: common(row[: i + 1], text, most)
        for e, row in enumerate(rows)
        for i in range(L - 1)
        if row[i] and row[i + 1]
    }


@pytest.fixture
def bank():
    """Entries of few words, so that suffixes are long; some are short."""
    token_NL = torch.randint(3, 8, (40, 9))
    token_NL[::3, 5:] = 0
    token_NL[4] = 0
    return token_NL


@pytest.mark.parametrize("vocabulary, most", [(61, 5), (1 << 20, 5), (61, 12)])
def test_places_share_the_longest_suffixes_with_the_text(bank, vocabulary, most):
    config = tiny_config(**CONFIG | {"suffix_length": most, "vocab_size": vocabulary, "knowledge_length": 9})
    index, text = SuffixIndex(bank, config), torch.randint(3, 8, (3, 30))
    start = torch.zeros_like(text, dtype=torch.bool)
    start[:, [0, 13]] = True
    place, matched = index.find(text, start, 30, 6, n_ranked=12)
    for b in range(3):
        for t in range(30):
            begin = 13 if t >= 13 else 0
            expected = matches(bank, text[b, begin : t + 1].tolist(), most)
            found = {p: m for p, m in zip(place[b, t].tolist(), matched[b, t].tolist(), strict=True) if p != NO_ENTRY}
            assert found == {p: expected[p] for p in found} and min(found.values(), default=1) > 0
            best = sorted(expected.values(), reverse=True)
            assert max(found.values(), default=0) == best[0]
            longest = sum(m == best[0] for m in expected.values())
            assert best[0] == 0 or sum(m == best[0] for m in found.values()) == min(longest, 6)
            assert sorted(found.values(), reverse=True) == list(found.values())


def test_fewer_candidates_than_twice_the_places_read_are_refused():
    with pytest.raises(ValueError, match="--num_candidates 7 must be at least twice --num_selected 4"):
        tiny_config(**CONFIG | {"num_candidates": 7, "num_selected": 4})


def test_binary_search_finds_the_places_that_equal_a_query():
    token_NL = torch.tensor([[2, 1, 3, 1], [3, 1, 1, 4], [9, 4, 0, 0]], dtype=torch.int16)  # a number holds one token
    place_P = torch.tensor([1, 3, 5, 7, 9], dtype=torch.int32)  # suffixes 1 2, 1 3, 1 3, 4 1 and 4 9, each backwards
    sample_1 = token_NL.view(-1)[place_P[:1]].long()
    query_2X = torch.tensor([[1, 1, 4, 0, 9, 4], [3, 1, 9, 5, 0, 5]])
    low_X, high_X = suffix_bounds(query_2X, sample_1, place_P, token_NL, 2, 4, 1)
    assert low_X.tolist() == [1, 0, 4, 0, 5, 4] and high_X.tolist() == [3, 0, 5, 0, 5, 4]


def test_an_index_that_is_sorted_in_parts_is_the_same(monkeypatch):
    token_NL = torch.randint(0, 8, (300, 9)).sort(dim=1, descending=True).values[:, torch.randperm(9)]
    token_NL = token_NL.where(torch.arange(9) < torch.randint(1, 10, (300, 1)), 0)
    config = tiny_config(**CONFIG | {"suffix_length": 9, "vocab_size": 1 << 20, "knowledge_length": 9})
    whole = SuffixIndex(token_NL, config).base
    monkeypatch.setattr("model.memory.suffix_index.PLACES_AT_ONCE", 50)
    monkeypatch.setattr("model.memory.suffix_index.ROWS_AT_ONCE", 7)
    assert all(map(torch.equal, SuffixIndex(token_NL, config).base, whole))
    places = [e * 9 + i for e, row in enumerate(token_NL.tolist()) for i in range(8) if row[i] and row[i + 1]]
    rows = token_NL.tolist()

    def order(place):  # the last token first; of equal suffixes what follows
        e, i = divmod(place, 9)
        return rows[e][i::-1] + [0] * (8 - i), (rows[e][i + 1 :] + [0] * 9)[:3], place

    assert whole.place_P.tolist() == sorted(places, key=order)


def test_edited_and_swapped_texts_leave_the_order_of_the_index():
    """The second number of a suffix is read from the entries' tokens: those that were sorted."""
    model = tiny_model(**CONFIG | {"suffix_length": 12, "vocab_size": 1 << 16, "num_candidates": 8, "num_selected": 4})
    bank, generator = model.bank, torch.Generator().manual_seed(0)

    def texts(*shape):
        return torch.randint(3, 5, shape, generator=generator)

    bank.fill(texts(*bank.tokens.shape))
    text, start, index = texts(8, 20), torch.zeros(8, 20, dtype=torch.bool), bank.index(SuffixIndex)

    def found():
        return index.find(text, start, 20, 4, 8)

    def found_in_swapped():
        kept = bank.swap(torch.full_like(bank.tokens, 50))
        places = found()
        bank.tokens.copy_(kept)
        return places

    before = found()
    assert before[1].max() > 3  # more than one number holds
    rows, trained_NL = torch.arange(0, len(bank.tokens), 2), bank.tokens.clone()
    old = bank.write(rows, texts(len(rows), bank.tokens.shape[1]))
    edited, fresh = found(), SuffixIndex(bank.tokens.clone(), bank.config).find(text, start, 20, 4, 8)
    assert torch.equal(edited[1][..., 0], fresh[1][..., 0]) and torch.equal(index.trained_NL, trained_NL)
    assert all(map(torch.equal, found_in_swapped(), edited))
    bank.write(rows, old)
    assert all(map(torch.equal, found(), before)) and index.trained_NL is bank.tokens
    assert all(map(torch.equal, found_in_swapped(), before))


def test_an_edited_entry_is_found_by_its_new_text_alone_and_undo_is_exact():
    model = tiny_model(**CONFIG | {"num_candidates": 8, "num_selected": 4})
    model.bank.fill(torch.randint(3, 30, model.bank.tokens.shape))
    old_1L, new_1L = model.bank.tokens[7:8].clone(), torch.randint(40, 60, (1, model.bank.tokens.shape[1]))

    def entries(row_L):
        text, L = row_L[None, :3].long(), model.bank.tokens.shape[1]
        place, matched = model.bank.index(SuffixIndex).find(text, torch.tensor([[True, False, False]]), 3, 4, 8)
        return (place[0, -1] // L).tolist()[0], matched[0, -1].tolist()[0]

    before = [x.clone() for x in model.bank.index(SuffixIndex).base]
    assert entries(old_1L[0]) == (7, 3)
    model.bank.write(torch.tensor([7]), new_1L)
    assert entries(new_1L[0]) == (7, 3) and entries(old_1L[0])[1] < 3
    model.bank.write(torch.tensor([7]), old_1L)
    index = model.bank.index(SuffixIndex)
    assert index.edits is None and all(map(torch.equal, index.base, before)) and entries(old_1L[0]) == (7, 3)


def test_the_oracle_gives_the_place_of_an_entry_that_repeats_most_of_the_text():
    token_NL = torch.tensor([[9, 9, 9, 9, 0], [3, 4, 3, 4, 5]])
    text, start = torch.tensor([[8, 3, 4, 3]]), torch.tensor([[True, False, False, False]])
    place, matched = place_in_entry(token_NL, torch.tensor([1]), text, start, 4)
    assert (place[0] - 5).tolist()[1:] == [0, 1, 2] and matched[0].tolist() == [0, 1, 2, 3]


def test_equal_tokens_that_follow_add_up():
    """Where all places are followed by one token, that token gets all the attention that is not given to nothing."""
    model = tiny_model(**CONFIG | {"memory_layers": [0], "num_candidates": 8, "num_selected": 4})
    model.bank.fill(torch.tensor([[3, 4, 5, 6, 7]]).expand(len(model.bank.tokens), -1))
    reading = model(torch.tensor([[3, 4]])).readings[0]
    weight = reading.weight_BTS[0, -1]
    assert sum(reading.last_weights().values()) == pytest.approx(float(weight.sum()))
    assert torch.allclose(weight, weight[:1].expand(4)) and 0.05 < weight.sum() < 1


def test_a_fusion_by_tokens_sees_which_tokens_continue_the_text():
    model = tiny_model(**CONFIG | {"fusion": "words", "num_selected": 2, "suffix_tokens": 3, "knowledge_length": 5})
    model.bank.fill(torch.randint(40, 60, model.bank.tokens.shape))
    model.bank.write(torch.tensor([7]), torch.tensor([[3, 4, 5, 6, 7]]))
    seen = []
    model.blocks[0].fusion.register_forward_pre_hook(lambda module, args: seen.append(args[1].tokens))
    model(torch.tensor([[3, 4, 5]]))
    tokens = seen[0]
    assert tokens.token_BTW[0, -1, :3].tolist() == [6, 7, 0]
    assert tokens.previous_BTW[0, -1, :2].tolist() == [5, 6]
    assert tokens.follows_BTW[0, -1, :3].tolist() == tokens.follows2_BTW[0, -1, :3].tolist() == [True, False, False]


def test_another_bank_is_indexed_anew():
    model, other = tiny_model(**CONFIG), tiny_model(**CONFIG)
    ids = torch.randint(3, 61, (2, 9))
    model(ids)
    other.bank.fill(torch.randint(3, 8, other.bank.tokens.shape))
    model.load_state_dict(other.state_dict())
    assert torch.equal(model(ids).logits, other(ids).logits)


def test_a_shuffled_bank_gives_other_places_of_edited_entries_too():
    model = tiny_model(**CONFIG | {"num_selected": 2})
    model.bank.fill(torch.randint(3, 30, model.bank.tokens.shape))
    model.bank.write(torch.tensor([7]), torch.randint(40, 60, (1, model.bank.tokens.shape[1])))
    text, start = model.bank.tokens[7][None, :3].long(), torch.tensor([[True, False, False]])
    index, L = model.bank.index(SuffixIndex), model.bank.tokens.shape[1]
    assert (index.find(text, start, text.shape[1], 2, 4)[0][0, -1] // L).tolist()[0] == 7
    assert 7 not in (index.find(text, start, text.shape[1], 2, 4, shuffle=True)[0][0, -1] // L).tolist()


def test_a_shuffled_bank_gives_other_places(bank):
    index = SuffixIndex(bank, tiny_config(**CONFIG | {"knowledge_length": 9}))
    text = torch.randint(3, 8, (2, 12))
    start = torch.zeros_like(text, dtype=torch.bool)
    start[:, 0] = True
    right, other = (
        index.find(text, start, text.shape[1], 4, 8),
        index.find(text, start, text.shape[1], 4, 8, shuffle=True),
    )
    assert torch.equal(right[1], other[1]) and not (right[0] == other[0]).where(right[0] != NO_ENTRY, False).any()


@pytest.mark.parametrize("fusion", ["continuations", "words", "cross_attention"])
def test_an_oracle_entry_is_read_first_wherever_it_repeats_the_text(fusion):
    model, ids = tiny_model(**CONFIG | {"fusion": fusion, "num_selected": 3}), torch.randint(3, 61, (2, 9))
    oracle = torch.tensor([5, NO_ENTRY])
    reading, as_always = (model(ids, **more).readings[0] for more in ({"entry_B": oracle}, {}))
    assert (reading.entry_BTS[0, :, 0] == 5).all() and (reading.weight_BTS[0, :, 0] > 0).all()
    assert torch.equal(reading.entry_BTS[1], as_always.entry_BTS[1])


OFTEN = CONFIG | {
    "suffix_tokens": 1,
    "suffix_often": [6],
    "suffix_often_tokens": 4,
    "num_selected": 8,
    "num_candidates": 12,
}


def counted(index, row, own=None):
    """The counted next tokens at the end of a text: {token: (tokens in common, share, share without topics)}."""
    text = torch.tensor([row])
    place, score = index.count_next(text, torch.arange(len(row))[None] == 0, 1, False, own)
    matched, log_share, log_plain = unpack_score(score[0, 0])
    numbers = zip(
        place[0, 0].tolist(), matched.tolist(), log_share.exp().tolist(), log_plain.exp().tolist(), strict=True
    )
    return {int(index.token_NL.flatten()[p + 1]): more for p, *more in numbers if p != NO_ENTRY}


def test_a_score_holds_the_tokens_in_common_and_both_shares():
    matched, log_share, log_plain = unpack_score(
        pack_score(torch.tensor([7, 1]), *torch.tensor([[1, 0.2], [0.5, 1e-9]]))
    )
    assert matched.tolist() == [7, 1]
    assert log_share.exp().tolist() == pytest.approx([1, 0.2], rel=0.01)
    assert log_plain.tolist() == pytest.approx([-0.693, -20.72], abs=0.01)
    assert [x.tolist() for x in unpack_score(torch.tensor([5]))] == [[5], [0], [0]]


@pytest.mark.parametrize("n", [6, 500])
def test_next_tokens_are_counted_after_the_longest_suffix_that_is_frequent(bank, n):
    """With fewer places than asked for, all that share the last token count."""
    index = SuffixIndex(
        bank, tiny_config(**OFTEN | {"knowledge_length": 9, "suffix_often": [n], "suffix_often_tokens": 7})
    )
    rows = bank.tolist()
    for row in torch.randint(3, 8, (20, 6)).tolist():
        places = matches(bank, row, 5)
        level = max((m for m in range(2, 6) if sum(c >= m for c in places.values()) >= n), default=1)
        after = [rows[p // 9][p % 9 + 1] for p, c in places.items() if c >= level]
        found = counted(index, row)
        assert {m for m, *_ in found.values()} == {level} and found.keys() <= set(after)
        assert sum(share for _, share, _ in found.values()) == pytest.approx(1, abs=0.02)
        if len(after) <= n:
            assert {t: s for t, (_, _, s) in found.items()} == pytest.approx(
                {t: after.count(t) / len(after) for t in set(after)}, rel=0.01
            )


def test_counts_after_an_edit_are_those_of_a_new_index_and_undo_is_exact(bank):
    config = tiny_config(**OFTEN | {"knowledge_length": 9, "suffix_often": [90], "suffix_often_tokens": 7})
    index, rows = SuffixIndex(bank.clone(), config), torch.randint(3, 8, (20, 6)).tolist()
    before = [counted(index, row) for row in rows]
    row_X = torch.tensor([1, 2, 5, 20])
    index.token_NL[row_X] = torch.randint(3, 8, (4, 9))
    index.edit(row_X, bank[row_X])
    after = [counted(index, row) for row in rows]
    assert after == [counted(SuffixIndex(index.token_NL, config), row) for row in rows] and after != before
    changed = index.token_NL[row_X].clone()
    index.token_NL[row_X] = bank[row_X]
    index.edit(row_X, changed)
    assert index.edits is index.replaced is None and [counted(index, row) for row in rows] == before


def test_a_suffix_that_edits_have_made_rare_is_not_frequent():
    config = tiny_config(**OFTEN | {"knowledge_length": 4, "suffix_often": [2]})
    index = SuffixIndex(torch.tensor([[3, 4, 5, 6]] * 2 + [[9, 9, 5, 7]] * 3), config)
    assert counted(index, [3, 4, 5]) == {6: [3, 1, 1]}
    before = index.token_NL[:2].clone()
    index.token_NL[:2] = 8
    index.edit(torch.tensor([0, 1]), before)
    assert counted(index, [3, 4, 5]) == {7: [1, 1, 1]}


def test_the_first_token_of_a_document_shares_one_token_with_the_first_of_an_entry():
    config = tiny_config(**OFTEN | {"knowledge_length": 2, "suffix_often": [2]})
    assert counted(SuffixIndex(torch.tensor([[5, 6]] * 4), config), [5]) == {6: [1, 1, 1]}


def test_each_number_of_places_has_a_group_of_its_own():
    flags = {"knowledge_length": 4, "suffix_often_tokens": 2, "num_selected": 6, "num_candidates": 6}
    config = tiny_config(**OFTEN | flags | {"suffix_often": [2, 5]})
    index = SuffixIndex(torch.tensor([[3, 4, 5, 6]] * 2 + [[9, 9, 5, 7]] * 3), config)
    place, score = index.count_next(torch.tensor([[3, 4, 5]]), torch.tensor([[True, False, False]]), 1, False)
    assert unpack_score(score)[0].tolist() == [[[3, 0, 1, 1]]] and config.retrieval_class.groups(config) == [2, 2, 2]
    assert index.token_NL.flatten()[place + 1].tolist()[0][0][2:] == [7, 6]


def test_a_long_search_is_made_in_parts(bank, monkeypatch):
    index = SuffixIndex(bank, tiny_config(**OFTEN | {"knowledge_length": 9, "suffix_topic_dim": 3}))
    text = torch.randint(3, 8, (2, 9)), torch.arange(9)[None].expand(2, -1) % 5 == 0
    whole = index.count_next(*text, 9, False)
    monkeypatch.setattr("model.memory.suffix_counts.PLACES_AT_ONCE", 6 * 7)
    assert all(map(torch.equal, index.count_next(*text, 9, False), whole)) and (whole.place != NO_ENTRY).any()


def two_topics():
    """Entries of two topics, each with words of its own; 3 4 stands in all, and goes on with 50 or with 51."""
    words = torch.randint(10, 20, (24, 5))
    words[12:] += 20
    ends = torch.tensor([[3, 4, 50]]).repeat(24, 1)
    ends[12:, 2] = 51
    return torch.cat([words, ends], dim=1)


@pytest.mark.parametrize("dim", [0, 2])
def test_a_token_counts_more_after_entries_about_the_topic_of_the_text(dim):
    config = tiny_config(**OFTEN | {"knowledge_length": 8, "suffix_often": [24], "suffix_topic_dim": dim})
    index = SuffixIndex(two_topics(), config)
    for words, right, wrong in ([11, 14, 17], 50, 51), ([31, 34, 37], 51, 50):
        found = counted(index, [*words, 3, 4])
        assert found[right][2] == found[wrong][2] == pytest.approx(0.5, rel=0.01)
        assert found[right][1] > 0.9 if dim else found[right][1] == found[wrong][1]


def test_an_edited_entry_has_another_topic_until_the_edit_is_undone():
    index = SuffixIndex(two_topics(), tiny_config(**OFTEN | {"knowledge_length": 8, "suffix_topic_dim": 4}))
    row_1, old_1L, before = torch.tensor([0]), index.token_NL[:1].clone(), index.topics.topic_NK.clone()
    index.token_NL[0] = index.token_NL[20]
    index.edit(row_1, old_1L)
    assert torch.equal(index.topics.topic_NK[0], before[20]) and torch.equal(index.topics.topic_NK[1:], before[1:])
    index.token_NL[0] = old_1L
    index.edit(row_1, index.token_NL[20:21])
    assert torch.equal(index.topics.topic_NK, before)


@pytest.mark.parametrize(
    "flags, message",
    [
        ({"suffix_tokens": 2}, "--suffix_often counts single tokens: it needs --suffix_tokens 1, not 2"),
        (
            {"suffix_often_tokens": 8},
            "--suffix_often_tokens 8, for each number of --suffix_often, must be less than --num_selected 8",
        ),
        ({"suffix_often": [8, 0]}, r"--suffix_often \[8, 0\] must lie in \[1, 4096\]"),
        ({"num_candidates": 9, "suffix_often_tokens": 3}, "at least twice --num_selected less counted tokens 5"),
    ],
)
def test_counted_tokens_that_cannot_be_read_are_refused(flags, message):
    with pytest.raises(ValueError, match=message):
        tiny_config(**OFTEN | flags)


COUNTED = {"suffix_tokens": 1, "suffix_often": [4], "suffix_often_tokens": 2, "num_candidates": 12, "num_selected": 6}


@pytest.mark.parametrize("topics", [0, 8])
def test_training_reads_nothing_that_was_cut_from_the_document_of_its_position(topics):
    model = tiny_model(**CONFIG | COUNTED | {"suffix_topic_dim": topics})
    token_NL = torch.randint(3, 6, model.bank.tokens.shape)
    model.bank.fill(token_NL)
    input_BT, document_BT = torch.randint(3, 6, (4, 24)), torch.randint(0, 3, (4, 24)).sort(dim=1).values
    everything = model.search_text(input_BT, document_ids=document_BT)["match_entry_BTC"]
    model.bank.document = torch.arange(len(token_NL)).int() % 4 - 1
    found = model.search_text(input_BT, document_ids=document_BT)["match_entry_BTC"]

    def own(place_BTS):
        document_BTS = model.bank.document[place_BTS.clamp(min=0) // token_NL.shape[1]]
        return (place_BTS != NO_ENTRY) & (document_BTS == document_BT[..., None])

    assert own(everything).any() and not own(found).any()
    assert (found[..., :4] != NO_ENTRY).sum() == (everything[..., :4] != NO_ENTRY).sum()  # others took the slots


@pytest.mark.parametrize("most", [2, 5])
def test_without_its_own_document_a_position_reads_as_if_the_bank_did_not_hold_it(bank, most):
    text, start = torch.randint(3, 8, (3, 30)), (torch.arange(30) % 13 == 0).expand(3, -1)
    bank[:3, :5] = text[0, 10:15]  # these are the nearest places of a stretch of the text
    config = tiny_config(**OFTEN | {"suffix_length": most, "suffix_often": [40], "knowledge_length": 9})
    own = Own(torch.arange(40).int() // 3, 9, torch.zeros(90, dtype=torch.int64))
    index, others = SuffixIndex(bank, config), SuffixIndex(bank.where(torch.arange(40)[:, None] >= 3, 0), config)
    found, expected = index.find(text, start, 30, 6, 12, own=own), others.find(text, start, 30, 6, 12)
    assert all(map(torch.equal, found, expected)) and not torch.equal(found[0], index.find(text, start, 30, 6, 12)[0])
    assert (found[0][0, 14] != NO_ENTRY).all()
    assert all(
        map(torch.equal, index.count_next(text, start, 30, False, own), others.count_next(text, start, 30, False))
    )


def test_an_edit_of_an_entry_of_the_own_document_is_not_read_either(bank):
    text, start = torch.randint(3, 8, (3, 30)), torch.zeros(3, 30, dtype=torch.bool)
    index = SuffixIndex(bank, tiny_config(**OFTEN | {"suffix_often": [4], "knowledge_length": 9}))
    row_X, old_XL = torch.tensor([1, 9]), bank[[1, 9]].clone()
    bank[row_X] = text[0, 10:19]
    index.edit(row_X, old_XL)
    own = Own(torch.arange(40).int() // 3, 9, torch.zeros(90, dtype=torch.int64))
    everything, found = (
        torch.cat([index.find(text, start, 30, 6, 12, own=x)[0], index.count_next(text, start, 30, False, x).place], -1)
        for x in (None, own)
    )
    assert own.places(everything.flatten(0, 1)).any() and not own.places(found.flatten(0, 1)).any()
    assert (found[0, 17, :6] // 9 == 9).any()  # the other edit is


def test_a_suffix_that_is_frequent_in_the_own_document_alone_is_not_frequent():
    index = SuffixIndex(
        torch.tensor([[3, 4, 5, 6]] * 4 + [[9, 9, 5, 7]] * 3),
        tiny_config(**OFTEN | {"knowledge_length": 4, "suffix_often": [3]}),
    )
    own = Own(torch.tensor([0] * 4 + [-1] * 3, dtype=torch.int32), 4, torch.tensor([0]))
    assert counted(index, [3, 4, 5]) == {6: [3, 1, 1]} and counted(index, [3, 4, 5], own) == {7: [1, 1, 1]}
