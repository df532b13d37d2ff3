"""List, show, compare, record, analyse, keep, start, sweep and check experiments.

    python -m experiment list
    python -m experiment compare out/experiment_1_4_0 out/experiment_1_4_8
    python -m experiment brief 1.4.8
    python -m experiment fill 1.4.8 --notes answers.json
    python -m experiment new 1.4.9 --from 1.4.8 -- --fusion_heads 16
    python -m experiment sweep heads --from 1.4.8 --grid fusion_heads=4,8,16 seed=1,2 -- --max_steps 500
    python -m experiment keep out/knowledge_1_5_0_10000_seed1 out/knowledge_1_5_0_10000_seed2

A run is named by its folder, its name in out/, or the number of its experiment; a folder of runs stands for all in it.
Flags for the training script stand after --.
"""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import mean

from common.cli import CommandParser, run_command, sentence
from common.files import require_file

from .blanks import open_blanks
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
AXES = ("steps", "tokens", "seconds")
MODES = ("online", "local", "offline")


def list_command(args) -> int:
    from .compare import list_runs
    from .scripts import tree_lines, tree_of

    if args.tree:
        nodes = tree_of(ROOT)
        if args.format == "json":
            print(json.dumps([node.as_dict() for node in nodes], ensure_ascii=False, indent=1))
        else:
            width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
            print("\n".join(cut(line, width) for line in tree_lines(nodes, tree_text(args.root))))
        return 0
    show([list_runs(find_runs(args.root, deep=True), f"runs in {args.root}")], args.format)
    return 0


def cut(line: str, width: int | None) -> str:
    """A line that fits a terminal; the end of a longer one is left out."""
    return line if width is None or len(line) <= width else line[: width - 1] + "…"


def tree_text(root: str):
    """Writes the line of an experiment in the tree: the best loss of its newest run and its seeds, and its change."""
    from .evidence import seeds_of

    newest = {run.number: run for run in find_runs(root, deep=True) if run.best}
    best = {name: mean(own.best["val_loss"] for own in seeds_of(run) if own.best) for name, run in newest.items()}

    def text(node) -> str:
        loss = f" [{best[node.number]:.4f}]" if node.number in best else ""
        archived = " (archive)" if node.is_archived else ""
        return f"{node.dotted}{loss}{archived}: {node.change or node.question}"

    return text


def show_command(args) -> int:
    run = open_run(args.run, args.root)
    rows = [{"of": label, "value": value_of(name, run).strip()} for label, name in SHOWN.items()]
    show([Table(str(run.path), rows)], args.format)
    return 0


def compare_command(args) -> int:
    from .compare import compare, groups_of
    from .plots import draw

    runs, labels = labelled_runs(args.runs, args.root)
    if len(runs) < 2:
        raise ValueError("compare needs two different runs or more")
    show(compare(runs, labels), args.format)
    try:
        drawn = draw(groups_of(runs, labels), args.png or Path(args.root) / "compare.png", args.axis)
        print(f"curves: {drawn}", file=sys.stderr)
    except OSError as problem:  # what was asked for is on the screen
        print(f"the curves were not drawn ({sentence(problem)}): --png names another file", file=sys.stderr)
        return 1 if args.png else 0
    return 0


def labelled_runs(names: list[str], root: str) -> tuple[list[Run], dict[Run, str]]:
    """The different runs of these names, and the labels of those that are given as LABEL=RUN."""
    found, labels = {}, {}
    for name in names:
        label, equals, path = name.partition("=")
        labelled = equals and label and not Path(name).exists()
        for run in open_runs([path if labelled else name], root):
            if run.path.resolve() not in found:
                found[run.path.resolve()] = run
                labels |= {run: label} if labelled else {}
    return list(found.values()), labels


def fill_command(args) -> int:
    from .notes import fill_draft, fill_notes

    if args.rows:
        return fill_rows_command(args)
    runs = open_runs(args.runs, args.root)
    if args.notes is None:
        for run in runs:
            made = fill_draft(run.path, args.experiment_dir) if args.draft else ()
            told(run, *(made or (fill_record(run.path, args.experiment_dir),)))
        return 0
    if args.draft:
        raise ValueError("--notes and --draft exclude each other: a draft is written first, notes then replace it")
    if len(runs) > 1:
        raise ValueError(f"--notes holds the answers for one run, got {len(runs)} runs: give one")
    notes = notes_of(args.notes)
    told(runs[0], fill_notes(runs[0].path, notes, args.experiment_dir), answered=len(notes))
    return 0


def notes_of(named: str) -> dict[str, str]:
    """The answers in a file, - for standard input."""
    from .blanks import read_notes

    text = sys.stdin.read() if named == "-" else require_file(named, "notes").read_text(encoding="utf-8")
    return read_notes(text, "standard input" if named == "-" else named)


