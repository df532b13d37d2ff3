"""ParaRel: the shares can be worked out by hand."""

import json

import pytest

from dataset.knowledge import Fact
from dataset.public_questions import read_pararel
from evaluation.config import EvalConfig, clustered_interval, wilson_interval
from evaluation.gold import Gold, require_questions
from evaluation.lookup import READ
from evaluation.pararel import OTHER, OWN, certain, measured, pararel, without_model
from evaluation.report import table
from tests.conftest import tiny_model

from .conftest import FACTS

LANDS = ["France", "Italy", "Norway", "Peru", "Chile"]


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture
def settings(tmp_path):
    rows = []
    for fact in FACTS[:6]:
        about = {"uuid": fact.uuid, "subject": fact.subject, "predicate": "country", "object": fact.object}
        about |= {"relation": "P17", "choices": LANDS, "answer": "ABCDE"[LANDS.index(fact.object)]}
        for wording, own in (("{} is in ___", True), ("Old {} is in ___", False), ("The city {} is in ___", False)):
            rows.append(about | {"question": wording.format(fact.subject), "own_wording": own})
    gold = Gold(
        {fact.uuid: row for row, fact in enumerate(FACTS)}, {f.uuid: f for f in FACTS}, lambda: enumerate(FACTS)
    )
    return EvalConfig(pararel_path=write(tmp_path / "p.jsonl", rows), gold=gold, batch_size=8)


def test_a_model_that_copies_finds_its_facts_in_both_wordings(model, tokenizer, settings):
    result = pararel(model, tokenizer, settings)
    assert result["parts"][OWN]["accuracy"] == result["parts"][OTHER]["accuracy"] == 1
    assert (result["parts"][OWN]["n"], result["parts"][OTHER]["n"], result["parts"][OTHER]["facts"]) == (6, 12, 6)
    assert result["all_right"]["accuracy"] == result["consistent"]["accuracy"] == 1 and result["all_right"]["n"] == 6
    assert result["read"][OTHER]["pointer"]["selected"]["accuracy"] == 1
    without = result["without_model"]
    found = without["lookup"]["found"][OTHER]
    assert found["accuracy"] == 1 and found["chance"] == READ / len(FACTS)  # of 8 entries it reads 4
    assert without["lookup"]["accuracy"] == 1 and without["guess"]["accuracy"] == pytest.approx(0.2)
    assert without["guess"]["all_right"]["accuracy"] == pytest.approx(0.2**3)
    # Of the other seven facts Norway has 2 and Italy 2, where France is right for 3 and has 2: the first counts.
    assert without["frequency"]["parts"][OTHER]["accuracy"] == pytest.approx(3 / 6)
    row = next(line for line in table({"run": result and {"pararel": result}}).splitlines() if OTHER in line)
    assert row.split()[-5:] == ["±19.5%", "20.0%", "50.0%", "100.0%", "100.0%"]
    assert without["search_alone"]["parts"][OTHER]["accuracy"] == 1


def test_a_wording_that_a_model_does_not_understand_counts_in_its_part_alone():
    rows = [{"uuid": u, "choices": ["x", "y"], "answer": "A", "part": p} for u in "abcd" for p in (OWN, OTHER)]
    wrong = {3, 5}  # the other wordings of b and c
    result = measured(rows, certain(rows, [[int(i in wrong)] for i in range(8)]), EvalConfig())
    assert (result["parts"][OWN]["accuracy"], result["parts"][OTHER]["accuracy"]) == (1, 0.5)
    assert result["consistent"]["accuracy"] == result["all_right"]["accuracy"] == result["pairs"]["accuracy"] == 0.5
    always_wrong = measured(rows, certain(rows, [[1]] * 8), EvalConfig())
    assert (always_wrong["consistent"]["accuracy"], always_wrong["all_right"]["accuracy"]) == (1, 0)


