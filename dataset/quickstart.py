"""The data of the quick start: pretraining text, a knowledge file and questions, made from the facts of facts.tsv.

    python -m dataset.quickstart --out dataset/quickstart

Facts that are "seen" are in the pretraining text and in the bank. Facts that are "bank_only" are in the bank alone: a
model that answers questions about them better than chance has read its memory.
"""

import argparse
import hashlib
import json
import random
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

from common.cli import run_command

from .convert import read_triples, write_knowledge
from .knowledge import Fact

FACTS = Path(__file__).with_name("facts.tsv")
SEEN_SHARE = 0.6
N_CHOICES = 5
LETTERS = "ABCDE"

# The bank and the questions use the first wording of a predicate, the pretraining text uses all.
# The object is always last, so a question ends where its answer begins.
TEMPLATES = {
    "author": ["{s} was written by {o}.", "The author of {s} is {o}.", "{s} is a work by {o}."],
    "birth year": ["{s} was born in {o}.", "The birth year of {s} is {o}.", "The artist {s} was born in the year {o}."],
    "constellation": ["{s} is in the constellation {o}.", "In the sky, {s} lies in {o}.", "Look for {s} in {o}."],
    "country": ["{s} is in {o}.", "The country of {s} is {o}.", "{s} can be found in {o}."],
    "country of citizenship": ["{s} is a citizen of {o}.", "The home country of {s} is {o}.", "{s} comes from {o}."],
    "death year": ["{s} died in {o}.", "The life of {s} ended in {o}.", "{s} lived until {o}."],
    "director": ["{s} was directed by {o}.", "The director of {s} is {o}.", "{s} is a film by {o}."],
    "headquarters": ["{s} has its headquarters in {o}.", "The main office of {s} is in {o}.", "{s} is based in {o}."],
    "language family": ["{s} belongs to the family {o}.", "The family of {s} is {o}.", "{s} is classified as {o}."],
    "located in": ["{s} is located in {o}.", "The region of {s} is {o}.", "{s} lies in {o}."],
    "macroarea": ["{s} is a language of {o}.", "The area of {s} is {o}.", "{s} has its home in {o}."],
    "native language": ["{s} grew up speaking {o}.", "The native language of {s} is {o}.", "{s} first learned {o}."],
    "place of birth": ["{s} was born at {o}.", "The birthplace of {s} is {o}.", "The life of {s} began at {o}."],
    "place of death": ["{s} died at {o}.", "The place of death of {s} is {o}.", "The life of {s} ended at {o}."],
    "serves city": ["{s} serves the city of {o}.", "The city nearest to {s} is {o}.", "{s} is the airport of {o}."],
    "spoken in": ["{s} is spoken in {o}.", "A country with speakers of {s} is {o}.", "People speak {s} in {o}."],
    "sport": ["{s} is known for {o}.", "The sport of {s} is {o}.", "{s} takes part in {o}."],
}


def wordings(fact: Fact) -> list[str]:
    return [template.format(s=fact.subject, o=fact.object) for template in TEMPLATES[fact.predicate]]


def part(fact: Fact) -> str:
    """The part of a fact, "seen" or "bank_only"; subject and predicate alone decide it, not the seed."""
    digest = hashlib.blake2b(f"{fact.subject}\x1f{fact.predicate}".encode(), digest_size=8).digest()
    return "seen" if int.from_bytes(digest, "big") < SEEN_SHARE * 2**64 else "bank_only"


def read_facts(path: Path = FACTS) -> list[Fact]:
    """The facts of the table, each with its sentence in the bank."""
    return [replace(fact, sentence=wordings(fact)[0]) for fact in read_triples(path)]


def documents(facts: list[Fact], rng: random.Random) -> Iterator[dict]:
    """Every wording of every fact, shuffled, in documents of three to six sentences."""
    sentences = [sentence for fact in facts for sentence in wordings(fact)]
    rng.shuffle(sentences)
    place = 0
    while place < len(sentences):
        size = rng.randint(3, 6)
        yield {"text": " ".join(sentences[place : place + size])}
        place += size


def draw(pool: list[str], number: int, without: str, rng: random.Random) -> list[str]:
    """`number` different values other than `without`, drawn in proportion to their frequency in the pool."""
    drawn: list[str] = []
    while len(drawn) < number:
        value = rng.choice(pool)
        if value != without and value not in drawn:
            drawn.append(value)
    return drawn


