"""Blocks that read by suffixes beside a search by words: each finds its own part of one bank."""

import pytest
import torch

from common.constants import NO_ENTRY, PADDING
from model.memory.bm25_index import BM25Index
from model.memory.ngram_index import NgramIndex
from model.memory.suffix_index import SuffixIndex
from model.memory.suffixes import Suffixes
from tests.conftest import tiny_config, tiny_model
from tests.model.variants import MEMORY_VARIANTS

BOTH = MEMORY_VARIANTS["bm25-and-suffix"]
N_FACTS = 20


def with_passages(model):
    """The rows after the first ones are passages of documents 0 to 2; all are of few words, so both searches find."""
    if hasattr(model.bank, "spelling"):
        model.bank.spelling[PADDING] = 0  # as a tokenizer has it: no word
    model.bank.fill(torch.randint(3, 9, (49, 5)))
    model.bank.document = (torch.arange(49) % 3).where(torch.arange(49) >= N_FACTS, -1).int()
    model.bank.tell_passages(model.bank.document >= 0)
    return model


@pytest.fixture
def model():
    return with_passages(tiny_model(**BOTH | {"bm25_postings": 64, "num_candidates": 64, "num_selected": 32}))


def texts(*shape):
    return torch.randint(3, 9, shape)


def found_by(model, ids, **more):
    """The rows that words and suffixes find."""
    found = model.search_text(ids, **more)
    words, places = found["match_entry_BTC"], found["suffix_entry_BTC"]
    return words[words != NO_ENTRY], places[places != NO_ENTRY] // model.bank.tokens.shape[1]


def test_words_find_facts_alone_and_suffixes_find_passages_too(model):
    words, suffixes = found_by(model, texts(4, 16))
    assert {*words.tolist()} == {*range(N_FACTS)}
    assert (suffixes < N_FACTS).any() and (suffixes >= N_FACTS).any()


def test_hidden_rows_change_nothing_about_the_search_of_the_others(model):
    """Scores too: how rare a word is does not depend on passages."""
    ids, config = texts(4, 16), tiny_config(**BOTH | {"bm25_postings": 64, "knowledge_num": N_FACTS})
    alone = BM25Index(model.bank.tokens[:N_FACTS].clone(), config, spelling_V=model.bank.spelling)
    index = model.bank.index(BM25Index)
    assert torch.equal(index.word_NK[:N_FACTS], alone.word_NK) and torch.equal(index.idf_V, alone.idf_V)
    assert torch.equal(index.norm_N[:N_FACTS], alone.norm_N) and index.unknown_idf == alone.unknown_idf
    seen = alone.read(ids, torch.zeros_like(ids, dtype=torch.bool))
    assert all(map(torch.equal, alone.matches(*seen), index.matches(*seen)))


@pytest.mark.parametrize("flags", [{"retrieval_noise": 0.9}, {"bank_control": "shuffled"}], ids=["noise", "shuffled"])
def test_noise_and_the_shuffled_control_give_the_pointer_no_passage(flags):
    model = with_passages(tiny_model(**BOTH | {"bm25_postings": 64, "num_candidates": 64, "num_selected": 32} | flags))
    reading = model.train()(texts(8, 16)).readings[-1]
    read = reading.entry_BTS[reading.weight_BTS > 0]
    assert len(read) > 100 and len(read.unique()) > N_FACTS / 2 and read.max() < N_FACTS


def test_ngrams_weigh_as_without_passages():
    flags = MEMORY_VARIANTS["ngram-and-suffix"] | {"knowledge_num": 49}
    model = with_passages(tiny_model(**flags))
    alone = NgramIndex(model.bank.tokens[:N_FACTS].clone(), tiny_config(**flags | {"knowledge_num": N_FACTS}))
    ids = texts(4, 16)
    seen = ids, torch.zeros_like(ids, dtype=torch.bool)
    assert all(map(torch.equal, alone.matches(*seen), model.bank.index(NgramIndex).matches(*seen)))


def test_suffixes_are_those_of_a_model_that_has_no_other_search(model):
    ids = texts(4, 16)
    found, part = model.search_text(ids), model.settings.suffix_part
    assert (part.retrieval, part.fusion, part.num_selected) == ("suffix", "continuations", BOTH["suffix_selected"])
    expected = Suffixes.search_text(part, model.bank, ids, None)
    assert torch.equal(found["suffix_entry_BTC"], expected.entry_BTC)
    assert torch.equal(found["suffix_score_BTC"], expected.score_BTC)


def test_training_reads_no_passage_of_its_own_document(model):
    ids, document = texts(4, 24), torch.randint(0, 3, (4, 24)).sort(dim=1).values
    place = model.search_text(ids, document_ids=document)["suffix_entry_BTC"]
    own = model.bank.document[place.clamp(min=0) // 5] == document[..., None]
    assert not (own & (place != NO_ENTRY)).any() and (place != NO_ENTRY).any()


def test_an_edited_passage_is_found_by_words_and_undo_hides_it_bit_for_bit(model):
    ids, row = texts(4, 16), torch.tensor([30])
    before, logits = model.bank.index(BM25Index), model(ids).logits
    kept = [x.clone() for x in (before.word_NK, before.norm_N, before.stale_N)]
    old = model.bank.write(row, torch.tensor([[3, 4, 5, 6, 7]]))
    words, suffixes = found_by(model, texts(8, 16))
    assert 30 in words and 30 in suffixes and not torch.equal(model(ids).logits, logits)
    model.bank.write(row, old)
    assert 30 not in found_by(model, texts(8, 16))[0]
    assert all(map(torch.equal, kept, (before.word_NK, before.norm_N, before.stale_N))) and before.edits is None
    assert torch.equal(model(ids).logits, logits)


def test_passages_stay_hidden_when_the_model_is_saved_and_opened(model, tmp_path):
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path)
    assert torch.equal(again.bank.passage, model.bank.passage) and again.bank.document is None
    assert found_by(again, texts(4, 16))[0].max() < N_FACTS
    again.bank.tell_passages(None)
    assert found_by(again, texts(4, 16))[0].max() >= N_FACTS


def test_a_write_before_the_first_search_builds_both_indexes(model):
    ids, old = texts(4, 16), model.bank.tokens[:1].clone()
    model.bank._indexes = {}
    model.bank.write(torch.tensor([0]), torch.tensor([[3, 3, 3, 3, 3]]))
    assert {*model.bank._indexes} == {BM25Index, SuffixIndex}
    changed = model(ids).logits
    model.bank.write(torch.tensor([0]), old)
    assert not torch.equal(model(ids).logits, changed)


@pytest.mark.parametrize(
    "flags, sentence",
    [
        ({"suffix_layers": [2]}, "--suffix_layers 2 must lie in"),
        ({"memory_layers": [-1], "pointer": False}, "--suffix_layers needs a reader"),
        ({"suffix_layers": [0]}, "both name block 0: a block reads once"),
        (
            {"retrieval": "suffix", "fusion": "continuations", "token_places": False},
            "--suffix_layers needs --retrieval",
        ),
        ({"suffix_candidates": 5}, "--suffix_candidates 5 must be at least twice --suffix_selected"),
        ({"suffix_tokens": 2}, "--suffix_often counts single tokens"),
    ],
)
def test_what_cannot_be_is_refused_in_the_words_of_its_flags(flags, sentence):
    with pytest.raises(ValueError, match=sentence):
        tiny_config(**BOTH | flags)
