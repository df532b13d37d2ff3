"""List, show, compare, record, keep, start, sweep and check experiments.

    python -m experiment list
    python -m experiment compare out/experiment_1_4_0 out/experiment_1_4_8
    python -m experiment new 1.4.9 --from 1.4.8 -- --fusion_heads 16
    python -m experiment sweep heads --from 1.4.8 --grid fusion_heads=4,8,16 seed=1,2 -- --max_steps 500
    python -m experiment keep out/knowledge_1_5_0_10000_seed1 out/knowledge_1_5_0_10000_seed2

A run is named by its folder, its name in out/, or the number of its experiment; a folder of runs stands for all in it.
Flags for the training script stand after --.
"""

import argparse
import re
import sys
from collections.abc import Callable
from pathlib import Path

from common.cli import run_command, sentence

from .record import fill_record
from .record_text import STATES
from .record_values import value_of
from .run import Run, find_runs, open_run, open_runs
from .tables import FORMATS, Table, show

# What `show` prints of a run, and the value of a record that it prints.
SHOWN = {
    "state": "STATE", "command": "COMMAND_LINE", "start": "START_TIME", "end": "COMPLETION_TIME",
    "time in training": "CURRENT_TIME", "environment": "ENVIRONMENT", "commit": "COMMIT_HASH",
    "validation loss": "FINAL_LOSS", "best": "BEST_LOSS", "best at epoch": "BEST_LOSS_EPOCH", "perplexity": "FINAL_PPL",
    "against model_original": "LOSS_IMPROVEMENT", "peak memory": "PEAK_GPU_MEM",
    "convergence": "LOSS_CONVERGENCE_ANALYSIS", "stability": "TRAINING_STABILITY_ANALYSIS",
    "memory": "MEMORY_USAGE_ANALYSIS", "samples": "TEXT_GENERATION_SAMPLES", "coherence": "COHERENCE_SCORE",
    "fluency": "FLUENCY_SCORE", "diversity": "DIVERSITY_SCORE", "most time": "BOTTLENECK_1", "then": "BOTTLENECK_2",
    "anomaly": "ANOMALY_1", "more anomalies": "ANOMALY_2", "changed files": "GIT_DIFF", "SwanLab": "SWANLAB_URL",
    "error": "ERROR_LOGS",
}  # fmt: skip
ROOT = Path(__file__).parents[1]
MODES = ("online", "local", "offline")
BLANK = re.compile(r"\[(?:[A-Z_0-9]+|待填写)\]")


def list_command(args) -> int:
    from .compare import list_runs

    show([list_runs(find_runs(args.root, deep=True), f"runs in {args.root}")], args.format)
    return 0


def show_command(args) -> int:
    run = open_run(args.run, args.root)
    rows = [{"of": label, "value": value_of(name, run).strip()} for label, name in SHOWN.items()]
    show([Table(str(run.path), rows)], args.format)
    return 0


def compare_command(args) -> int:
    from .compare import compare
    from .plots import draw

    runs = open_runs(args.runs, args.root)
    names = {run.path.resolve(): run for run in runs}
    if len(names) < 2:
        raise ValueError("compare needs two different runs or more")
    runs = list(names.values())
    show(compare(runs), args.format)
    try:
        drawn = draw({label_of(run, runs): run for run in runs}, args.png or Path(args.root) / "compare.png")
        print(f"curves: {drawn}", file=sys.stderr)
    except OSError as problem:  # what was asked for is on the screen
        print(f"the curves were not drawn ({sentence(problem)}): --png names another file", file=sys.stderr)
        return 1 if args.png else 0
    return 0


def label_of(run: Run, runs: list[Run]) -> str:
    return run.name if [other.name for other in runs].count(run.name) == 1 else str(run.path)


def fill_command(args) -> int:
    for run in open_runs(args.runs, args.root):
        path = fill_record(run.path, args.experiment_dir)
        blanks = len(BLANK.findall(path.read_text(encoding="utf-8")))
        print(f"{path}: {STATES.get(run.state, run.state)}; {blanks} blanks are left for people; "
              f"curves: {run.path / 'curves.png'}")  # fmt: skip
    return 0


def check_command(args) -> int:
    from .check import problems

    found = [{"file": str(path), "problem": problem} for path, problem in problems(ROOT, Path(args.root))]
    show([Table("problems of scripts, records and documents", found)], args.format)
    return 1 if found else 0


def documents_command(args) -> int:
    from .documents.write import write

    for path in write(ROOT):
        print(f"written: {path.relative_to(ROOT)}")
    return 0