def test_agreement_is_told_over_facts_and_over_relations():
    rows = [
        {"uuid": u, "choices": ["x", "y"], "answer": "A", "part": OTHER, "relation": u[0]}
        for u in "p1 q1 q2".split() * 2
    ]
    chosen = [[0]] * 3 + [[0], [0], [1]]  # of the two facts of q one has two answers
    pairs = measured(rows, certain(rows, chosen), EvalConfig())["pairs"]
    assert pairs["accuracy"] == pytest.approx(2 / 3) and pairs["mean_of_relations"] == pytest.approx((1 + 1 / 2) / 2)


def test_choices_in_another_order_are_the_same_choices():
    rows = [{"uuid": "a", "part": OWN, "choices": c, "answer": a} for c, a in ((["x", "y"], "A"), (["y", "x"], "B"))]
    assert measured(rows, certain(rows, [[0], [1]]), EvalConfig())["consistent"]["accuracy"] == 1
    assert measured(rows, certain(rows, [[0], [0]]), EvalConfig())["consistent"]["accuracy"] == 0


def test_a_letter_is_a_letter_though_a_choice_is_called_so(tmp_path):
    row = {"uuid": "u", "question": "It is written in ___", "choices": ["C", "Java"], "own_wording": True}
    for answer, letter in (("B", "B"), ("A", "A"), (0, "A"), ("Java", "B")):
        assert read_pararel(write(tmp_path / "p.jsonl", [row | {"answer": answer}]), None)[0]["answer"] == letter


def test_the_most_frequent_object_does_not_count_the_asked_fact_itself(tokenizer):
    facts = [Fact(f"{s} is in {o}.", s, "country", o, s) for s, o in (("A", "France"), ("B", "Italy"))]
    rows = [
        {"uuid": f.uuid, "predicate": "country", "choices": choices, "answer": "A", "part": OTHER}
        | {"question": f"{f.subject} is in ___"}
        for f, choices in zip(facts, (["France", "Italy"], ["Italy", "France"]), strict=True)
    ]
    gold = Gold({"A": 0, "B": 1}, {f.uuid: f for f in facts}, lambda: enumerate(facts))
    result = without_model(rows, [], tiny_model(model_type="model_original"), tokenizer, EvalConfig(gold=gold))
    assert (result["frequency"]["accuracy"], result["lookup"]["accuracy"]) == (0, 1)
    assert "search_alone" not in result  # a plain model has no search


def test_an_interval_takes_a_fact_as_one_draw():
    right = [1.0] * 40 + [0.0] * 40
    alone = clustered_interval(right, list(range(80)))
    assert alone == pytest.approx(wilson_interval(40, 80), abs=0.002)
    fours = clustered_interval(right, [i // 4 for i in range(80)])  # twenty facts, each all right or all wrong
    assert fours == pytest.approx(wilson_interval(10, 20), abs=0.01)
    assert clustered_interval([1.0] * 80, [i // 4 for i in range(80)]) == wilson_interval(20, 20)


@pytest.mark.parametrize(
    ("change", "told"),
    [({"own_wording": "no"}, "line 2: 'own_wording' must be true or false"),
     ({"answer": "B"}, "line 2: the fact u has other choices, or another answer"),
     ({"choices": "a"}, "line 2: 'choices' must be a list"), ({"answer": "D"}, "names no choice"),
     ({"choices": ["a", "b", "a"]}, "line 2: 'choices' has 'a' twice: give each choice once"),
     ({"question": "It is here"}, "line 2: the question has no blank")],
)  # fmt: skip
def test_a_file_of_another_form_is_refused_before_anything_runs(tmp_path, change, told):
    row = {"uuid": "u", "question": "It is ___", "choices": ["a", "b"], "answer": "A", "own_wording": True}
    path = write(tmp_path / "p.jsonl", [row, row | change])
    with pytest.raises(ValueError, match=told):
        require_questions(EvalConfig(pararel_path=path))
    assert len(read_pararel(path, 1)) == 1
