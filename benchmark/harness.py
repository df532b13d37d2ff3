"""What every benchmark shares: models from the experiments' own scripts, timing, rows, and where it ran."""

import argparse
import json
import platform
import statistics
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import cycle, islice
from pathlib import Path

import torch

from common.cli import CommandParser
from model.config import ModelConfig
from runs.new import script_flags
from runs.run import git
from runs.scripts import find_script, number_of, scripts
from trainer.config import OptimConfig, parse_cli
from trainer.flops import PEAKS as FLOPS

ROOT = Path(__file__).parents[1]
PEAKS = {"H100": (FLOPS["H100"], 3.35e12), "H200": (FLOPS["H200"], 4.8e12)}  # FLOP/s, bytes/s of the memory


def flags_of(name: str) -> list[str]:
    """The flags that `run_file/experiment_<name>.sh` hands to the launcher.

    Raises:
        FileNotFoundError: there is no such script.
    """
    path = find_script(name, ROOT)
    if path is None:
        known = ", ".join(map(number_of, scripts(ROOT)))
        raise FileNotFoundError(f"there is no run_file/experiment_{name}.sh: experiments are {known}")
    return script_flags(path)


def script_config(name: str, **changes) -> ModelConfig:
    """The architecture of an experiment, with some sizes changed; those that it does not know are left out."""
    config = parse_cli(flags_of(name)).model
    return replace(config, **{key: value for key, value in changes.items() if value is not None})


def script_optim(name: str) -> OptimConfig:
    """How an experiment learns its weights."""
    return parse_cli(flags_of(name)).optim


def random_tokens(shape: tuple[int, ...], vocab_size: int, generator: torch.Generator) -> torch.Tensor:
    """int64 tokens without the special ones, as frequent as words are (Zipf): the n-th most common in 1 of n + 2.7.

    Tokens that are all alike would spare the kernels the crowd at the rows of common words.
    """
    frequency_V = 1 / (torch.arange(vocab_size - 3, dtype=torch.float64) + 2.7)
    share_V = (frequency_V.cumsum(0) / frequency_V.sum()).float()
    return 3 + torch.searchsorted(share_V, torch.rand(shape, generator=generator)).clamp(max=vocab_size - 4)


def random_bank(config: ModelConfig, seed: int = 1) -> torch.Tensor:
    """(N, L) int16 entries of random tokens that fill a quarter to three quarters of their length, half on average."""
    generator, L = torch.Generator().manual_seed(seed), config.knowledge_length
    token_NL = random_tokens((config.knowledge_num, L), config.vocab_size, generator).short()
    length_N1 = torch.randint(max(L // 4, 1), max(3 * L // 4, 1) + 1, (len(token_NL), 1), generator=generator)
    return token_NL.masked_fill_(torch.arange(L) >= length_N1, 0)


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


def timings_ms(function: Callable, inputs: Sequence, n: int, device: torch.device, warm_up: int = 3) -> list[float]:
    """Milliseconds of n calls of `function(input)` after warm-up, over rotating inputs so that no cache keeps one."""
    rotation = cycle(inputs)
    for value in islice(rotation, warm_up):
        function(value)
    return [timed_ms(lambda value=value: function(value), device) for value in islice(rotation, n)]


def poison(device: torch.device, mib: int = 1024) -> None:
    """Fill memory that the allocator hands out next with NaN, so that an output that is not written shows."""
    if device.type == "cuda":
        torch.full((mib * 2**18,), float("nan"), device=device)


def peaks() -> tuple[float, float] | None:
    """FLOP/s and bytes/s of this GPU at most; None where they are not known."""
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else ""
    return next((values for known, values in PEAKS.items() if known in name), None)


def floor_ms(flops: float, n_bytes: float) -> float | None:
    """The time that arithmetic and memory traffic take at least on this GPU; None where its peaks are not known."""
    return None if (known := peaks()) is None else 1000 * max(flops / known[0], n_bytes / known[1])


def make_parser(doc: str, seconds: int = 50, compiles: bool = True, calls: str = "repeats") -> CommandParser:
    """The flags that benchmarks share; the last two only where something is compiled and called again and again."""
    parser = CommandParser(description=doc)
    parser.add_argument("--out", type=Path, help="append the rows to this JSON Lines file")
    parser.add_argument("--seconds", type=float, default=seconds, help="no case begins after so long")
    parser.add_argument("--dim", type=int, help="instead of the experiments' own, as are the next three")
    parser.add_argument("--n_layers", type=int)
    parser.add_argument("--n_heads", type=int)
    parser.add_argument("--seq_len", type=int, default=512)
    if compiles:
        parser.add_argument(f"--{calls}", type=int, default=24, help="timed calls of each case")
        parser.add_argument("--no_compile", action="store_true")
    return parser


def sizes_of(args: argparse.Namespace) -> dict:
    """What the shared flags change in an experiment's architecture."""
    return {"dim": args.dim, "n_layers": args.n_layers, "n_heads": args.n_heads, "max_seq_len": args.seq_len}


def set_up() -> torch.device:
    """The device, and the settings of training on it."""
    torch.set_float32_matmul_precision("high")
    # The models share their code, and each shape of it is a compilation of its own, as it would be in a run.
    torch._dynamo.config.recompile_limit = 128
    torch._dynamo.config.automatic_dynamic_shapes = False
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def append_rows(path: Path | None, rows: list[dict]) -> None:
    if path:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "a", encoding="utf-8") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)


class Cases:
    """The rows of one benchmark. A case that fails, or that no time is left for, is reported; the others go on."""

    def __init__(self, benchmark: str, args: argparse.Namespace, device: torch.device):
        self.deadline = time.perf_counter() + args.seconds
        self.out, self.rows = args.out, []
        append_rows(self.out, [])  # what cannot be written is refused before anything is measured
        self.where = {"benchmark": benchmark, "date": time.strftime("%Y-%m-%d")} | about(device)

    def time_is_over(self) -> bool:
        return time.perf_counter() > self.deadline

    def attempt(self, case: dict, function: Callable[[], object]) -> object:
        """What `function` returns; None, and a row that says why, if it fails or the time is over."""
        if self.time_is_over():
            return self.add(case, error="no time was left: give more --seconds")
        try:
            return function()
        except Exception as problem:  # of any kind, Triton's own too: its row says so
            traceback.print_exc()  # a row has room for its first line alone
            return self.add(case, error=f"{type(problem).__name__}: {problem}".split("\n")[0][:200])

    def add(self, case: dict, **measured) -> None:
        """Keep a row; it is written at once, so that an interrupted benchmark keeps what it has."""
        row = case | {"error": None} | measured | self.where
        self.rows.append(row)
        append_rows(self.out, [row])
        print(f"{case}: {row['error'] or 'measured'}", file=sys.stderr)

    def table(self, columns: dict[str, str]) -> str:
        """One line a row: `columns` is field -> format, such as {"median_ms": ".2f"}; a failed row ends in why."""
        lines = [list(columns)]
        for row in self.rows:
            lines.append(
                [format(row[name], form) if row.get(name) is not None else "-" for name, form in columns.items()]
            )
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        ends = ["", *(row["error"] or "" for row in self.rows)]
        cells = ("  ".join(map(str.rjust, line, widths)) for line in lines)
        return "\n".join(f"{line}  {end}".rstrip() for line, end in zip(cells, ends, strict=True))
