"""Text, bank, questions and edits of one's own facts."""

import json

import pytest

from dataset.knowledge import read_knowledge
from dataset.making import draw, wordings
from dataset.own import read_own_facts, read_templates, write_own
from dataset.pretrain import read_documents
from dataset.questions import FIELDS, read_questions

FACTS, TEMPLATES = "docs/examples/facts.tsv", "docs/examples/templates.json"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("own")
    write_own(FACTS, TEMPLATES, out, held_out=0.2, seed=0)
    return out


def rows(folder, name):
    return [json.loads(line) for line in (folder / name).read_text().splitlines()]


def test_every_fact_is_in_the_bank_and_asked_and_some_are_held_out(folder):
    templates = read_templates(TEMPLATES)
    facts = read_own_facts(FACTS, templates)
    assert {fact.sentence for fact in read_knowledge(folder / "knowledge.json")} == {f.sentence for f in facts}
    asked = rows(folder, "object.jsonl")
    parts = {row["uuid"]: row["part"] for row in asked}
    assert len(parts) == len(facts) == 20 and set(parts.values()) == {"seen", "bank_only"}
    text = "\n".join(document.text for document in read_documents(folder / "train.jsonl"))
    held_out = "\n".join(document.text for document in read_documents(folder / "val.jsonl"))
    for fact in facts:
        for sentence in wordings(fact, templates):
            assert (sentence in text) == (parts[fact.uuid] == "seen") != (sentence in held_out), sentence


def test_the_evaluation_reads_all_kinds_of_questions(folder):
    for kind, fields in FIELDS.items():
        for row in read_questions(folder / f"{kind}.jsonl", fields, None, kind):
            assert row["uuid"] and (kind != "object" or row["object"] == row["choices"]["ABCDE".index(row["answer"])])
    assert {row["part"] for row in rows(folder, "relation.jsonl")} == {"seen", "bank_only"}
    for row in rows(folder, "edit.jsonl"):
        assert row["sentence"].replace(row["object"], row["new_object"]) == row["new_sentence"]


def test_learning_asks_in_every_wording_and_only_of_seen_facts(folder):
    seen = {row["subject"] + row["object"] for row in rows(folder, "object.jsonl") if row["part"] == "seen"}
    learnt = [row for row in rows(folder, "train.jsonl") if "prompt" in row]
    prompts = {row["prompt"] for row in learnt}
    for row in rows(folder, "object.jsonl"):
        if row["predicate"] == "birth year":
            wanted = {f"{row['subject']} was born in", f"The birth year of {row['subject']} is"}
            assert (wanted <= prompts) == (row["subject"] + row["object"] in seen) == bool(wanted & prompts)
    assert any(row["prompt"].endswith("Is this true?") for row in learnt)


def test_equal_seeds_write_equal_files(folder, tmp_path):
    write_own(FACTS, TEMPLATES, tmp_path, held_out=0.2, seed=0)
    for path in folder.iterdir():
        assert path.read_bytes() == (tmp_path / path.name).read_bytes(), path.name


def test_two_facts_are_enough_and_what_cannot_be_asked_is_said(tmp_path, capsys):
    (tmp_path / "f.tsv").write_text("A\tborn\t1901\nB\tborn\t1901\n")
    (tmp_path / "t.json").write_text(
        '{"born": ["{subject} was born in {object}.", "{object} is the year of {subject}."]}'
    )
    write_own(tmp_path / "f.tsv", tmp_path / "t.json", tmp_path / "out", held_out=0.01, seed=0)
    assert all("prompt" not in row or row["prompt"] for row in rows(tmp_path / "out", "train.jsonl"))
    assert len(rows(tmp_path / "out", "val.jsonl")) == 1 and not rows(tmp_path / "out", "object.jsonl")
    out = capsys.readouterr().out
    assert "facts without an object question: 2 of 'born'; every object" in out and "1 held out" in out
    assert "every object of the predicate is right: give at least two objects for each predicate\n" in out
    assert "facts without a relation question: 2; every predicate" in out
    flags = out.splitlines()[-1]
    assert [kind for kind in FIELDS if f"--{kind}_path {tmp_path}/out/{kind}.jsonl" in flags] == ["verification"]


