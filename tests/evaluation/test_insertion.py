"""Insertion: facts come into a bank, are answered from it, and are gone again."""

import json
import sys
from functools import partial
from pathlib import Path

import pytest
import torch

from dataset.knowledge import triple_uuid
from dataset.public_questions import read_inserts
from editing.store import MemoryStore
from evaluation.config import EvalConfig
from evaluation.gold import Gold, require_questions
from evaluation.insertion import begins, insertion, is_exact
from evaluation.report import table
from tests.conftest import tiny_model

from .conftest import FACTS

LANDS = ["France", "Italy", "Norway", "Peru", "Chile"]
TOWNS = {"Tampa": "Chile", "Berlin": "Peru", "Kiel": "Italy", "Bonn": "Norway"}


class TrainedBank:
    """The facts of the bank, as `dataset.knowledge.Bank` gives them."""

    def fact(self, row):
        return FACTS[row]

    def facts(self):
        return enumerate(FACTS)


@pytest.fixture
def inserts(tmp_path):
    def write(**change):
        rows = []
        for number, (town, land) in enumerate(TOWNS.items()):
            row = {"set": "towns", "subject": town, "predicate": "country", "object": land, "uuid": f"t{town}"}
            row |= {"sentence": f"{town} is in {land}.", "aliases": [land, "El Dorado"], "popularity": number}
            row |= {"questions": [f"The town {town} is in"], "choices": LANDS, "answer": "ABCDE"[LANDS.index(land)]}
            rows.append(row | {"locality": [{"question": "Paris is in"}]} | change)
        (tmp_path / "insert.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        return str(tmp_path / "insert.jsonl")

    return write


@pytest.fixture
def settings(model, tokenizer, inserts, tmp_path, monkeypatch):
    monkeypatch.setattr(
        sys.modules["evaluation.insertion"], "QUESTION_PROMPT", "{question}"
    )  # the model knows no question marks
    rows = {fact.uuid: row for row, fact in enumerate(FACTS)}
    store = partial(MemoryStore.in_memory, tmp_path, model, tokenizer, trained_bank=TrainedBank())
    gold = Gold(rows, {f.uuid: f for f in FACTS}, lambda: enumerate(FACTS))
    return EvalConfig(insert_path=inserts(), gold=gold, open_store=store, batch_size=4)


def test_added_facts_are_answered_from_the_bank_and_taken_back(model, tokenizer, settings):
    tokens = model.bank.tokens.clone()
    result = insertion(model, tokenizer, settings)
    assert torch.equal(model.bank.tokens, tokens) and result["undo_exact"]
    assert result["placed"]["added"] == result["placed"]["over_other_entries"] == 4  # no row is empty
    assert result["accuracy"] == result["parts"]["towns, as a statement"]["accuracy"] == 1 and result["n"] == 4
    assert result["written"]["towns"]["accuracy"] == 1 > result["before"]["written"]["towns"]["accuracy"]
    assert result["before"]["accuracy"] < 1 and result["locality"]["accuracy"] == 1
    assert result["read"]["towns"]["pointer"]["selected"]["accuracy"] == 1
    assert {result["parts"][f"towns, popularity {i} of 4"]["n"] for i in (1, 2, 3, 4)} == {1}
    without = result["without_model"]
    assert without["lookup"]["accuracy"] == without["lookup"]["found"]["towns"]["accuracy"] == 1
    assert without["guess"]["accuracy"] == pytest.approx(0.2)
    assert without["search_alone"]["parts"]["towns"]["accuracy"] == 1  # of the bank with the added entries
    # France is the most frequent country of the bank, and no right answer.
    assert without["frequency"]["accuracy"] == 0
    lines = [line for line in table({"run": {"insertion": result}}).splitlines() if "towns: entry read" in line]
    assert [line.split()[-2:] for line in lines] == [["100.0%", "-"]]  # the look-up; the search alone is the reader's


def test_a_fact_takes_the_place_of_another_object_of_its_subject(model, tokenizer, settings, inserts):
    path = Path(inserts())
    first, *others = path.read_text().splitlines()
    first = json.loads(first.replace("Tampa", "Milan")) | {"object": "Peru", "sentence": "Milan is in Peru."}
    path.write_text("\n".join([json.dumps(first | {"answer": "D"}), *others[:2]]))
    result = insertion(model, tokenizer, settings)
    # The last row, where Milan was, is the first that would be overwritten.
    assert result["placed"]["in_place_of_another_object"] == 1 and result["placed"]["over_other_entries"] == 2
    assert result["accuracy"] == 1 and result["undo_exact"]


def test_an_insertion_that_fails_is_taken_back(model, tokenizer, settings, monkeypatch):
    tokens = model.bank.tokens.clone()

    def fail(*args):
        assert not torch.equal(model.bank.tokens, tokens)
        raise MemoryError

    monkeypatch.setattr(sys.modules["evaluation.insertion"], "entries_read", fail)
    with pytest.raises(MemoryError):
        insertion(model, tokenizer, settings)
    assert torch.equal(model.bank.tokens, tokens)


def test_a_sentence_that_is_too_long_is_asked_and_not_added(model, tokenizer, settings, inserts):
    path = inserts(sentence="Nobody who was ever there says that it is in any of these lands, but Chile it is.")
    result = insertion(model, tokenizer, EvalConfig(**vars(settings) | {"insert_path": path, "limit": 2}))
    assert (result["placed"]["too_long"], result["placed"]["added"], result["n"]) == (2, 0, 2)
    assert result["read"]["towns"]["pointer"]["selected"]["accuracy"] == 0


def test_a_plain_model_has_its_own_answers_alone(tokenizer, settings):
    plain = tiny_model(vocab_size=6400, model_type="model_original")
    result = insertion(plain, tokenizer, EvalConfig(insert_path=settings.insert_path, batch_size=4))
    assert result["n"] == 4 and "before" not in result and list(result["without_model"]) == ["guess"]


def test_a_table_of_ones_own_becomes_questions_with_choices(tmp_path):
    path = tmp_path / "own.tsv"
    path.write_text("Ana\tjob\tcook\nBen\tjob\tpoet\nBen\tjob\tking\nCid\tage\t7\t\tCid is 7.\n")
    rows = read_inserts(path, None)
    assert rows[0]["questions"] == ["What is the job of Ana?"] and sorted(rows[0]["choices"]) == [
        "cook",
        "king",
        "poet",
    ]
    assert sorted(rows[1]["choices"]) == ["cook", "poet"]  # king is right as well
    assert rows[3]["choices"] is None and rows[3]["sentence"] == "Cid is 7."
    assert rows[0]["uuid"] == triple_uuid("Ana", "job", "cook")


@pytest.mark.parametrize(
    ("change", "told"),
    [({"questions": []}, "line 1: 'questions' needs a question"), ({"aliases": "x"}, "'aliases' must be a list"),
     ({"answer": "Q"}, "names no choice"), ({"popularity": "much"}, "'popularity' must be a number"),
     ({"locality": ["x"]}, "'locality' must be a list of objects"), ({"object": {}}, "'object' must be a text"),
     ({"set": 7}, "line 1: 'set' must be a text, got 7: name the set"),
     ({"choices": ["a", "a"], "answer": 0}, "line 1: 'choices' has 'a' twice"),
     ({"answer": "A"}, "line 1: 'answer' names the choice 'France', but 'object' is 'Chile': let the answer name")],
)  # fmt: skip
def test_a_file_of_another_form_is_refused_before_anything_runs(inserts, change, told):
    with pytest.raises(ValueError, match=told):
        require_questions(EvalConfig(insert_path=inserts(**change)))


def test_facts_that_name_no_set_are_ones_own(inserts):
    assert {row["set"] for change in (None, "") for row in read_inserts(inserts(set=change), None)} == {"own"}


def test_what_counts_as_exact():
    assert not is_exact(' "! It is', ["+", "…"]) and is_exact(" C. It", ["+", "C"])
    aliases = ["J. R. Ewing", "the Boss"]
    assert is_exact(" J. R. Ewing. He is", aliases) and is_exact("THE BOSS\nQuestion", aliases)
    assert not is_exact("J. R.", aliases) and not is_exact("the Boss of it.", aliases)
    assert begins("the boss of it", aliases) and not begins("the bosses", aliases) and not begins("", aliases)
