"""The wordings that training asks in."""

import json
import random
import re
from pathlib import Path
from string import Formatter

import pytest

from dataset import questions
from dataset.questions import PARAPHRASES, REWORDINGS
from dataset.wordings import ended, kept_back, read_wordings, scrambled

WORDINGS = Path(__file__).parents[2] / "dataset/wordings.json"


def folded(text):
    """Without case, punctuation and articles."""
    words = re.sub(r"[^\w\s{}]", " ", text.casefold()).split()
    return " ".join(word for word in words if word not in ("a", "an", "the"))


def test_every_predicate_has_statements_and_questions_and_none_is_asked_in_a_wording_of_the_test():
    text = WORDINGS.read_text()
    wordings = read_wordings(WORDINGS)
    assert text == json.dumps(wordings, indent=1, ensure_ascii=False, sort_keys=True) + "\n"  # sorted, one a line
    assert len(wordings) > 150
    for predicate, texts in wordings.items():
        questions = [text for text in texts if text.endswith("?")]
        assert len(texts) >= 10 and len(questions) >= 4 and len(texts) - len(questions) >= 6, predicate
        tested = {folded(text.replace("{predicate}", predicate)) for text in PARAPHRASES}
        tested |= {text.removeprefix("question ").removesuffix(" answer") for text in tested}
        for text in texts:
            assert text.strip() == text and "  " not in text and 12 <= len(text) <= 100 and text.isprintable(), text
            fields = [field for _, field, *_ in Formatter().parse(text) if field is not None]
            assert fields == (["subject"] if text in questions else ["subject", "object"]), text
            assert text in questions or re.search(r"\{object\}\.?$", text), text
            assert folded(text).removesuffix(" {object}") not in tested, f"{predicate}: {text}"
        assert len({folded(text) for text in texts}) == len(texts), predicate


STATEMENT, QUESTION = "The cradle of {subject} stood in {object}.", "Where was {subject} born?"


@pytest.fixture
def ask(write, tmp_path, monkeypatch, capsys):
    """ask(flags, wordings, ...): the lines that the command writes for 40 persons, and what it prints."""
    people = [{"subject": f"Person {i:02}", "predicate": "place of birth"} for i in range(40)]
    objects = [
        row | {"question": f"{row['subject']} was born in ___.", "choices": [f"City {i}", "Rome"], "answer": "A"}
        for i, row in enumerate(people)
    ]
    claims = [
        row | {"object": f"City {i}", "statement": f"{row['subject']} was born in City {i}.", "answer": "yes"}
        for i, row in enumerate(people)
    ]

    def run(flags, wordings=None, verify=False, names=("subject", "predicate", "object")):
        lines = [{k: row[k] for k in (*names, "statement", "answer")} for row in claims]
        files = ["--verification", write("v.jsonl", lines)] if verify else ["--object", write("o.jsonl", objects)]
        if wordings is not None:
            (tmp_path / "w.json").write_text(json.dumps(wordings))
            files += ["--wordings", tmp_path / "w.json"]
        out = tmp_path / "out.jsonl"
        monkeypatch.setattr("sys.argv", ["questions", *map(str, files), *flags.split(), "--out", str(out)])
        questions.main()
        return [json.loads(line) for line in out.read_text().splitlines()], capsys.readouterr().out

    return run


def test_a_statement_is_cut_before_its_object_and_a_question_is_asked_as_one(ask):
    found, said = ask("--reworded 1", {"place of birth": [STATEMENT, QUESTION]})
    expected = {
        (prompt.format(f"{i:02}"), f" City {i}{stop}")
        for i in range(40)
        for prompt, stop in (
            ("The cradle of Person {} stood in", "."),
            ("Question: Where was Person {} born?\nAnswer:", ""),
        )
    }
    assert {(row["prompt"], row["answer"]) for row in found} <= expected
    statements = sum(row["answer"].endswith(".") for row in found)
    assert 0 < statements < 40 == len(found)
    assert f"{statements} object questions by a statement, {40 - statements} by a question, 0 by the general" in said
    half, _ = ask("--reworded 0.5", {"place of birth": [STATEMENT, QUESTION]})
    assert 8 < sum(row["prompt"].endswith("was born in") for row in half) < 32


