"""Results of runs as tables: a list of runs, and the comparison of some, with the noise over seeds."""

import math
import re
import time
from datetime import datetime
from statistics import mean, stdev

from .metrics import METRICS, Metric, digits, metric, span
from .run import NOT_IDENTITY, Run
from .tables import Table

CLEAR = 2.0  # a difference counts when it exceeds this many standard errors


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


def groups_of(runs: list[Run]) -> dict[str, list[Run]]:
    """Runs that differ only by their seed form one group, named after the first."""
    by_identity: dict[tuple, list[Run]] = {}
    for run in runs:
        # The weights to start from may be those of the same seed: out/text_seed1, out/text_seed2.
        own = re.compile(rf"seed_?{run.flag('seed')}(?!\d)")
        identity = tuple((name, own.sub("seed", value)) for name, value in run.identity)
        by_identity.setdefault(identity, []).append(run)
    groups = {}
    for group in by_identity.values():
        label = group[0].name
        if len(group) > 1:
            label = f"{re.sub(r'[_-]*seed_?[0-9]+', '', label) or label} x {len(group)}"
        groups[label if label not in groups else str(group[0].path)] = group
    return groups


def differing_flags(groups: dict[str, list[Run]]) -> Table:
    first = {label: runs[0].flat_flags for label, runs in groups.items()}
    names = dict.fromkeys(name for flags in first.values() for name in flags if name not in NOT_IDENTITY)
    rows = [{"flag": name} | {label: str(flags.get(name)) for label, flags in first.items()} for name in names]
    rows = [row for row in rows if len(set(list(row.values())[1:])) > 1]
    seeds = {label: ", ".join(str(run.flag("seed")) for run in runs) for label, runs in groups.items()}
    commits = {
        label: ", ".join(dict.fromkeys((run.info.get("git_commit") or "?")[:7] for run in runs))
        for label, runs in groups.items()
    }
    states = {label: ", ".join(dict.fromkeys(run.state for run in runs)) for label, runs in groups.items()}
    about = [{"flag": name} | values for name, values in (("seed", seeds), ("commit", commits), ("state", states))]
    return Table("what differs", rows + about)


def verdict(values: dict[str, list[float]], measure: Metric) -> str:
    """The winner and its lead; no winner within the noise over seeds, which one seed leaves unknown."""
    known = {label: found for label, found in values.items() if found}
    if measure.better is None or len(known) < 2:
        return ""
    order = sorted(known, key=lambda label: mean(known[label]), reverse=measure.better is max)
    first, second = known[order[0]], known[order[1]]
    gap = abs(mean(first) - mean(second))
    if gap == 0:
        return "equal"
    ahead = f"{order[0]} by {measure.text(gap)}"
    variances = [stdev(found) ** 2 for found in known.values() if len(found) > 1]
    if not variances:
        return f"{ahead} (one seed each: noise unknown)"
    error = math.sqrt(mean(variances) * (1 / len(first) + 1 / len(second)))
    return (
        f"{ahead} ± {measure.text(error)}"
        if gap > CLEAR * error
        else f"no clear winner ({ahead} ± {measure.text(error)})"
    )


def spread(found: list[float], measure: Metric) -> dict:
    """A cell of several values: `text` for people, the rest for programs."""
    middle, width = mean(found), stdev(found) if len(found) > 1 else None
    text = measure.text(middle) + (f" ± {measure.text(width)}" if width is not None else "")
    return {"mean": middle, "standard_deviation": width, "n": len(found), "text": text}


def compare(runs: list[Run]) -> list[Table]:
    """What differs between runs, and their results: mean and standard deviation over seeds, and the winner of each."""
    groups, rows = groups_of(runs), []
    for measure in (m for m in METRICS if m.is_compared):
        values = {
            label: [v for run in group if (v := measure.value(run)) is not None] for label, group in groups.items()
        }
        if not any(values.values()):
            continue
        row = {"result": measure.label}
        for label, found in values.items():
            row[label] = spread(found, measure) if found else None
        rows.append(row | {"winner": verdict(values, measure)})
    return [differing_flags(groups), Table("results (mean ± standard deviation over seeds)", rows)]
