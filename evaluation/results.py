"""eval.json: the results of a run. Each evaluation adds to the file; it never replaces a result by a smaller one.

A result is of one task, of one control or none. `limit` tells how many questions it was allowed (null: all), `n` how
many there were. A result replaces that of an earlier evaluation unless that one had a larger limit or a larger `n`; of
several sets (`sets`) each does so by itself.
Results of other weights, or of another of the `POINTER` flags, are renamed to eval_step{step}.json. Those
of an edited bank stand in eval_bank_{digest}.json, for eval.json and the record tell of the bank as trained. Every
result that was ever measured is a line of evaluations.jsonl. harness.json holds the tasks of lm-evaluation-harness in
the same way.
"""

import fcntl
import json
import math
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from common.files import read_json
from runs.journal import Journal
from runs.run import Run, git, now, set_aside, write_json

FILE, LOG = "eval.json", "evaluations.jsonl"
# Flags that may change after the training too.
POINTER = {
    "pointer_scale": 1.0, "pointer_asked": 0.0, "pointer_edited": 0.0, "pointer_edited_said": False,
    "pointer_edited_unsaid": 0.0,
}  # fmt: skip


def about_evaluation(run_dir: Path, device: torch.device, limit: int | None) -> dict:
    """What is measured, when and on what; `step` and `bank` tell which weights and which edits."""
    config, journal, steps = (
        read_json(run_dir / "config.json"),
        Journal(run_dir),
        [line["step"] for line in Run(run_dir).metrics if "step" in line],
    )
    return {
        "run": run_dir.name, "date": now(), "git_commit": git("rev-parse", "HEAD"), "torch": torch.__version__,
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu", "limit": limit,
        "step": max(steps, default=None), "edits": len(journal.edited_rows()), "bank": journal.digest(),
    } | {name: config.get(name, default) for name, default in POINTER.items()}  # fmt: skip


def read_results(path: Path) -> dict:
    """The content of a file of results; empty where there is none.

    Raises:
        ValueError: it is not a JSON object.
    """
    results = read_json(path) if path.exists() else {}
    if not isinstance(results, dict):
        raise ValueError(f"{path} is not a JSON object: delete it, and evaluate again")
    return results


def is_smaller(new: dict, old: dict) -> bool:
    """Whether a result was allowed fewer questions than another, or had fewer."""
    limits = [math.inf if result.get("limit") is None else result["limit"] for result in (new, old)]
    numbers = [result.get("n") for result in (new, old)]
    return limits[0] < limits[1] or all(isinstance(n, int) for n in numbers) and numbers[0] < numbers[1]


def with_sets_of(old: dict, new: dict) -> tuple[dict, list[str]]:
    """The new result with the old one's sets beside its own, and the names of those that the old one has larger.

    Its limit is the smallest of any set.
    """
    sets = {name: own | {"limit": new["limit"]} for name, own in new["sets"].items()}
    kept = [name for name, own in sets.items() if name in old["sets"] and is_smaller(own, old["sets"][name])]
    sets = old["sets"] | sets | {name: old["sets"][name] for name in kept}
    limit = min((own["limit"] for own in sets.values() if own["limit"] is not None), default=None)
    return new | {"sets": sets, "n": sum(own["n"] for own in sets.values()), "limit": limit}, kept


class ResultFile:
    """The results of a run, old and new, on the disk.

    Args:
        about: facts of this evaluation, as `about_evaluation` returns them.
        file: the name of the file in the run folder.
    Attributes:
        measured: the results of this evaluation alone, in the form of eval.json.
        larger: names of results that were not stored, because eval.json has larger ones.
        problem: why results could not be written; empty if they were.
    """

    def __init__(self, run_dir: str | Path, about: dict, file: str = FILE):
        self.run_dir, self.about, self.path = Path(run_dir), about, Path(run_dir) / file
        if about["bank"]:
            self.path = self.path.with_stem(f"{self.path.stem}_bank_{about['bank']}")
        self.measured: dict = {"arms": {}, "about": about}
        self.larger: list[str] = []
        self.problem = ""

    def require_writable(self) -> None:
        """Refuse a folder that cannot be written, before anything is evaluated.

        Raises:
            ValueError: the folder is read-only or full, or eval.json is damaged.
        """
        read_results(self.path)
        try:
            with self._locked() as log:
                log.write(b" " * 4096)  # a full disk refuses it
                log.flush()
                log.truncate(log.tell() - 4096)
        except OSError as problem:
            raise ValueError(
                f"{self.run_dir} cannot be written, and {self.path.name} goes there: make room or give permission, or "
                f"evaluate a copy of the folder ({problem.strerror})"
            ) from None

    def add(self, task: str, control: str, result: dict) -> None:
        """Store a result at once, unless a larger one is there."""
        result = result | {"limit": self.about["limit"]}
        (self.measured["arms"].setdefault(control, {}) if control else self.measured)[task] = result
        line = {"task": task, "control": control} | self.about | {"result": result}
        try:
            with self._locked() as log:
                log.write(json.dumps(line, ensure_ascii=False, default=str).encode() + b"\n")
                log.flush()
                results = self._results()
                into = results["arms"].setdefault(control, {}) if control else results
                if "sets" in result:
                    result, kept = with_sets_of(into.get(task, {"sets": {}}), result)
                    self.larger += [f"{name}, {control}" if control else name for name in kept]
                elif task in into and is_smaller(result, into[task]):
                    self.larger.append(f"{task}, {control}" if control else task)
                    return
                into[task] = result
                write_json(self.path, results)
        except (OSError, ValueError) as problem:
            self.problem = str(problem)

    def close(self, **facts) -> None:
        """Write facts of the whole evaluation, such as its peak memory."""
        self.measured |= facts
        try:
            with self._locked():
                write_json(self.path, self._results() | {"about": self.about} | facts)
        except (OSError, ValueError) as problem:
            self.problem = str(problem)

    def _results(self) -> dict:
        """eval.json as it is now. Results of other weights or of another bank are moved to a file of their own."""
        results = read_results(self.path)
        about = results.get("about", {})
        step = about.get("step", self.about["step"])
        # An earlier version counted the edits, and did not name the bank.
        bank = about.get("bank", "unknown" if about.get("edits") else None)
        pointers = [[one.get(name, default) for name, default in POINTER.items()] for one in (about, self.about)]
        if results and (step, bank, pointers[0]) != (self.about["step"], self.about["bank"], pointers[1]):
            moved = set_aside(self.path, step)
            print(f"{self.path.name} is of other weights or another bank: it is now {moved.name}", file=sys.stderr)
            results = {}
        if "about" in results:  # each result keeps its own limit when `about` changes
            old = results["about"].get("limit")
            parts = (results, *results.get("arms", {}).values())
            for result in (value for part in parts for name, value in part.items() if isinstance(value, dict)):
                if "seconds" in result:
                    result.setdefault("limit", old)
        results.setdefault("arms", {})
        return results | {"about": self.about}

    @contextmanager
    def _locked(self) -> Iterator:
        """The log, open for appending; one process at a time changes the two files."""
        with open(self.run_dir / LOG, "ab") as log:
            fcntl.flock(log, fcntl.LOCK_EX)
            log.seek(0, os.SEEK_END)
            yield log
