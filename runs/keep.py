"""Rows of results from runs that are finished and evaluated: `python -m experiment keep RUN...`.

Runs that differ by their seed alone give one row for each number. Its interval is that of the mean over the seeds; with
one seed it is that of the evaluation, else Wilson's interval of a share.
"""

import math
import re
from collections.abc import Iterator
from statistics import mean, stdev

from .compare import TIMES, groups_of
from .metrics import METRICS, Metric
from .results import Row
from .run import Run

CONTROLS = {
    "bank shuffled": "shuffled", "bank counterfactual": "counterfactual", "bank zeroed": "no_memory",
    "gold entry forced": "oracle", "gold in prompt": "prompt", "entries in prompt": "in_context",
}  # fmt: skip
WITHOUT_MODEL = ("frequency", "lookup", "search_alone")  # tasks that answer the questions without the model
PUBLIC_TASKS = (
    "pararel",
    "insertion",
    "counterfact",
    "zsre",
)  # they hold the results of no model on the same questions
GUESSES = {"guess": "chance"}
STUDENT = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)  # 97.5 % quantiles, 1 to 9 degrees


def wilson_interval(share: float, n: int, z: float = 1.96) -> list[float]:
    """The 95 % interval of a share. Source: Wilson 1927."""
    spread = z * z / n
    centre = (share + spread / 2) / (1 + spread)
    half = z * math.sqrt(share * (1 - share) / n + spread / (4 * n)) / (1 + spread)
    return [centre - half, centre + half]


def mean_interval(values: list[float]) -> list[float]:
    """The 95 % interval of the mean of a few values (Student's t)."""
    degrees = len(values) - 1
    quantile = STUDENT[degrees - 1] if degrees <= len(STUDENT) else 1.96 + 2.7 / degrees
    half = quantile * stdev(values) / math.sqrt(len(values))
    return [mean(values) - half, mean(values) + half]


def plan_of(run: Run) -> tuple[str | None, str | None]:
    """(experiment, protocol) as the folder's name says them: the names that the scripts in run_file/ give."""
    name = run.name.removeprefix("experiment_")
    if match := re.fullmatch(r"knowledge_(\d+(?:_\d+){2}\w*?)_(\d+)_seed\d+", name):
        return match[1].replace("_", "."), f"knowledge-{int(match[2]) / 1000:g}k"
    if match := re.fullmatch(r"knowledge_(\d+(?:_\d+){2}\w*?)_seed\d+", name):
        return match[1].replace("_", "."), f"text-{run.flag('max_steps')}"
    if match := re.fullmatch(r"(quickstart|knowledge_cpu|middle)_([a-z]+)(?:_seed\d+)?", name):
        return match[2], match[1].replace("_", "-")
    if match := re.fullmatch(r"(\d+(?:_\d+)+\w*?)(?:_+seed_?\d+)?", name):
        return match[1].replace("_", "."), "pretraining"
    return None, None


def require_whole(run: Run, allow_limit: bool) -> None:
    """Refuse a run whose numbers are not those of the whole experiment.

    Raises:
        ValueError: it is not finished, not evaluated since, or evaluated on a part of the questions.
    """
    if run.state != "finished":
        raise ValueError(f"{run.path} is {run.state}, not finished: let it end first")
    about, again = run.eval.get("about"), f"python eval_model.py --run {run.path}"
    if not about or "resources" not in run.eval and not allow_limit:
        raise ValueError(f"{run.path} has no whole eval.json: {again}")
    if about["date"] < (run.end_time or ""):
        raise ValueError(f"{run.path} was evaluated before its training ended: {again}")
    if about.get("edits"):
        raise ValueError(f"{run.path} was evaluated with edits in its bank: undo them, then {again}")
    if (limits := limits_of(run)) and not allow_limit:
        raise ValueError(
            f"{run.path} was evaluated on the first {min(limits)} questions: {again} without --limit, "
            "or give --partial if the protocol asks for so many"
        )
    if (asked := asked_cases_of(run)) and not allow_limit:
        raise ValueError(
            f"{run.path} was asked {min(asked)} of the cases that were edited: {again} without --asked_cases, or give "
            "--partial if the protocol asks for so many"
        )


