import json

import pytest

from dataset import making
from dataset.knowledge import read_knowledge
from dataset.quickstart import TEMPLATES, WORDINGS, part, read_facts, write_quickstart

FACTS = read_facts()


def wordings(fact):
    return making.wordings(fact, WORDINGS)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("quickstart")
    write_quickstart(path, seed=0)
    return path


def rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_the_facts_fill_the_quick_start_bank_and_have_one_object_each():
    assert len({wordings(fact)[0] for fact in FACTS}) >= 142**2
    assert len({(fact.subject, fact.predicate) for fact in FACTS}) == len(FACTS)


@pytest.mark.slow
def test_equal_seeds_write_equal_files(folder, tmp_path):
    write_quickstart(tmp_path, seed=0)
    for path in folder.iterdir():
        assert path.read_bytes() == (tmp_path / path.name).read_bytes(), path.name
    write_quickstart(tmp_path, seed=1)
    assert (folder / "pretrain.jsonl").read_bytes() != (tmp_path / "pretrain.jsonl").read_bytes()


def test_pretraining_text_states_every_seen_fact_and_no_other(folder):
    text = "\n".join(row["text"] for row in rows(folder / "pretrain.jsonl"))
    for fact in FACTS[::97]:
        for sentence in wordings(fact):
            assert (sentence in text) == (part(fact) == "seen"), sentence


def test_no_pair_of_the_bank_is_joined_by_another_fact():
    objects = {}
    for fact in FACTS:
        objects.setdefault(fact.subject, []).append(fact.object.lower())
    for subject, names in objects.items():
        joined = [(a, b) for i, a in enumerate(names) for b in names[:i] if a in b or b in a]
        assert not joined, (subject, joined)
        assert not any(name in subject.lower() for name in names), subject


def test_everything_asked_is_among_the_first_entries_of_the_bank(folder):
    asked = [row["uuid"] for name in ("object", "relation", "verification") for row in rows(folder / f"{name}.jsonl")]
    first = [fact.uuid for _, fact in zip(range(142**2), read_knowledge(folder / "knowledge.json"), strict=False)]
    assert set(asked) <= set(first)
    assert len(list(read_knowledge(folder / "knowledge.json"))) == len(FACTS)


def test_learnt_questions_are_about_seen_facts_that_the_evaluation_does_not_ask(folder):
    for name in ("object", "relation", "verification"):
        learnt = rows(folder / f"{name}_train.jsonl")
        assert len(learnt) == 4000 and {row["part"] for row in learnt} == {"seen"}
        assert not {row["uuid"] for row in learnt} & {row["uuid"] for row in rows(folder / f"{name}.jsonl")}


def test_edits_state_another_object(folder):
    for row in rows(folder / "edit.jsonl"):
        assert row["new_object"] != row["object"]
        assert row["sentence"].replace(row["object"], row["new_object"]) == row["new_sentence"]


@pytest.mark.parametrize("name, right", [("object", "object"), ("relation", "predicate")])
def test_choices_are_different_and_the_answer_is_right(folder, name, right):
    questions = rows(folder / f"{name}.jsonl")
    for row in questions:
        assert len(set(row["choices"])) == 5 and row["choices"]["ABCDE".index(row["answer"])] == row[right]
    assert [sum(row["part"] == kind for row in questions) for kind in ("seen", "bank_only")] == [500, 500]


def test_half_of_the_statements_of_each_part_are_true(folder):
    true = {(fact.uuid, fact.object) for fact in FACTS}
    statements = rows(folder / "verification.jsonl")
    assert all((row["answer"] == "yes") == ((row["uuid"], row["object"]) in true) for row in statements)
    for kind in ("seen", "bank_only"):
        assert sum(row["answer"] == "yes" for row in statements if row["part"] == kind) == 250


def test_every_wording_ends_with_its_object():
    assert all(template.endswith("{o}.") for templates in TEMPLATES.values() for template in templates)