def test_a_share_of_the_statements_keeps_the_subject_and_its_last_words_alone(ask):
    found, said = ask("--reworded 1 --shortened 1", {"place of birth": [STATEMENT]})
    ends = {row["prompt"].removeprefix(f"Person {row['answer'].strip(' City.'):0>2}") for row in found}
    assert ends == {f"{comma} {last}" for comma in (",", "") for last in ("stood in", "in")}
    assert "40 statements shortened" in said
    found, _ = ask("--reworded 1 --shortened 1", {"place of birth": ["The cradle of {subject}: {object}"]})
    assert found[0]["prompt"].startswith("The cradle of Person")  # no word is left
    found, _ = ask("--reworded 1 --shortened 1", {"place of birth": ["{subject} grew up in {object}."]})
    starts = {row["prompt"].partition(" ")[2][2:] for row in found}
    clauses = {f", {word} grew up in" for word in ("who", "which", "that")}
    assert (
        clauses
        < starts
        <= clauses | {f"{comma} {last}" for comma in (",", "") for last in ("grew up in", "up in", "in")}
    )
    with pytest.raises(ValueError, match="--shortened cuts the statements of --wordings"):
        ask("--reworded 1 --shortened 0.5")


def test_a_share_of_the_object_questions_has_the_words_of_a_wording_in_any_order(ask):
    found, said = ask("--reworded 1 --scrambled 1", {"place of birth": [STATEMENT, QUESTION]})
    assert "40 object questions scrambled" in said
    statements = [row for row in found if not row["prompt"].startswith("Question: ")]
    assert 5 < len(statements) < 35
    for row in found:
        number = int(row["answer"].strip(" City.").zfill(2))
        prompt = row["prompt"].removeprefix("Question: ").removesuffix("?\nAnswer:")
        before, named, after = prompt.partition(f"Person {number:02}")
        words = set(re.findall(r"\w+", f"{before} {after.removeprefix(chr(39) + 's')}".casefold()))
        assert named and words & {"cradle", "stood", "born"}
        assert words <= {"the", "cradle", "of", "stood", "in", "is", "was"} or words <= {"where", "was", "born", "is"}
        assert row["answer"].endswith(".") == (row in statements)
    assert len({re.sub(r"\d+", "", row["prompt"]) for row in found}) > 25  # many orders
    short, said = ask("--reworded 1 --scrambled 1 --shortened 1", {"place of birth": [STATEMENT]})
    assert all(re.search("cradle|stood", row["prompt"].casefold()) for row in short)  # it stays whole
    assert "0 object questions by a statement" in said and "0 statements shortened" in said
    few, _ = ask("--reworded 1 --scrambled 0.3", {"place of birth": [STATEMENT]})
    assert 15 < sum(row["prompt"].endswith("stood in") and "The cradle of" in row["prompt"] for row in few) < 40
    whole, said = ask("--reworded 1 --scrambled 1", {"place of birth": ["{subject} is from {object}."]})
    assert all(row["prompt"].endswith(" is from") for row in whole) and "0 object questions scrambled" in said
    assert scrambled("{subject}, or {object}.", random.Random(0)) is None
    with pytest.raises(ValueError, match="--scrambled takes the words of --wordings"):
        ask("--reworded 1 --scrambled 0.5")
    with pytest.raises(ValueError, match=r"--scrambled must lie in \[0, 1\], got 1.5"):
        ask("--reworded 1 --scrambled 1.5")


def test_a_predicate_without_wordings_names_the_relation_and_is_counted(ask):
    found, said = ask("--reworded 1", {"capital": [STATEMENT]})
    general = [text.format(subject="Person 07", predicate="place of birth") for text in REWORDINGS]
    assert sum(row["prompt"] in general for row in found) == 1 and "40 by the general" in said
    assert "1 predicates have no wordings" in said
    plain, said = ask("--reworded 1")
    assert plain == found and "general" not in said


def test_verification_questions_are_reworded_as_statements_if_the_file_names_their_parts(ask):
    wordings = {"place of birth": [QUESTION, STATEMENT]}
    found, said = ask("--reworded 1", wordings, verify=True)
    assert {"prompt": "The cradle of Person 07 stood in City 7.\nIs this true?", "answer": " yes"} in found
    assert all(re.match("The cradle of Person ", row["prompt"]) for row in found) and "40 verification" in said
    found, said = ask("--reworded 1 --shortened 1", wordings, verify=True)
    short = re.compile(r"Person \d\d,? (stood )?in City \d+\.\nIs this true\?")
    assert all(short.fullmatch(row["prompt"]) for row in found) and "40 statements shortened" in said
    found, said = ask("--reworded 1", wordings, verify=True, names=("subject",))
    assert {"prompt": "Person 07 was born in City 7.\nIs this true?", "answer": " yes"} in found and " 0 verif" in said


def test_an_object_with_a_full_stop_gets_no_second_one():
    assert [ended(text, STATEMENT) for text in ("Apple Inc.", "Apple")] == ["Apple Inc.", "Apple."]