def limits_of(run: Run) -> set[int]:
    """The largest numbers of questions that results of a run were allowed; none if all were allowed all questions."""
    parts = (run.eval, *run.eval.get("arms", {}).values())
    results = [value for part in parts for value in part.values() if isinstance(value, dict) and "seconds" in value]
    every = run.eval["about"].get("limit")
    return {every, *(result.get("limit", every) for result in results)} - {None}


def asked_cases_of(run: Run) -> set[int]:
    """How many cases the editing benchmarks of a run asked, where these are not all that were edited."""
    return {run.eval.get(task, {}).get("asked_cases") for task in PUBLIC_TASKS} - {None}


def results_of(run: Run) -> Iterator[tuple[str, dict]]:
    """(arm, its part of eval.json) of a run."""
    yield "memory" if run.flag("model_type") == "model_memory" else "plain", run.eval
    for name, results in run.eval.get("arms", {}).items():
        if name not in CONTROLS:
            raise ValueError(f"{run.path}/eval.json has the arm {name!r}, which runs/keep.py does not know")
        yield CONTROLS[name], results
    for task in WITHOUT_MODEL:
        if task in run.eval:
            yield task, with_reworded(run.eval[task])
    for task in PUBLIC_TASKS:
        for name, result in run.eval.get(task, {}).get("without_model", {}).items():
            yield GUESSES.get(name, name), {task: result}


def with_reworded(answers: dict) -> dict:
    """The answers of a rule, with those to all rewordings together, which a model's results have as `reworded`."""
    asked = [result for name, result in answers.items() if re.fullmatch(r"reworded_\d+", name)]
    if not asked:
        return answers
    n = sum(result["n"] for result in asked)
    share = sum(result["accuracy"] * result["n"] for result in asked) / n
    return answers | {"reworded": {"accuracy": share, "n": n, "ci95": wilson_interval(share, n)}}


def measure_name(metric: Metric, star: str) -> str:
    return metric.name.replace("*", re.sub(r"\W+", "_", star))


def name_of_part(metric: Metric, name: str, run: Run) -> str | None:
    """The name of a measure. A loss of the first rows alone has them in it; a perplexity of them is left out."""
    if metric.path[0] != "language" or run.text_limit is None:
        return name
    return None if metric.is_exponential else f"{name}_first_{run.text_limit}"


def numbers_of(run: Run) -> dict[tuple[str, str], tuple[Metric, float, int | None, list[float] | None]]:
    """(arm, measure) -> (metric, value, n, interval) of everything that a run measured; a share as a percentage.

    The interval is the evaluation's own, which knows that some questions are about one fact; None where it has none.
    Times of a run that shared its GPU are left out: they tell what else ran there.
    """
    found = {}
    for arm, results in results_of(run):
        for metric in METRICS:
            for star, around, value in metric.scores(results) if metric.path else ():
                n = around.get("n")
                n = n.get(metric.path[-1]) if isinstance(n, dict) else n
                interval = around.get("ci95") if metric.path[-1] in ("accuracy", "auroc") else None
                if name := name_of_part(metric, measure_name(metric, star), run):
                    found[arm, name] = (metric, value, n, interval)
    own = next(results_of(run))[0]
    for metric in METRICS:
        is_of_part = metric.path[:1] == ("language",) and metric.get is None and run.text_limit is not None
        value = metric.value(run) if metric.is_compared and not is_of_part else None
        if value is not None:
            found.setdefault((own, metric.name), (metric, value, None, None))
    scaled = {}
    for key, (metric, value, n, interval) in found.items():
        if run.shares_gpu and key[1].startswith(TIMES):
            continue
        scale = 100 if metric.unit == "%" else 1
        scaled[key] = (metric, scale * value, n, interval and [scale * side for side in interval])
    return scaled


