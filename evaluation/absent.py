"""Absent facts: does a model know that its bank does not hold what it is asked for, and what does it answer then?

The entries of half of the asked facts, drawn by seed, are emptied, all object questions are asked, and the entries are
written back. `knowing` has, for each score, the AUROC of telling facts that the bank holds from those that it lacks:
the probability that a question about a held fact scores higher than one about an absent fact.

choice:          probability of the best choice, among the choices
choice as text:  log-probability of the best choice as text, in nats
match:           score of the best entry that the search finds at the last token of the prompt; of each block, if each
                 searches
read, READER:    sum of the weights of the entries that a block or the pointer reads there
look-up:         score of the best entry of the look-up, without a model

`emptied` and `held` tell the answers to each half: the share that is right, and `same`, the share that is as before.

Axes: B questions · P held facts · A absent facts
"""

import math
import random

import numpy as np
import torch

from common.constants import NO_ENTRY, PADDING
from dataset.questions import BLANK, FIELDS, answer_index, chance_of, read_questions, split_question

from .config import EvalConfig, accuracy, wilson_interval
from .edits import fingerprint
from .likelihood import score_options
from .retrieval import scores_of_search

TASK_VERSION = 1


def midranks(value_X: np.ndarray) -> np.ndarray:
    """(X,): the rank of each value from 1 on; equal values share the mean of their ranks."""
    _, index_X, count_Y = np.unique(value_X, return_inverse=True, return_counts=True)
    return (np.cumsum(count_Y) - (count_Y - 1) / 2)[index_X]


def auroc(score_P: np.ndarray, score_A: np.ndarray) -> tuple[float, list[float]]:
    """The probability that a first score is above a second one, ties counting half, and its 95 % interval.

    The interval is DeLong's; where no pair is in the wrong order, or each is, Wilson's with the smaller group.

    Source: DeLong et al. 1988, by ranks as in Sun & Xu 2014.
    """
    P, A = len(score_P), len(score_A)
    rank_X = midranks(np.concatenate([score_P, score_A]))
    above_P = (rank_X[:P] - midranks(score_P)) / A  # of each held fact: the share of absent facts below it
    below_A = 1 - (rank_X[P:] - midranks(score_A)) / P
    area = float(above_P.mean())
    if area in (0.0, 1.0):
        return area, wilson_interval(area * min(P, A), min(P, A))
    variance = sum(float(x.var(ddof=1)) / len(x) if len(x) > 1 else 0.25 for x in (above_P, below_A))
    half = 1.96 * math.sqrt(variance)
    return area, [max(area - half, 0.0), min(area + half, 1.0)]


def knowing(score_B: list[float], is_held_B: list[bool], config: EvalConfig) -> dict:
    score_B, is_held_B = np.array(score_B, dtype=np.float64), np.array(is_held_B)
    area, interval = auroc(score_B[is_held_B], score_B[~is_held_B])
    return {
        "auroc": area, "ci95": interval, "chance": 0.5, "n": len(score_B), "absent": int((~is_held_B).sum()),
        "seed": config.seed, "task_version": TASK_VERSION,
    }  # fmt: skip


def best_choices(model, tokenizer, rows: list[dict], config: EvalConfig) -> tuple[list[int], list[float], list[float]]:
    """For each question its likeliest choice, the probability of it among the choices, and its log-probability."""
    questions = [split_question(row["question"], row["choices"]) for row in rows]
    most_tokens = config.batch_size * model.settings.max_seq_len
    scores = score_options(model, tokenizer, rows, questions, config, most_tokens)
    totals = [[total for total, _ in own] for own in scores]
    best = [max(own) for own in totals]
    shares = [1 / sum(math.exp(total - most) for total in own) for own, most in zip(totals, best, strict=True)]
    return [own.index(most) for own, most in zip(totals, best, strict=True)], shares, best


def scores_of_knowing(model, tokenizer, rows: list[dict], emptied: list[int], config: EvalConfig) -> dict:
    """The scores of the search and of reading, by name; and those of the look-up in the same bank."""
    prompts = [split_question(row["question"], row["choices"])[0] for row in rows]
    scores = {}
    for reader, (match_B, mass_B) in scores_of_search(model, tokenizer, prompts, config).items():
        name = f"match, {reader}" if model.settings.index_class is None else "match"  # an index is searched for all
        scores |= {name: match_B} if match_B is not None else {}
        scores[f"read, {reader}"] = mass_B
    index = config.gold.look_up.index.replaced(dict.fromkeys(emptied, ""))
    found = [index.search(row["question"].replace(BLANK, " "), 1)[1] for row in rows]
    return scores | {"look-up": [own[0] if own else 0.0 for own in found]}


@torch.no_grad()
def absent(model, tokenizer, config: EvalConfig) -> dict | None:
    """AUROC of knowing by each score, and the answers, with half of the asked entries emptied."""
    if not model.settings.reads_bank or config.object_path is None or config.gold is None:
        return None
    rows = read_questions(config.object_path, FIELDS["object"], config.limit, "object_path")
    rows = [row for row in rows if config.gold.row(row) != NO_ENTRY and not row["question"].startswith(BLANK)]
    facts = sorted({config.gold.row(row) for row in rows})
    if len(facts) < 2:
        return None
    emptied = sorted(random.Random(config.seed).sample(facts, len(facts) // 2))
    gone = set(emptied)
    is_held_B = [config.gold.row(row) not in gone for row in rows]
    chosen_before, *_ = best_choices(model, tokenizer, rows, config)
    before = fingerprint(model)
    row_X = torch.tensor(emptied, device=model.device)
    old_XL = model.bank.write(row_X, torch.full_like(model.bank.tokens[row_X], PADDING))
    try:
        chosen, share_B, text_B = best_choices(model, tokenizer, rows, config)
        scores = {"choice": share_B, "choice as text": text_B}
        scores |= scores_of_knowing(model, tokenizer, rows, emptied, config)
    finally:
        model.bank.write(row_X, old_XL)
    undo_exact = fingerprint(model) == before

    result = {"knowing": {name: knowing(score_B, is_held_B, config) for name, score_B in scores.items()}}
    for name, wanted in (("emptied", False), ("held", True)):
        own = [i for i, is_held in enumerate(is_held_B) if is_held == wanted]
        chance = chance_of([rows[i] for i in own])
        right = accuracy([chosen[i] == answer_index(rows[i]) for i in own], chance, config, TASK_VERSION)
        same = accuracy([chosen[i] == chosen_before[i] for i in own], chance, config, TASK_VERSION)
        result[name] = right | {"same": same}
    right = [choice == answer_index(row) for row, choice in zip(rows, chosen_before, strict=True)]
    result["before"] = accuracy(right, chance_of(rows), config, TASK_VERSION)
    about = {"n": len(rows), "emptied_entries": len(emptied), "undo_exact": undo_exact}
    return result | about | {"seed": config.seed, "task_version": TASK_VERSION}
