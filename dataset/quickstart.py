"""The data of the quick start: pretraining text, a knowledge file and questions, made from the facts of facts.tsv.

    python -m dataset.quickstart --out dataset/quickstart

Facts that are "seen" are in the pretraining text and in the bank. Facts that are "bank_only" are in the bank alone: a
model that answers questions about them better than chance has read its memory.
"""

import random
from dataclasses import replace
from pathlib import Path

from common.cli import CommandParser, run_command

from .convert import read_triples, write_knowledge
from .knowledge import Fact
from .making import documents, edits, part_of_fact, questions, wordings, write_lines

FACTS = Path(__file__).with_name("facts.tsv")
SEEN_SHARE = 0.6

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


WORDINGS = {
    predicate: [template.replace("{s}", "{subject}").replace("{o}", "{object}") for template in templates]
    for predicate, templates in TEMPLATES.items()
}


def part(fact: Fact) -> str:
    """The part of a fact, "seen" or "bank_only"."""
    return part_of_fact(fact, SEEN_SHARE)


def read_facts(path: Path = FACTS) -> list[Fact]:
    """The facts of the table, each with its sentence in the bank."""
    return [replace(fact, sentence=wordings(fact, WORDINGS)[0]) for fact in read_triples(path)]


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
    write_lines(out / "pretrain.jsonl", documents(seen, WORDINGS, rng))
    write_lines(out / "val.jsonl", documents(bank_only[:n_val], WORDINGS, rng))
    for name, rows in questions(asked, facts, WORDINGS, part, rng).items():
        rng.shuffle(rows)
        write_lines(out / f"{name}.jsonl", rows)
    for name, rows in questions(seen[n_questions : n_questions + n_trained], facts, WORDINGS, part, rng).items():
        rng.shuffle(rows)
        write_lines(out / f"{name}_train.jsonl", rows)
    write_lines(out / "edit.jsonl", edits(bank_only[:n_edits], facts, WORDINGS, rng))
    # The asked facts come first, so a smaller bank still holds them, and in an order that does not reveal the part.
    rng.shuffle(asked)
    known = {fact.uuid for fact in asked}
    write_knowledge(out / "knowledge.json", asked + [fact for fact in facts if fact.uuid not in known])
    print(f"{len(seen)} facts seen, {len(bank_only)} in the bank only, written to {out}")


def main() -> None:
    parser = CommandParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("dataset/quickstart"), help="folder to write")
    parser.add_argument("--seed", type=int, default=0, help="seed of the order and of the wrong choices")
    args = parser.parse_args()
    write_quickstart(args.out, args.seed)


if __name__ == "__main__":
    run_command(main)
