"""A grid over flags: its runs go one after the other, each in its own folder, until all are finished."""

import itertools
import json
import os
import shlex
import subprocess
import time
from pathlib import Path

from runs.run import Run, is_locked

from .compare import list_runs, spread
from .metrics import metric, span
from .new import split_flags
from .tables import Table


def read_grid(axes: list[str]) -> dict[str, list[str]]:
    """`learning_rate=1e-4,2e-4` as {"learning_rate": ["1e-4", "2e-4"]}; separate the values of a list flag by spaces.

    Raises:
        ValueError: an axis has no values, or occurs twice.
    """
    grid: dict[str, list[str]] = {}
    for axis in axes:
        name, _, values = axis.partition("=")
        name = name.removeprefix("--")
        if not values or not name or name in grid:
            raise ValueError(f"--grid {axis!r} must be FLAG=VALUE,VALUE,..., each flag once")
        grid[name] = values.split(",")
    return grid


def points_of(grid: dict[str, list[str]]) -> list[dict[str, str]]:
    return [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]


def folder_of(point: dict[str, str]) -> str:
    """The name of a point's run folder, such as learning_rate_1e-4__seed_1."""
    text = "__".join(f"{name}_{value}" for name, value in point.items())
    return "".join(c if c.isalnum() or c in "._-" else "-" for c in text)


def is_done(run: Run) -> bool:
    return run.state == "finished" and (bool(run.eval) or os.environ.get("EVALUATE") == "0")


def begin(folder: Path, plan: dict) -> None:
    """Write down the plan of a sweep, so that its name cannot be reused for another one.

    Raises:
        ValueError: the folder holds another sweep.
    """
    folder.mkdir(parents=True, exist_ok=True)
    note = folder / "sweep.json"
    if note.exists() and json.loads(note.read_text(encoding="utf-8")) != plan:
        raise ValueError(f"{folder} holds another sweep (see {note}): choose another name")
    note.write_text(json.dumps(plan, indent=1), encoding="utf-8")


def wait_for(command: list[str], **options) -> int:
    """The exit status of a command. Ctrl-C reaches the command too; wait until it has saved."""
    with subprocess.Popen(command, **options) as process:
        try:
            return process.wait()
        except KeyboardInterrupt:
            process.wait()
            raise


def run_sweep(
    script: Path, grid: dict[str, list[str]], flags: list[str], folder: Path, root: Path
) -> tuple[list[Table], int]:
    """Run the unfinished points of a grid in order; a point that fails is reported and does not stop the others.

    Returns:
        The tables of all runs, and the number of runs that did not finish.
    Raises:
        ValueError: the folder holds another sweep, or a run of it is being trained by another process.
        KeyboardInterrupt: the current run was stopped by a signal; the same command continues it.
    """
    split_flags(flags)
    begin(folder, {"script": script.name, "grid": grid, "flags": flags})
    points = {folder / folder_of(point): point for point in points_of(grid)}
    for number, (path, point) in enumerate(points.items(), 1):
        label = f"[{number}/{len(points)}] {', '.join(f'{name} {value}' for name, value in point.items())}"
        if is_done(Run(path)):
            print(f"{label}: finished before", flush=True)
            continue
        if is_locked(path):
            raise ValueError(f"another process is training in {path}: let it end, then repeat the sweep")
        start = time.monotonic()
        axes = [token for name, value in point.items() for token in (f"--{name}", *shlex.split(value))]
        own = ["--out_dir", str(path), "--experiment", path.name, "--experiment_dir", str(folder / "records")]
        path.mkdir(exist_ok=True)
        log = path / "launch.log"
        with open(log, "w", encoding="utf-8") as output:
            code = wait_for(["bash", str(script), *flags, *axes, *own], cwd=root, stdout=output, stderr=output)
        run = Run(path)
        if code in (130, 143) or run.state == "stopped":
            raise KeyboardInterrupt(f"{label}: stopped; the same command continues it")
        last = (log.read_text(encoding="utf-8", errors="replace").splitlines() or ["it printed nothing"])[-1]
        outcome = f"validation loss {run.best['val_loss']:.4f}" if code == 0 and run.best else f"failed, {log}: {last}"
        print(f"{label}: {outcome}, {span(time.monotonic() - start)}", flush=True)
    runs = [Run(path) for path in points]
    return sweep_tables(points, runs), sum(not is_done(run) for run in runs)


def sweep_tables(points: dict[Path, dict[str, str]], runs: list[Run]) -> list[Table]:
    """A row for each run, the best validation first; then the means over seeds."""
    table = list_runs(runs)
    dropped = ("run", "experiment", "seed", "age")
    rows = [{name: value for name, value in row.items() if name not in dropped} for row in table.rows]
    rows = [points[run.path] | row for run, row in zip(runs, rows, strict=True)]
    rows.sort(key=lambda row: (row["loss"] is None, row["loss"]))
    tables = [Table("sweep, best validation first", rows, table.formats)]
    axes = [name for name in next(iter(points.values())) if name != "seed"]
    if axes and "seed" in rows[0]:
        losses: dict[tuple, list[float]] = {}
        for row in rows:
            losses.setdefault(tuple(row[name] for name in axes), []).append(row["loss"])
        means = []
        for setting, found in losses.items():
            found = [loss for loss in found if loss is not None]
            loss = spread(found, metric("best_val_loss")) if found else None
            means.append(dict(zip(axes, setting, strict=True)) | {"mean loss": loss, "seeds": len(found)})
        tables.append(Table("mean ± standard deviation over seeds", means))
    return tables
