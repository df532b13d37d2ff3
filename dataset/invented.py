"""Invented facts, to learn to read: names that no text has, with objects drawn at random, so no weights can know them.

    python -m dataset.invented --knowledge knowledge.json --most 2000 --out dataset/invented

The folder gets knowledge.json (the invented facts, in the sentences of the given ones; train with both in the bank) and
object.jsonl and verification.jsonl (questions about them, for `python -m dataset.questions`). Each name has the facts
of a real subject, one for each predicate. No fact of the given file is asked.

Three flags make reading harder. `--capitals`: an entry writes "Jazz" where its question is answered by "jazz".
`--absent`: a fact is asked and has no entry, while others of like names state the same predicate. `--crowded`: more
names, each with a fact of every predicate of those subjects that have the most. Most subjects have one fact or two,
which leaves no other fact of the name to be mistaken for the right one.
"""

import random
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from common.cli import CommandParser, positive_int, run_command

from .convert import write_knowledge
from .knowledge import Fact, read_knowledge, triple_uuid
from .making import BLANK, draw, object_question, pools, write_lines

N_CHOICES, TRIES = 5, 20


class Invented(NamedTuple):
    """A fact as its entry states it, its sentence with a blank, and its object as an answer has it."""

    fact: Fact
    question: str
    asked: str
    has_entry: bool


