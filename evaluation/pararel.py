"""ParaRel: is a fact found and read in whatever words it is asked for, and is the answer always the same?

Every fact is asked in several wordings with the same choices (Elazar et al. 2021, arXiv:2102.01017). A part is of the
wordings that the bank's sentence has itself, the other of all other wordings. `consistent`: share of the facts with
two wordings or more for which all wordings give one choice; `all_right`: the right one; `pairs`: share of the pairs of
a fact's wordings that agree, the mean over facts. Its `mean_of_relations` gives each relation the same weight, as the
paper does. Beside it, on the same questions: the look-up and the search alone, which answer without the model, and
the object that the bank's facts with the predicate have most often.

The questions about one fact are not independent: intervals of shares of questions take a fact as one draw
(`clustered_interval`). Intervals of shares of facts are Wilson's.

Axes: Q questions · C choices
"""

from collections import defaultdict
from itertools import combinations
from math import prod
from statistics import mean

import torch

from common.constants import NO_ENTRY
from dataset.public_questions import read_pararel
from dataset.questions import BLANK, answer_index, split_question
from runs.outcomes import packed_answers

from .config import EvalConfig, clustered_interval, wilson_interval
from .likelihood import score_options
from .lookup import READ, choose
from .retrieval import candidates_and_reads, shares_of_gold
from .search_alone import finder_of

TASK_VERSION = 1
OWN, OTHER = "own wording", "other wordings"

Chances = list[list[float]]  # of each question: how likely each of its choices is taken


def certain(rows: list[dict], chosen: list[list[int]]) -> Chances:
    """The probabilities of the choices where each question takes one of these, and guesses among several."""
    return [[(i in own) / len(own) for i in range(len(row["choices"]))] for row, own in zip(rows, chosen, strict=True)]


def share(rows: list[dict], right: list[float], config: EvalConfig) -> dict:
    """The share of right answers; each fact is one draw of the interval."""
    return {
        "accuracy": mean(right), "n": len(rows), "facts": len({row["uuid"] for row in rows}),
        "ci95": clustered_interval(right, [row["uuid"] for row in rows]),
        "chance": mean(1 / len(row["choices"]) for row in rows), "seed": config.seed, "task_version": TASK_VERSION,
    }  # fmt: skip


def share_of_facts(values: list[float], config: EvalConfig) -> dict:
    n, total = len(values), sum(values)
    return {
        "accuracy": total / n, "n": n, "ci95": wilson_interval(total, n), "seed": config.seed,
        "task_version": TASK_VERSION,
    }  # fmt: skip


def measured(rows: list[dict], chances: Chances, config: EvalConfig) -> dict:
    """Accuracy over all questions and in each part, and how far the wordings of a fact agree.

    Of guesses it is what is expected of them, each made for itself.
    """
    right = [own[answer_index(row)] for row, own in zip(rows, chances, strict=True)]
    result = share(rows, right, config) | {"parts": {}}
    for part in (OWN, OTHER):
        if chosen := [i for i, row in enumerate(rows) if row["part"] == part]:
            own, own_right = [rows[i] for i in chosen], [right[i] for i in chosen]
            result["parts"][part] = share(own, own_right, config)
            result["parts"][part]["mean_of_relations"] = mean_by(own, own_right, "relation")
    facts = defaultdict(list)
    for row, own in zip(rows, chances, strict=True):
        by_choice = dict(zip(row["choices"], own, strict=True))  # two rows may have the choices in another order
        facts[row["uuid"]].append((by_choice, row["choices"][answer_index(row)]))
    asked = [row for uuid, row in {row["uuid"]: row for row in rows}.items() if len(facts[uuid]) > 1]
    facts = [([own for own, _ in wordings], wordings[0][1]) for wordings in facts.values() if len(wordings) > 1]
    if facts:
        agree = {
            "consistent": [sum(prod(own[choice] for own in all_) for choice in all_[0]) for all_, _ in facts],
            "all_right": [prod(own[answer] for own in all_) for all_, answer in facts],
            "pairs": [mean(agreement(*pair) for pair in combinations(all_, 2)) for all_, _ in facts],
        }
        result |= {name: share_of_facts(values, config) for name, values in agree.items()}
        result["pairs"]["mean_of_relations"] = mean_by(asked, agree["pairs"], "relation")
    return result


def agreement(first: dict[str, float], second: dict[str, float]) -> float:
    """The probability that two questions get the same choice."""
    return sum(first[choice] * second[choice] for choice in first)