def evidence_of(runs: list[Run]) -> tuple[dict, list[str]]:
    """The fields that all rows of a group share, and notes about them."""
    commits = list(dict.fromkeys((run.info.get("git_commit") or "unknown")[:7] for run in runs))
    facts = runs[0].info.get("environment", {})
    processes = runs[0].info.get("processes", 1)
    machine = facts.get("gpu") or f"{facts.get('cpu_cores')} CPU cores"
    notes = [f"commits {', '.join(commits)}"] if len(commits) > 1 else []
    if any(run.info.get("git_dirty") for run in runs):
        notes.append("uncommitted changes")
    if limits := set().union(*map(limits_of, runs)):
        notes.append(f"the first {' or '.join(map(str, sorted(limits)))} questions")
    if asked := set().union(*map(asked_cases_of, runs)):
        notes.append(f"all cases edited, {' or '.join(map(str, sorted(asked)))} of them asked, drawn by seed")
    if any("resources" not in run.eval for run in runs):
        notes.append("the evaluation was cut short")
    evidence = {
        "seeds": [run.flag("seed") for run in runs], "commit": commits[-1], "source": "run",
        "machine": f"{processes} x {machine}" if processes > 1 else machine,
        "date": max(run.eval["about"]["date"] for run in runs)[:10], "command": runs[0].info.get("command", ""),
    }  # fmt: skip
    return evidence, notes


def rows_of_group(runs: list[Run], experiment: str, protocol: str, split: str) -> list[Row]:
    """The rows of runs that differ by their seed alone."""
    evidence, notes = evidence_of(runs)
    numbers, rows = [numbers_of(run) for run in runs], []
    for (arm, measure), (metric, _, n, own_interval) in numbers[0].items():
        known = [own[arm, measure][1] for own in numbers if (arm, measure) in own]
        if len(known) < len(runs):
            raise ValueError(f"{measure} of {arm} is missing in some of {', '.join(str(run.path) for run in runs)}")
        value, own_notes = mean(known), list(notes)
        if len(known) > 1:
            interval = mean_interval(known)
        elif own_interval:
            interval = own_interval
        elif metric.unit == "%" and n:
            interval = [100 * side for side in wilson_interval(value / 100, n)]
        else:
            interval, own_notes = None, ["one seed: no interval", *notes]
        if interval and metric.unit == "%":
            interval = [max(0.0, interval[0]), min(100.0, interval[1])]
        row = Row(
            experiment=experiment, arm=arm, measure=measure, value=rounded(value), unit=metric.unit, n=n,
            values=[rounded(value) for value in known], interval=interval and around(value, interval),
            split=split, protocol=protocol, note="; ".join(own_notes), **evidence,
        )  # fmt: skip
        rows.append(row)
    return rows


def rounded(value: float) -> float:
    """Six significant digits: more than any document shows."""
    return float(f"{value:.6g}")


def around(value: float, interval: list[float]) -> list[float]:
    """The interval, rounded so that the rounded value still lies within."""
    return [min(rounded(interval[0]), rounded(value)), max(rounded(interval[1]), rounded(value))]


def rows_of(
    runs: list[Run], experiment: str | None = None, protocol: str | None = None, split: str = "dev",
    allow_limit: bool = False,
) -> list[Row]:  # fmt: skip
    """The rows of some runs; what is not given follows from the names of their folders.

    Raises:
        ValueError: a run is not finished or not evaluated whole, or its name does not say what it is.
    """
    for run in runs:
        require_whole(run, allow_limit)
    rows = []
    for group in groups_of(runs).values():
        named, planned = plan_of(group[0])
        if not (experiment or named) or not (protocol or planned):
            raise ValueError(
                f"the name of {group[0].path} does not say its experiment and protocol: give --experiment and "
                "--protocol, such as 1.5.0 and knowledge-10k"
            )
        rows += rows_of_group(group, experiment or named, protocol or planned, split)
    return rows