def mixed_name(first: str, second: str) -> str:
    """A name of the first half of one and the second half of another: of their words, or of their letters."""
    words, others = first.split(), second.split()
    if len(words) > 1 and len(others) > 1:
        return " ".join([*words[: (len(words) + 1) // 2], *others[len(others) // 2 :]])
    return first[: (len(first) + 1) // 2] + second[len(second) // 2 :].lstrip()


def template_of(fact: Fact) -> tuple[str, str, str] | None:
    """The sentence before, between and after its subject and its object; None where they do not follow in it, once."""
    before, subject, rest = fact.sentence.partition(fact.subject)
    between, obj, after = rest.partition(fact.object)
    is_whole = bool(subject and obj) and not between[:1].isalnum() and not after[:1].isalnum()
    once = fact.sentence.count(fact.subject) == fact.sentence.count(fact.object) == 1
    return (before, between, after) if is_whole and once else None


def invented_facts(facts: list[Fact], most: int, rng: random.Random, crowded: int = 0) -> Iterator[tuple[Fact, str]]:
    """Invented facts, each with its sentence as a question with a blank; at most `most` of a predicate.

    Args:
        crowded: after these, so many names that have a fact of every predicate of the subjects with the most.
    """
    objects, groups = pools(facts), defaultdict(dict)
    namesakes = defaultdict(list)  # predicate -> subjects
    for fact in facts:
        if template_of(fact):
            groups[fact.subject].setdefault(fact.predicate, fact)
            namesakes[fact.predicate].append(fact.subject)
    taken, made = set(groups), Counter()
    subjects = sorted(groups)
    rng.shuffle(subjects)
    largest = sorted(subjects, key=lambda subject: -len(groups[subject]))[:crowded]
    for number, subject in enumerate([*subjects, *largest]):
        own = groups[subject].items()
        wanted = [fact for predicate, fact in own if made[predicate] < most or number >= len(subjects)]
        if not wanted:
            continue
        tries = (mixed_name(subject, rng.choice(namesakes[wanted[0].predicate])) for _ in range(TRIES))
        name = next((name for name in tries if name not in taken), None)
        if name is None:
            continue
        taken.add(name)
        for fact in wanted:
            for obj in draw(objects[fact.predicate], 1, {fact.object}, rng):
                before, between, after = template_of(fact)
                made[fact.predicate] += 1
                sentence = f"{before}{name}{between}{obj}{after}"
                uuid = triple_uuid(name, fact.predicate, obj)
                invented = Fact(sentence, name, fact.predicate, obj, uuid, "invented")
                yield invented, f"{before}{name}{between}{BLANK}{after}"


def varied(
    made: list[tuple[Fact, str]], objects: dict[str, list[str]], capitals: float, absent: float, seed: int
) -> Iterator[Invented]:
    """The facts, shares of which have their object capitalised in the entry, or have no entry.

    A common noun is an object that its predicate also has in lower case. Proper names stay as they are.
    """
    kinds = {predicate: set(pool) for predicate, pool in objects.items()}
    of_capitals, of_absent = (random.Random(f"{name} {seed}") for name in ("capitals", "absent"))
    for fact, question in made:
        asked, has_entry = fact.object, of_absent.random() >= absent
        noun = asked[:1].lower() + asked[1:]
        if noun[:2].islower() and noun in kinds[fact.predicate] and of_capitals.random() < capitals:
            asked, written = noun, noun[:1].upper() + noun[1:]
            uuid = triple_uuid(fact.subject, fact.predicate, written)
            fact = replace(fact, sentence=question.replace(BLANK, written), object=written, uuid=uuid)
        yield Invented(fact, question, asked, has_entry)


def write_invented(
    knowledge: Path, most: int, out: Path, seed: int, capitals: float = 0.0, absent: float = 0.0, crowded: int = 0
) -> None:
    """Write the three files.

    Args:
        crowded: further names, which have a fact of every predicate of the subjects with the most.
        capitals: share of the common nouns that are capitalised in their entries alone.
        absent: share of the facts that are asked for their objects and have no entry.
    Raises:
        FileNotFoundError, ValueError: the knowledge is missing or malformed, names no subjects and objects, or a share
            lies outside [0, 1].
    """
    for name, share in (("capitals", capitals), ("absent", absent)):
        if not 0 <= share <= 1:
            raise ValueError(f"--{name} must lie in [0, 1], got {share}")
    if crowded < 0:
        raise ValueError(f"--crowded must be at least 0, got {crowded}")
    rng, facts = random.Random(seed), [f for f in read_knowledge(knowledge) if f.subject and f.predicate and f.object]
    made, objects = list(invented_facts(facts, most, rng, crowded)), pools(facts)
    if not made:
        raise ValueError(f"{knowledge} has no sentence with its subject before its object: give facts of that form")
    invented = list(varied(made, objects, capitals, absent, seed))
    asked, verified = [], []
    for number, one in enumerate(invented):
        fact = one.fact
        known = {"uuid": fact.uuid, "subject": fact.subject, "predicate": fact.predicate, "object": one.asked}
        if wrong := draw(objects[fact.predicate], N_CHOICES - 1, {one.asked, fact.object}, rng):
            if any(len(choice) < 2 for choice in (one.asked, *wrong)):
                continue  # it would be taken for a letter or an index of a choice
            asked.append(object_question(known, one.question, wrong, rng))
            if not one.has_entry:
                continue  # nothing could tell whether it is true
            stated = one.asked if number % 2 else wrong[0]
            statement = one.question.replace(BLANK, stated)
            verified.append(known | {"object": stated, "statement": statement, "answer": "yes" if number % 2 else "no"})
    out.mkdir(parents=True, exist_ok=True)
    n_entries = write_knowledge(out / "knowledge.json", (one.fact for one in invented if one.has_entry))
    write_lines(out / "object.jsonl", asked)
    write_lines(out / "verification.jsonl", verified)
    predicates = len({one.fact.predicate for one in invented})
    text = f"{len(invented)} invented facts of {predicates} predicates, with questions, written to {out}"
    text += f"; {len(invented) - n_entries} of them have no entry" if absent else ""
    n_capitals = sum(one.asked != one.fact.object for one in invented)
    print(text + (f"; {n_capitals} objects are capitalised in their entries alone" if capitals else ""))


def main() -> None:
    parser = CommandParser(description=__doc__)
    parser.add_argument("--knowledge", type=Path, required=True, help="knowledge file with subjects and objects")
    parser.add_argument("--most", type=positive_int, default=2000, help="facts of a predicate, at most")
    parser.add_argument(
        "--capitals", type=float, default=0.0,
        help="share of the common nouns among the objects that are capitalised in their entries alone",
    )  # fmt: skip
    parser.add_argument("--absent", type=float, default=0.0, help="share of the facts that are asked and have no entry")
    parser.add_argument(
        "--crowded", type=int, default=0,
        help="further names, at most: each has a fact of every predicate of one of the subjects with the most",
    )  # fmt: skip
    parser.add_argument("--seed", type=int, default=0, help="seed of names, objects and wrong choices")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    args = parser.parse_args()
    write_invented(args.knowledge, args.most, args.out, args.seed, args.capitals, args.absent, args.crowded)


if __name__ == "__main__":
    run_command(main)
