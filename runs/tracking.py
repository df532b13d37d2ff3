"""Metrics: always in metrics.jsonl, on request in SwanLab too. A failure of SwanLab never stops a run."""

import importlib.util
import json
import logging
import math
import os
import queue
import sys
import threading
import time
from pathlib import Path

from . import dashboard
from .metrics import dashboard_name, results_of, scores_of
from .run import Run

SWANLAB_DIR = "swanlog"
PATIENCE = 60  # seconds that SwanLab may take to open and to close a run
BACKLOG = 10_000  # calls that may wait for SwanLab
log = logging.getLogger("run")


def swanlab_mode(wanted: str | None) -> str:
    """The mode to open SwanLab in: the flag, then SWANLAB_MODE, then online with a key and local without.

    Raises:
        ValueError: SwanLab, or the dashboard that local mode needs, is not installed.
    """
    if importlib.util.find_spec("swanlab") is None:
        raise ValueError("--use_swanlab needs SwanLab: pip install 'swanlab[dashboard]', or leave the flag out")
    import swanlab

    mode = wanted or os.environ.get("SWANLAB_MODE")
    if mode is None:
        has_key = bool(os.environ.get("SWANLAB_API_KEY")) or (Path.home() / ".swanlab" / ".netrc").exists()
        mode = "online" if has_key else "local"
    # Without its dashboard package local mode trains on and records nothing.
    if mode == "local" and importlib.util.find_spec("swanboard") is None:
        raise ValueError(f"SwanLab {swanlab.__version__} in local mode needs: pip install 'swanlab[dashboard]'")
    return mode


