import json

import numpy as np
import pytest

from dataset import knowledge
from dataset.convert import read_trex, read_triples, write_knowledge
from dataset.knowledge import Fact, load_bank, read_knowledge

SENTENCES = [f"Document {number} tells." for number in range(12)]
TARGET = {"sentence": "A is in B.", "subject": "A", "predicate": "in", "object": "B", "uuid": "u", "source": "s"}


@pytest.mark.parametrize("characters", [1, 7, 1 << 20])
@pytest.mark.parametrize("as_array", [True, False])
def test_every_accepted_form_is_read_however_the_blocks_fall(write, monkeypatch, characters, as_array):
    monkeypatch.setattr(knowledge, "CHARACTERS_AT_ONCE", characters)
    values = [{"target": [TARGET, {"sentence": "Two, in one."}]}, {"sentence": "Plain [1]"}, {"text": "T\n é"}, "Bare"]
    path = write("k.json", [json.dumps(values, indent=1)] if as_array else map(json.dumps, values))
    sentences = ["A is in B.", "Two, in one.", "Plain [1]", "T\n é", "Bare"]
    assert list(read_knowledge(path)) == [Fact(**TARGET), *map(Fact, sentences[1:])]


def test_a_bank_holds_the_sentences_cut_or_padded(tokenizer, tmp_path, write):
    path = write("k.jsonl", map(json.dumps, [SENTENCES[0], SENTENCES[0], "", "year", *SENTENCES[1:]]))
    bank = load_bank(path, tokenizer, 9, 6, tmp_path)
    for row, sentence in enumerate([SENTENCES[0], "year", *SENTENCES[1:8]]):
        ids = tokenizer(sentence, add_special_tokens=False).input_ids[:6]
        assert bank.tokens[row].tolist() == ids + [0] * (6 - len(ids))
        assert bank.fact(row).sentence == sentence
    counts = {name: bank.report[name] for name in ("read", "duplicated", "empty", "unused")}
    assert counts == {"read": 15, "duplicated": 1, "empty": 1, "unused": 4}


def test_the_report_tells_how_many_objects_survive_the_cut(tokenizer, tmp_path, write):
    facts = [{"sentence": f"tells {n} of year.", "object": "year"} for n in range(4)]
    length = len(tokenizer("tells 1 of year.", add_special_tokens=False).input_ids)
    path = write("k.jsonl", facts)
    assert load_bank(path, tokenizer, 4, length, tmp_path).report["object_kept_share"] == 1.0
    cut = load_bank(path, tokenizer, 4, 3, tmp_path).report
    assert cut["object_kept_share"] == 0.0 and cut["cut"] == 4


def test_the_ids_are_as_wide_as_the_vocabulary_needs(tokenizer, tmp_path, write, monkeypatch):
    path = write("k.jsonl", map(json.dumps, SENTENCES))
    assert load_bank(path, tokenizer, 4, 4, tmp_path / "a").tokens.dtype == np.int16
    monkeypatch.setattr(type(tokenizer), "__len__", lambda self: 40_000)
    assert load_bank(path, tokenizer, 4, 4, tmp_path / "b").tokens.dtype == np.int32


def test_an_unchanged_file_is_not_read_again(tokenizer, tmp_path, write, monkeypatch):
    path = write("k.jsonl", map(json.dumps, SENTENCES))
    first = load_bank(path, tokenizer, 4, 4, tmp_path).tokens
    monkeypatch.delattr(knowledge, "build_bank")
    assert (load_bank(path, tokenizer, 4, 4, tmp_path).tokens == first).all()


@pytest.mark.parametrize(
    "lines, sentence",
    [
        (SENTENCES[:5], "5 different sentences, fewer than --knowledge_num 9.*a square of at most 4"),
        (["[", '"a",', '{"x": 1}]'], 'line 3: an entry needs a "sentence"'),
        (["[", '"a",', '"b" oops]'], "line 3: not valid JSON"),
        (["[", '"a",'], "the array is not closed"),
        ([], "is empty"),
    ],
)
def test_a_bad_knowledge_file_is_refused_by_name_and_place(tokenizer, tmp_path, write, lines, sentence):
    as_json = lines if lines[:1] == ["["] else [json.dumps(line) for line in lines]
    path = write("k.json", as_json)
    with pytest.raises(ValueError, match=sentence) as problem:
        load_bank(path, tokenizer, 9, 4, tmp_path)
    assert str(path) in str(problem.value)


def test_triples_become_knowledge_and_come_back(tmp_path, write):
    path = write("t.tsv", ["subject\tpredicate\tobject", "Oslo\tis in\tNorway", "a\tb\tc\tmine\tOwn sentence."])
    facts = list(read_triples(path))
    assert [fact.sentence for fact in facts] == ["Oslo is in Norway.", "Own sentence."]
    assert facts[0].uuid == knowledge.triple_uuid("Oslo", "is in", "Norway") and facts[1].source == "mine"
    assert write_knowledge(tmp_path / "k.json", facts) == 2
    assert list(read_knowledge(tmp_path / "k.json")) == facts
    assert isinstance(json.loads((tmp_path / "k.json").read_text()), list)


def test_a_short_row_of_triples_is_refused(write):
    with pytest.raises(ValueError, match="row 2: 2 columns"):
        list(read_triples(write("t.csv", ["a,b,c", "a,b"])))


def test_trex_documents_become_one_fact_a_triple(write):
    text = "Nothing here. Oslo lies in  Norway."
    triple = {
        "subject": {"surfaceform": "Oslo"}, "object": {"surfaceform": "Norway"}, "sentence_id": 1,
        "predicate": {"uri": "http://www.wikidata.org/prop/direct/P17", "surfaceform": None},
    }  # fmt: skip
    document = {"text": text, "sentences_boundaries": [[0, 13], [14, len(text)]], "triples": [triple]}
    (fact,) = read_trex(write("t.json", [[document]]))
    assert (fact.sentence, fact.subject, fact.predicate, fact.object) == (
        "Oslo lies in Norway.",
        "Oslo",
        "P17",
        "Norway",
    )
    with pytest.raises(ValueError, match="not a T-REx document"):
        list(read_trex(write("bad.json", [[{"text": "x"}]])))
