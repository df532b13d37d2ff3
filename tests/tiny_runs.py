"""Whole runs of the training script, forked from a process that has imported it once: a start takes no five seconds."""

import json
import multiprocessing
import os
import signal
import socket
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

TINY = (
    "--dim 32 --n_layers 2 --n_heads 4 --fusion_heads 4 --max_seq_len 32 --knowledge_num 49 --knowledge_length 6 "
    "--num_candidates 5 --num_selected 2 --max_steps 12 --batch_size 4 --accumulation_steps 2 --dtype float32 "
    "--log_interval 1 --eval_interval 6 --save_interval 4 --memory_monitor_interval 6 --eval_batches 2"
).split()

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["tests.forked", "train_pretrain_accelerate"])


@dataclass
class Ended:
    """How a run ended: its exit code, negative where a signal killed it, and what it printed."""

    code: int
    output: str


@dataclass
class Runs:
    """Starts tiny runs over the same data."""

    data: Path
    folder: Path

    def start(self, out: str, *flags: str, fault: Callable | None = None, kill_after: float | None = None) -> Ended:
        """A whole run with the out_dir `out`.

        Args:
            fault: called in the new process before the run; it patches what shall go wrong.
            kill_after: seconds after which SIGKILL comes.
        """
        output = self.folder / f"{out}.output"
        process = self.make_process(self.argv(out, *flags), output, fault, {})
        process.start()
        process.join(kill_after)
        if process.is_alive():
            os.kill(process.pid, signal.SIGKILL)
            process.join()
        return Ended(process.exitcode, output.read_text() if output.exists() else "")

    def start_ranks(self, out: str, *flags: str, n: int = 2, fault: Callable | None = None) -> list[Ended]:
        """The same as `n` processes that a launcher would start together, without the launcher; `fault` is in each."""
        port = free_port()
        processes, outputs = [], [self.folder / f"{out}.output{rank}" for rank in range(n)]
        for rank, output in enumerate(outputs):
            place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": n, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
            environment = {name: str(value) for name, value in place.items()}
            processes.append(self.make_process(self.argv(out, *flags), output, fault, environment))
            processes[-1].start()
        for process in processes:
            process.join()
        return [Ended(p.exitcode, output.read_text()) for p, output in zip(processes, outputs, strict=True)]

    def make_process(self, argv: list[str], output: Path, fault: Callable | None, environment: dict[str, str]):
        return FORKS.Process(target=run_forked, args=(argv, output, fault, environment))

    def argv(self, out: str, *flags: str) -> list[str]:
        return [
            *TINY, "--out_dir", str(self.folder / out), "--data_path", str(self.data / "text.jsonl"),
            "--val_fraction", "0.1", "--cache_dir", str(self.data / "cache"),
            "--database_init_path", str(self.data / "facts.json"), "--experiment_dir", str(self.folder / "records"),
            *flags,
        ]  # fmt: skip


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def run_forked(argv: list[str], output: Path, fault: Callable | None, environment: dict[str, str]) -> None:
    os.environ |= environment
    redirect(output)
    from .forked import run_script

    if fault:
        fault()
    run_script(argv)


def redirect(output: Path) -> None:
    """Send what this process prints, its C libraries' words too, to a file."""
    with open(output, "w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.stdout, sys.stderr = os.fdopen(1, "w", buffering=1), os.fdopen(2, "w", buffering=1)


def metrics(out: Path, name: str) -> list:
    lines = map(json.loads, (out / "metrics.jsonl").read_text().splitlines())
    return [(line["step"], line[name]) for line in lines if name in line]


def write_data(folder: Path) -> Path:
    texts = [f"The village of number {n} has {n * 7} houses, {n % 5} wells and a tower." for n in range(400)]
    (folder / "text.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    (folder / "facts.json").write_text(json.dumps([f"Village {n} lies by river {n % 9}." for n in range(60)]))
    return folder