class SwanLab:
    """A SwanLab run behind a thread. No call waits for it; if it fails or hangs, it is given up with one message.

    Args:
        before: the "swanlab" of `facts` when the run was last open. An online run is continued. A local one is
            replaced, because local SwanLab cannot continue a run: the caller logs its metrics again.
    """

    def __init__(self, name: str, project: str, flags: dict[str, dict], mode: str, before: dict | None = None):
        self.mode, self.project, self.run, self.problem = mode, project, None, None
        self.giving_up = threading.Lock()
        self.charts, self.unplaced = set(), 0  # names of charts, and looks at the dashboard until all stand in place
        self.before = before if before and before.get("mode") == mode else None
        self.calls: queue.Queue = queue.Queue()
        threading.Thread(target=self._work, daemon=True, name="swanlab").start()
        self.call(lambda _: self._open(name, flags))
        self.wait()

    @property
    def is_new(self) -> bool:
        """Whether the run starts empty: it does not continue an earlier one."""
        return self.mode == "local" or not self.before

    @property
    def facts(self) -> dict:
        """For run.json: how to find this run again, and where a person can see it."""
        if self.run is None or self.mode == "disabled":
            return {"swanlab": self.before, "swanlab_url": None}
        folder = Path(self.run.dir).name
        places = {"local": f"swanlab watch {SWANLAB_DIR}", "offline": f"swanlab sync {SWANLAB_DIR}/{folder}"}
        found = {"mode": self.mode, "id": self.run.id, "folder": folder}
        return {"swanlab": found, "swanlab_url": places.get(self.mode) or self.run.url}

    def call(self, function) -> None:
        """Queue function(run) for the thread."""
        if self.problem is None:
            self.calls.put(function)
            if self.calls.qsize() > BACKLOG:
                self._give_up(f"{BACKLOG} calls wait for it")

    def wait(self, patience: float | None = None) -> None:
        """Wait until all calls so far are done, at most `patience` seconds (default PATIENCE)."""
        patience = patience or PATIENCE
        done, deadline = threading.Event(), time.monotonic() + patience
        self.call(lambda _: done.set())
        while self.problem is None and not done.wait(0.05):
            if time.monotonic() > deadline:
                self._give_up(f"no answer in {patience:g} s")

    def log(self, metrics: dict[str, float], step: int) -> None:
        shown = {dashboard_name(name): value for name, value in metrics.items() if isinstance(value, (int, float))}
        scalars = {name: value for name, value in shown.items() if name}
        if scalars:
            self.call(lambda run: run.log(scalars, step=step))
        # SwanLab makes a new chart some time after the call, so the next call places it once more.
        self.unplaced = self.unplaced - 1 if scalars.keys() <= self.charts else 2
        self.charts |= scalars.keys()
        if self.mode == "local" and self.unplaced > 0:
            self.call(lambda run: dashboard.arrange(Path(SWANLAB_DIR), Path(run.dir).name))

    def log_lines(self, lines: list[dict]) -> None:
        """Lines of metrics.jsonl, in which null stands for NaN, as fast as SwanLab takes them."""
        for number, line in enumerate(lines, 1):
            values = {name: math.nan if value is None else value for name, value in line.items() if name != "step"}
            self.log(values, line["step"])
            if number % 1000 == 0:
                self.wait()

    def log_samples(self, samples: list[dict], step: int) -> None:
        """Continuations as text with their prompts as captions: the local dashboard needs captions."""
        if samples:
            prompts, texts = [s["prompt"] for s in samples], [s["greedy"] for s in samples]
            self.call(lambda run: run.log_text(key="results/samples", data=texts, caption=prompts, step=step))

    def log_results(self, run: Run) -> None:
        """The scores of a run as a table, a line each, which stands first on its page."""

        def send(own) -> None:
            labels, texts = zip(*results_of(run).items(), strict=True)
            step = run.metrics[-1]["step"] if run.metrics else 0
            own.log_text(key="results/table", data=list(texts), caption=list(labels), step=step)

        self.call(send)

    def log_image(self, name: str, path: Path, step: int) -> None:
        self.call(lambda run: run.log_image(key=name, data=str(path), step=step))

    def finish(self, error: str | None = None, patience: float | None = None, of: Run | None = None) -> None:
        """Close the run. `of`: the run folder, whose times the local dashboard then shows."""
        state = {"state": "crashed", "error": error} if error else {"state": "success"}
        self.call(lambda run: run.finish(**state))
        if self.mode == "local":
            times = (of.start_time, of.end_time) if of else (None, None)
            self.call(lambda run: dashboard.close(Path(SWANLAB_DIR), Path(run.dir).name, *times))
        self.wait(patience)

    def _work(self) -> None:
        while self.problem is None:
            function = self.calls.get()
            try:
                function(self.run)
            except BaseException as problem:  # SwanLab raises KeyboardInterrupt if a person deletes the run it shows
                self._give_up(f"{type(problem).__name__}: {problem}")

    def _give_up(self, reason: str) -> None:
        with self.giving_up:  # two threads may find a reason
            if self.problem is None:
                cure = "metrics.jsonl is still written, and `python -m experiment sync` sends it later"
                message = f"SwanLab failed ({reason}); {cure}"
                log.error(message)
                print(message, file=sys.stderr)
                self.problem = reason  # after it has been told: who sees it may end the process

    def _open(self, name: str, flags: dict[str, dict]) -> None:
        import swanlab

        options = {"log_dir": SWANLAB_DIR, "mode": self.mode, "project": self.project, "name": name}
        if not self.is_new:
            options |= {"id": self.before["id"], "resume": "allow"}
        elif self.before:
            dashboard.delete(Path(SWANLAB_DIR), self.before["folder"])
        # Nested values show as "[object Object]" on the dashboard and None as {}.
        config = {f"{section}/{key}": str(value) for section, part in flags.items() for key, value in part.items()}
        flat = {key: value for part in flags.values() for key, value in part.items()}
        tags = [f"{key} {flat[key]}" for key in ("model_type", "base_experiment", "seed") if flat.get(key) is not None]
        group = dashboard.group_of(name, str(flat.get("out_dir", "")))  # seeds of one experiment share it and a colour
        self.run = swanlab.init(config=config, tags=tags, group=group, color=dashboard.color_of(group), **options)


