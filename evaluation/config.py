"""What every task is given (`EvalConfig`), and the form in which tasks report a share of right answers."""

import math
from collections import defaultdict
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from runs.outcomes import packed_answers

if TYPE_CHECKING:
    from collections.abc import Callable

    from editing.store import MemoryStore
    from model.model_original import Transformer

    from .gold import Gold
    from .in_context import EntryFinder


@dataclass(frozen=True)
class EvalConfig:
    """Files, limits and controls of an evaluation.

    Attributes:
        language_sets: files and folders of questions and texts that others publish.
        plain: the model of a plain run, whose losses are compared with those of the run.
        val_fraction: above 0, `val_path` is the training file and its last documents are the validation text.
        limit: at most this many questions, and validation rows; None: all.
        gold: rows and texts of the facts that questions ask for; None where the questions name no facts.
        oracle: what is given to the model beside a question. "prompt": the sentence of the fact in the prompt;
            "entry": the entry of the fact, which every position reads first; "found": the entries that `finder`
            finds for the question, in the prompt; "": nothing.
        finder: finds entries for a prompt; None: no run was named for it.
        open_store: opens the bank for the functions of the editor, with a journal in the folder that it is given.
        asked_cases: of the cases of an editing benchmark, which are all edited, so many are asked; None: all.
        control: the name of the control that the tasks are repeated under; "": none.
    """

    val_path: str | None = None
    val_fraction: float = 0.0
    object_path: str | None = None
    relation_path: str | None = None
    verification_path: str | None = None
    cache_dir: str = "dataset/cache"
    limit: int | None = None
    batch_size: int = 32
    seed: int = 0
    edit_path: str | None = None
    counterfact_path: str | None = None
    zsre_path: str | None = None
    asked_cases: int | None = None
    gold: "Gold | None" = None
    oracle: str = ""
    finder: "EntryFinder | None" = None
    pararel_path: str | None = None
    insert_path: str | None = None
    open_store: "Callable[[str], MemoryStore] | None" = None
    control: str = ""
    language_sets: tuple[str, ...] = ()
    plain: "Transformer | None" = None


def precision(device: torch.device, dtype: str) -> AbstractContextManager:
    """The precision of the training on a GPU. A CPU is slower and less exact in it, so there it is float32."""
    half = {"bfloat16": torch.bfloat16, "float16": torch.float16}.get(dtype)
    return torch.autocast("cuda", half) if device.type == "cuda" and half else nullcontext()


def wilson_interval(right: int, n: int, z: float = 1.96) -> list[float]:
    """The 95 % interval of a share. Source: Wilson 1927."""
    if n == 0:
        return [0.0, 1.0]
    share, spread = right / n, z * z / n
    centre = (share + spread / 2) / (1 + spread)
    half = z * math.sqrt(share * (1 - share) / n + spread / (4 * n)) / (1 + spread)
    return [centre - half, centre + half]


def ratio_error(total_D: np.ndarray, weight_D: np.ndarray) -> float | None:
    """The standard error of sum(total) / sum(weight) over documents, by its linear part; None for a single one."""
    n, weight = len(total_D), weight_D.sum()
    rest_D = total_D - weight_D * (total_D.sum() / weight)
    return math.sqrt(n / (n - 1) * float(rest_D @ rest_D)) / float(weight) if n > 1 else None


def clustered_interval(right: list[float], cluster: list) -> list[float]:
    """The 95 % interval of a share of questions, of which those of one cluster (a fact) are one draw.

    The share's variance over the clusters tells how many independent questions would give it: at most all, and as many
    as there are clusters where the variance is 0. Wilson's interval is of so many.
    """
    n, totals = len(right), defaultdict(lambda: [0.0, 0])
    for value, name in zip(right, cluster, strict=True):
        totals[name][0] += value
        totals[name][1] += 1
    share, C = sum(right) / n, len(totals)
    squares = sum((total - share * size) ** 2 for total, size in totals.values())
    variance = squares / n**2 * C / max(C - 1, 1)
    effective = min(share * (1 - share) / variance, n) if variance > 0 else C
    return wilson_interval(share * effective, effective)


def accuracy(right: list[bool], chance: float, config: EvalConfig, version: int) -> dict:
    """A share of right answers, as eval.json has it."""
    n, correct = len(right), sum(right)
    return {
        "accuracy": correct / n if n else None, "n": n, "chance": chance, "ci95": wilson_interval(correct, n),
        "seed": config.seed, "task_version": version,
    }  # fmt: skip


def accuracy_by_part(rows: list[dict], right: list[bool], chance: float, config: EvalConfig, version: int) -> dict:
    """The accuracy over all questions and, as `parts`, over each `part` that they name (such as seen and bank_only).

    Each has `answers`: which questions were answered right.
    """

    def share(chosen: list[int]) -> dict:
        own = [right[i] for i in chosen]
        return accuracy(own, chance, config, version) | {"answers": packed_answers(own, [rows[i] for i in chosen])}

    result = share(list(range(len(rows))))
    if parts := sorted({row["part"] for row in rows if "part" in row}):
        result["parts"] = {part: share([i for i, row in enumerate(rows) if row.get("part") == part]) for part in parts}
    return result