def keep_command(args) -> int:
    from .keep import rows_of
    from .results import append_rows

    rows = rows_of(open_runs(args.runs, args.root), args.experiment, args.protocol, args.split, args.partial)
    append_rows(rows, args.file)
    print(f"{args.file}: {len(rows)} rows of {', '.join(dict.fromkeys(f'{r.experiment}, {r.protocol}' for r in rows))}")
    return 0


def new_command(args) -> int:
    from .new import new_experiment

    script, record = new_experiment(args.number, args.base, args.flags, ROOT)
    print(f"script: {script.relative_to(ROOT)}\nrecord: {record.relative_to(ROOT)}")
    print(f"write its question and its change into both, then: bash {script.relative_to(ROOT)}")
    return 0


def sweep_command(args) -> int:
    from .new import script_of
    from .sweep import read_grid, run_sweep

    folder = Path(args.root) / args.name
    tables, unfinished = run_sweep(script_of(args.base, ROOT), read_grid(args.grid), args.flags, folder, ROOT)
    show(tables, args.format)
    return 1 if unfinished else 0


def sync_command(args) -> int:
    from .tracking import replay

    for run in open_runs(args.runs, args.root):
        print(f"{run.path}: {replay(run.path, args.mode)}\nrecord: {fill_record(run.path)}")
    return 0


def argument(*names: str, **options) -> tuple[tuple, dict]:
    return names, options


RUN = argument("run", metavar="RUN")
RUNS = argument("runs", nargs="+", metavar="RUN")
ROOTS = argument("--root", default="out", help="folder of the runs")
FORMAT = argument("--format", choices=FORMATS, default="table")
BASE = argument("--from", dest="base", required=True, metavar="NUMBER", help="the experiment to start from")
# Name, function, what --help says, arguments.
COMMANDS: list[tuple[str, Callable, str, list]] = [
    ("list", list_command, "all runs: state, loss, perplexity, tokens/s, memory, age since the start", [ROOTS, FORMAT]),
    ("show", show_command, "what was measured in a run", [RUN, ROOTS, FORMAT]),
    ("compare", compare_command, "flags that differ, results, winners; curves as PNG",
     [RUNS, argument("--png", help="file of the curves; default: compare.png in --root"), ROOTS, FORMAT]),
    ("fill", fill_command, "fill the records of runs, also of runs that failed",
     [RUNS, argument("--experiment_dir", help="folder of the records; default: that of the run's flags"), ROOTS]),
    ("keep", keep_command, "append the results of finished runs to experiment/results.jsonl",
     [RUNS, argument("--experiment", metavar="NUMBER", help="default: as the folder's name says"),
      argument("--protocol", help="such as knowledge-10k; default: as the folder's name says"),
      argument("--split", default="dev", help="which questions were asked, such as dev or held-out"),
      argument("--partial", action="store_true", help="accept an evaluation with --limit, and note it"),
      argument("--file", default=str(ROOT / "experiment/results.jsonl"), help="where the rows go"), ROOTS]),
    ("check", check_command, "do all scripts parse, is any number of a record or document stale?", [ROOTS, FORMAT]),
    ("documents", documents_command, "write tables, values and figures of the documents from the rows", []),
    ("new", new_command, "script and record of a new experiment; flags after -- change those of the base",
     [argument("number", metavar="NUMBER", help="such as 1.4.9"), BASE]),
    ("sweep", sweep_command, "run a grid over flags, one point after the other; repeated, it continues",
     [argument("name", metavar="NAME", help="folder of the sweep in the folder of the runs"), BASE,
      argument("--grid", nargs="+", required=True, metavar="FLAG=V,V"), ROOTS, FORMAT]),
    ("sync", sync_command, "send the metrics of runs to SwanLab",
     [RUNS, argument("--mode", choices=MODES, help="default: online with an account, else local"), ROOTS]),
]  # fmt: skip


def main() -> int:
    own, dashes, flags = partition(sys.argv[1:])
    parser = argparse.ArgumentParser(
        prog="python -m experiment", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True, metavar="command")
    for name, function, help, arguments in COMMANDS:
        added = commands.add_parser(name, help=help, description=help)
        added.set_defaults(function=function)
        for names, options in arguments:
            added.add_argument(*names, **options)
    args = parser.parse_args(own)
    if dashes and args.function not in (new_command, sweep_command):
        parser.error("only new and sweep take flags after --")
    args.flags = flags
    return args.function(args)


def partition(argv: list[str]) -> tuple[list[str], bool, list[str]]:
    """A command line before and after the first --, and whether there was one."""
    place = argv.index("--") if "--" in argv else len(argv)
    return argv[:place], place < len(argv), argv[place + 1 :]


if __name__ == "__main__":
    run_command(main)
