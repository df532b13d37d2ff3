"""Run folders, read from their files: what a run was, how far it came, whether it still lives."""

import fcntl
import json
import os
import re
import subprocess
import sys
from datetime import datetime
from functools import cached_property
from itertools import count
from pathlib import Path

from common.files import atomic, parse_json, read_json

ROOT = Path(__file__).parents[1]
LOCK = ".alive"  # a file of the run folder that the training process holds locked
# What git is asked about: all but the records and their curves, which other runs fill meanwhile and which are no code.
CODE = ("--", ":/", ":(exclude)experiment/EXPERIMENT_*.md", ":(exclude)experiment/curves")
SHARED_MIB = 3072  # more than the driver's own part of a GPU's memory: another process works there too
# What may differ between two runs that are the same experiment repeated with another seed.
NOT_IDENTITY = {
    "out_dir", "experiment", "experiment_dir", "base_experiment", "baseline", "seed", "resume", "target_loss",
    "cache_dir", "use_swanlab", "swanlab_project", "swanlab_mode",
}  # fmt: skip


def git(*arguments: str) -> str | None:
    """The output of a git command in this project, or None where there is no git or no repository."""
    try:
        result = subprocess.run(
            ["git", "-C", str(ROOT), *arguments],
            capture_output=True, encoding="utf-8", errors="replace", timeout=10,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return None
    return result.stdout.strip() if result.returncode == 0 else None


def write_json(path: Path, value) -> None:
    """Write a JSON file so that a reader sees the old content or the new, never a half."""
    with atomic(path) as temporary:
        temporary.write_text(json.dumps(value, ensure_ascii=False, indent=1, default=str), encoding="utf-8")


def set_aside(scores: Path, step: int | None) -> Path:
    """Rename a file of results by the step of its weights, without touching those that were set aside before."""
    names = (f"{scores.stem}_step{step}{f'_{n}' * (n > 1)}.json" for n in count(1))
    path = next(path for path in map(scores.with_name, names) if not path.exists())
    return scores.replace(path)


def now() -> str:
    return datetime.now().isoformat(timespec="seconds")


def is_locked(run_dir: Path) -> bool:
    """Whether a living process trains in a run folder."""
    try:
        descriptor = os.open(run_dir / LOCK, os.O_RDONLY)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # RunFolder has said that there are no locks here
        return False
    finally:
        os.close(descriptor)
    return False


def last_sign_of_life(run_dir: Path, stages: list[dict]) -> str | None:
    """The latest time that a run wrote down, in its log or at a stage: when a killed run still lived."""
    times = [stage[side] for stage in stages for side in ("start", "end") if stage.get(side)]
    log = run_dir / "train.log"
    if log.exists():
        for line in reversed(log.read_text(encoding="utf-8", errors="replace").splitlines()):
            try:
                times.append(datetime.fromisoformat(line[:19]).isoformat())
                break
            except ValueError:  # a line of a traceback has no time
                continue
    return max(times, default=None)


def seconds_between(start: str | None, end: str | None) -> float | None:
    return (datetime.fromisoformat(end) - datetime.fromisoformat(start)).total_seconds() if start and end else None


class Run:
    """A run folder, read from its files."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.info = self._read("run.json")
        self.flags = self._read("flags.json")
        self.eval = self._read("eval.json")

    def _read(self, name: str):
        path = self.path / name
        value = read_json(path) if path.exists() else {}
        if not isinstance(value, dict):
            raise ValueError(f"{path}: not the JSON object that a run writes there")
        return value

    def update(self, **facts) -> None:
        """Change facts of run.json."""
        self.info |= facts
        write_json(self.path / "run.json", self.info)

    @property
    def name(self) -> str:
        return self.path.name

    @cached_property
    def metrics(self) -> list[dict]:
        path = self.path / "metrics.jsonl"
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        whole = ((n, line) for n, line in enumerate(lines, 1) if line.endswith("}"))  # a kill can leave half a line
        return [parse_json(line, f"{path}, line {n}") for n, line in whole]

    @cached_property
    def log_lines(self) -> list[str]:
        path = self.path / "train.log"
        return path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []

    def curve(self, name: str) -> list[tuple[float, float]]:
        return [(line["step"], line[name]) for line in self.metrics if line.get(name) is not None]

    def last(self, name: str) -> float | None:
        points = self.curve(name)
        return points[-1][1] if points else None

    def not_finite(self, name: str) -> list[int]:
        """The steps at which a metric was NaN or infinite."""
        return [line["step"] for line in self.metrics if name in line and line[name] is None]

    def score(self, *keys: str) -> float | None:
        """A number of eval.json, by the keys that lead to it; None where the run has none."""
        value = self.eval
        for key in keys:
            value = value.get(key, {})
        return value if isinstance(value, (int, float)) else None

    def result(self, *keys: str) -> dict:
        """A part of eval.json, by the keys that lead to it; empty where the run has none."""
        value = self.eval
        for key in keys:
            value = value.get(key) or {}
        return value

    def flag(self, name: str):
        return next((section[name] for section in self.flags.values() if name in section), None)

    @property
    def identity(self) -> tuple:
        """What is equal for the runs of one experiment with several seeds: all flags that change the result."""
        return tuple((name, str(value)) for name, value in self.flat_flags.items() if name not in NOT_IDENTITY)

    @property
    def flat_flags(self) -> dict:
        return {name: value for section in self.flags.values() for name, value in section.items()}

    @cached_property
    def state(self) -> str:
        """finished, running, stopped (by a signal it obeyed), failed, or killed: it ended without a word."""
        state = self.info.get("state", "failed")  # without run.json it ended before it could say anything
        return "killed" if state == "running" and not is_locked(self.path) else state

    @property
    def start_time(self) -> str | None:
        """When the first session began."""
        return next((old["start_time"] for old in self.info.get("earlier_sessions", [])), self.info.get("start_time"))

    @property
    def end_time(self) -> str | None:
        """When the run ended; of a killed run the last time that it wrote down."""
        if self.state == "killed":
            return last_sign_of_life(self.path, self.info.get("stages", []))
        return self.info.get("end_time")

    @property
    def best(self) -> dict | None:
        """The metrics line of the best validation."""
        lines = [line for line in self.metrics if line.get("val_loss") is not None]
        return min(lines, key=lambda line: line["val_loss"]) if lines else None

    def stage(self, name: str) -> dict:
        """A stage of the last session; of a killed run the stage at hand ends when it last gave a sign of life."""
        stage = next((stage for stage in self.info.get("stages", []) if stage["name"] == name), {})
        if self.state == "killed" and stage.get("state") == "running":
            return stage | {"state": "killed", "end": self.end_time}
        return stage

    @property
    def sessions(self) -> int:
        return 1 + len(self.info.get("earlier_sessions", []))

    @property
    def seconds(self) -> float | None:
        """Seconds spent in training so far, over all sessions of a run that was interrupted."""
        stages = [stage for old in self.info.get("earlier_sessions", []) for stage in old.get("stages") or []]
        spans = [seconds_between(s["start"], s["end"]) for s in stages if s["name"] == "train"]
        now = self.stage("train")
        end = now.get("end") or last_sign_of_life(self.path, self.info.get("stages", []))
        spans.append(seconds_between(now.get("start"), end))
        known = [span for span in spans if span is not None]
        return sum(known) if known else None

    @property
    def on_gpu(self) -> bool:
        return bool(self.info.get("environment", {}).get("gpu"))

    @property
    def memory(self) -> tuple[str, str]:
        """The metrics of present and highest memory: of the GPU, or of the host in a CPU run."""
        return ("gpu_mib", "peak_gpu_mib") if self.on_gpu else ("host_mib", "host_mib")

    @property
    def shares_gpu(self) -> bool:
        """Whether other processes used the same GPU: its times are then not those of the run alone."""
        return any(value > SHARED_MIB for _, value in self.curve("other_gpu_mib"))

    @property
    def text_limit(self) -> int | None:
        """The first rows of the validation text that the evaluation read; None: all, as each validation does."""
        limit, rows = self.result("language").get("limit"), self.result_of_data("val").get("rows")
        return limit if limit and rows and limit < rows else None

    def result_of_data(self, name: str) -> dict:
        """The report of a part of the data, such as val; empty where the run has none."""
        return self.info.get("data", {}).get(name) or {}

    @property
    def peak_memory(self) -> float | None:
        points = self.curve(self.memory[1])
        return max(value for _, value in points) if points else None

    @property
    def number(self) -> str:
        """The experiment of the run, without the seed that its folder may name: 1_4_8 of experiment_1_4_8_seed2."""
        return re.sub(r"_*seed_?\d+$", "", self.info.get("experiment", ""))

    @property
    def is_numbered(self) -> bool:
        """Whether the run belongs to an experiment with a number, such as 1_4_8 or 1_4_8_concat."""
        return bool(re.fullmatch(r"\d+(_\d+)+(_\w+)?", self.number))

    @cached_property
    def neighbours(self) -> list["Run"]:
        """All other runs below the folder `out` that holds this one, else in its parent; the newest nearby last."""
        tree = next((parent for parent in self.path.parents if parent.name == "out"), None)
        found = find_runs(tree, deep=True) if tree else find_runs(self.path.parent)
        mine = self.path.resolve()
        found = [run for run in found if run.path.resolve() != mine]
        return sorted(found, key=lambda run: run.path.resolve().parent == mine.parent)

    @cached_property
    def baseline(self) -> "Run | None":
        """The run of model_original to compare with: the one named, else the newest of equal data and tokens.

        An n-gram table makes it another model, and a run that builds on this one is no baseline of it.
        """
        if self.info.get("baseline"):
            return Run(self.info["baseline"])
        found = []
        for other in self.neighbours:
            same = all(other.flag(name) == self.flag(name) for name in ("data_path", "max_seq_len", "batch_size"))
            is_baseline = other.flag("model_type") == "model_original" and not other.flag("ngram_table_rows")
            is_baseline &= str(other.info.get("base")).replace(".", "_") != self.number
            is_other = other.identity != self.identity  # not itself with another seed
            if is_baseline and is_other and same and other.last("tokens") == self.last("tokens"):
                found.append(other)
        return found[-1] if found else None

    @cached_property
    def base(self) -> "Run | None":
        """The newest run of the experiment that this one builds on."""
        number = str(self.info.get("base") or "").replace(".", "_")
        found = [run for run in self.neighbours if run.number == number]
        return found[-1] if number and found else None


def find_runs(root: str | Path, deep: bool = False) -> list[Run]:
    """The runs in a folder, or anywhere below it, oldest first. Of a damaged one only a warning is left."""
    runs = []
    for path in sorted(Path(root).glob("**/run.json" if deep else "*/run.json")):
        try:
            runs.append(Run(path.parent))
        except ValueError as problem:
            print(f"warning: left out: {problem}", file=sys.stderr)
    return sorted(runs, key=lambda run: run.info.get("start_time", ""))


def open_runs(names: list[str], root: str | Path = "out") -> list[Run]:
    """The runs of these names; a folder of runs, such as a sweep's, stands for all runs in it."""
    found = []
    for name in names:
        inside = [] if (Path(name) / "run.json").exists() else find_runs(name)
        found += inside or [open_run(name, root)]
    return found


def open_run(name: str | Path, root: str | Path = "out") -> Run:
    """The run of a folder, or of a name below `root`.

    Raises:
        FileNotFoundError: there is no such run.
    """
    for path in (Path(name), Path(root) / name, Path(root) / f"experiment_{str(name).replace('.', '_')}"):
        if (path / "run.json").exists():
            return Run(path)
    number = str(name).replace(".", "_").removeprefix("experiment_")
    if found := [run for run in find_runs(root, deep=True) if run.number == number]:
        return found[-1]  # of an experiment that has folders of its seeds alone, the newest
    raise FileNotFoundError(
        f"{name} has no run.json, nor has a run of that name in {root}: `python -m experiment list` shows the runs"
    )
