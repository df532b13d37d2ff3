"""Other words for those of statements: python -m dataset.also_words."""

import pytest

from dataset.also_words import learned
from dataset.knowledge import Fact
from dataset.wordings import read_wordings
from model.memory.also_words import read_also

WORDINGS = {
    "occupation": ["{subject}, a {object} by trade", "The job of {subject} is {object}", "{subject}'s job: {object}"],
    "place of death": ["{subject} found death in {object}", "Where was the death of {subject}?", "{subject}, {object}"],
    "language": ["{subject} talks in {object}", "What does {subject} talk?", "{subject} was heard in {object}"],
    "genre": ["The style of {subject} is {object}", "Of what style is {subject}?", "{subject} is filed as {object}"],
    "child": ["{subject} is the father of {object}", "Whose father is {subject}?", "{subject} raised {object}"],
}
FORMS = {
    "occupation": "The occupation of {} is {}.", "place of death": "{} died in {}.", "language": "{} speaks {}.",
    "genre": "The genre of {} is {}.", "child": "{} is a parent of {}.",
}  # fmt: skip
FACTS = [
    Fact(form.format(f"Ann {i}", f"Thing {i}"), f"Ann {i}", predicate, f"Thing {i}")
    for predicate, form in FORMS.items()
    for i in range(3)
]


def test_a_word_gets_those_of_the_wordings_of_its_predicate():
    others = learned(FACTS, WORDINGS)
    assert others["occupation"] == ["job", "trade"]
    assert others["died"][0] == "death" and set(others["speaks"]) == {"heard", "talk", "talks"}
    assert not {"the", "of", "is", "in", "ann", "thing"} & others.keys()


def test_words_that_all_wordings_have_are_not_added():
    wordings = {name: [*texts, *(text.replace("{subject}", "dear {subject}") for text in texts)]
                for name, texts in WORDINGS.items()}  # fmt: skip
    assert not any("dear" in others for others in learned(FACTS, wordings).values())


def test_facts_of_other_predicates_are_refused():
    with pytest.raises(ValueError, match="has no fact with a predicate of --wordings"):
        learned([Fact("A is in B.", "A", "country", "B")], WORDINGS)


def test_the_list_of_the_repository_is_one_that_the_flag_takes():
    with open("dataset/also_words.txt", encoding="utf-8") as file:
        also = read_also(file.read().split())
    assert "profession" in " ".join(also["occupation"]) and "wife" in also["married"]
    known = " ".join(text for texts in read_wordings("dataset/wordings.json").values() for text in texts).casefold()
    assert all(other in known for others in also.values() for other in others)
