"""Results of runs as tables: a list of runs, and the comparison of some, with the noise over seeds."""

import math
import re
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from statistics import mean, stdev

import numpy as np

from .metrics import METRICS, Metric, digits, metric, percent, span
from .outcomes import outcomes_of
from .run import NOT_IDENTITY, Run
from .significance import LEVEL, paired_p, welch
from .tables import Table

TIMES = ("tokens_per_s", "mfu", "train_s", "edit_ms", "answer_ms", "first_token_ms")  # beginnings of measures of time
SHUFFLED = ("val_loss", "object", "relation", "verification")  # shown with the bank shuffled too


def list_runs(runs: list[Run], title: str = "runs") -> Table:
    """A row for each run: state, best validation, speed, memory, age."""
    columns = {"loss": metric("best_val_loss"), "tokens/s": metric("tokens_per_s"), "peak MiB": metric("peak_mib")}
    rows = []
    for run in runs:
        row = {
            "run": str(run.path), "experiment": run.info.get("experiment"), "seed": run.info.get("seed"),
            "state": run.state, "step": run.metrics[-1]["step"] if run.metrics else None,
            **{name: column.value(run) for name, column in columns.items()},
        }  # fmt: skip
        row["ppl"] = run.best and run.best["val_ppl"]
        row["time"] = run.seconds
        row["age"] = time.time() - datetime.fromisoformat(run.start_time).timestamp() if run.start_time else None
        rows.append(row)
    formats = {name: column.text for name, column in columns.items()}
    return Table(title, rows, formats | {"ppl": digits(2), "time": span, "age": span})


def groups_of(runs: list[Run], labels: dict[Run, str] | None = None) -> dict[str, list[Run]]:
    """Runs that differ only by their seed form one group, named by the words that their names share.

    Args:
        labels: names that a person gave to some of the runs.
    Raises:
        ValueError: runs under one label differ by more than their seed.
    """
    by_identity: dict[tuple, list[Run]] = {}
    for run in runs:
        # The weights to start from may be those of the same seed: out/text_seed1, out/text_seed2.
        own = re.compile(rf"seed_?{run.flag('seed')}(?!\d)")
        identity = tuple((name, own.sub("seed", value)) for name, value in run.identity)
        by_identity.setdefault(((labels or {}).get(run), identity), []).append(run)
    groups: dict[str, list[Run]] = {}
    for (label, _), group in by_identity.items():
        if label in groups:
            names = sorted(name for name, _ in set(group[0].identity) ^ set(groups[label][0].identity))
            raise ValueError(
                f"the runs of {label!r} differ by more than their seed, in --{', --'.join(dict.fromkeys(names))}: "
                "give them labels of their own"
            )
        label = label or shared_name([run.path for run in group])
        groups[label if label not in groups else str(group[0].path)] = group
    return groups


def shared_name(paths: list[Path]) -> str:
    """The words that the names of all paths have, in the order of the first, without seeds; and the number of paths."""
    if len(paths) == 1:
        return paths[0].name
    names = [re.sub(r"[_-]*(?<![a-z])s(eed)?[_=-]?\d+(?![\w.])(?=[_-]|$)", "", path.name) for path in paths]
    parts = [re.split(r"([_-]+)", name) for name in names]
    words = [set(own) for own in parts]
    shared = [word for word in parts[0] if all(word in own for own in words)]
    label = "".join(shared).strip("_-") or paths[0].parent.name or paths[0].name
    return f"{re.sub('_+', '_', label)} x {len(paths)}"


def differing_flags(groups: dict[str, list[Run]]) -> Table:
    """The flags whose values differ; – where a flag does nothing in a run."""
    from .record_tables import has_effect  # not above, for it imports this module

    first = {label: runs[0] for label, runs in groups.items()}
    names = dict.fromkeys(name for run in first.values() for name in run.flat_flags if name not in NOT_IDENTITY)
    names = [name for name in names if len({str(run.flag(name)) for run in first.values()}) > 1]

    def shown(name: str, run: Run) -> str:
        return str(run.flag(name)) if has_effect(name, run.flag, run.info.get("idle_flags")) else "–"

    rows = [{"flag": name} | {label: shown(name, run) for label, run in first.items()} for name in names]
    rows = [row for row in rows if len(set(list(row.values())[1:])) > 1]
    seeds = {label: ", ".join(str(run.flag("seed")) for run in runs) for label, runs in groups.items()}
    commits = {
        label: ", ".join(dict.fromkeys((run.info.get("git_commit") or "?")[:7] for run in runs))
        for label, runs in groups.items()
    }
    states = {label: ", ".join(dict.fromkeys(run.state for run in runs)) for label, runs in groups.items()}
    about = [{"flag": name} | values for name, values in (("seed", seeds), ("commit", commits), ("state", states))]
    return Table("what differs", rows + about)


