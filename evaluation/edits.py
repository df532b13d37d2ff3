"""Edits: does the model follow an edited fact, also in other wordings, and does it leave other facts alone?

An edit rewrites the one entry that states a fact. Scores as in CounterFact (Meng et al. 2022, arXiv:2202.05262):
ES, efficacy: share of edits after which the new object is likelier than the old one, in the wording of the entry;
PS, paraphrase: the same in the wordings of `PARAPHRASES`;
NS, neighbourhood: share of other facts with the same predicate and the old object whose object stays likelier.
Measured after 1 edit (each alone), after 100 and after 10,000. Missing edits up to 10,000 are made of random other
facts, which get the object of another fact. Neighbours are never edited.
"""

import hashlib
import random
import time
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from statistics import harmonic_mean

import torch
from torch import Tensor

from common.constants import NO_ENTRY
from dataset.knowledge import Fact, encode_entries
from dataset.questions import FIELDS, PARAPHRASES, read_questions, split_question

from .config import EvalConfig
from .likelihood import log_likelihoods

TASK_VERSION = 1
ASKED, NUMBERS, NEIGHBOURS = 100, (1, 100, 10_000), 5

Pairs = list[tuple[str, str]]  # (prompt, option), in twos: the first option of the two should be the likelier one
Edits = list[tuple[int, str]]  # (row, new text)


def asked_pairs(row: dict, neighbours: list[tuple[int, Fact]]) -> dict[str, Pairs]:
    """The questions of an edit, for each score."""
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


def neighbours_of(
    rows: list[dict], config: EvalConfig, rng: random.Random, crowds: Counter | None = None
) -> dict[str, list[tuple[int, Fact]]]:
    """For each edit's uuid, (row, fact) of other facts in the bank with its predicate and its old object, drawn.

    Args:
        crowds: how many entries each subject has; given, the facts of those with the most are taken instead, each for
            one edit alone.
    """
    by_answer = defaultdict(list)
    wanted = {(row["predicate"], row["object"]) for row in rows}
    subjects = {row["subject"] for row in rows}
    for row, fact in config.gold.every():
        key = (fact.predicate, fact.object)
        if key in wanted and fact.subject not in subjects and fact.object in fact.sentence:
            by_answer[key].append((row, fact))
    pools = {row["uuid"]: by_answer[row["predicate"], row["object"]] for row in rows}
    if crowds is None:
        return {uuid: rng.sample(pool, min(NEIGHBOURS, len(pool))) for uuid, pool in pools.items()}
    waiting = {}
    for key, pool in by_answer.items():
        rng.shuffle(pool)
        waiting[key] = iter(sorted(pool, key=lambda pair: -crowds[pair[1].subject]))
    return {row["uuid"]: list(islice(waiting.get((row["predicate"], row["object"]), ()), NEIGHBOURS)) for row in rows}


