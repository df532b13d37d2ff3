"""The look-up without a model."""

import sys

import pytest

from evaluation.lookup import LookUp, WordIndex, choose, shares_right

TEXTS = [
    "Oslo is the capital of Norway.", "Rome is the capital of Italy.", "Norway borders Sweden and Finland.",
    "Édouard Manet was born in Paris.", "The capital of Peru is Lima.",
]  # fmt: skip


def test_rare_words_weigh_more_and_shorter_entries_come_first():
    index = WordIndex(TEXTS)
    assert index.best("What is the capital of Norway?")[0] == 0
    assert index.best("EDOUARD manet", 1) == [3] and index.best("\u00c9douard", 1) == [3]  # folded alike
    assert index.best("capital")[:2] == [0, 1]  # the same score and length: in order of the rows
    assert index.best("Quito") == []


def test_words_in_many_entries_break_ties_alone(monkeypatch):
    monkeypatch.setattr(sys.modules["evaluation.lookup"], "COMMON", 1)
    index = WordIndex(["red fox one", "red dog", "blue dog two", "red"])
    assert index.best("red fox dog", 4)[0] == 0  # the only rare word decides
    assert index.best("red dog", 4)[0] == 1  # common words alone still find


def test_the_look_up_answers_or_guesses():
    found = LookUp(WordIndex(TEXTS), TEXTS).entries(["Oslo is the capital of", "Quito", "Oslo is the capital of"])
    choices = ["Sweden", "Norway", "Peru", "Italy"]
    assert shares_right(found, [choices] * 3, [1, 1, 0]) == [1.0, 0.25, 0.0]


def test_a_choice_inside_another_does_not_count():
    assert choose(["He was an architectural style expert in New York City."], ["York", "New York", "Rome"]) == [1]
    assert choose(["Yorkshire"], ["York", "Rome"]) == [0, 1]


@pytest.mark.parametrize("text", ["", "...", "\n"])
def test_a_prompt_without_words_finds_nothing(text):
    assert WordIndex(TEXTS).best(text) == []


def test_an_index_with_other_texts_is_that_of_these_texts():
    changed = {1: "Bern, a town", 3: "", 6: "Oslo is old."}
    texts = [changed.get(row, text) for row, text in enumerate([*TEXTS, "", ""])]
    index, new, made = WordIndex(TEXTS), WordIndex(TEXTS).replaced(changed), WordIndex(texts)
    for prompt in ("Oslo is the capital of", "Bern", "Rome", "Manet in Paris", "Lima of Norway is a town"):
        assert new.search(prompt, 3) == made.search(prompt, 3)
    assert new.replaced({1: TEXTS[1]}).best("Rome") == [1] and new.replaced({3: "Rome"}).best("Rome") == [3]
    assert new.best("Rome") == [] and index.best("Rome") == [1]
    assert index.search("Oslo", 1) == ([0], [pytest.approx(1.609, abs=1e-3)])  # ln 5
