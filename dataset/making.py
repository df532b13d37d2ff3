"""Texts, questions and edits made from facts by templates.

Templates: {"birth year": ["{subject} was born in {object}.", "The birth year of {subject} is {object}."]}. The first
wording of a predicate is that of the bank and of the questions; texts for learning use all of them.
"""

import hashlib
import json
import random
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path

from common.files import atomic

from .knowledge import Fact

N_CHOICES = 5
LETTERS = "ABCDE"
BLANK = "___"

Templates = dict[str, list[str]]


def wordings(fact: Fact, templates: Templates) -> list[str]:
    """The fact in every wording of its predicate."""
    return [template.format(subject=fact.subject, object=fact.object) for template in templates[fact.predicate]]


def part_of_fact(fact: Fact, seen_share: float) -> str:
    """The part of a fact, "seen" or "bank_only"; subject and predicate alone decide it, not a seed."""
    digest = hashlib.blake2b(f"{fact.subject}\x1f{fact.predicate}".encode(), digest_size=8).digest()
    return "seen" if int.from_bytes(digest, "big") < seen_share * 2**64 else "bank_only"


def documents(facts: Iterable[Fact], templates: Templates, rng: random.Random) -> Iterator[dict]:
    """Every wording of every fact, shuffled, in documents of three to six sentences."""
    sentences = [sentence for fact in facts for sentence in wordings(fact, templates)]
    rng.shuffle(sentences)
    place = 0
    while place < len(sentences):
        size = rng.randint(3, 6)
        yield {"text": " ".join(sentences[place : place + size])}
        place += size


def draw(pool: list[str], number: int, without: Collection[str], rng: random.Random) -> list[str]:
    """`number` different values, none of `without`, drawn in proportion to their frequency; fewer if there are."""
    others: set[str] = set()
    for value in pool:  # as far as needed: pools are long, and most hold many values
        if len(others) == number:
            break
        others |= {value}.difference(without)
    drawn: list[str] = []
    while len(drawn) < len(others):
        value = rng.choice(pool)
        if value not in without and value not in drawn:
            drawn.append(value)
    return drawn


def object_question(known: dict, question: str, wrong: list[str], rng: random.Random) -> dict:
    """A question with a blank, its right object among wrong ones, and the letter of the right one.

    Args:
        known: fields of the fact that the question keeps, among them its object.
    """
    choices = [known["object"], *wrong]
    rng.shuffle(choices)
    return known | {"question": question, "choices": choices, "answer": LETTERS[choices.index(known["object"])]}


def questions(
    asked: list[Fact], facts: list[Fact], templates: Templates, part: Callable[[Fact], str], rng: random.Random
) -> dict[str, list[dict]]:
    """Object, relation and verification questions about the asked facts, by the name of their file.

    A question without a wrong answer to choose (the only object of a predicate, the only predicate) is left out. What
    another fact states is no wrong answer.
    """
    objects, true = pools(facts), true_objects(facts)
    joining = defaultdict(set)
    for fact in facts:
        joining[fact.subject, fact.object].add(fact.predicate)
    sets: dict[str, list[dict]] = {"object": [], "relation": [], "verification": []}
    for number, fact in enumerate(asked):
        shared = {"uuid": fact.uuid, "part": part(fact), "subject": fact.subject, "predicate": fact.predicate}
        first = templates[fact.predicate][0]

        right = true[fact.subject, fact.predicate]
        if wrong := draw(objects[fact.predicate], N_CHOICES - 1, right, rng):
            question = first.format(subject=fact.subject, object=BLANK)
            sets["object"].append(object_question(shared | {"object": fact.object}, question, wrong, rng))

        if wrong := draw(list(templates), N_CHOICES - 1, joining[fact.subject, fact.object], rng):
            choices = [fact.predicate, *wrong]
            rng.shuffle(choices)
            answer = {"choices": choices, "answer": LETTERS[choices.index(fact.predicate)]}
            sets["relation"].append(shared | {"object": fact.object} | answer)

        if stated := [fact.object] if number % 2 else draw(objects[fact.predicate], 1, right, rng):
            statement = first.format(subject=fact.subject, object=stated[0])
            verdict = {"object": stated[0], "statement": statement, "answer": "yes" if number % 2 else "no"}
            sets["verification"].append(shared | verdict)
    return sets


def edits(facts: list[Fact], known: list[Fact], templates: Templates, rng: random.Random) -> Iterator[dict]:
    """For each fact another object of its predicate, where one is not true already, and the sentence with it."""
    objects, true = pools(known), true_objects(known)
    for fact in facts:
        template = templates[fact.predicate][0]
        for new in draw(objects[fact.predicate], 1, true[fact.subject, fact.predicate], rng):
            yield {
                "uuid": fact.uuid, "subject": fact.subject, "predicate": fact.predicate, "object": fact.object,
                "new_object": new, "sentence": fact.sentence,
                "new_sentence": template.format(subject=fact.subject, object=new),
                "question": template.format(subject=fact.subject, object=BLANK),
            }  # fmt: skip


def pools(facts: Iterable[Fact]) -> dict[str, list[str]]:
    """The objects of each predicate, as often as they occur."""
    objects = defaultdict(list)
    for fact in facts:
        objects[fact.predicate].append(fact.object)
    return objects


def true_objects(facts: Iterable[Fact]) -> dict[tuple[str, str], set[str]]:
    """All objects of each (subject, predicate)."""
    objects = defaultdict(set)
    for fact in facts:
        objects[fact.subject, fact.predicate].add(fact.object)
    return objects


def write_lines(path: Path, rows: Iterable[dict]) -> int:
    """Write JSON Lines, whole or not at all; returns their number."""
    number = 0
    with atomic(path) as temporary, open(temporary, "w", encoding="utf-8") as out:
        for row in rows:
            out.write(json.dumps(row, ensure_ascii=False) + "\n")
            number += 1
    return number
