"""Files of questions: common forms of an answer are taken, others are refused with their line."""

import json

import pytest

from dataset import questions
from dataset.questions import FIELDS, chance_of, read_questions

pytestmark = pytest.mark.fault("questions in another form")
CHOICES = ["Rome", "Oslo", "Lima", "Bern", "Kyiv"]
OBJECT = {"question": "It is in ___.", "choices": CHOICES, "subject": "s", "predicate": "p"}


@pytest.fixture
def read(tmp_path):
    def read_rows(kind, *rows, limit=None):
        path = tmp_path / "q.jsonl"
        path.write_text("".join(row if isinstance(row, str) else json.dumps(row) + "\n" for row in rows))
        return read_questions(path, FIELDS[kind], limit, f"{kind}_path")

    return read_rows


@pytest.mark.parametrize("answer", ["C", "c", " c ", "(C)", "c.", "2", 2, "Lima"])
def test_the_common_forms_of_a_choice_are_taken(read, answer):
    assert read("object", OBJECT | {"answer": answer})[0]["answer"] == "C"


@pytest.mark.parametrize("answer", ["F", "5", 5, -1, "", "Paris", None, True, 2.0, ["C"], "AB", "²"])
def test_other_forms_of_a_choice_are_refused_with_their_line(read, answer):
    with pytest.raises(ValueError, match="line 2: the answer .* names no choice: write its letter .A to E.") as refusal:
        read("object", OBJECT | {"answer": "A"}, OBJECT | {"answer": answer})
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("labels, answer", [("ABCDE", "C"), ("12345", "3"), ([1, 2, 3, 4, 5], 3)])
def test_choices_with_labels_are_taken(read, labels, answer):
    row = read("object", OBJECT | {"choices": {"text": CHOICES, "label": list(labels)}, "answer": answer})[0]
    assert (row["answer"], row["choices"]) == ("C", CHOICES)


def test_choices_that_are_numbers_or_letters_are_not_confused(read):
    years = {"question": "In ___.", "choices": ["1930", 1931, "0"]}
    assert read("object", years | {"answer": "1931"})[0]["answer"] == "B"
    assert read("object", years | {"answer": 1930})[0]["answer"] == "A"
    with pytest.raises(ValueError, match="names two choices"):
        read("object", years | {"answer": "0"})
    assert read("object", years | {"choices": ["A", "B"], "answer": "B"})[0]["answer"] == "B"
    with pytest.raises(ValueError, match="names two choices"):
        read("object", years | {"choices": ["B", "A"], "answer": "B"})


def test_a_json_array_is_read_like_lines(read):
    rows = [OBJECT | {"answer": answer} for answer in ("A", 2)]
    assert read("object", json.dumps(rows, indent=1)) == read("object", *rows)
    with pytest.raises(ValueError, match="line 2: the answer 'x' names no choice"):
        read("object", f"[{json.dumps(rows[0])},\n{json.dumps(rows[0] | {'answer': 'x'})}]")


def test_chance_is_that_of_questions_with_different_numbers_of_choices(read):
    rows = read("object", OBJECT | {"answer": "A"}, OBJECT | {"answer": "A", "choices": CHOICES[:2]})
    assert chance_of(rows) == pytest.approx((1 / 5 + 1 / 2) / 2) and chance_of(rows[:1]) == 1 / 5


@pytest.mark.parametrize("answer", ["yes", "Yes", "TRUE", True, 1, "SUPPORTS", "supported", " y "])
def test_the_common_words_for_a_true_statement_are_taken(read, answer):
    rows = read("verification", {"statement": "s", "answer": answer}, {"statement": "s", "answer": "REFUTES"})
    assert [row["answer"] for row in rows] == ["yes", "no"]


@pytest.mark.parametrize("answer", ["no", "No", "false", False, 0, "REFUTED", "f"])
def test_the_common_words_for_a_false_statement_are_taken(read, answer):
    assert read("verification", {"statement": "s", "answer": answer})[0]["answer"] == "no"


@pytest.mark.parametrize("answer", ["NOT ENOUGH INFO", "maybe", "", None, 2, 0.5, []])
def test_other_words_for_a_statement_are_refused_with_their_line(read, answer):
    with pytest.raises(ValueError, match="line 1: the answer .* is neither true nor false: write yes or no"):
        read("verification", {"statement": "s", "answer": answer})


@pytest.mark.parametrize(
    "row, message",
    [
        (OBJECT | {"answer": "A", "question": "Where is it?"}, "line 1: the question has no blank ___"),
        (OBJECT | {"answer": "A", "choices": "Rome"}, "line 1: 'choices' must be a list of 2 to 26 texts"),
        (OBJECT | {"answer": "A", "choices": ["Rome"]}, "line 1: 'choices' must be a list"),
        (OBJECT | {"answer": "A", "choices": ["Rome", None]}, "line 1: 'choices' must be a list"),
        (OBJECT | {"answer": "A", "question": None}, "line 1: 'question' must be a text"),
        (OBJECT | {"answer": "A", "uuid": ["u"]}, "line 1: 'uuid' must be a text"),
        ("{}\n", "line 1: no field 'question'"),
        ("[[]]\n", "line 1: no field 'question'"),
        ("[]\n", "has no questions: give another --object_path"),
        ("\n \n", "has no questions: give another --object_path"),
    ],
)
def test_a_malformed_question_is_refused_in_one_sentence(read, row, message):
    with pytest.raises(ValueError, match=message):
        read("object", row)


def test_an_empty_uuid_names_no_fact(read):
    rows = read("object", *(OBJECT | {"answer": "A", "uuid": uuid} for uuid in ("", None, "u")))
    assert ["uuid" in row for row in rows] == [False, False, True]


@pytest.mark.parametrize("limit", ["0", "-1", "x"])
def test_a_limit_below_one_is_refused(tmp_path, monkeypatch, limit):
    flags = ["questions", "--object", "o.jsonl", "--limit", limit, "--out", str(tmp_path / "out.jsonl")]
    monkeypatch.setattr("sys.argv", flags)
    with pytest.raises(ValueError, match="is not a whole number of at least 1"):
        questions.main()


def test_training_questions_say_yes_where_the_statement_is_true(tmp_path, monkeypatch):
    path, out = tmp_path / "v.jsonl", tmp_path / "out.jsonl"
    answers = ["Yes", True, "SUPPORTS", "1", "no", "REFUTES"]
    path.write_text("".join(json.dumps({"statement": "s", "answer": answer}) + "\n" for answer in answers))
    monkeypatch.setattr("sys.argv", ["questions", "--verification", str(path), "--out", str(out)])
    questions.main()
    learnt = sorted(json.loads(line)["answer"] for line in out.open())
    assert learnt == [" no"] * 2 + [" yes"] * 4
