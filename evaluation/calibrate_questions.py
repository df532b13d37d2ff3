"""What calibration asks: facts of training questions that are edited at once, and facts that must stay.

These are neighbours that the bank holds, and facts that it lacks. The model knows the latter by its weights, if at all.
"""

import math
import random
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from typing import NamedTuple

from dataset.knowledge import Fact
from dataset.questions import FIELDS, REWORDINGS, answer_index, read_questions
from dataset.tokenizer import encode_texts
from dataset.wordings import Rewording

from .config import EvalConfig
from .counterfact import Asked
from .edits import Edits, neighbours_of, other_edits
from .gold import Gold

EDITS = 5000  # at once: those that are asked, and others, so that the bank is as crowded as in CounterFact's test
DRAWN = 20  # objects, among which the new object of an edit is one of another number of tokens than the old one
WORDS = len(REWORDINGS)  # wordings in which a fact is asked, at most
# Questions about facts that the bank lacks, at most. If the edits change 3 % of so many answers, the standard error of
# the share that they cost is 0.4 points. So chance decides about a setting whose cost is that close to the bound.
LACKING = 2000
TIMES = 3  # that such a fact is asked, at most: each time with another object as the wrong one


class Questions(NamedTuple):
    """What is asked for each share, and the edits after which all but `written` are asked.

    `lacking` are facts that the bank lacks. They are asked before the edits too.
    """

    followed: list[Asked]
    kept: list[Asked]
    written: list[tuple[str, str]]  # prompt, answer
    edits: Edits
    lacking: list[Asked]


class Facts(NamedTuple):
    """Those of the questions, in a bank.

    held: (row, fact) of the first questions.  gold: the entries of the bank; both without facts of several objects.
    crowds: how many entries each subject has.  lacking: facts of all questions, of which the bank states no object.
    """

    held: list[tuple[int, Fact]]
    gold: Gold
    crowds: Counter
    lacking: list[Fact]


def held_facts(path: str, limit: int, gold: Gold | None) -> Facts:
    """The facts of a file, of whose questions the first `limit` are edited.

    Raises:
        FileNotFoundError, ValueError: the file is missing or malformed, or no question of it can be asked.
    """
    every = read_questions(path, FIELDS["object"], None, "object_path")  # 100,000 take 2 s
    rows = every[:limit]
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
    lacking = lacking_facts(every, [fact for _, fact in entries])
    return Facts(held, replace(gold, every=lambda: single), Counter(fact.subject for _, fact in entries), lacking)


def lacking_facts(rows: list[dict], entries: list[Fact]) -> list[Fact]:
    """The facts of questions, each once, that name subject and predicate, and of which no entry states any object."""
    uuids, stated = {fact.uuid for fact in entries}, {(fact.subject, fact.predicate) for fact in entries}
    named = [row for row in rows if all(name in row for name in ("uuid", "subject", "predicate"))]
    facts = (
        Fact("", str(row["subject"]), str(row["predicate"]), row["choices"][answer_index(row)], row["uuid"])
        for row in named
    )
    lacking = [fact for fact in facts if fact.uuid not in uuids and (fact.subject, fact.predicate) not in stated]
    return list({fact.uuid: fact for fact in lacking}.values())


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


def lacking_questions(
    edited: list[tuple[int, Fact, str]], lacking: Sequence[Fact], wordings: dict[str, list[str]] | None,
    rng: random.Random,
) -> list[Asked]:  # fmt: skip
    """For each edit, facts that the bank lacks: with its predicate and old object, then with its predicate alone.

    Args:
        edited: (case, fact, new object) of each edit.
    """
    pools, told, asked = defaultdict(list), defaultdict(set), []
    for fact in rng.sample(lacking, len(lacking)):
        pools[fact.predicate].append(fact)
    for number, (case, fact, new) in enumerate(edited):
        # Later edits ask what those before had no facts for.
        most = math.ceil((LACKING - len(asked)) / (len(edited) - number))
        pool = [x for x in pools[fact.predicate] if x.object != new and new not in told[x.uuid]]
        pool = [x for x in pool if len(told[x.uuid]) < TIMES]
        for other in sorted(pool, key=lambda x: (x.object != fact.object, len(told[x.uuid])))[:most]:
            told[other.uuid].add(new)
            prompt = rng.choice(prompts_of(other, wordings, rng))
            asked.append(Asked("lacking", case, prompt, (f" {other.object}", f" {new}")))
    return asked


def questions_of(
    held: list[tuple[int, Fact]], tokenizer, config: EvalConfig, crowds: Counter,
    wordings: dict[str, list[str]] | None = None, lacking: Sequence[Fact] = (),
) -> Questions:  # fmt: skip
    """Of facts whose predicates have wordings, if these are given.

    Args:
        crowds: how many entries each subject has.  lacking: facts that the bank lacks.
    Raises:
        ValueError: no fact can be edited, or none that is edited has a neighbour.
    """
    rng, asked, edited = random.Random(config.seed), Questions([], [], [], [], []), []
    neighbours = neighbours_of([asdict(fact) for _, fact in held], config, rng, crowds)
    for case, ((row, fact), new) in enumerate(zip(held, new_objects(held, config.gold, tokenizer, rng), strict=True)):
        prompts = prompts_of(fact, wordings, rng)
        asked.written.extend((prompt, f" {fact.object}") for prompt in prompts)
        if new is None:
            continue
        before, _, after = fact.sentence.rpartition(fact.object)
        asked.edits.append((row, before + new + after))
        edited.append((case, fact, new))
        options = f" {new}", f" {fact.object}"
        asked.followed.extend(Asked("followed", case, prompt, options) for prompt in prompts)
        for number, (_, other) in enumerate(neighbours[fact.uuid]):
            ways = prompts_of(other, wordings, rng)
            asked.kept.append(Asked("kept", case, ways[number % len(ways)], options[::-1]))
    if not asked.kept:
        raise ValueError("no fact of the questions can be edited and has a neighbour: give more, by --limit")
    excluded = {row for row, _ in held} | {row for own in neighbours.values() for row, _ in own}
    asked.edits.extend(other_edits(max(EDITS - len(asked.edits), 0), excluded, config, rng))
    asked.lacking.extend(lacking_questions(edited, lacking, wordings, rng))
    return asked