@pytest.mark.parametrize("verify", [False, True])
def test_a_share_of_the_prompts_has_a_sentence_about_another_subject_before_it(ask, verify):
    found, _ = ask("--preceded 0.5", verify=verify)
    plain, _ = ask("", verify=verify)
    changed = 0
    for row, was in zip(found, plain, strict=True):
        before = row["prompt"].removesuffix(was["prompt"])
        assert row["answer"] == was["answer"] and row["prompt"] == before + was["prompt"]
        if before:
            assert re.fullmatch(r"Person \d\d was born in City \d+\. ", before) and before[:9] not in was["prompt"]
            changed += 1
    assert 8 < changed < 32


def test_an_article_before_the_object_is_drawn(ask):
    found, _ = ask("--reworded 1", {"place of birth": ["{subject} was born in an {object}."]})
    articles = {row["prompt"].removeprefix(row["prompt"][:9]) for row in found}
    assert articles == {" was born in a", " was born in an"}
    found, _ = ask("--reworded 1 --shortened 1", {"place of birth": ["{subject} was born in an {object}."]})
    assert {row["prompt"].split()[-1] for row in found} == {"a", "an"}


def test_half_of_the_sentences_before_come_from_a_text(ask, write):
    text = "Short. The river was known for its fish. Is a line without an end"
    found, _ = ask(f"--preceded 1 --preceded_by {write('t.jsonl', [{'text': text}])}")
    river = [row for row in found if row["prompt"].startswith("The river was known for its fish. ")]
    assert 0.25 < len(river) / len(found) < 0.75
    with pytest.raises(ValueError, match="--preceded 0"):
        ask(f"--preceded_by {write('t.jsonl', [{'text': text}])}")
    with pytest.raises(ValueError, match="line 1 has no text"):
        ask(f"--preceded 1 --preceded_by {write('t.jsonl', [{'prompt': 'Short.', 'answer': ' yes'}])}")
    with pytest.raises(ValueError, match="no text of .* has a sentence"):
        ask(f"--preceded 1 --preceded_by {write('t.jsonl', [{'text': 'Short.'}])}")


def test_no_sentence_about_the_asked_subject_under_another_name_is_put_before(write, tmp_path, monkeypatch):
    row = {"predicate": "in", "choices": ["Norway", "Peru"], "answer": "A"}
    rows = [row | {"subject": name, "question": "Oslo lies in ___."} for name in ("Oslo", "oslo")]
    flags = ["--object", str(write("o.jsonl", rows)), "--preceded", "1", "--out", str(tmp_path / "out.jsonl")]
    monkeypatch.setattr("sys.argv", ["questions", *flags])
    with pytest.raises(ValueError, match="every sentence names 'Oslo'"):
        questions.main()


@pytest.mark.parametrize(
    "text",
    ["{subject} was born.", "In {object} {subject} was born?", "{object} saw {subject}", "{subject} {place}?", 7],
)
def test_a_wording_of_no_kind_is_refused_and_named(ask, text):
    with pytest.raises(ValueError, match=r"w\.json: wording 2 of 'place of birth'"):
        ask("--reworded 1", {"place of birth": [STATEMENT, text]})


def test_a_share_of_each_predicates_wordings_is_kept_back_always_the_same_and_not_all():
    wordings = read_wordings(WORDINGS)
    trained, back = kept_back(wordings, 0.15)
    assert (trained, back) == kept_back(dict(reversed(wordings.items())), 0.15)
    for predicate, texts in wordings.items():
        assert sorted(trained[predicate] + back[predicate]) == sorted(texts)
        assert len(back[predicate]) == round(0.15 * len(texts)) > 0
    assert kept_back(wordings, 0.0) == (wordings, {})
    few = {"born in": [STATEMENT, QUESTION], "died in": [STATEMENT]}
    trained, back = kept_back(few, 0.9)
    assert list(map(len, trained.values())) == [1, 1] and list(back) == ["born in"]
    with pytest.raises(ValueError, match=r"--kept_back must lie in \[0, 1\), got 1"):
        kept_back(few, 1)


def test_what_is_kept_back_is_not_asked(ask):
    lines, _ = ask("--reworded 1 --kept_back 0.5", {"place of birth": [STATEMENT, QUESTION]})
    (trained,), (back,) = (part["place of birth"] for part in kept_back({"place of birth": [STATEMENT, QUESTION]}, 0.5))
    assert lines and all(("?" in line["prompt"]) == trained.endswith("?") != back.endswith("?") for line in lines)
    with pytest.raises(ValueError, match="--kept_back keeps back some of --wordings"):
        ask("--kept_back 0.5")
