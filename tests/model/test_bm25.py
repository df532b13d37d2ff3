"""Retrieval by words against a slow rendering of its definition."""

import math

import pytest
import torch

from common.constants import NO_ENTRY, PADDING
from dataset.knowledge import encode_entries
from dataset.tokenizer import encode_as_text, load_tokenizer
from model.memory.bm25_index import LENGTH_SHARE, RECENCY, BM25Index, CutPostings, pair_keys
from model.memory.ngram_search import find_matches
from model.memory.spelling import spell, tokens_as_words, words_so_far
from tests.conftest import tiny_config, tiny_model

CONFIG = {"retrieval": "bm25", "fusion": "words", "keep_ffn": True, "knowledge_length": 16, "vocab_size": 6400}
FACTS = [
    "Gold was directed by Stephen Gaghan.",
    "Gold has the chemical symbol Au.",
    "Gold is a metal.",
    "Oslo is the capital of Norway.",
    "Oslo was founded by Harald Hardrada.",
    "Norway borders Sweden.",
    "Harald Hardrada died in England.",
    "The director of Alien is Ridley Scott.",
]


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer("dataset/tokenizer")


@pytest.fixture
def bank(tokenizer):
    return torch.from_numpy(encode_entries(tokenizer, FACTS, 16)[0])


@pytest.fixture
def index(tokenizer, bank):
    return BM25Index(bank.clone(), tiny_config(**CONFIG, num_candidates=8), None, spell(tokenizer, 6400))


def best(index, tokenizer, text):
    """Rows, best first, at the end of a text."""
    matches, _ = find_matches(index, torch.tensor([encode_as_text(tokenizer, text)]), None)
    return [row for row in matches.entry_BTC[0, -1].tolist() if row != NO_ENTRY]


def words(tokenizer, text):
    """The word of each token of a text, and whether the one before has just ended."""
    text_1T = torch.tensor([encode_as_text(tokenizer, text)])
    word_1T, ended_1T = words_so_far(spell(tokenizer, 6400), text_1T, torch.zeros_like(text_1T, dtype=torch.bool))
    return word_1T[0].tolist(), ended_1T[0].tolist()


def whole_words(tokenizer, text):
    word_T, ended_T = words(tokenizer, text + " .")
    return [word for word, ended in zip(word_T, ended_T[1:], strict=False) if ended]


@pytest.mark.parametrize(
    "first, second",
    [
        ("Stieltjes", "STIELTJES"), ("directed", "director"), ("2006", "(2006"), ("\u00c9lan", "\u00c9lan"),
        ("Thomas Joannes", "thomas, joannes"),
    ],
)  # fmt: skip
def test_a_word_is_its_first_letters_in_lower_case_whatever_its_tokens_are(tokenizer, first, second):
    assert whole_words(tokenizer, first) == whole_words(tokenizer, second) != []


@pytest.mark.parametrize("first, second", [("Oslo", "Os"), ("2006", "2007"), ("gold", "golds"), ("\u6cd5", "\u56fd")])
def test_other_words_differ(tokenizer, first, second):
    assert not set(whole_words(tokenizer, first)) & set(whole_words(tokenizer, second))


def test_each_chinese_token_is_a_word_and_signs_are_none(tokenizer):
    assert len(whole_words(tokenizer, "\u6cd5\u56fd")) == 2
    assert set(words(tokenizer, "... -- , ;")[0]) == {0}


@pytest.mark.parametrize(
    "question, row",
    [
        ("Who was the director of Gold?\nAnswer:", 0),
        ("Tell me about Gold. Its chemical symbol is", 1),
        ("The city that is Norway's capital is called", 3),
        ("Which man founded Oslo?\nAnswer:", 4),
        ("Somebody rang. In which land did Harald Hardrada die, in", 6),
    ],
)
def test_a_fact_is_found_in_other_words_than_its_own(index, tokenizer, question, row):
    assert best(index, tokenizer, question)[0] == row


def test_the_words_of_the_form_of_a_question_find_nothing(index, tokenizer):
    assert best(index, tokenizer, "Question: what?\nAnswer:") == []
    plain, asked = (best(index, tokenizer, text) for text in ("Norway?", "Question: Norway?\nAnswer:"))
    assert plain == asked != []


def test_with_recency_the_words_of_a_name_make_a_pair_behind_a_sentence_of_rarer_words(tokenizer):
    bank = torch.from_numpy(encode_entries(tokenizer, [*FACTS, "Norway sold much gold to Oslo."], 16)[0])

    def found(text, **flags):
        config = tiny_config(**CONFIG, num_candidates=8, bm25_postings=1, **flags)
        return best(BM25Index(bank, config, None, spell(tokenizer, 6400)), tokenizer, text)

    rare = "Zyx quov blem torg fipp wux jarn kolp."
    assert 8 in found("Oslo, gold,") and 8 not in found("Oslo,") + found("gold,")
    assert 8 not in found(f"{rare} Oslo, gold,")
    assert 8 in found(f"{rare} Oslo, gold,", bm25_pair_recency=0.9)