def verdict(values: dict[str, list[float]], measure: Metric, paired: float | None = None) -> str:
    """The winner and its lead, if it is more than noise: over seeds (Welch's t-test), and over the same questions.

    One seed leaves the noise unknown: no winner is named. A perplexity is tested by its logarithm, as a loss is.

    Args:
        paired: p of the test over questions or documents, between the best two; None: not known.
    """
    known = {label: found for label, found in values.items() if found}
    if measure.better is None or len(known) < 2:
        return ""
    first, second = best_two(known, measure)
    gap = abs(mean(known[first]) - mean(known[second]))
    if gap == 0:
        return "equal"
    apart = f"{measure.text(gap)} apart"
    single = [label for label in (first, second) if len(known[label]) == 1]
    if single:
        return f"no winner: {apart}, one seed {'each' if len(single) == 2 else f'of {single[0]}'}"
    error, p = welch(*(on_scale(known[label], measure) for label in (first, second)))
    width = measure.text(error * mean(known[first]) if measure.is_exponential else error)
    if p > LEVEL:
        return f"no winner: {apart} ± {width}, {p_text(p)} over seeds"
    if paired is not None and paired > LEVEL:
        return f"no winner: {apart} ± {width}, {p_text(paired)} over questions"
    unknown = [label for label, found in known.items() if len(found) == 1]
    return f"{first} by {measure.text(gap)} ± {width}, {p_text(p)}" + (
        f"; one seed of {', '.join(unknown)}" if unknown else ""
    )


def on_scale(values: list[float], measure: Metric) -> list[float]:
    """The values as they are tested: a perplexity by its logarithm."""
    return [math.log(value) for value in values] if measure.is_exponential else values


def best_two(known: dict[str, list[float]], measure: Metric) -> list[str]:
    middles = {label: mean(on_scale(found, measure)) for label, found in known.items()}
    return sorted(known, key=middles.get, reverse=measure.better is max)[:2]


def p_text(p: float) -> str:
    return f"p {p:.2g}" if p >= 0.001 else "p < 0.001"


def paired_test(groups: dict[str, list[Run]], measure: Metric) -> tuple[float, int] | None:
    """(p, number of questions or documents) of the difference between two groups; None unless both were asked the same.

    A question counts with its mean over the seeds of a group.
    """
    found = [[outcomes_of(run.result(*measure.path[:-1])) for run in group] for group in groups.values()]
    every = [outcomes for group in found for outcomes in group]
    if any(outcomes is None for outcomes in every) or len({outcomes.key for outcomes in every}) > 1:
        return None
    first, second = (np.mean([outcomes.value_X for outcomes in group], axis=0) for group in found)
    return paired_p(first - second, every[0].weight_X), len(first)


def spread(found: list[float], measure: Metric) -> dict:
    """A cell of several values: `text` for people, the rest for programs."""
    middle, width = mean(found), stdev(found) if len(found) > 1 else None
    text = measure.text(middle) + (f" ± {measure.text(width)}" if width is not None else "")
    return {"mean": middle, "standard_deviation": width, "n": len(found), "text": text}


def compare(runs: list[Run], labels: dict[Run, str] | None = None) -> list[Table]:
    """What differs between runs, and their results: mean and standard deviation over seeds, and the winner of each.

    `same questions`: p that the best two answer the same questions, or predict the same documents, equally well.
    """
    groups, rows = groups_of(runs, labels), []
    one_seed = len(groups) > 1 and all(len(group) == 1 for group in groups.values())
    shared = any(run.shares_gpu for run in runs)
    for measure in compared_metrics(runs):
        if shared and measure.name.startswith(TIMES):
            measure = replace(measure, label=f"{measure.label}, GPU shared", better=None)
        values = {
            label: [v for run in group if (v := measure.value(run)) is not None] for label, group in groups.items()
        }
        if not any(values.values()):
            continue
        row = {"result": measure.label}
        for label, found in values.items():
            row[label] = spread(found, measure) if found else None
        known, paired = {label: found for label, found in values.items() if found}, None
        if measure.better and len(known) > 1 and measure.path and not measure.get:
            paired = paired_test({label: groups[label] for label in best_two(known, measure)}, measure)
        if one_seed:
            row["difference" if len(groups) == 2 else "best two apart"] = apart(known, measure)
        elif len(groups) > 1:
            row["winner"] = verdict(values, measure, paired and paired[0])
        if len(groups) > 1:
            row["same questions"] = f"{p_text(paired[0])}, n {paired[1]:,}" if paired else None
        rows.append(row)
    if not any(row.get("same questions") for row in rows):
        rows = [{name: value for name, value in row.items() if name != "same questions"} for row in rows]
    how = "one seed each: no winner is named" if one_seed else "mean ± standard deviation over seeds"
    return [differing_flags(groups), Table(f"results ({how})", rows)]


def compared_metrics(runs: list[Run]) -> Iterator[Metric]:
    """The metrics of a comparison, the main ones also with the bank shuffled; that is no contest.

    One whose path has a * is one for each key that it matches in any of the runs.
    """
    for measure in (m for m in METRICS if m.is_compared):
        if "*" in measure.path:
            for star in dict.fromkeys(star for run in runs for star, *_ in measure.scores(run.eval)):
                path = tuple(star if key == "*" else key for key in measure.path)
                yield replace(measure, label=measure.label.format(star), path=path)
            continue
        limit = next(filter(None, (run.text_limit for run in runs)), None)
        is_of_part = limit and measure.path[:1] == ("language",) and not measure.is_exponential
        if measure.get or not is_of_part:
            yield measure
        if is_of_part:
            measure = replace(measure, label=f"{measure.label}, first {limit} rows", get=None)
            yield measure
        if measure.name in SHUFFLED:
            path = ("arms", "bank shuffled", *measure.path)
            yield replace(measure, label=f"{measure.label}, bank shuffled", path=path, get=None, better=None)


def apart(known: dict[str, list[float]], measure: Metric) -> str:
    """How far the best two of several values are apart, of percentages in points; empty where there is no contest."""
    if measure.better is None or len(known) < 2:
        return ""
    first, second = (mean(known[label]) for label in best_two(known, measure))
    return f"{100 * abs(first - second):.1f} points" if measure.text is percent else measure.text(abs(first - second))
