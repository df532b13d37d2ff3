"""Words that entries also count as having: a fact is found by words that its statement does not have."""

import math

import pytest
import torch

from common.constants import NO_ENTRY
from dataset.knowledge import encode_entries
from dataset.tokenizer import encode_as_text, encode_texts, load_tokenizer
from model.memory.also_words import AlsoWords, read_also
from model.memory.bm25_index import LENGTH_SHARE, RECENCY, BM25Index
from model.memory.ngram_search import find_matches
from model.memory.spelling import numbers_of, spell
from tests.conftest import tiny_config

CONFIG = {"retrieval": "bm25", "fusion": "words", "keep_ffn": True, "knowledge_length": 16, "vocab_size": 6400}
ALSO = ["occupation=profession,job", "died=death", "speaks=language"]
FACTS = [
    "Ada Lovelace speaks English.",
    "Ada Lovelace died in London.",
    "Ada Lovelace lived in Paris.",
    "The occupation of Ada Lovelace is author.",
    "A job is a kind of work.",
    "Oslo is in Norway.",
]


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer("dataset/tokenizer")


def index_of(tokenizer, also, more=(), **flags):
    bank = torch.from_numpy(encode_entries(tokenizer, [*FACTS, *more], 16)[0])
    config = tiny_config(**CONFIG, num_candidates=8, bm25_also_words=also, **flags)
    return BM25Index(bank, config, None, spell(tokenizer, 6400))


def found(index, tokenizer, text):
    matches, _ = find_matches(index, torch.tensor([encode_as_text(tokenizer, text)]), None)
    return matches


def best(index, tokenizer, text):
    return [row for row in found(index, tokenizer, text).entry_BTC[0, -1].tolist() if row != NO_ENTRY]


@pytest.mark.parametrize("question, row", [("Ada Lovelace, profession,", 3), ("Ada Lovelace, death,", 1)])
def test_a_fact_is_found_by_words_that_its_entry_also_counts_as_having(tokenizer, question, row):
    assert best(index_of(tokenizer, ALSO), tokenizer, question)[0] == row
    assert best(index_of(tokenizer, None), tokenizer, question)[0] == 0  # the shortest about her


def test_pairs_find_an_entry_where_a_word_alone_has_too_many(tokenizer):
    more = [f"The occupation of {name} is author." for name in ("Bo", "Cy", "Di", "Ed", "Flo")]  # names are rarest
    more += ["Ada Lovelace is author."]  # the first that her name points to
    also, plain = (index_of(tokenizer, words, more, bm25_postings=1) for words in (ALSO, None))
    assert 3 in best(also, tokenizer, "Lovelace, job,")
    assert 3 not in best(plain, tokenizer, "Lovelace, job,")


def test_scores_count_added_words_as_own_ones_and_lengths_do_not(tokenizer):
    def n_tokens(text):
        return len(encode_texts(tokenizer, [text])[0])

    matches = found(index_of(tokenizer, ALSO), tokenizer, "Ada profession job,")
    score = dict(zip(matches.entry_BTC[0, -1].tolist(), matches.score_BTC[0, -1].tolist(), strict=True))
    lengths = [4, 5, 5, 7, 6, 4]  # of each fact, in words of its own
    back = {"job": 0, "profession": n_tokens(" job"), "Ada": n_tokens(" profession job")}
    entries = {"job": 2, "profession": 1, "Ada": 4}  # with the word
    worth = sum(math.log(len(FACTS) / entries[word]) * RECENCY ** back[word] for word in back)
    norm = 1 - LENGTH_SHARE + LENGTH_SHARE * lengths[3] / (sum(lengths) / len(lengths))
    assert score[3] == pytest.approx(worth / norm, rel=1e-5)


def test_no_token_changes_what_is_found_before_it(tokenizer):
    index, text = index_of(tokenizer, ALSO), "The profession and the death of Ada Lovelace, and her language"
    whole = found(index, tokenizer, text)
    ids = encode_as_text(tokenizer, text)
    for n in range(1, len(ids)):
        part, _ = find_matches(index, torch.tensor([ids[:n]]), None)
        assert torch.equal(part.entry_BTC[0], whole.entry_BTC[0, :n])
        assert torch.equal(part.score_BTC[0], whole.score_BTC[0, :n])


def test_an_edit_is_found_by_its_added_words_and_undo_is_exact(tokenizer):
    index, question = index_of(tokenizer, ALSO), "The death of Zyxomma,"
    before = found(index, tokenizer, question), index.word_NK.clone(), index.norm_N.clone()
    new = torch.from_numpy(encode_entries(tokenizer, ["Zyxomma died in Rome."], 16)[0]).to(index.token_NL)
    row, old = torch.tensor([3]), index.token_NL[[3]].clone()
    index.token_NL[row] = new
    index.edit(row, old)
    assert best(index, tokenizer, question)[0] == 3
    assert set(numbers_of(["death"]).tolist()) <= set(index.word_NK[3].tolist())
    assert 3 not in best(index, tokenizer, "profession,")
    index.token_NL[row] = old
    index.edit(row, new)
    after = found(index, tokenizer, question), index.word_NK, index.norm_N
    assert torch.equal(before[0].entry_BTC, after[0].entry_BTC) and torch.equal(before[0].score_BTC, after[0].score_BTC)
    assert torch.equal(before[1], after[1]) and torch.equal(before[2], after[2])


def test_words_come_in_the_order_of_the_flag_and_none_twice():
    also = AlsoWords(["one=two,three,four", "five=three,six", "seven=one"], torch.device("cpu"))
    row = numbers_of(["one", "five", "six"]).int().sort().values
    added = also.added_to(torch.stack([row, torch.zeros_like(row)]))
    assert added[1].count_nonzero() == 0
    assert sorted(x for x in added[0].tolist() if x) == sorted(numbers_of(["two", "three", "four"]).tolist())


@pytest.mark.parametrize("text", ["occupation", "occupation=", "=job", "occupation=job,,trade"])
def test_another_form_is_refused(text):
    with pytest.raises(ValueError, match="must be a word and its others"):
        tiny_config(**CONFIG, bm25_also_words=[text])


def test_two_words_that_the_search_takes_for_one_are_refused():
    with pytest.raises(ValueError, match="one word by their first letters"):
        read_also(["directed=filmmaker", "director=film"])
