r"""Optimizer steps of the training script on one GPU and on several, in turns.

python -m benchmark.multi_gpu                              # on one GPU and on all of this machine
python -m benchmark.multi_gpu --processes 1 2 --experiments 1_4_0 --dim 32 --n_layers 6 --n_heads 4 --batch_size 2 \
    --seq_len 64 --knowledge_num 256 --repeats 2 --no_compile      # on a CPU: whether it works

Each turn starts the processes anew, as a launcher does, and each process makes the steps of `trainer.step.TrainStep` on
micro-batches of its own. A step is --accumulation_steps micro-steps, the exchange of gradients, clipping and the
optimizer. tokens_per_s is that of all processes together, from the first timed step to the last.
of_linear: tokens/s over those of the first number of processes, over the ratio of their numbers; 1 is ideal.
exchange_ms: one exchange of gradients alone, which is part of a step.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from functools import partial
from itertools import cycle
from pathlib import Path
from statistics import median

import torch

from common.cli import run_command
from model import build_model
from trainer.config import Flags, parse_cli
from trainer.peers import Peers
from trainer.start import start
from trainer.step import EAGER_CALLS, TrainStep
from trainer.stop import Stop

from .harness import Cases, flags_of, make_parser, random_bank, set_up, sizes_of
from .subject import make_batches

EXPERIMENTS = ["1_4_0", "1_4_8", "1_5_2"]
WARM_UP = EAGER_CALLS + 2  # steps: compilation and capture are over


def training_flags(args, experiment: str) -> Flags:
    """The flags of an experiment's script, with the sizes that this benchmark was given."""
    changes = sizes_of(args) | {
        "knowledge_num": args.knowledge_num, "batch_size": args.batch_size,
        "accumulation_steps": args.accumulation_steps, "use_compile": False if args.no_compile else None,
    }  # fmt: skip
    changed = [word for name, value in changes.items() if value is not None for word in (f"--{name}", str(value))]
    return parse_cli([*flags_of(experiment), *changed])


def measure_here(args, experiment: str) -> dict | None:
    """Make the steps in this process, one of several; only the main one returns the numbers."""
    set_up()
    flags = training_flags(args, experiment)
    accelerator = start(flags)
    with Peers(accelerator):
        bank_NL = random_bank(flags.model)
        torch.manual_seed(flags.run.seed)
        model = build_model(flags.model, bank_NL if flags.model.reads_bank else None).to(accelerator.device)
        step = TrainStep(model, flags, accelerator, Stop(accelerator.num_processes))
        batches = step.prepared(batch for batch in cycle(pinned_batches(flags, bank_NL, accelerator)))
        begin = time.perf_counter()
        for _ in range(WARM_UP):
            outcome = step(batches, 1e-4, timed=False)
        wait(accelerator)
        warm_up_s = time.perf_counter() - begin
        step_s = seconds(lambda: step(batches, 1e-4, timed=False), args.repeats, accelerator)
        exchange_s = seconds(lambda: step.average_gradients(outcome.loss), args.repeats, accelerator)
        if not accelerator.is_main_process:
            return None
        optim, n = flags.optim, accelerator.num_processes
        tokens = optim.batch_size * flags.model.max_seq_len * optim.accumulation_steps * n
        return {
            "tokens_per_s": tokens / step_s, "step_ms": 1000 * step_s, "exchange_ms": 1000 * exchange_s * (n > 1),
            "warm_up_s": warm_up_s, "captured": step.graphed, "seq_len": flags.model.max_seq_len,
            "batch_size": optim.batch_size, "accumulation_steps": optim.accumulation_steps, "steps": args.repeats,
        }  # fmt: skip


def pinned_batches(flags: Flags, bank_NL: torch.Tensor, accelerator) -> list[dict[str, torch.Tensor]]:
    """A few batches where the loader leaves them: on the host, pinned for a GPU."""
    batches = make_batches(flags.model, bank_NL, flags.optim.batch_size, 4, torch.device("cpu"))
    pins = accelerator.device.type == "cuda"
    return [{name: value.pin_memory() if pins else value for name, value in batch.items()} for batch in batches]