def questions(asked: list[Fact], facts: list[Fact], rng: random.Random) -> dict[str, list[dict]]:
    """Object, relation and verification questions about the asked facts, by file name."""
    objects = defaultdict(list)
    for fact in facts:
        objects[fact.predicate].append(fact.object)
    sets: dict[str, list[dict]] = {"object": [], "relation": [], "verification": []}
    for number, fact in enumerate(asked):
        shared = {"uuid": fact.uuid, "part": part(fact), "subject": fact.subject, "predicate": fact.predicate}

        choices = [fact.object, *draw(objects[fact.predicate], N_CHOICES - 1, fact.object, rng)]
        rng.shuffle(choices)
        question = TEMPLATES[fact.predicate][0].format(s=fact.subject, o="___")
        answer = {"choices": choices, "answer": LETTERS[choices.index(fact.object)]}
        sets["object"].append(shared | {"object": fact.object, "question": question} | answer)

        choices = [fact.predicate, *draw(list(TEMPLATES), N_CHOICES - 1, fact.predicate, rng)]
        rng.shuffle(choices)
        answer = {"choices": choices, "answer": LETTERS[choices.index(fact.predicate)]}
        sets["relation"].append(shared | {"object": fact.object} | answer)

        stated = fact.object if number % 2 else draw(objects[fact.predicate], 1, fact.object, rng)[0]
        statement = TEMPLATES[fact.predicate][0].format(s=fact.subject, o=stated)
        verdict = {"object": stated, "statement": statement, "answer": "yes" if stated == fact.object else "no"}
        sets["verification"].append(shared | verdict)
    return sets


def edits(facts: list[Fact], known: list[Fact], rng: random.Random) -> Iterator[dict]:
    """For each fact another object of its predicate, and the sentence with it."""
    objects = defaultdict(list)
    for fact in known:
        objects[fact.predicate].append(fact.object)
    for fact in facts:
        (new,) = draw(objects[fact.predicate], 1, fact.object, rng)
        template = TEMPLATES[fact.predicate][0]
        yield {
            "uuid": fact.uuid, "subject": fact.subject, "predicate": fact.predicate, "object": fact.object,
            "new_object": new, "sentence": fact.sentence, "new_sentence": template.format(s=fact.subject, o=new),
            "question": template.format(s=fact.subject, o="___"),
        }  # fmt: skip


def write_lines(path: Path, rows: Iterable[dict]) -> None:
    with open(path, "w", encoding="utf-8") as out:
        out.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def write_quickstart(
    out: Path, seed: int = 0, n_questions: int = 500, n_val: int = 500, n_trained: int = 4000, n_edits: int = 100
) -> None:
    """Write pretrain, val, object, relation, verification, their *_train, edit (.jsonl) and knowledge.json.

    Equal seeds write equal bytes.

    Args:
        n_questions: facts of each part that are asked.  n_val: bank_only facts in the validation text.
        n_trained: other seen facts, for training questions with answers.  n_edits: bank_only facts to edit.
    """
    out.mkdir(parents=True, exist_ok=True)
    rng, facts = random.Random(seed), read_facts()
    rng.shuffle(facts)
    seen = [fact for fact in facts if part(fact) == "seen"]
    bank_only = [fact for fact in facts if part(fact) == "bank_only"]
    asked = seen[:n_questions] + bank_only[:n_questions]
    write_lines(out / "pretrain.jsonl", documents(seen, rng))
    write_lines(out / "val.jsonl", documents(bank_only[:n_val], rng))
    for name, rows in questions(asked, facts, rng).items():
        rng.shuffle(rows)
        write_lines(out / f"{name}.jsonl", rows)
    for name, rows in questions(seen[n_questions : n_questions + n_trained], facts, rng).items():
        rng.shuffle(rows)
        write_lines(out / f"{name}_train.jsonl", rows)
    write_lines(out / "edit.jsonl", edits(bank_only[:n_edits], facts, rng))
    # The asked facts come first, so a smaller bank still holds them, and in an order that does not reveal the part.
    rng.shuffle(asked)
    known = {fact.uuid for fact in asked}
    write_knowledge(out / "knowledge.json", asked + [fact for fact in facts if fact.uuid not in known])
    print(f"{len(seen)} facts seen, {len(bank_only)} in the bank only, written to {out}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("dataset/quickstart"), help="folder to write")
    parser.add_argument("--seed", type=int, default=0, help="seed of the order and of the wrong choices")
    args = parser.parse_args()
    write_quickstart(args.out, args.seed)


if __name__ == "__main__":
    run_command(main)
