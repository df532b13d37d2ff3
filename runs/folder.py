"""A run folder while its run lives: lock, run.json, train.log, metrics; at the end the outcome and the record.

run.json says what the run was, on what it ran, how far it came and why it ended. `runs/run.py` reads it back.
"""

import errno
import fcntl
import hashlib
import logging
import os
import platform
import shlex
import shutil
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from importlib import metadata
from pathlib import Path

import torch

from dataset.knowledge import BANK_ORDER
from trainer.checkpoint import BANKS, checkpoint_dirs
from trainer.config import Flags
from trainer.state import TrainState

from .changed import warn_of_edits, warn_of_flags, warn_of_idle_flags, warn_of_own_edits
from .record import fill_record
from .run import CODE, LOCK, ROOT, Run, git, now, set_aside, write_json
from .source import keep_source
from .tracking import Tracker

PACKAGES = ("torch", "transformers", "accelerate", "safetensors", "tokenizers", "numpy", "swanlab", "triton")
# Of the files that git does not track, run.json names so many and reads those below 1 MB.
UNTRACKED_FILES, UNTRACKED_BYTES = 100, 1_000_000
LEFT_OVER = (
    "eval.json", "eval_step*.json", "eval_bank_*.json", "harness*.json", "evaluations.jsonl", "memory_journal*.jsonl",
    BANK_ORDER, "train.log", "model.safetensors",
)  # fmt: skip


def hold_lock(run_dir: Path) -> int:
    """Mark a run folder as in use by this process, until that ends, in whatever way.

    Raises:
        ValueError: another process holds it.
    """
    descriptor = os.open(run_dir / LOCK, os.O_RDWR | os.O_CREAT)
    for last in (False,) * 9 + (True,):
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            if last:
                os.close(descriptor)
                told = f"another process trains in {run_dir}: stop it first, or give another --out_dir"
                raise ValueError(told) from None
            time.sleep(0.1)  # is_locked, asked by somebody else, holds it for a moment
        except OSError as problem:  # some network file systems have no locks, and a run is worth more than its label
            print(
                f"{run_dir} cannot be locked ({problem}): until it ends, the run is listed as killed", file=sys.stderr
            )
            break
    # A worker that outlives a killed run must not keep the run alive. The worker's own children have nothing to close.
    owner = os.getpid()
    os.register_at_fork(after_in_child=lambda: os.getppid() == owner and os.close(descriptor))
    return descriptor


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


def untracked() -> list[dict]:
    """New files that git neither tracks nor ignores: path, bytes, and below 1 MB lines and SHA-256."""
    found = []
    for path in (git("ls-files", "-z", "--others", "--exclude-standard", *CODE) or "").split("\0")[:UNTRACKED_FILES]:
        file = ROOT / path
        if not path or not file.is_file():
            continue
        size = file.stat().st_size
        about = {"path": path, "bytes": size}
        if size < UNTRACKED_BYTES and os.access(file, os.R_OK):
            data = file.read_bytes()
            about |= {"lines": len(data.splitlines()), "sha256": hashlib.sha256(data).hexdigest()}
        found.append(about)
    return found


def short_traceback() -> str:
    """The traceback of the exception at hand, with paths from the project's root: it ends up in a tracked record."""
    return traceback.format_exc().replace(f"{Path(__file__).resolve().parents[1]}{os.sep}", "")


def session_of(run: Run) -> dict:
    """The facts of a session that remain in run.json once another has begun."""
    stages = [run.stage(stage["name"]) for stage in run.info.get("stages", [])]
    facts = {name: run.info.get(name) for name in ("start_time", "git_commit", "error", "code")}
    return facts | {"state": run.state, "end_time": run.end_time, "stages": stages}