def other_edits(n: int, excluded: set[int], config: EvalConfig, rng: random.Random) -> Edits:
    """Edits of up to n random facts; each gets the object of another fact with its predicate."""
    pool = [
        (row, fact)
        for row, fact in config.gold.every()
        if row not in excluded and fact.object and fact.object in fact.sentence
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
    """Sums in a fixed order: equal banks give equal bits on a GPU too, more slowly."""
    was_on = torch.are_deterministic_algorithms_enabled()
    was_warning = torch.is_deterministic_algorithms_warn_only_enabled()
    with warnings.catch_warnings():
        # It warns of cuBLAS, whose products repeat as long as one stream computes them.
        warnings.filterwarnings("ignore", message=".*CuBLAS.*")
        torch.use_deterministic_algorithms(True, warn_only=True)
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(was_on, warn_only=was_warning)


def fingerprint(model) -> dict[str, str]:
    """What a bank holds, and its index, if its retrieval has one: equal only if all bits are."""

    def parts(value) -> Iterator[bytes]:
        if isinstance(value, Tensor):
            yield f"{value.dtype} {tuple(value.shape)}".encode()
            yield value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
        elif isinstance(value, dict):
            for name in sorted(value):
                yield repr(name).encode()
                yield from parts(value[name])
        elif isinstance(value, (list, tuple)):
            yield str(len(value)).encode()
            for part in value:
                yield from parts(part)
        elif hasattr(value, "__dict__") and not isinstance(value, type(model.settings)):
            yield from parts(vars(value))
        else:
            yield repr(value).encode()

    held = {"bank": [model.bank.tokens, model.bank.frozen]}
    if kinds := model.settings.index_classes:
        held["index"] = [model.bank.index(kind) for kind in kinds]
    found = {}
    for name, values in held.items():
        digest = hashlib.blake2b(digest_size=16)
        for part in parts(values):
            digest.update(part)
        found[name] = digest.hexdigest()
    return found


def write_edits(model, tokenizer, edits: Edits) -> tuple[Tensor, Tensor]:
    """Write texts into the bank; returns the rows (X,) and what they held before (X, L)."""
    row_X = torch.tensor([row for row, _ in edits], device=model.device)
    token_XL, _ = encode_entries(tokenizer, [text for _, text in edits], model.settings.knowledge_length)
    return row_X, model.bank.write(row_X, torch.from_numpy(token_XL).to(model.device))


@contextmanager
def written(model, tokenizer, edits: Edits) -> Iterator[float]:
    """The bank of a model with these edits, written at once; yields the seconds that they took."""
    start = time.perf_counter()
    row_X, old_XL = write_edits(model, tokenizer, edits)
    seconds = time.perf_counter() - start
    try:
        yield seconds
    finally:
        model.bank.write(row_X, old_XL)


def wins(model, tokenizer, questions: list[dict[str, Pairs]], config: EvalConfig) -> dict[str, list[bool]]:
    """For each score, whether the option that should win is the likelier one."""
    flat = [(name, pair) for question in questions for name, own in question.items() for pair in own]
    scores = [s for s, _ in log_likelihoods(model, tokenizer, [pair for _, pair in flat], config.batch_size)]
    won = {"ES": [], "PS": [], "NS": []}
    for (name, _), first, second in zip(flat[::2], scores[::2], scores[1::2], strict=True):
        won[name].append(first > second)
    return won


def summary(won: dict[str, list[bool]]) -> dict:
    """ES, PS, NS, their harmonic mean, and the number of questions of each."""
    share = {name: sum(values) / len(values) if values else None for name, values in won.items()}
    known = [value for value in share.values() if value is not None]
    return share | {"score": harmonic_mean(known), "n": {name: len(values) for name, values in won.items()}}


def after_single_edits(
    model, tokenizer, questions: list[dict[str, Pairs]], requests: Edits, config: EvalConfig
) -> tuple[dict[str, list[bool]], float]:
    """The wins after each edit alone, and the seconds per edit."""
    won, seconds = {"ES": [], "PS": [], "NS": []}, 0.0
    for own, request in zip(questions, requests, strict=False):
        start = time.perf_counter()
        row_X, old_XL = write_edits(model, tokenizer, [request])
        seconds += time.perf_counter() - start
        for name, values in wins(model, tokenizer, [own], config).items():
            won[name] += values
        model.bank.write(row_X, old_XL)
    return won, seconds / len(questions)


def after_many_edits(
    model, tokenizer, questions: list[dict[str, Pairs]], requests: Edits, config: EvalConfig
) -> tuple[dict[str, list[bool]], float]:
    """The wins after all edits at once, and the seconds per edit."""
    start = time.perf_counter()
    row_X, old_XL = write_edits(model, tokenizer, requests)
    per_edit = (time.perf_counter() - start) / len(row_X)
    won = wins(model, tokenizer, questions, config)
    model.bank.write(row_X, old_XL)
    return won, per_edit


@torch.no_grad()
def edits(model, tokenizer, config: EvalConfig) -> dict | None:
    """ES, PS, NS and their harmonic mean after each number of edits; milliseconds per edit; whether undo is exact."""
    if not model.settings.reads_bank or config.edit_path is None or config.gold is None:
        return None
    rng = random.Random(config.seed)
    rows = read_questions(config.edit_path, FIELDS["edit"], config.limit, "edit_path")
    rows = [row for row in rows if config.gold.row(row) != NO_ENTRY]
    asked = rows[:ASKED]
    if not asked:
        return None
    neighbours = neighbours_of(asked, config, rng)
    questions = [asked_pairs(row, neighbours[row["uuid"]]) for row in asked]
    requests = [(config.gold.row(row), row["new_sentence"]) for row in rows]
    excluded = {row for row, _ in requests} | {row for own in neighbours.values() for row, _ in own}
    requests += other_edits(max(NUMBERS) - len(rows), excluded, config, rng)

    probe = torch.tensor([[tokenizer.bos_token_id, *tokenizer(asked[0]["question"]).input_ids]], device=model.device)
    with repeatable():
        before = model(probe).logits
    result = {"0": summary(wins(model, tokenizer, questions, config))}
    for number in NUMBERS:
        measure = after_single_edits if number == 1 else after_many_edits
        own = questions if number == 1 else questions[:number]
        won, per_edit = measure(model, tokenizer, own, requests[: max(number, len(own))], config)
        result[str(number)] = summary(won) | {"ms_per_edit": 1000 * per_edit, "edits": min(number, len(requests))}
    with repeatable():
        undo_exact = torch.equal(model(probe).logits, before)
    return result | {"undo_exact": undo_exact, "seed": config.seed, "task_version": TASK_VERSION}