def fill_rows_command(args) -> int:
    """The record of an experiment without a run folder, from its rows of results."""
    from .rows_record import fill_from_rows

    if args.draft or len(args.runs) > 1:
        raise ValueError("--rows fills the record of one experiment, without --draft: give one number, such as 1.6.8")
    notes = notes_of(args.notes) if args.notes else {}
    path = fill_from_rows(args.runs[0], args.rows, notes, args.experiment_dir)
    print(f"{path}: from rows of {args.rows}; {len(notes)} answers written; {left(path)}")
    return 0


def left(path: Path) -> str:
    """How many blanks of a record are open."""
    text = path.read_text(encoding="utf-8")
    people, blanks = sum("[待填写]" in line for line in text.splitlines() if line[:1] != ">"), len(open_blanks(text))
    return f"{people} blanks are left for people, {blanks} for an analysis"


def told(run: Run, path: Path, drafted: int | None = None, answered: int | None = None) -> None:
    """Say what became of a record."""
    made = f"; {drafted} blanks drafted by rules" if drafted is not None else ""
    made += f"; {answered} answers written" if answered is not None else ""
    print(f"{path}: {STATES.get(run.state, run.state)}{made}; {left(path)}; curves: {run.path / 'curves.png'}")


def brief_command(args) -> int:
    from .brief import as_markdown, brief

    made = brief(open_run(args.run, args.root), args.experiment_dir)
    print(json.dumps(made, ensure_ascii=False, indent=1) if args.json else as_markdown(made))
    return 0


def draft_command(args) -> int:
    from .notes import fill_draft

    for run in open_runs(args.runs, args.root):
        told(run, *fill_draft(run.path, args.experiment_dir))
    return 0


def code_command(args) -> int:
    from .source import rebuild

    run = open_run(args.run, args.root)
    missing = rebuild(run, args.folder, ROOT)
    print("\n".join([f"{args.folder}: the code of {run.path}", *missing]))
    return 0


def figures_command(args) -> int:
    from .paper import draw_figures

    for path in draw_figures(open_runs(args.runs, args.root), args.out):
        print(path)
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
    from .new import new_experiment, next_steps

    script, record = new_experiment(args.number, args.base, args.flags, ROOT)
    print(f"script: {script.relative_to(ROOT)}\nrecord: {record.relative_to(ROOT)}")
    print("\n".join(next_steps(script, record, ROOT)))
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
RECORD_DIR = argument("--experiment_dir", help="folder of the records; default: that of the run's flags")
BASE = argument("--from", dest="base", required=True, metavar="NUMBER", help="the experiment to start from")
# Name, function, what --help says, arguments.
COMMANDS: list[tuple[str, Callable, str, list]] = [
    ("list", list_command, "all runs: state, loss, perplexity, tokens/s, memory, age since the start",
     [argument("--tree", action="store_true", help="the experiments instead, each below the one it builds on, with its "
               "change and the best validation loss of its newest run, a mean over its seeds"), ROOTS, FORMAT]),
    ("show", show_command, "what was measured in a run", [RUN, ROOTS, FORMAT]),
    ("compare", compare_command, "flags that differ, results, winners; curves as PNG",
     [argument("runs", nargs="+", metavar="[LABEL=]RUN", help="runs that share a LABEL are seeds of one experiment"),
      argument("--axis", choices=AXES, default="steps", help="what the curves are drawn over"),
      argument("--png", help="file of the curves; default: compare.png in --root"), ROOTS, FORMAT]),
    ("fill", fill_command, "fill the records of runs, also of runs that failed",
     [RUNS, argument("--notes", metavar="FILE", help="answers to the blanks, as `brief` asks for them; -: from input"),
      argument("--draft", action="store_true", help="also answer what follows from numbers alone"),
      argument("--rows", metavar="PROTOCOL", help="RUN is the number of an experiment without a run folder: its record "
               "from the rows of this protocol in results.jsonl"), RECORD_DIR, ROOTS]),
    ("brief", brief_command, "all that an analysis of a run needs, and the blanks to fill, as one text",
     [RUN, argument("--json", action="store_true", help="as JSON instead of Markdown"), RECORD_DIR, ROOTS]),
    ("draft", draft_command, "fill the records of runs, with findings that follow from numbers alone",
     [RUNS, RECORD_DIR, ROOTS]),
    ("code", code_command, "put the code of a run into a new folder: its commit, its uncommitted changes, new files",
     [RUN, argument("folder", metavar="FOLDER", help="a folder that does not exist yet"), ROOTS]),
    ("figures", figures_command, "the figures of a paper, as PDF and PNG; runs that differ by their seed are one line",
     [RUNS, argument("--out", default="out/figures", help="folder of the figures; default: out/figures"), ROOTS]),
    ("keep", keep_command, "append the results of finished runs to experiment/results.jsonl",
     [RUNS, argument("--experiment", metavar="NUMBER", help="default: as the folder's name says"),
      argument("--protocol", help="such as knowledge-10k; default: as the folder's name says"),
      argument("--split", default="dev", help="which questions were asked, such as dev or held-out"),
      argument("--partial", action="store_true", help="accept an evaluation with --limit, or cut short, and note it"),
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
    parser = CommandParser(prog="python -m experiment", description=__doc__)
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