def test_common_words_find_entries_and_weigh_little(tokenizer):
    texts = [*FACTS * 10, "What do they sing? They sing songs.", "Magnus is a player of chess."]
    bank = torch.from_numpy(encode_entries(tokenizer, texts, 16)[0])

    def found(text, words):
        config = tiny_config(**CONFIG, num_candidates=8, bm25_common_words=words)
        return best(BM25Index(bank, config, None, spell(tokenizer, 6400)), tokenizer, text)

    question = "What does Magnus do? They,"
    assert found(question, None)[:2] == [80, 81] and found(question, ["what", "they", "do"])[:2] == [81, 80]
    assert found("They,", ["they"]) == [80]
    assert found("Nowhere,", ["nowhere"]) == []


def test_the_current_word_finds_entries_before_another_one_begins(tokenizer):
    bank = torch.from_numpy(encode_entries(tokenizer, ["Oslo founded Hardrada.", *FACTS, "Oslo is Oslo."], 16)[0])

    def index_of(current):
        config = tiny_config(**CONFIG, num_candidates=8, bm25_postings=1, bm25_current_word=current)
        return BM25Index(bank, config, None, spell(tokenizer, 6400))

    late, now = index_of(False), index_of(True)
    assert best(late, tokenizer, "Oslo founded") == best(now, tokenizer, "Oslo") == [9]
    assert set(best(now, tokenizer, "Oslo founded")) > {9}  # that pair's entry too
    one, two = (encode_as_text(tokenizer, text) for text in ("Norway borders Gold", "Gold has a symbol, Oslo"))
    ids, document = torch.tensor([one + two]), torch.tensor([[0] * len(one) + [1] * len(two)])
    both, _ = find_matches(now, ids, document)
    for text, part in ((one, slice(0, len(one))), (two, slice(len(one), None))):
        alone, _ = find_matches(now, torch.tensor([text]), None)
        assert torch.equal(alone.entry_BTC[0], both.entry_BTC[0, part])
        assert torch.equal(alone.score_BTC[0], both.score_BTC[0, part])
    for n in range(1, len(one) + len(two)):
        begun, _ = find_matches(now, ids[:, :n], document[:, :n])
        assert torch.equal(begun.entry_BTC, both.entry_BTC[:, :n])


def test_scores_are_those_of_the_definition(index, tokenizer):
    text = "In Norway, Oslo is older than the director of Gold"
    text_1T = torch.tensor([encode_as_text(tokenizer, text)])
    matches, _ = find_matches(index, text_1T, None)
    entries = [set(whole_words(tokenizer, fact)) for fact in FACTS]
    mean = sum(map(len, entries)) / len(entries)
    word_T, ended_T = words(tokenizer, text)
    for t in range(len(word_T)):
        said = {}  # word -> how many tokens ago it ended; the current word counts as it stands
        for u in range(1, t + 1):
            if ended_T[u]:
                said[word_T[u - 1]] = t - u
        said = {word: back for word, back in said.items() if back < 32} | ({word_T[t]: 0} if word_T[t] else {})
        scores = dict(zip(matches.entry_BTC[0, t].tolist(), matches.score_BTC[0, t].tolist(), strict=True))
        for row in set(scores) - {NO_ENTRY}:
            idf = {
                word: math.log(len(FACTS) / sum(word in e for e in entries)) for word in said if word in entries[row]
            }
            total = sum(max(value, 0.01) * RECENCY ** said[word] for word, value in idf.items())
            expected = total / (1 - LENGTH_SHARE + LENGTH_SHARE * len(entries[row]) / mean)
            assert scores[row] == pytest.approx(expected, rel=1e-4)
    assert NO_ENTRY not in scores


def test_an_edited_entry_is_found_by_words_that_the_bank_never_had_and_undo_is_exact(index, tokenizer, bank):
    question = "Where does Zyxomma Quorvath live?\nAnswer:"
    assert best(index, tokenizer, question) == []
    before = best(index, tokenizer, "The capital of Norway"), index.word_NK.clone(), index.norm_N.clone()
    new = torch.from_numpy(encode_entries(tokenizer, ["Zyxomma Quorvath lives in Oslo."], 16)[0]).to(bank)
    row, old = torch.tensor([3]), index.token_NL[[3]].clone()
    index.token_NL[row] = new
    index.edit(row, old)
    assert best(index, tokenizer, question)[0] == 3
    assert 3 not in best(index, tokenizer, "The capital of")
    index.token_NL[row] = old
    index.edit(row, new)
    assert not index.edited and best(index, tokenizer, question) == []
    after = best(index, tokenizer, "The capital of Norway"), index.word_NK, index.norm_N
    assert before[0] == after[0] and torch.equal(before[1], after[1]) and torch.equal(before[2], after[2])