class Tracker:
    """Writes metrics of the main process; every method does nothing where `writes` is False.

    Args:
        before: the "swanlab" of run.json, from the session that this one continues.
    """

    def __init__(
        self, out_dir, writes=True, use_swanlab=False, project="", name="", flags=None, mode=None, before=None
    ):
        self.path, self.writes = Path(out_dir) / "metrics.jsonl", writes
        self.swanlab, self.file = None, None
        if writes and use_swanlab:
            self.swanlab = SwanLab(name, project, flags or {}, swanlab_mode(mode), before)

    @property
    def facts(self) -> dict:
        """The tracker's facts for run.json."""
        return self.swanlab.facts if self.swanlab else {}

    def rewind(self, step: int) -> None:
        """Drop the metrics after `step`, which a resumed run logs again, and open the file for appending."""
        if not self.writes:
            return
        lines = self.path.read_text(encoding="utf-8").splitlines() if self.path.exists() else []
        kept = [line for line in lines if line.endswith("}") and json.loads(line)["step"] <= step] if step else []
        temporary = self.path.with_name(f".{self.path.name}")
        temporary.write_text("".join(line + "\n" for line in kept), encoding="utf-8")
        temporary.replace(self.path)  # a kill leaves the old lines or the kept ones
        self.file = open(self.path, "a", encoding="utf-8")
        if self.swanlab and self.swanlab.is_new:
            self.swanlab.log_lines([json.loads(line) for line in kept])

    def log(self, metrics: dict[str, float | list[int]], step: int) -> None:
        """Write one line of metrics.jsonl. A value that is not finite becomes null, as JSON has no NaN."""
        if not self.writes:
            return
        finite = {name: v if isinstance(v, list) or math.isfinite(v) else None for name, v in metrics.items()}
        self.file.write(json.dumps({"step": step} | finite) + "\n")
        self.file.flush()
        if self.swanlab:
            self.swanlab.log(metrics, step)

    def finish(self, error: str | None = None) -> None:
        if self.file:
            self.file.close()
        if self.swanlab:
            run = Run(self.path.parent)
            self.swanlab.log_results(run)
            self.swanlab.finish(error, of=run)


def replay(run_dir: str | Path, mode: str | None = None, has_metrics: bool = False) -> str:
    """Send a run to SwanLab from its files: results as a table, metrics, samples as text, curves as image.

    A run that SwanLab already has is continued (online) or replaced (local). With `has_metrics` a continued run does
    not get its metrics again.

    Returns:
        Where it can be seen.
    Raises:
        ValueError: SwanLab is missing or failed, or the run is still being trained.
    """
    from .plots import draw_run

    run = Run(run_dir)
    if run.state == "running":
        raise ValueError(f"{run_dir} is still being trained: wait until it has ended")
    before = run.info.get("swanlab") or {}
    swanlab = SwanLab(
        run.name, run.flag("swanlab_project"), run.flags, swanlab_mode(mode or before.get("mode")), before
    )
    if swanlab.is_new or not has_metrics:
        swanlab.log_lines(run.metrics)
    step = run.metrics[-1]["step"] if run.metrics else 0
    swanlab.log({f"eval/{name}": value for name, value in scores_of(run).items()}, step)
    swanlab.log_results(run)
    swanlab.log_samples(run.eval.get("generation", {}).get("samples", []), step)
    swanlab.log_image("train/curves", draw_run(run), step)
    facts = swanlab.facts
    error = (run.info.get("error") or run.state) if run.state in ("failed", "killed") else None
    patience = PATIENCE + 0.01 * len(run.metrics)  # local SwanLab takes about 2 ms a line
    swanlab.finish(error, patience, run)
    if swanlab.problem:
        raise ValueError(f"{run_dir} did not reach SwanLab: {swanlab.problem}")
    run.update(**facts)
    return facts["swanlab_url"]
