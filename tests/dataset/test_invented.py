"""Facts that no text has: python -m dataset.invented."""

import json
import random

import pytest

from dataset.convert import write_knowledge
from dataset.invented import invented_facts, mixed_name, template_of, write_invented
from dataset.knowledge import Fact, read_knowledge, triple_uuid
from dataset.questions import FIELDS, read_questions

PEOPLE = ["Anna Berg", "Bo Carl Dahl", "Eva Falk", "Gil Holm", "Ida Juhl", "Kai Lund"]
TOWNS = ["Oslo", "Bergen", "Turku", "Malmo", "Aarhus", "Vaasa"]


def fact(subject, predicate, obj, sentence):
    return Fact(sentence, subject, predicate, obj, triple_uuid(subject, predicate, obj))


@pytest.fixture
def facts():
    born = [fact(p, "born in", t, f"{p} was born in {t}.") for p, t in zip(PEOPLE, TOWNS, strict=True)]
    died = [fact(p, "died in", t, f"{p} died in {t}.") for p, t in zip(PEOPLE, reversed(TOWNS), strict=True)]
    return born + died


@pytest.mark.parametrize(
    "first, second, expected",
    [
        ("Anna Berg", "Eva Falk", "Anna Falk"), ("Bo Carl Dahl", "Eva Falk", "Bo Carl Falk"),
        ("Oslo", "Bergen", "Osgen"), ("Oslo", "New York", "OsYork"),
    ],
)  # fmt: skip
def test_a_name_is_mixed_of_two(first, second, expected):
    assert mixed_name(first, second) == expected


@pytest.mark.parametrize(
    "sentence",
    ["Oslo is where Anna Berg was born.", "Anna Berg met Anna Berg in Oslo.", "Anna Berg was born in Oslos."],
)
def test_a_sentence_without_one_subject_before_one_object_is_no_template(sentence):
    assert template_of(fact("Anna Berg", "born in", "Oslo", sentence)) is None


def test_invented_facts_have_new_names_the_given_sentences_and_drawn_objects(facts):
    made = list(invented_facts(facts, 4, random.Random(0)))
    assert len(made) == 8 and {f.predicate for f, _ in made} == {"born in", "died in"}
    for one, question in made:
        assert one.subject not in PEOPLE and one.object in TOWNS
        verb = "was born in" if one.predicate == "born in" else "died in"
        assert one.sentence == f"{one.subject} {verb} {one.object}."
        assert question == f"{one.subject} {verb} ___."
    by_name = {}
    for one, _ in made:
        by_name.setdefault(one.subject, []).append(one.predicate)
    assert all(sorted(own) == ["born in", "died in"] for own in by_name.values())


def test_the_files_are_questions_and_knowledge(facts, tmp_path):
    write_knowledge(tmp_path / "k.json", facts)
    write_invented(tmp_path / "k.json", 4, tmp_path / "out", seed=1)
    bank = {f.uuid: f for f in read_knowledge(tmp_path / "out" / "knowledge.json")}
    asked = read_questions(tmp_path / "out" / "object.jsonl", FIELDS["object"], None, "object_path")
    for row in asked:
        right = row["choices"]["ABCDE".index(row["answer"])]
        assert bank[row["uuid"]].sentence == row["question"].replace("___", right)
    verified = read_questions(tmp_path / "out" / "verification.jsonl", FIELDS["verification"], None, "v")
    assert {row["answer"] for row in verified} == {"yes", "no"}
    for row in verified:
        assert (row["statement"] == bank[row["uuid"]].sentence) == (row["answer"] == "yes")
    first = (tmp_path / "out" / "object.jsonl").read_text()
    write_invented(tmp_path / "k.json", 4, tmp_path / "again", seed=1)
    assert first == (tmp_path / "again" / "object.jsonl").read_text()