@pytest.mark.parametrize("frequent", [1, 8])
def test_frequent_keys_find_an_added_entry_as_in_one_list_with_all_others(frequent, monkeypatch):
    """They point to the few entries where they weigh most, there in training or not. Other keys find it in any case."""
    monkeypatch.setattr("model.memory.bm25_index.FREQUENT", frequent)
    n, empty = 2, 6
    token_NL = torch.randint(3, 12, (46, 5))
    token_NL[-empty:] = 0
    config = tiny_config(retrieval="bm25", knowledge_length=5, knowledge_num=46, bm25_postings=n)
    spelling_V = tokens_as_words(61)
    spelling_V[PADDING] = 0  # no word
    index = BM25Index(token_NL, config, None, spelling_V)
    row = torch.arange(40, 46)
    token_NL[row] = torch.randint(3, 14, (empty, 5))  # two tokens are new
    index.edit(row, torch.zeros(empty, 5, dtype=token_NL.dtype))
    word_NL, (by_rarity_NL, idf_NL) = index.words(token_NL), index._rarest_first(index.words(token_NL))
    mass_N, n_kept, n_left_out = idf_NL.sum(dim=1), 0, 0
    pair_NP = pair_keys(*(by_rarity_NL[:, x].long() for x in torch.combinations(torch.arange(5)).T))
    for key_NP in (word_NL.long(), pair_NP):
        for key in key_NP[key_NP != 0].unique().tolist():
            having = (key_NP == key).any(dim=1).nonzero()[:, 0].tolist()
            is_frequent = sum(entry < 40 for entry in having) > frequent
            others = having if is_frequent else [entry for entry in having if entry >= 40]
            expected = sorted(others, key=lambda entry: float(mass_N[entry]))[:n]
            keys = index.edits["keys"]
            found = keys.entry_P[:-1][keys.key_P == key].tolist()
            assert sorted(found) == sorted(entry for entry in expected if entry >= 40)
            n_kept, n_left_out = n_kept + len(found), n_left_out + sum(entry >= 40 for entry in having) - len(found)
    assert n_kept > 5 and n_left_out > 5


@pytest.mark.parametrize("P, firsts, n", [(0, 3, 2), (1, 1, 1), (1, 3, 4), (200, 1, 8), (200, 2, 3), (300, 40, 8)])
def test_postings_that_share_halves_of_keys_are_those_of_whole_keys(P, firsts, n):
    def keys(least, n_keys):
        high, low = torch.randint(0, firsts, (n_keys,)), torch.randint(least, 90, (n_keys,))
        return high * 50_000_000 << 32 | low * 23_000_000  # up to nearly 2^31

    key_P, entry_P = keys(1, P).sort().values, torch.randint(0, 60, (P,))
    lists = CutPostings(key_P, entry_P, key_P[:0])
    assert torch.equal(lists.key_P, key_P)
    key_X = torch.cat([keys(0, 50), key_P, key_P + 1, key_P - 1, torch.zeros(1, dtype=torch.int64)])
    weight_X, norm_N = torch.rand(len(key_X)), torch.rand(60)
    entry_XK, weight_XK = lists.read(key_X[:, None], weight_X[:, None], norm_N, n)
    for key, weight, entry_K, weight_K in zip(key_X, weight_X, entry_XK, weight_XK, strict=True):
        expected = entry_P[key_P == key][:n]
        missing = n - len(expected)
        assert entry_K.tolist() == expected.tolist() + [NO_ENTRY] * missing
        assert weight_K.tolist() == (weight * norm_N[expected]).tolist() + [0.0] * missing


def test_more_candidates_than_can_be_ranked_are_refused():
    with pytest.raises(ValueError, match="--num_candidates 1025 are too many to be ranked by words; at most 1024"):
        tiny_config(**CONFIG, num_candidates=1025)


def test_a_run_keeps_how_its_tokens_are_spelled(tokenizer, tmp_path):
    model = tiny_model(**CONFIG)
    assert torch.equal(model.bank.spelling & 3, torch.full((6400,), 2))  # each token a word
    model.bank.spell(tokenizer)
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path)
    assert torch.equal(again.bank.spelling, spell(tokenizer, 6400))
