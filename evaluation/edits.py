"""Editing facts in the bank: does the model follow, also when asked otherwise, and does it leave other facts alone.

An edit rewrites the one entry that states a fact. As in CounterFact (Meng et al. 2022, arXiv:2202.05262):
ES, efficacy: share of edits after which the new object is likelier than the old one, asked in the entry's wording;
PS, paraphrase: the same in other wordings, those of `PARAPHRASES`;
NS, neighbourhood: share of other facts with the same predicate and the old object for which that object stays likelier.
Each after 1 edit (one at a time), after 100 and after 10,000, whose surplus are random other facts, not
the neighbours, given another object.
"""

import random
import time
import warnings
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from statistics import harmonic_mean

import torch

from common.constants import NO_ENTRY
from dataset.knowledge import Fact

from .controls import entry_tokens
from .likelihood import log_likelihoods, read_questions
from .object import split_question
from .settings import Settings

TASK_VERSION = 1
FIELDS = ("uuid", "subject", "predicate", "object", "new_object", "new_sentence", "question")
PARAPHRASES = (
    "Question: What is the {predicate} of {subject}?\nAnswer:",
    "Tell me about {subject}. The {predicate} is",
)
ASKED, NUMBERS, NEIGHBOURS = 100, (1, 100, 10_000), 5

Pairs = list[tuple[str, str]]


def asked_pairs(row: dict, neighbours: list[tuple[int, Fact]]) -> dict[str, Pairs]:
    """For each score, (prompt, option) pairs: of every two, the first option is the one that should win."""
    prompt, options = split_question(row["question"], [row["new_object"], row["object"]])
    others: Pairs = []
    for _, fact in neighbours:
        before, _, after = fact.sentence.rpartition(fact.object)
        space = " " if before.endswith(" ") else ""
        others += [(before.rstrip(" "), space + value + after) for value in (row["object"], row["new_object"])]
    return {
        "ES": [(prompt, option) for option in options],
        "PS": [(p.format(**row), f" {row[name]}") for p in PARAPHRASES for name in ("new_object", "object")],
        "NS": others,
    }


def neighbours_of(rows: list[dict], settings: Settings, rng: random.Random) -> dict[str, list[tuple[int, Fact]]]:
    """For each edit's uuid, (row, fact) of other facts of the bank with its predicate and its old object."""
    by_answer = defaultdict(list)
    wanted = {(row["predicate"], row["object"]) for row in rows}
    subjects = {row["subject"] for row in rows}
    for row, fact in settings.gold.every():
        key = (fact.predicate, fact.object)
        if key in wanted and fact.subject not in subjects and fact.object in fact.sentence:
            by_answer[key].append((row, fact))
    pools = {row["uuid"]: by_answer[row["predicate"], row["object"]] for row in rows}
    return {uuid: rng.sample(pool, min(NEIGHBOURS, len(pool))) for uuid, pool in pools.items()}


def other_edits(n: int, kept: set[int], settings: Settings, rng: random.Random) -> list[tuple[int, str]]:
    """(row, new text) of up to n random facts, each with the object of another fact of its predicate."""
    pool = [
        (row, fact)
        for row, fact in settings.gold.every()
        if row not in kept and fact.object and fact.object in fact.sentence
    ]
    edits, by_predicate = [], defaultdict(list)
    for row, fact in rng.sample(pool, min(n, len(pool))):
        by_predicate[fact.predicate].append((row, fact))
    for facts in by_predicate.values():
        for (row, fact), (_, other) in zip(facts, facts[1:] + facts[:1], strict=True):
            before, _, after = fact.sentence.rpartition(fact.object)
            edits.append((row, before + other.object + after))
    return edits


