"""run.json: what a run was, on what it ran, how far it came and why it ended; train.log beside it."""

import logging
import os
import platform
import shlex
import sys
import traceback
from contextlib import contextmanager
from datetime import datetime
from importlib import metadata
from pathlib import Path

import torch

from .folder import Run, git, hold_lock, write_json

PACKAGES = ("torch", "transformers", "accelerate", "safetensors", "tokenizers", "numpy", "swanlab", "triton")


def now() -> str:
    return datetime.now().isoformat(timespec="seconds")


def environment() -> dict:
    """Versions and hardware; no names, paths or environment variables."""
    gpu = torch.cuda.get_device_properties(0) if torch.cuda.is_available() else None
    packages = {}
    for name in PACKAGES:
        try:
            packages[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return {
        "python": platform.python_version(), "torch": torch.__version__, "cuda": torch.version.cuda,
        "gpu": gpu.name if gpu else None, "gpu_mib": gpu.total_memory // 2**20 if gpu else None,
        "cpu": platform.processor() or platform.machine(), "cpu_cores": os.cpu_count(), "packages": packages,
    }  # fmt: skip


def short_traceback() -> str:
    """The traceback of the exception at hand, with paths from the project's root: it ends up in a tracked record."""
    return traceback.format_exc().replace(f"{Path(__file__).resolve().parents[1]}{os.sep}", "")


def session_of(run: Run) -> dict:
    """What is kept of a session of a run once another has begun."""
    stages = [run.stage(stage["name"]) for stage in run.info.get("stages", [])]
    facts = {name: run.info.get(name) for name in ("start_time", "git_commit", "error")}
    return facts | {"state": run.state, "end_time": run.end_time, "stages": stages}


class RunInfo:
    """The facts of a run, written to run.json at every change. Only the main process writes.

    As long as the process lives it holds the folder's lock, so that a run that was killed is not taken for one that
    goes on. A run that goes on after an interruption keeps what the earlier sessions were under `earlier_sessions`.

    Raises:
        ValueError: another process trains in the folder.
    """

    def __init__(self, out_dir: str | Path, writes: bool = True, resumes: bool = False, **facts):
        self.path, self.writes = Path(out_dir) / "run.json", writes
        before = None
        if writes:
            before = Run(out_dir) if resumes and self.path.exists() else None
            # Read before the lock is taken: a killed run is then still known as one.
            sessions = [*before.info.get("earlier_sessions", []), session_of(before)] if before else []
            self.lock = hold_lock(Path(out_dir))
        command = shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])
        self.facts = {
            "state": "running", "start_time": now(), "end_time": None, "command": command,
            "git_commit": git("rev-parse", "HEAD"), "git_dirty": bool(git("status", "--porcelain")),
            "git_uncommitted": (git("diff", "HEAD", "--numstat") or "").splitlines(),
            "environment": environment(), "stages": [], "data": {}, "error": None, "earlier_sessions": [], **facts,
        }  # fmt: skip
        if before:
            self.facts |= {"earlier_sessions": sessions, "swanlab": before.info.get("swanlab")}
        self.save()

    def save(self) -> None:
        if self.writes:
            write_json(self.path, self.facts)

    def set(self, **facts) -> None:
        self.facts |= facts
        self.save()

    def report(self, name: str, report: dict) -> None:
        """Keep a report of the data, such as how many sentences were cut."""
        self.facts["data"][name] = report
        self.save()

    @contextmanager
    def stage(self, name: str):
        """A stage of the run with its start, end and state; notes are added to the yielded dict."""
        stage = {"name": name, "start": now(), "end": None, "state": "running", "notes": ""}
        self.facts["stages"].append(stage)
        self.save()
        try:
            yield stage
            stage["state"] = "finished"
        except SystemExit:  # a signal before the first step
            stage["state"] = "stopped"
            raise
        except BaseException as problem:
            stage["state"] = "failed"
            stage["notes"] = f"{type(problem).__name__}: {problem}"
            self.fail()
            raise
        finally:
            stage["end"] = now()
            self.save()

    def fail(self) -> None:
        """Close the run as "failed", with the traceback of the exception at hand."""
        if self.facts["state"] == "running":
            self.set(state="failed", error=short_traceback(), end_time=now())

    def finish(self, state: str) -> None:
        """Close the run as "finished" or "stopped"."""
        self.set(state=state, end_time=now())


def make_log(out_dir: str | Path, writes: bool) -> logging.Logger:
    """The logger of a run: lines with times in train.log."""
    log = logging.getLogger("run")
    log.setLevel(logging.INFO)
    log.propagate = False
    for handler in list(log.handlers):
        log.removeHandler(handler)
        handler.close()
    handler = logging.FileHandler(Path(out_dir) / "train.log") if writes else logging.NullHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s", "%Y-%m-%d %H:%M:%S"))
    log.addHandler(handler)
    return log
