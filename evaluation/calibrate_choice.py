"""What calibration chooses between, and how: settings of the pointer, and what each did in one run or in several."""

from collections.abc import Sequence
from pathlib import Path
from statistics import harmonic_mean
from typing import NamedTuple

import numpy as np

from common.files import read_json
from runs.run import write_json

MEASURED = "calibration.json"  # in a run folder
ANSWERS = ("followed", "kept", "written")


class Setting(NamedTuple):
    """Values of `pointer_scale`, `pointer_asked`, `pointer_edited` and `pointer_edited_unsaid`."""

    scale: float
    asked: float = 0.0
    edited: float = 0.0
    edited_unsaid: float = 0.0

    def __str__(self):
        scale, *others = (f"pointer_{name} {x:g}" for name, x in self._asdict().items() if x or name == "scale")
        return ", ".join([scale, *others])

    def distance(self, other: "Setting") -> float:
        return sum(abs(a - b) for a, b in zip(self, other, strict=True))

    @classmethod
    def of(cls, flags: dict) -> "Setting":
        return cls(**{name: flags.get(f"pointer_{name}", 1.0 if name == "scale" else 0.0) for name in cls._fields})


class Outcome(NamedTuple):
    """Of one setting: whether each question was answered right (0 or 1), for each share; the loss of the text.

    lacking: the share of the answers about facts that the bank lacks, which the edits cost.
    """

    followed: np.ndarray
    kept: np.ndarray
    written: np.ndarray
    text_loss: float
    lacking: float = 0.0

    @property
    def shares(self) -> list[float]:
        return [float(right.mean()) for right in self[:3]]

    @property
    def score(self) -> float:
        return harmonic_mean(self.shares)


def chosen(outcomes: dict[Setting, Outcome], trained: Setting, text_cost: float, lacking_cost: float) -> Setting:
    """The best of the settings that cost little; of equal ones the closest to the training.

    The text's loss is compared with that of the setting closest to the training of all. If all that cost the text
    little cost facts that the bank lacks too much, the one that costs these least is chosen.
    """
    order = sorted(outcomes, key=trained.distance)
    most = outcomes[order[0]].text_loss + text_cost
    order = [setting for setting in order if outcomes[setting].text_loss <= most]
    settings = [setting for setting in order if outcomes[setting].lacking <= lacking_cost]
    if not settings:
        return min(order, key=lambda setting: outcomes[setting].lacking)
    return max(settings, key=lambda setting: outcomes[setting].score)  # of equal ones the first


def together(outcomes: Sequence[Outcome]) -> Outcome:
    """Of several runs: all their answers; the means of what it costs the text, and facts that the bank lacks."""
    answers = (np.concatenate(parts) for parts in zip(*(outcome[:3] for outcome in outcomes), strict=True))
    return Outcome(*answers, *(float(np.mean(costs)) for costs in zip(*(x[3:] for x in outcomes), strict=True)))


def read_measured(run_dir: Path, key: dict) -> dict[Setting, Outcome]:
    """What was measured of a run before, with these weights and questions; empty if nothing was."""
    kept = read_json(run_dir / MEASURED) if (run_dir / MEASURED).exists() else {}
    if kept.get("key") != key:
        return {}
    return {
        Setting(**row["setting"]): Outcome(
            *(np.array(list(row[name]), dtype=float) for name in ANSWERS), row["text_loss"], row["lacking"]
        )
        for row in kept["outcomes"]
    }


def write_measured(run_dir: Path, key: dict, outcomes: dict[Setting, Outcome]) -> None:
    """Keep the answers, a digit for each, so that runs can be measured one by one and chosen for together."""
    rows = [
        {"setting": setting._asdict()}
        | {name: "".join(f"{right:.0f}" for right in getattr(outcome, name)) for name in ANSWERS}
        | {"text_loss": outcome.text_loss, "lacking": outcome.lacking}
        for setting, outcome in outcomes.items()
    ]
    write_json(run_dir / MEASURED, {"key": key, "outcomes": rows})