class RunFolder:
    """The folder of a run that trains. Only the main process writes.

    The facts of the run are written to run.json at every change. As long as the process lives it holds the folder's
    lock. So a killed run is not mistaken for a running one. A run that goes on after an interruption has its
    earlier sessions under `earlier_sessions`.

    Args:
        writes: whether this is the main process.
        resumes: whether the run goes on from a checkpoint.
        facts: of the run, for run.json.
    Raises:
        ValueError: another process trains in the folder.
    """

    def __init__(self, path: str | Path, writes: bool = True, resumes: bool = False, **facts):
        self.path, self.writes = Path(path), writes
        self.log_file, self.tracker = logging.getLogger("run"), None
        self.explained = nullcontext
        before = None
        if writes:
            before = Run(path) if resumes and (self.path / "run.json").exists() else None
            # Read before the lock is taken: a killed run is then still known as one.
            sessions = [*before.info.get("earlier_sessions", []), session_of(before)] if before else []
            self.lock = hold_lock(self.path)
        command = shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])
        self.facts = {
            "state": "running", "start_time": now(), "end_time": None, "command": command,
            "git_commit": git("rev-parse", "HEAD"), "git_dirty": bool(git("status", "--porcelain", *CODE)),
            "git_uncommitted": (git("diff", "HEAD", "--numstat", *CODE) or "").splitlines(),
            "git_untracked": untracked(), "environment": environment(), "stages": [], "data": {}, "error": None,
            "earlier_sessions": [], **facts,
        }  # fmt: skip
        if before:
            self.facts |= {"earlier_sessions": sessions, "swanlab": before.info.get("swanlab")}
        self.save()

    @classmethod
    @contextmanager
    def open(cls, flags: Flags, accelerator, stop, peers) -> Iterator["RunFolder"]:
        """Claim the folder `--out_dir` for a session of training, empty with `--no_resume`.

        On leaving, the outcome stands in run.json and the record is filled.

        Args:
            stop: a `trainer.stop.Stop`, which knows whether a signal ended the run.
            peers: a `trainer.peers.Peers`, which knows whether the death of another process did.
        Raises:
            ValueError: another process trains in the folder, or SwanLab is asked for and missing.
        """
        folder = cls.claimed(flags, accelerator)
        folder.explained, peers.on_loss = peers.named, folder.fail
        try:
            with folder.stage("env"):
                folder.start_tracker(flags)
                folder.note(f"{accelerator.num_processes} x {accelerator.device.type}, {flags.optim.dtype}")
            yield folder
            folder.finish("finished" if stop.received is None else "stopped")
        except SystemExit:  # a signal that came before the first step
            folder.finish("stopped")
            raise
        except BaseException:
            folder.fail()
            raise
        finally:
            folder.close(flags.run.experiment_dir)

    @classmethod
    def claimed(cls, flags: Flags, accelerator) -> "RunFolder":
        """The folder with its lock held and its log open; flags.json is written unless a checkpoint is there."""
        run, path, writes = flags.run, Path(flags.run.out_dir), accelerator.is_main_process
        if writes:
            require_folder(path)
        folder = cls(
            path, writes, resumes=run.resume and bool(checkpoint_dirs(path)),
            name=run.name, experiment=run.experiment_id, base=run.base_experiment, baseline=run.baseline,
            target_loss=run.target_loss, seed=run.seed, processes=accelerator.num_processes,
            idle_flags=sorted(flags.idle(every=True)),
        )  # fmt: skip
        if writes:
            if not run.resume:
                clear(path)
            folder.set(code=keep_source(path))
        folder.flags = flags.as_dict()
        accelerator.wait_for_everyone()
        make_log(path, writes)
        if writes:
            warn_of_idle_flags(flags.idle())
        if writes and flags.data.init_path:
            warn_of_edits(flags.data.init_path)
        if writes and not (checkpoint_dirs(path) and (path / "flags.json").exists()):  # else in `rewind`
            write_json(path / "flags.json", folder.flags)
        return folder

    def start_tracker(self, flags: Flags) -> None:
        run = flags.run
        self.tracker = Tracker(
            self.path, self.writes, run.use_swanlab, run.swanlab_project, run.name, flags.as_dict(), run.swanlab_mode,
            self.facts.get("swanlab"),
        )  # fmt: skip
        self.set(**self.tracker.facts)

    def save(self) -> None:
        if self.writes:
            write_json(self.path / "run.json", self.facts)

    def set(self, **facts) -> None:
        self.facts |= facts
        self.save()

    def report(self, name: str, report: dict) -> None:
        """Write down a report of the data, such as how many sentences were cut."""
        self.facts["data"][name] = report
        self.save()

    def note(self, text: str) -> None:
        """Write down in one line what the stage at hand did."""
        self.facts["stages"][-1]["notes"] = text

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """A stage of the run with its start, end and state."""
        stage = {"name": name, "start": now(), "end": None, "state": "running", "notes": ""}
        self.facts["stages"].append(stage)
        self.save()
        try:
            with self.explained():
                yield
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

    def rewind(self, state: TrainState) -> None:
        """Forget the metrics after a step; if the run goes on, write its flags and put its evaluations aside."""
        step, goes_on = state.step, state.step < state.total_steps
        self.tracker.rewind(step)
        if self.writes and step:
            old = warn_of_flags(self.path, self.flags, step, state.steps_per_epoch)
            if old and goes_on and self.facts["earlier_sessions"]:
                self.facts["earlier_sessions"][-1]["flags"] = old
                self.save()
        if self.writes and goes_on:
            write_json(self.path / "flags.json", self.flags)
            if step:
                warn_of_own_edits(self.path)
        for scores in (self.path / "eval.json", self.path / "harness.json"):
            if self.writes and goes_on and scores.exists():
                set_aside(scores, step)
                self.log_file.warning("%s, from before step %d, was put aside: evaluate again", scores.name, step)

    def log(self, step: int, metrics: dict) -> None:
        """Write one line of metrics.jsonl."""
        self.tracker.log(metrics, step)

    def fail(self, error: str | None = None) -> None:
        """Close the run as "failed", with this error or the traceback of the exception at hand."""
        if self.facts["state"] == "running":
            self.set(state="failed", error=error or short_traceback(), end_time=now())

    def finish(self, state: str) -> None:
        """Close the run as "finished" or "stopped"."""
        self.set(state=state, end_time=now())

    def close(self, experiment_dir: str) -> None:
        """Close the tracker and fill the record. A record that cannot be filled hides no outcome of the run."""
        if self.tracker:
            self.tracker.finish(self.facts["error"])
        if not self.writes:
            return
        try:
            self.log_file.info("record: %s", fill_record(self.path, experiment_dir))
        except (ValueError, OSError, ImportError) as problem:
            self.log_file.error("the record was not filled: %s", problem)
            print(f"the record was not filled: {problem}", file=sys.stderr)


def require_folder(path: Path) -> None:
    """Make a run folder, unless it is there.

    Raises:
        ValueError: it cannot be made, or nothing can be written into it.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        if not os.access(path, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as problem:
        raise ValueError(
            f"--out_dir {path} cannot be written ({problem.strerror}): give permission, or another"
        ) from None


def clear(path: Path) -> None:
    """Delete the checkpoints and results of an earlier run from its folder."""
    for folder in filter(Path.exists, (*checkpoint_dirs(path), path / BANKS, *path.glob("code"), *path.glob("code_*"))):
        shutil.rmtree(folder)
    for pattern in LEFT_OVER:
        for file in path.glob(pattern):
            file.unlink()


def make_log(out_dir: str | Path, writes: bool) -> logging.Logger:
    """The logger of a run: lines with times in train.log."""
    log = logging.getLogger("run")
    log.setLevel(logging.INFO)
    log.propagate = False
    for handler in list(log.handlers):
        log.removeHandler(handler)
        handler.close()
    handler: logging.Handler = logging.NullHandler()
    if writes:
        handler = logging.FileHandler(Path(out_dir) / "train.log", encoding="utf-8", errors="replace")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s", "%Y-%m-%d %H:%M:%S"))
    log.addHandler(handler)
    return log