def test_what_another_fact_states_is_no_wrong_answer_and_no_edit(tmp_path, capsys):
    pairs = {"Ana": ("French", "German"), "Ben": ("French", "Greek"), "Cid": ("French", "German", "Greek")}
    facts = [f"{subject}\tspeaks\t{object}\n" for subject, objects in pairs.items() for object in objects]
    (tmp_path / "f.tsv").write_text("".join(facts) + "Ana\tteaches\tFrench\nAna\treads\tGreek\n")
    words = {name: f"{{subject}} {name} {{object}}." for name in ("speaks", "teaches", "reads")}
    (tmp_path / "t.json").write_text(json.dumps(words))
    for seed in range(5):
        write_own(tmp_path / "f.tsv", tmp_path / "t.json", tmp_path / "out", held_out=0.5, seed=seed)
        for row in rows(tmp_path / "out", "object.jsonl"):
            assert len(set(row["choices"]) & set(pairs[row["subject"]])) == 1 and row["predicate"] == "speaks"
        for row in rows(tmp_path / "out", "relation.jsonl"):
            joined = {"speaks", "teaches"} if row["subject"] + row["object"] == "AnaFrench" else {row["predicate"]}
            assert set(row["choices"]) == set(words) - joined | {row["predicate"]}
        for row in rows(tmp_path / "out", "verification.jsonl"):
            assert row["predicate"] != "speaks" or (row["object"] in pairs[row["subject"]]) == (row["answer"] == "yes")
        for row in rows(tmp_path / "out", "edit.jsonl"):
            assert row["predicate"] != "speaks" or row["new_object"] not in pairs[row["subject"]]
    assert (
        "facts without an object question: 5 of 'reads', 'speaks', 'teaches'; every object" in capsys.readouterr().out
    )


@pytest.mark.parametrize(
    "templates, sentence",
    [
        ({"born": "{subject} was born."}, "wording 1 of 'born' must have {subject} and {object}, once each"),
        ({"born": ["{subject} in {object}.", "{subject} {object} {subject}"]}, "wording 2 of 'born' must have"),
        ({"born": "In {object} {subject} was born."}, "must name {subject} before {object}"),
        ({"born": "{subject was born in {object}."}, "wording 1 of 'born' cannot be read"),
        ({"born": 3}, "'born' needs a list of wordings"),
        ([], "must map each predicate to its wordings"),
        ({"died": "{subject} died in {object}."}, "the predicate 'born' of 'A' has no wording: .*have 'died'"),
    ],
)
def test_templates_that_make_no_question_are_refused(tmp_path, templates, sentence):
    (tmp_path / "f.tsv").write_text("A\tborn\t1901\nB\tborn\t1902\n")
    (tmp_path / "t.json").write_text(json.dumps(templates))
    with pytest.raises(ValueError, match=sentence):
        write_own(tmp_path / "f.tsv", tmp_path / "t.json", tmp_path / "out", held_out=0.2, seed=0)
    assert not (tmp_path / "out").exists()


def test_fewer_values_than_asked_for_are_drawn_once_each():
    import random

    assert sorted(draw(["a", "b", "a", "c"], 4, {"b"}, random.Random(0))) == ["a", "c"]
    assert draw(["a", "a"], 4, {"a"}, random.Random(0)) == []


def test_the_end_of_the_quick_start_is_made_of_commands_that_exist_and_of_the_first_place_in_reserve():
    import argparse
    import shlex

    from dataset.quickstart import read_facts
    from editing.__main__ import add_commands

    parser = argparse.ArgumentParser()
    add_commands(parser, required=True)
    with open("docs/examples/own_facts.txt") as file:
        commands = [parser.parse_args(shlex.split(line)) for line in file]
    assert [command.row for command in commands if "row" in command] == [len(read_facts())]
    subjects = {fact.subject for fact in read_facts()}
    own = read_own_facts(FACTS, read_templates(TEMPLATES))
    assert not any(fact.subject in subjects for fact in own)  # no training has seen the names
