"""Metrics: metrics.jsonl always, SwanLab when asked. The file is the truth; a tracker that dies stops no run."""

import importlib.util
import json
import logging
import math
import os
from pathlib import Path

SWANLAB_DIR = "swanlog"
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


class Tracker:
    """Writes metrics of the main process; every method does nothing where `writes` is False."""

    def __init__(self, out_dir, writes=True, use_swanlab=False, project="", name="", flags=None, mode=None):
        self.path, self.writes = Path(out_dir) / "metrics.jsonl", writes
        self.run, self.url, self.file = None, None, None
        if writes and use_swanlab:
            self._open_swanlab(project, name, flags or {}, swanlab_mode(mode))

    def _open_swanlab(self, project: str, name: str, flags: dict[str, dict], mode: str) -> None:
        import swanlab

        # Nested values show as "[object Object]" on the dashboard and None as {}.
        config = {f"{section}/{key}": str(value) for section, part in flags.items() for key, value in part.items()}
        self.run = swanlab.init(project=project, name=name, config=config, mode=mode, log_dir=SWANLAB_DIR)
        self.url = f"swanlab watch {SWANLAB_DIR}" if mode == "local" else self.run.url

    def rewind(self, step: int) -> None:
        """Forget the metrics after `step`, which a resumed run will log again, and open the file for appending."""
        if not self.writes:
            return
        lines = self.path.read_text().splitlines() if self.path.exists() else []
        kept = [line for line in lines if line.endswith("}") and json.loads(line)["step"] <= step] if step else []
        self.path.write_text("".join(line + "\n" for line in kept))
        self.file = open(self.path, "a")

    def log(self, metrics: dict[str, float], step: int) -> None:
        """One line of metrics.jsonl. JSON has no NaN: a value that is not finite becomes null."""
        if not self.writes:
            return
        line = {"step": step} | {name: value if math.isfinite(value) else None for name, value in metrics.items()}
        self.file.write(json.dumps(line) + "\n")
        self.file.flush()
        scalars = {name if "/" in name else f"{section(name)}/{name}": value for name, value in metrics.items()}
        self._to_swanlab(lambda run: run.log(scalars, step=step))

    def log_text(self, name: str, text: str, step: int) -> None:
        self._to_swanlab(lambda run: run.log_text(key=name, data=text, step=step))

    def finish(self, failed: bool = False) -> None:
        if self.file:
            self.file.close()
        self._to_swanlab(lambda run: run.finish(state="crashed" if failed else "success"))

    def _to_swanlab(self, call) -> None:
        if self.run is None:
            return
        try:
            call(self.run)
        except Exception as problem:  # whatever a tracker does wrong, the run goes on without it
            log.error("SwanLab failed (%s); metrics.jsonl goes on alone", problem)
            self.run = None


def section(name: str) -> str:
    """The dashboard group of a metric."""
    if name.startswith("val_"):
        return "val"
    if name.endswith("_mib"):
        return "system"
    return "speed" if name.endswith(("_per_s", "_s")) else "train"
