"""All benchmarks, one after the other, within a budget of time; their rows are appended to out/benchmark.jsonl.

python -m benchmark --minutes 15          # on a GPU
python -m benchmark --tiny                # at a size for two CPU cores: whether they work, not how fast

Each benchmark is a process of its own: one that fails or hangs costs the others only its time. Each gets what is left
of the budget. The most telling ones come first. Exit code 1 if any failed or was not reached.
"""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from common.cli import CommandParser, run_command

ROOT = Path(__file__).parent.parent
SMALL = "--dim 32 --n_layers 6 --n_heads 4"
SMALL_ROWS = f"{SMALL} --batch_size 2 --no_compile"
# name -> module and flags, and those with --tiny. After its --seconds a benchmark begins no new case.
BENCHMARKS = {
    "step": (
        "step --seconds 540 --reference compiled eager --batch_sizes 96 192",
        f"step {SMALL_ROWS} --seq_len 64 --knowledge_num 256 --steps 2 --batch_sizes 1",
    ),
    "peers": (
        "peers --seconds 60",
        f"peers {SMALL_ROWS} --seq_len 64 --knowledge_num 256 --repeats 2",
    ),
    "decode": (
        "decode --seconds 60",
        f"decode {SMALL} --knowledge_num 256 --batch_sizes 1 2 --prompt_tokens 9 --new_tokens 3 --prompts 2",
    ),
    "step_8_heads": (
        "step --seconds 90 --experiments 1_4_0 --n_heads 8 --batch_sizes 96 192",
        f"step {SMALL_ROWS} --experiments 1_4_0 --seq_len 64 --steps 2 --batch_sizes 1",
    ),
    "scaling": (
        "scaling --seconds 120",
        f"scaling {SMALL_ROWS} --seq_len 64 --knowledge_nums 256 400 --candidates 8 --selected 2 --repeats 2",
    ),
    "retrieval": (
        "retrieval --seconds 60",
        f"retrieval {SMALL_ROWS} --seq_len 128 --knowledge_nums 256 --candidates 16 --ngram_candidates 16 --repeats 2",
    ),
    "data": (
        "data --seconds 150",
        f"data {SMALL_ROWS} --seq_len 64 --accumulation_steps 1 --knowledge_num 256 --text_mb 0.2 "
        "--knowledge_mb 0.2 --repeats 2",
    ),
}


def run(words: str, out: Path | None, seconds: float) -> str:
    """Run one benchmark, its tables to the screen; how it ended."""
    module, *flags = words.split()
    print(f"\n== python -m benchmark.{words}", flush=True)
    start = time.perf_counter()
    # A session of its own, so that what it has started can be ended with it.
    command = [sys.executable, "-m", f"benchmark.{module}", *flags, *(["--out", str(out.resolve())] if out else [])]
    process = subprocess.Popen(command, cwd=ROOT, start_new_session=True)
    try:
        code = process.wait(timeout=seconds)
    except (subprocess.TimeoutExpired, KeyboardInterrupt) as problem:
        end(process)
        if isinstance(problem, KeyboardInterrupt):
            raise
        return f"cut off after {seconds:.0f} s; give more --minutes"
    return f"exit code {code}" if code else f"finished after {time.perf_counter() - start:.0f} s"


def end(process: subprocess.Popen) -> None:
    """As Ctrl-C does, so that temporary files are deleted; then by force."""
    for way, patience in ((signal.SIGINT, 10), (signal.SIGKILL, None)):
        try:
            os.killpg(process.pid, way)
            process.wait(timeout=patience)
        except ProcessLookupError:
            return
        except subprocess.TimeoutExpired:
            continue


def main() -> int:
    parser = CommandParser(prog="python -m benchmark", description=__doc__)
    parser.add_argument("--minutes", type=float, default=15, help="budget of all together")
    parser.add_argument("--only", nargs="+", choices=BENCHMARKS, default=list(BENCHMARKS), help="and in which order")
    parser.add_argument("--tiny", action="store_true", help="sizes for a CPU")
    parser.add_argument(
        "--out", type=Path, help="where rows are appended; without it out/benchmark.jsonl, with --tiny nowhere"
    )
    args = parser.parse_args()
    out = args.out or (None if args.tiny else ROOT / "out/benchmark.jsonl")
    deadline, ends = time.perf_counter() + 60 * args.minutes, {}
    for name in args.only:
        left = deadline - time.perf_counter()
        if left <= 0:
            ends[name] = "not reached; give more --minutes"
        else:
            ends[name] = run(BENCHMARKS[name][args.tiny], out, left)
    for name, end in ends.items():
        print(f"{name:14} {end}")
    return 0 if all(end.startswith("finished") for end in ends.values()) else 1


if __name__ == "__main__":
    run_command(main)
