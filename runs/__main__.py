"""List, show, compare, record, start, sweep and check experiments.

    python -m experiment list
    python -m experiment compare out/experiment_1_4_0 out/experiment_1_4_8
    python -m experiment new 1.4.9 --from 1.4.8 -- --fusion_heads 16
    python -m experiment sweep heads --from 1.4.8 --grid fusion_heads=4,8,16 seed=1,2 -- --max_steps 500

A run is named by its folder, its name in out/, or the number of its experiment; a folder of runs stands for all in it.
Flags for the training script stand after --.
"""

import argparse
import re
import sys
from pathlib import Path

from common.cli import run_command
from runs import record_values as measures
from runs.record import fill_record
from runs.run import Run, find_runs, open_run, open_runs

from .tables import FORMATS, Table, show

# What `show` tells of a run, and the value of a record that says it.
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
    rows = [{"of": label, "value": measures.value_of(name, run).strip()} for label, name in SHOWN.items()]
    show([Table(str(run.path), rows)], args.format)
    return 0


def compare_command(args) -> int:
    from runs.plots import draw

    from .compare import compare

    runs = open_runs(args.runs, args.root)
    names = {run.path.resolve(): run for run in runs}
    if len(names) < 2:
        raise ValueError("compare needs two different runs or more")
    runs = list(names.values())
    show(compare(runs), args.format)
    drawn = draw({label_of(run, runs): run for run in runs}, args.png or Path(args.root) / "compare.png")
    print(f"curves: {drawn}", file=sys.stderr)
    return 0


def label_of(run: Run, runs: list[Run]) -> str:
    return run.name if [other.name for other in runs].count(run.name) == 1 else str(run.path)


def fill_command(args) -> int:
    for run in open_runs(args.runs, args.root):
        path = fill_record(run.path, args.experiment_dir)
        blanks = len(BLANK.findall(path.read_text(encoding="utf-8")))
        print(f"{path}: {measures.STATES.get(run.state, run.state)}; {blanks} blanks are left for people; "
              f"curves: {run.path / 'curves.png'}")  # fmt: skip
    return 0


def check_command(args) -> int:
    from .check import problems

    found = [{"file": str(path), "problem": problem} for path, problem in problems(ROOT, Path(args.root))]
    show([Table("problems of scripts, records and documents", found)], args.format)
    return 1 if found else 0


def documents_command(args) -> int:
    from .documents import write

    for path in write(ROOT):
        print(f"written: {path.relative_to(ROOT)}")
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
    from runs.tracking import replay

    for run in open_runs(args.runs, args.root):
        print(f"{run.path}: {replay(run.path, args.mode)}\nrecord: {fill_record(run.path)}")
    return 0


def main() -> int:
    own, dashes, flags = partition(sys.argv[1:])
    parser = argparse.ArgumentParser(
        prog="python -m experiment", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True, metavar="command")

    def command(name: str, function, help: str, *arguments: tuple) -> None:
        added = commands.add_parser(name, help=help, description=help)
        added.set_defaults(function=function)
        for flag, options in arguments:
            added.add_argument(flag, **options)

    root = ("--root", {"default": "out", "help": "folder of the runs"})
    form = ("--format", {"choices": FORMATS, "default": "table"})
    runs = ("runs", {"nargs": "+", "metavar": "RUN"})
    base = ("--from", {"dest": "base", "required": True, "metavar": "NUMBER", "help": "the experiment to start from"})
    png = ("--png", {"help": "where the curves are drawn; without it compare.png in the folder of the runs"})
    directory = ("--experiment_dir", {"help": "where the records are; without it as the run was told"})
    grid = ("--grid", {"nargs": "+", "required": True, "metavar": "FLAG=V,V"})
    name = ("name", {"metavar": "NAME", "help": "folder of the sweep in that of the runs"})
    number = ("number", {"metavar": "NUMBER", "help": "such as 1.4.9"})
    modes = ("--mode", {"choices": MODES, "help": "without it online with an account, else local"})
    command("list", list_command, "all runs: state, loss, perplexity, tokens/s, memory, age", root, form)
    command("show", show_command, "what was measured of a run", ("run", {"metavar": "RUN"}), root, form)
    command("compare", compare_command, "differing flags, results, winners; curves as PNG", runs, png, root, form)
    command("fill", fill_command, "fill the records of runs, whatever became of them", runs, directory, root)
    command("check", check_command, "do all scripts parse, is a number of a record or document stale?", root, form)
    command("documents", documents_command, "write tables, values and figures of the documents from the rows")
    command("new", new_command, "script and record of a new experiment; flags after -- change the base's", number, base)
    command(
        "sweep", sweep_command, "a grid over flags, run one by one; again, it goes on", name, base, grid, root, form
    )
    command("sync", sync_command, "bring the metrics of runs into SwanLab", runs, modes, root)
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
