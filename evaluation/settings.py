"""What every task of an evaluation is told."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .gold import Gold


@dataclass(frozen=True)
class Settings:
    val_path: str | None = None
    val_fraction: float = 0.0  # above 0: val_path is the training file, and its last documents are held out
    object_path: str | None = None
    relation_path: str | None = None
    verification_path: str | None = None
    cache_dir: str = "dataset/cache"
    limit: int | None = None  # questions, and validation rows, at most
    batch_size: int = 32
    seed: int = 0
    edit_path: str | None = None
    gold: "Gold | None" = None  # where the asked facts stand in the bank, if the questions name them
    help: str = ""  # "prompt": the right sentence stands before each question; "entry": the right entry is read


def wilson_interval(right: int, n: int, z: float = 1.96) -> list[float]:
    """The 95 % interval of a share. Source: Wilson 1927."""
    if n == 0:
        return [0.0, 1.0]
    share, spread = right / n, z * z / n
    centre = (share + spread / 2) / (1 + spread)
    half = z * math.sqrt(share * (1 - share) / n + spread / (4 * n)) / (1 + spread)
    return [centre - half, centre + half]


def accuracy(right: list[bool], chance: float, settings: Settings, version: int) -> dict:
    """The result of a task of questions."""
    n, correct = len(right), sum(right)
    return {
        "accuracy": correct / n if n else None, "n": n, "chance": chance, "ci95": wilson_interval(correct, n),
        "seed": settings.seed, "task_version": version,
    }  # fmt: skip


def by_part(rows: list[dict], right: list[bool], chance: float, settings: Settings, version: int) -> dict:
    """The result over all questions, and over each `part` that the questions name (such as seen and bank_only)."""
    result = accuracy(right, chance, settings, version)
    parts = sorted({row["part"] for row in rows if "part" in row})
    if parts:
        result["parts"] = {
            part: accuracy(
                [ok for row, ok in zip(rows, right, strict=True) if row.get("part") == part], chance, settings, version
            )
            for part in parts
        }
    return result