@contextmanager
def repeatable() -> Iterator[None]:
    """Sums in a fixed order, so that on a GPU too the same bank gives the same bits; it is slower."""
    was_on = torch.are_deterministic_algorithms_enabled()
    was_warning = torch.is_deterministic_algorithms_warn_only_enabled()
    with warnings.catch_warnings():
        # Products of cuBLAS, which it warns of, repeat as long as one stream makes them.
        warnings.filterwarnings("ignore", message=".*CuBLAS.*")
        torch.use_deterministic_algorithms(True, warn_only=True)
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(was_on, warn_only=was_warning)


@torch.no_grad()
def edits(model, tokenizer, settings: Settings) -> dict | None:
    """ES, PS, NS and their harmonic mean after each number of edits; milliseconds an edit; whether undo is exact."""
    if not model.settings.reads_bank or settings.edit_path is None or settings.gold is None:
        return None
    rng = random.Random(settings.seed)
    rows = [row for row in read_questions(settings.edit_path, FIELDS, settings.limit, "edit_path")]
    rows = [row for row in rows if settings.gold.row(row) != NO_ENTRY]
    asked = rows[:ASKED]
    if not asked:
        return None
    neighbours = neighbours_of(asked, settings, rng)
    pairs = {row["uuid"]: asked_pairs(row, neighbours[row["uuid"]]) for row in asked}
    requests = [(settings.gold.row(row), row["new_sentence"]) for row in rows]
    kept = {row for row, _ in requests} | {row for own in neighbours.values() for row, _ in own}
    requests += other_edits(max(NUMBERS) - len(rows), kept, settings, rng)

    def write(wanted: list[tuple[int, str]]) -> tuple[torch.Tensor, torch.Tensor]:
        row_X = torch.tensor([row for row, _ in wanted], device=model.device)
        token_XL = torch.stack([entry_tokens(model, tokenizer, text) for _, text in wanted]).to(model.device)
        return row_X, model.bank.write(row_X, token_XL)

    def wins(questions: list[dict[str, Pairs]]) -> dict[str, list[bool]]:
        flat = [(name, pair) for question in questions for name, own in question.items() for pair in own]
        scores = [s for s, _ in log_likelihoods(model, tokenizer, [pair for _, pair in flat], settings.batch_size)]
        won = {"ES": [], "PS": [], "NS": []}
        for (name, _), first, second in zip(flat[::2], scores[::2], scores[1::2], strict=True):
            won[name].append(first > second)
        return won

    def summary(won: dict[str, list[bool]]) -> dict:
        share = {name: sum(values) / len(values) if values else None for name, values in won.items()}
        known = [value for value in share.values() if value is not None]
        return share | {"score": harmonic_mean(known), "n": {name: len(values) for name, values in won.items()}}

    probe = torch.tensor([[tokenizer.bos_token_id, *tokenizer(asked[0]["question"]).input_ids]], device=model.device)
    with repeatable():
        before = model(probe).logits
    result = {"0": summary(wins([pairs[row["uuid"]] for row in asked]))}
    for number in NUMBERS:
        if number == 1:
            won, seconds = {"ES": [], "PS": [], "NS": []}, 0.0
            for row, request in zip(asked, requests, strict=False):
                start = time.perf_counter()
                row_X, old_XL = write([request])
                seconds += time.perf_counter() - start
                for name, values in wins([pairs[row["uuid"]]]).items():
                    won[name] += values
                model.bank.write(row_X, old_XL)
            per_edit = seconds / len(asked)
        else:
            start = time.perf_counter()
            row_X, old_XL = write(requests[:number])
            per_edit = (time.perf_counter() - start) / len(row_X)
            won = wins([pairs[row["uuid"]] for row in asked[:number]])
            model.bank.write(row_X, old_XL)
        result[str(number)] = summary(won) | {"ms_per_edit": 1000 * per_edit, "edits": min(number, len(requests))}
    with repeatable():
        undo_exact = torch.equal(model(probe).logits, before)
    return result | {"undo_exact": undo_exact, "seed": settings.seed, "task_version": TASK_VERSION}