def test_shares_of_the_facts_are_capitalised_in_their_entries_or_have_none(facts, tmp_path, capsys):
    kinds = ["jazz", "Jazz", "blues", "iOS", "soul", "Berlin school"]
    music = [fact(p, "plays", kind, f"{p} plays {kind}.") for p, kind in zip(PEOPLE, kinds, strict=True)]
    write_knowledge(tmp_path / "k.json", facts + music)
    write_invented(tmp_path / "k.json", 4, tmp_path / "plain", seed=1)
    write_invented(tmp_path / "k.json", 4, tmp_path / "out", seed=1, capitals=1.0, absent=0.5)
    assert "have no entry; " in capsys.readouterr().out
    plain, made = (list(read_knowledge(tmp_path / name / "knowledge.json")) for name in ("plain", "out"))
    asked = read_questions(tmp_path / "out" / "object.jsonl", FIELDS["object"], None, "object_path")
    bank, rights = {one.uuid: one for one in made}, set()
    assert len(asked) == len(plain) and 0 < len(made) < len(plain)
    assert {one.sentence.casefold() for one in made} < {one.sentence.casefold() for one in plain}
    for row in asked:
        right = row["choices"]["ABCDE".index(row["answer"])]
        assert right == row["object"] and right not in ("Jazz", "Blues", "Soul")
        rights.add(right)
        if one := bank.get(row["uuid"]):
            noun = right in ("jazz", "blues", "soul")
            assert one.object == (right.capitalize() if noun else right) and one.sentence.endswith(f" {one.object}.")
            assert one.object == right or one.object not in row["choices"]
    assert rights & {"jazz", "blues", "soul"} and rights & set(TOWNS)
    verified = read_questions(tmp_path / "out" / "verification.jsonl", FIELDS["verification"], None, "v")
    assert {row["uuid"] for row in verified} == set(bank)


def test_crowded_names_come_after_the_others_with_all_facts_of_the_subjects_that_have_the_most(facts, tmp_path, capsys):
    more = [fact("Eva Falk", "plays", kind, f"Eva Falk plays {kind}.") for kind in ("jazz", "soul")]
    more += [fact("Gil Holm", "plays", "blues", "Gil Holm plays blues.")]
    write_knowledge(tmp_path / "k.json", facts + more)
    plain = list(invented_facts(facts + more, 1, random.Random(0)))
    made = list(invented_facts(facts + more, 1, random.Random(0), crowded=2))
    assert made[: len(plain)] == plain and len(plain) == 3
    by_name = {}
    for one, _ in made[len(plain) :]:
        by_name.setdefault(one.subject, []).append(one.predicate)
    assert list(map(sorted, by_name.values())) == [["born in", "died in", "plays"]] * 2
    assert not set(by_name) & {one.subject for one, _ in plain} | set(by_name) & set(PEOPLE)
    write_invented(tmp_path / "k.json", 1, tmp_path / "out", seed=1, crowded=2)
    assert "9 invented facts of 3 predicates" in capsys.readouterr().out
    with pytest.raises(ValueError, match="--crowded must be at least 0, got -1"):
        write_invented(tmp_path / "k.json", 1, tmp_path / "out", seed=1, crowded=-1)


@pytest.mark.parametrize("name", ["capitals", "absent"])
def test_shares_beyond_one_are_refused(name, tmp_path):
    with pytest.raises(ValueError, match=f"--{name} must lie in"):
        write_invented(tmp_path / "k.json", 4, tmp_path / "out", 0, **{name: 1.5})


def test_choices_that_could_be_taken_for_letters_are_not_asked(facts, tmp_path):
    grades = [fact(p, "grade", g, f"{p} has grade {g}.") for p, g in zip(PEOPLE, "ABCDEF", strict=True)]
    write_knowledge(tmp_path / "k.json", facts + grades)
    write_invented(tmp_path / "k.json", 4, tmp_path / "out", seed=1)
    rows = [json.loads(line) for line in (tmp_path / "out" / "object.jsonl").read_text().splitlines()]
    assert rows and all(row["predicate"] != "grade" for row in rows)
    assert "grade" in {f.predicate for f in read_knowledge(tmp_path / "out" / "knowledge.json")}
    read_questions(tmp_path / "out" / "object.jsonl", FIELDS["object"], None, "object_path")


def test_knowledge_without_names_is_refused(tmp_path):
    (tmp_path / "k.jsonl").write_text('{"sentence": "Anna Berg was born in Oslo."}\n')
    with pytest.raises(ValueError, match="no sentence with its subject before its object"):
        write_invented(tmp_path / "k.jsonl", 4, tmp_path / "out", seed=1)
