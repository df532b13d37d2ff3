"""What calibration asks: facts of training questions that are edited at once, and neighbours that must stay."""

import random
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import asdict, replace
from typing import NamedTuple

from dataset.knowledge import Fact
from dataset.questions import FIELDS, REWORDINGS, read_questions
from dataset.tokenizer import encode_texts
from dataset.wordings import Rewording

from .config import EvalConfig
from .counterfact import Asked
from .edits import Edits, neighbours_of, other_edits
from .gold import Gold

EDITS = 1000  # at once: those that are asked, and others, so that the bank is as crowded as in a test
DRAWN = 20  # objects, among which the new object of an edit is one of another number of tokens than the old one
WORDS = len(REWORDINGS)  # wordings in which a fact is asked, at most


class Questions(NamedTuple):
    """What is asked for each share, and the edits after which `followed` and `kept` are asked."""

    followed: list[Asked]
    kept: list[Asked]
    written: list[tuple[str, str]]  # prompt, answer
    edits: Edits


def held_facts(path: str, limit: int, gold: Gold | None) -> tuple[list[tuple[int, Fact]], Gold, Counter]:
    """(row, fact) of the questions of a file, and the entries of the bank, both without facts of several objects.

    Also how many entries each subject has.

    Raises:
        FileNotFoundError, ValueError: the file is missing or malformed, or no question of it can be asked.
    """
    rows = read_questions(path, FIELDS["object"], limit, "object_path")
    wanted = {row["uuid"] for row in rows if "uuid" in row}
    if gold is None:
        raise ValueError(f"{path}: its questions name no facts by uuid, so none can be edited")
    if nameless := sum("uuid" not in row for row in rows):
        print(f"{nameless} of {len(rows)} questions are left out: they name no fact by uuid, so it cannot be edited")
    entries = list(gold.every())
    count = Counter((fact.subject, fact.predicate) for _, fact in entries)
    single = [
        (row, fact)
        for row, fact in entries
        if count[fact.subject, fact.predicate] == 1 and fact.object and fact.object in fact.sentence
    ]
    held = [(row, fact) for row, fact in single if fact.uuid in wanted]
    if not held:
        raise ValueError(f"{path}: the bank holds no fact of its questions: give those of the training")
    print(f"{len(held)} of {len(wanted)} facts are asked: the bank lacks the others, or states several objects of them")
    return held, replace(gold, every=lambda: single), Counter(fact.subject for _, fact in entries)


def new_objects(held: list[tuple[int, Fact]], gold: Gold, tokenizer, rng: random.Random) -> Iterator[str | None]:
    """For each fact the object of another one with its predicate; None where all have the same object."""
    objects = defaultdict(list)
    for _, fact in gold.every():
        objects[fact.predicate].append(fact.object)
    for _, fact in held:
        pool = objects[fact.predicate]
        drawn = [other for other in rng.sample(pool, min(DRAWN, len(pool))) if other != fact.object]
        old, *others = map(len, encode_texts(tokenizer, [f" {text}" for text in (fact.object, *drawn)]))
        # A long object has nearly certain tokens, which make it likely by the mean.
        yield next((other for other, n in zip(drawn, others, strict=True) if n != old), drawn[0] if drawn else None)


def prompts_of(fact: Fact, wordings: dict[str, list[str]] | None, rng: random.Random) -> list[str]:
    """A fact up to its object in up to `WORDS` wordings of its predicate; without any, in the general ones."""
    if wordings is None:
        return [words.format(**asdict(fact)) for words in REWORDINGS]
    texts = wordings[fact.predicate]
    ask = Rewording(1.0, wordings, rng)
    return [ask.prompt(text, fact.subject) for text in rng.sample(texts, min(WORDS, len(texts)))]


def questions_of(
    held: list[tuple[int, Fact]], tokenizer, config: EvalConfig, crowds: Counter,
    wordings: dict[str, list[str]] | None = None,
) -> Questions:  # fmt: skip
    """Of facts whose predicates have wordings, if these are given.

    Args:
        crowds: how many entries each subject has.
    Raises:
        ValueError: no fact can be edited, or none that is edited has a neighbour.
    """
    rng, asked = random.Random(config.seed), Questions([], [], [], [])
    neighbours = neighbours_of([asdict(fact) for _, fact in held], config, rng, crowds)
    for case, ((row, fact), new) in enumerate(zip(held, new_objects(held, config.gold, tokenizer, rng), strict=True)):
        prompts = prompts_of(fact, wordings, rng)
        asked.written.extend((prompt, f" {fact.object}") for prompt in prompts)
        if new is None:
            continue
        before, _, after = fact.sentence.rpartition(fact.object)
        asked.edits.append((row, before + new + after))
        options = f" {new}", f" {fact.object}"
        asked.followed.extend(Asked("followed", case, prompt, options) for prompt in prompts)
        for number, (_, other) in enumerate(neighbours[fact.uuid]):
            ways = prompts_of(other, wordings, rng)
            asked.kept.append(Asked("kept", case, ways[number % len(ways)], options[::-1]))
    if not asked.kept:
        raise ValueError("no fact of the questions can be edited and has a neighbour: give more, by --limit")
    excluded = {row for row, _ in held} | {row for own in neighbours.values() for row, _ in own}
    asked.edits.extend(other_edits(max(EDITS - len(asked.edits), 0), excluded, config, rng))
    return asked