def mean_by(rows: list[dict], right: list[float], field: str) -> float | None:
    """The mean over the values of a field of the mean of their rows; None where a row does not have the field."""
    if not all(field in row for row in rows):
        return None
    groups = defaultdict(list)
    for row, value in zip(rows, right, strict=True):
        groups[row[field]].append(value)
    return mean(map(mean, groups.values()))


def without_model(rows: list[dict], prompts: list[str], model, tokenizer, config: EvalConfig) -> dict:
    """The results of a guess, the search alone, the look-up and the most frequent object, as far as they can be asked.

    Args:
        prompts: what the model is asked for each question.
    """
    everything = [list(range(len(row["choices"]))) for row in rows]
    result = {"guess": measured(rows, certain(rows, everything), config)}
    if finder := finder_of(model, tokenizer):
        chosen = [choose(*own) for own in zip(finder.entries(prompts), [row["choices"] for row in rows], strict=True)]
        result["search_alone"] = measured(rows, certain(rows, chosen), config)
    gold = config.gold
    if gold is None or not gold.look_up.texts:
        return result
    found = gold.look_up.found([row["question"].replace(BLANK, " ") for row in rows])
    chosen = gold.look_up.chosen(found, [row["choices"] for row in rows])
    result["lookup"] = measured(rows, certain(rows, chosen), config) | {"found": {}}
    for part in (OWN, OTHER):
        own = [i for i, row in enumerate(rows) if row["part"] == part and gold.row(row) != NO_ENTRY]
        if own:
            hits = [float(gold.row(rows[i]) in found[i]) for i in own]
            at_random = {"chance": READ / len(gold.look_up.texts)}
            result["lookup"]["found"][part] = share([rows[i] for i in own], hits, config) | at_random
    if all("predicate" in row for row in rows):
        frequent = []
        for row in rows:
            fact = gold.fact(row)  # it does not count itself
            asked = fact.object if fact and fact.predicate == row["predicate"] else None
            counts = [gold.frequency[row["predicate"], own] - (own == asked) for own in row["choices"]]
            frequent.append([counts.index(max(counts))])
        result["frequency"] = measured(rows, certain(rows, frequent), config)
    return result


def entries_read(model, tokenizer, rows: list[dict], prompts: list[str], config: EvalConfig) -> dict | None:
    """For each part and reader, whether the entry of the fact is found and read at the last token of the prompt."""
    if not model.settings.reads_bank or config.gold is None:
        return None
    known = [i for i, row in enumerate(rows) if config.gold.row(row) != NO_ENTRY and prompts[i]]
    if not known:
        return None
    found, read = candidates_and_reads(model, tokenizer, [prompts[i] for i in known], config)
    gold_B = torch.tensor([config.gold.row(rows[i]) for i in known])
    result = {}
    for part in (OWN, OTHER):
        is_part_B = torch.tensor([rows[i]["part"] == part for i in known])
        if is_part_B.any():
            own = [{name: x_BX[is_part_B] for name, x_BX in x.items()} for x in (found, read)]
            facts = [rows[i]["uuid"] for i in known if rows[i]["part"] == part]
            result[part] = shares_of_gold(model, *own, gold_B[is_part_B], config, facts)
    return result


@torch.no_grad()
def pararel(model, tokenizer, config: EvalConfig) -> dict | None:
    """Accuracy by wording, agreement of the wordings, and the entries read; the baselines, unless under a control."""
    if config.pararel_path is None:
        return None
    rows = read_pararel(config.pararel_path, config.limit)
    rows = [row | {"part": OWN if row["own_wording"] else OTHER} for row in rows]
    questions = [split_question(row["question"], row["choices"]) for row in rows]
    most_tokens = config.batch_size * model.settings.max_seq_len
    scores = score_options(model, tokenizer, rows, questions, config, most_tokens)
    chosen = [max(range(len(own)), key=lambda i: own[i][0]) for own in scores]
    result = measured(rows, certain(rows, [[choice] for choice in chosen]), config)
    right = [choice == answer_index(row) for row, choice in zip(rows, chosen, strict=True)]
    result["answers"] = packed_answers(right, rows)
    if not config.control:
        prompts = [prompt for prompt, _ in questions]
        result |= {"read": entries_read(model, tokenizer, rows, prompts, config)}
        result |= {"without_model": without_model(rows, prompts, model, tokenizer, config)}
    return result
