"""Checks: every script resolves to valid flags, every record agrees with its run, every document with its rows."""

import re
from collections.abc import Iterator
from pathlib import Path

from runs.record import AREA, BLOCK, INLINE, fill_text, values_for
from runs.run import Run, find_runs
from trainer.config import parse_cli

from .documents.rows import Row, Rows
from .documents.write import problems as problems_of_documents
from .new import script_flags
from .rows_record import stale_tables
from .scripts import scripts

SOURCES_APART = 0.01  # nats; text and sources may be means over other seeds
MARKER = re.compile(r"<!--(?:(?:flag|ai|draft|end):)?\w+(?::[0-9a-f]{8})?-->")


def check_script(path: Path) -> str | None:
    """What is wrong with a script of an experiment, or None."""
    try:
        flags = parse_cli(script_flags(path))
    except ValueError as problem:
        return str(problem)
    name = path.stem.removeprefix("experiment_")
    if flags.run.experiment_id != name:
        return f"its --out_dir belongs to experiment {flags.run.experiment_id}"
    text = path.read_text(encoding="utf-8")
    stated, base = re.search(r"^# Builds on: (\S+)", text, re.M), flags.run.base_experiment or "none"
    if stated and stated[1] != base:
        return f"it builds on {base}, and its comment says {stated[1]}"
    blank = next((name for name in ("question", "change") if f"[{name.upper()}]" in text), None)
    return f"its {blank} is still [{blank.upper()}]: write the {blank} into its comment" if blank else None


def check_record(path: Path, runs: list[Run]) -> str | None:
    """What is wrong with a record, or None: damaged markers, or values that differ from its run."""
    text = path.read_text(encoding="utf-8")
    markers, read = len(MARKER.findall(text)), sum(len(shape.findall(text)) for shape in (INLINE, BLOCK, AREA))
    if markers != read:
        return (
            f"{markers - read} of {markers} markers <!--NAME--> have no value before them: restore `value`<!--NAME-->"
        )
    run = recorded_run(text, path, runs)
    if run is None:
        return None
    try:
        filled = fill_text(text, values_for(run, path))
    except ValueError as problem:
        return str(problem)
    old, new = text.splitlines(), filled.splitlines()
    if filled == text:
        return None
    line = next(i for i, (a, b) in enumerate(zip(old, new, strict=False), 1) if a != b)
    return f"line {line} is not what {run.path} says: python -m experiment fill {run.path}"


def recorded_run(text: str, path: Path, runs: list[Run]) -> Run | None:
    """The run that filled a record: it has the record's experiment and output folder."""
    folders = [value for value, name, _ in INLINE.findall(text) if name == "OUT_DIR"]
    experiment = path.stem.removeprefix("EXPERIMENT_")
    for run in runs:
        if run.number == experiment and str(run.flag("out_dir")) in folders:
            return run
    return None


def check_sources(rows: list[Row]) -> Iterator[str]:
    """What is wrong with losses by source: weighed by tokens, those of all sources are the loss of the text."""
    by_arm: dict[tuple, dict[str, Row]] = {}
    for row in rows:
        if row.measure.startswith("val_loss"):
            by_arm.setdefault((row.experiment, row.arm, row.split, row.protocol), {})[row.measure] = row
    for arm, found in by_arm.items():
        total = found.pop("val_loss", None)
        sources = [row for row in found.values() if row.n]
        if not (total and total.n and sum(row.n for row in sources) == total.n):
            continue
        mean = sum(row.n * row.value for row in sources) / total.n
        if abs(mean - total.value) > SOURCES_APART:
            yield f"{' / '.join(arm)}: its sources have a mean loss of {mean:.4f}, its text {total.value:.4f}"


def problems(root: Path, runs_root: Path) -> Iterator[tuple[Path, str]]:
    """(file, what is wrong with it) for all scripts, records and documents of the project."""
    runs, rows = find_runs(runs_root, deep=True), Rows.load(root)
    for path in scripts(root):
        if problem := check_script(path):
            yield path.relative_to(root), problem
    for path in sorted((root / "experiment").rglob("EXPERIMENT_*.md")):
        if problem := check_record(path, runs) or stale_tables(path, path.read_text(encoding="utf-8"), rows):
            yield path.relative_to(root), problem
    yield from ((Path("experiment/results.jsonl"), problem) for problem in check_sources(rows.results))
    yield from problems_of_documents(root)
