"""What every benchmark shares: models from the experiments' own scripts, timing, and where it ran."""

import platform
import shlex
import statistics
import time
from dataclasses import replace
from pathlib import Path

import torch

from model.config import ModelConfig
from trainer.config import parse_cli
from trainer.runinfo import git

SCRIPTS = Path(__file__).parent.parent / "run_file"


def script_flags(name: str) -> list[str]:
    """The flags that `run_file/experiment_<name>.sh` hands to the launcher.

    Raises:
        FileNotFoundError: there is no such script.
    """
    path = SCRIPTS / f"experiment_{name}.sh"
    if not path.is_file():
        known = sorted(p.stem.removeprefix("experiment_") for p in SCRIPTS.glob("experiment_*.sh"))
        raise FileNotFoundError(f"there is no {path}: experiments are {', '.join(known)}")
    words = shlex.split(path.read_text().replace("\\\n", " "), comments=True)
    start = next(i for i, word in enumerate(words) if word.endswith("_launch.sh"))
    return [word for word in words[start + 1 :] if word != "$@"]


def script_config(name: str, **changes) -> ModelConfig:
    """The architecture of an experiment, with some sizes changed; those that it does not know are left out."""
    config = parse_cli(script_flags(name)).model
    return replace(config, **{key: value for key, value in changes.items() if value is not None})


def about(device: torch.device) -> dict:
    """Where and with what a number was measured."""
    on_gpu = device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name() if on_gpu else platform.processor() or "cpu",
        "torch": torch.__version__, "cuda": torch.version.cuda if on_gpu else None, "python": platform.python_version(),
        "git_commit": git("rev-parse", "HEAD"), "git_dirty": bool(git("status", "--porcelain")),
    }  # fmt: skip


def timed_ms(function, device: torch.device) -> float:
    """Milliseconds of one call, everything that it queued on the GPU included."""
    if device.type != "cuda":
        start = time.perf_counter()
        function()
        return 1000 * (time.perf_counter() - start)
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    function()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end)


def quartiles(values: list[float]) -> tuple[float, float, float]:
    """First quartile, median, third quartile."""
    if len(values) == 1:
        return values[0], values[0], values[0]
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, middle, high