def wait(accelerator) -> None:
    if accelerator.device.type == "cuda":
        torch.cuda.synchronize()
    accelerator.wait_for_everyone()


def seconds(function, n: int, accelerator) -> float:
    """Mean seconds of a call, all that it queued on the GPU included; the processes begin together."""
    wait(accelerator)
    begin = time.perf_counter()
    for _ in range(n):
        function()
    wait(accelerator)
    return (time.perf_counter() - begin) / n


def measure_processes(experiment: str, n: int, words: list[str]) -> dict:
    """Start `n` processes of this module that measure one experiment; the numbers of all together.

    Raises:
        RuntimeError: one of them failed; the first error that they printed is in the message.
    """
    with tempfile.TemporaryDirectory() as folder:
        rows = Path(folder) / "row.json"
        launch = [
            "-m",
            "torch.distributed.run",
            "--standalone",
            "--local_addr",
            "127.0.0.1",
            "--nproc_per_node",
            str(n),
        ]
        launch = launch if n > 1 else []  # one process without a launcher, as the training scripts start it
        command = [sys.executable, *launch, "-m", "benchmark.multi_gpu", "--worker", experiment, str(rows), *words]
        on_cpu = {} if torch.cuda.is_available() else {"ACCELERATE_USE_CPU": "true"}
        threads = {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
        ended = subprocess.run(command, env=os.environ | threads | on_cpu, stderr=subprocess.PIPE, encoding="utf-8")
        if not rows.exists():
            print(ended.stderr[-5000:], file=sys.stderr)
            errors = [line for line in ended.stderr.splitlines() if "rror" in line]
            raise RuntimeError(f"exit code {ended.returncode}: {(errors or ['nothing was said'])[0].strip()}")
        return json.loads(rows.read_text(encoding="utf-8"))


def make_flags() -> argparse.ArgumentParser:
    gpus = torch.cuda.device_count()
    parser = make_parser(__doc__, seconds=540)
    parser.add_argument("--experiments", nargs="+", default=EXPERIMENTS)
    parser.add_argument("--processes", nargs="+", type=int, default=sorted({1, max(gpus, 1)}), help="one GPU each")
    parser.add_argument("--turns", type=int, default=2, help="how often each number of processes is measured")
    parser.add_argument("--batch_size", type=int, default=48, help="rows of a micro-batch of each process")
    parser.add_argument("--accumulation_steps", type=int, default=3)
    parser.add_argument("--knowledge_num", type=int, help="instead of the experiments' own")
    parser.add_argument("--worker", nargs=2, metavar=("EXPERIMENT", "FILE"), help="for this module's own use")
    return parser


def main() -> None:
    args, gpus = make_flags().parse_args(), torch.cuda.device_count()
    if args.worker:
        experiment, path = args.worker
        if measured := measure_here(args, experiment):
            Path(path).write_text(json.dumps(measured), encoding="utf-8")
        return
    if gpus and max(args.processes) > gpus:
        raise ValueError(f"--processes {max(args.processes)} needs as many GPUs, and this machine has {gpus}")
    cases = Cases("multi_gpu", args, set_up())
    words = sys.argv[1:]  # the processes read the same flags
    for experiment in args.experiments:
        speeds: dict[int, list[float]] = {n: [] for n in args.processes}
        for turn in range(args.turns):
            for n in args.processes:
                case = {"experiment": experiment, "processes": n, "turn": turn + 1}
                measured = cases.attempt(case, partial(measure_processes, experiment, n, words))
                if measured is not None:
                    speeds[n].append(measured["tokens_per_s"])
                    cases.add(case, **measured, of_linear=of_linear(speeds, n))
    columns = {"experiment": "", "processes": "", "turn": "", "tokens_per_s": ",.0f", "step_ms": ".2f"}
    print(cases.table(columns | {"exchange_ms": ".2f", "of_linear": ".3f", "warm_up_s": ".1f"}))


def of_linear(speeds: dict[int, list[float]], n: int) -> float | None:
    """See the module's docstring; of the medians over the turns so far."""
    first = next(iter(speeds))
    if not speeds[first]:
        return None
    return median(speeds[n]) / median(speeds[first]) * first / n


if __name__ == "__main__":
    run_command(main, RuntimeError)
