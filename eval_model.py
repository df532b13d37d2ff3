"""Evaluate a trained run: print a table, write eval.json into the run folder, complete the run's record.

python eval_model.py --run out/experiment_1_4_8
python eval_model.py --compare out/quickstart_plain out/quickstart_memory
"""

import argparse
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from transformers.utils import logging as transformers_logging

from common.cli import CommandParser, choose_device, positive_int, run_command
from common.files import read_json
from dataset.tokenizer import load_tokenizer
from editing.store import MemoryStore
from evaluation import ON_REQUEST, TASKS, EvalConfig
from evaluation.config import precision
from evaluation.controls import CONTROLS, controls_of, tasks_of
from evaluation.gold import find_gold, require_questions
from evaluation.in_context import RETRIEVER_HELP, RETRIEVERS, EntryFinder
from evaluation.report import compare, table, with_controls
from evaluation.results import FILE, ResultFile, about_evaluation
from model import load_run
from runs.load import with_bank
from runs.record import fill_record
from runs.run import Run
from runs.tracking import replay
from trainer.meters import memory_readings

PATHS = (
    "val_path", "object_path", "relation_path", "verification_path", "edit_path", "counterfact_path", "zsre_path",
    "pararel_path", "insert_path",
)  # fmt: skip
# The tasks that cannot do without each of them.
TASKS_OF = {
    "val_path": {"language", "overlap", "usage", "generation"},
    "object_path": {"object", "reworded", "exact_match", "cost", "retrieval", "absent"},
    "relation_path": {"relation"}, "verification_path": {"verification"}, "edit_path": {"edits"},
    "pararel_path": {"pararel"}, "insert_path": {"insertion"},
    "counterfact_path": {"counterfact"}, "zsre_path": {"zsre"},
}  # fmt: skip
WITHOUT_GOLD = TASKS_OF["val_path"] | {"language_sets"}


def config_of(args: argparse.Namespace, data: dict) -> EvalConfig:
    """Paths from the command line, else from the data flags of the run.

    What a run had, and no chosen task needs, may have gone since.
    """
    paths = {name: getattr(args, name) or data.get(name) for name in PATHS}
    val_fraction = 0.0
    if paths["val_path"] is None:
        paths["val_path"], val_fraction = data["data_path"], data["val_fraction"]
    for name, path in paths.items():
        if path and not getattr(args, name) and not Path(path).exists() and TASKS_OF[name].isdisjoint(args.tasks):
            print(f"left out, for no task needs it: there is no file {path}", file=sys.stderr)
            paths[name] = None
    return EvalConfig(
        **paths, val_fraction=val_fraction, cache_dir=args.cache_dir or data["cache_dir"], limit=args.limit,
        batch_size=args.batch_size, seed=args.seed, language_sets=tuple(args.language_sets),
        asked_cases=args.asked_cases,
    )  # fmt: skip


def load_plain(run_dir: str, model, tokenizer):
    """The model of a plain run, which reads the same tokens as another in rows of the same length.

    Raises:
        FileNotFoundError, ValueError: it has no weights, a memory, another tokenizer, or a shorter context.
    """
    plain, longest = load_run(run_dir, model.device), model.settings.max_seq_len
    if plain.settings.reads_bank:
        raise ValueError(f"--plain {run_dir} is a run with a memory: give one without")
    if load_tokenizer(run_dir, "plain").get_vocab() != tokenizer.get_vocab():
        raise ValueError(f"--plain {run_dir} has another tokenizer, so its tokens are others: give a run with the same")
    if plain.settings.max_seq_len < longest:
        raise ValueError(
            f"--plain {run_dir} reads {plain.settings.max_seq_len} tokens, fewer than {longest}: give another"
        )
    return plain


def chosen_controls(args: argparse.Namespace, model, config: EvalConfig) -> dict:
    """The controls to run, by name.

    Raises:
        ValueError: a control does not exist, or is not possible for this model and its questions.
    """
    controls = controls_of(model, config)
    for name in args.arms or ():
        if name not in controls:
            raise ValueError(f"--arms {name!r} is not possible for {args.run}: choose from {list(controls)}")
    return controls if args.arms is None else {name: controls[name] for name in args.arms}


def finder_of(args: argparse.Namespace, model, tokenizer) -> EntryFinder | None:
    """What finds entries for the prompt; None without `--entries_from`. The run itself is not loaded again."""
    if not args.entries_from:
        return None
    if Path(args.entries_from).resolve() == Path(args.run).resolve():
        return EntryFinder(model, tokenizer, args.retriever)
    return EntryFinder.of_run(args.entries_from, model.device, args.retriever)


def show(results: ResultFile) -> None:
    """Print the results of this evaluation."""
    print(table(with_controls(results.run_dir.name, results.measured)))
    for sample in results.measured.get("generation", {}).get("samples", [])[:3]:
        print(f"\n{sample['prompt']!r} ->{sample['greedy']!r}")


@contextmanager
def shown_at_failure(results: ResultFile) -> Iterator[None]:
    """Print what was measured so far, whatever ends the evaluation.

    Raises:
        MemoryError: the GPU has no room for a batch.
    """
    try:
        yield
    except BaseException as problem:
        if len(results.measured) > 2:  # more than `arms` and `about`
            show(results)
        if isinstance(problem, torch.OutOfMemoryError):
            raise MemoryError(f"the GPU's memory is too small: give a smaller --batch_size ({problem})") from None
        raise


def evaluate(args: argparse.Namespace) -> ResultFile:
    """Run all tasks, then those that controls change, and store each result at once."""
    run_dir = Path(args.run)
    device = choose_device(args.device)
    model, tokenizer = load_run(run_dir, device), load_tokenizer(run_dir, "run")
    flags = read_json(run_dir / "flags.json")
    config = config_of(args, flags["data"])
    require_questions(config)
    bank, other_bank = None, {}
    if args.bank:
        model, bank, journal = with_bank(run_dir, model, tokenizer, args.bank, config.cache_dir)
        names = [bank.report["bank_key"][:8], journal.digest()]  # the second, if it was edited
        other_bank = {
            "bank": "_".join(filter(None, names)),
            "bank_file": args.bank,
            "edits": len(journal.edited_rows()),
        }
    knowledge = flags["data"]["database_init_path"], args.database_init_path
    if args.plain:
        config = replace(config, plain=load_plain(args.plain, model, tokenizer))
    if not WITHOUT_GOLD.issuperset(args.tasks):
        config = replace(config, gold=find_gold(run_dir, model, tokenizer, config, *knowledge, bank))
    finder, places = finder_of(args, model, tokenizer), {"knowledge_path": knowledge[1], "cache_dir": config.cache_dir}
    open_store = partial(MemoryStore.in_memory, run_dir, model, tokenizer, trained_bank=bank, **places)
    config = replace(config, finder=finder, open_store=open_store)
    controls = chosen_controls(args, model, config)
    files = {name: path for name in (*PATHS, "language_sets") if (path := getattr(config, name))}
    about = about_evaluation(run_dir, device, args.limit) | {"files": files} | other_bank
    results = ResultFile(run_dir, about | ({"entries_from": args.entries_from} if finder else {}))
    results.require_writable()

    def run_task(name: str, control: str, config: EvalConfig) -> None:
        print(f"evaluating: {name}{control and f', {control}'}", file=sys.stderr, flush=True)
        start = time.perf_counter()
        result = TASKS[name](model, tokenizer, config)
        if result is not None:  # None: its files are not given
            results.add(name, control, result | {"seconds": round(time.perf_counter() - start, 2)})

    with shown_at_failure(results), precision(device, flags["optim"]["dtype"]):
        for name in args.tasks:
            run_task(name, "", config)
        for control, change in controls.items():
            with change(model, tokenizer, config) as changed:
                for name in filter(tasks_of(control).__contains__, args.tasks):
                    run_task(name, control, replace(changed, control=control))
    resources = memory_readings(device) | {"parameters": sum(p.numel() for p in model.parameters())}
    results.close(resources=resources)
    return results


def is_asked_for(name: str, args: argparse.Namespace) -> bool:
    """Whether the flag of a task that runs on request is given."""
    flag = ON_REQUEST[name]
    return flag is not None and getattr(args, flag) is not None


def parse_cli() -> argparse.Namespace:
    parser = CommandParser(description=__doc__)
    parser.add_argument("--run", help="run folder to evaluate")
    parser.add_argument("--compare", nargs="+", metavar="RUN", help="print one table of evaluated runs")
    parser.add_argument("--all_arms", action="store_true", help="--compare shows all controls, not the main two alone")
    parser.add_argument("--tasks", nargs="+", choices=TASKS,
                        help=f"tasks to run; default: all but {', '.join(ON_REQUEST)}")  # fmt: skip
    names = ", ".join(map(repr, CONTROLS))
    parser.add_argument("--arms", nargs="*", metavar="CONTROL",
                        help=f"controls, in quotes: {names}; default: all possible; no name: none")  # fmt: skip
    for name in PATHS:
        parser.add_argument(f"--{name}", help="file to use instead of the one in the run's flags")
    parser.add_argument("--language_sets", nargs="+", metavar="PATH", default=(),
                        help="files, or folders of files, of questions and texts that others publish")  # fmt: skip
    parser.add_argument("--plain", metavar="RUN", help="run folder of a plain model on the same tokens, for the task "
                        "overlap, which then runs by default too")  # fmt: skip
    parser.add_argument("--database_init_path", help="where the run's knowledge file is, if it was moved")
    parser.add_argument("--bank", help="knowledge file to read in place of the bank of the training; its results have "
                        "a file of their own")  # fmt: skip
    parser.add_argument("--entries_from", metavar="RUN", help="run with a memory whose retrieval finds the entries of "
                        "the control 'entries in prompt'")  # fmt: skip
    parser.add_argument("--retriever", choices=RETRIEVERS, default="run", help=f"of these entries: {RETRIEVER_HELP}")
    parser.add_argument("--cache_dir", help="folder of tokenised text and banks; default: as in the run's flags")
    parser.add_argument("--limit", type=positive_int, help="questions, and validation rows, at most; default: all")
    parser.add_argument("--asked_cases", type=positive_int, metavar="N", help="of --counterfact_path and --zsre_path "
                        "edit all cases, but ask only N of them, drawn by --seed; default: ask all")  # fmt: skip
    parser.add_argument("--batch_size", type=positive_int, default=32, help="sequences of a batch")
    parser.add_argument("--seed", type=int, default=0, help="seed of samples, edits and shuffling")
    parser.add_argument("--device", help="cpu or cuda; default: cuda if there is one")
    parser.add_argument("--experiment_dir", help="folder of the records; default: as in the run's flags")
    args = parser.parse_args()
    args.tasks = args.tasks or [name for name in TASKS if name not in ON_REQUEST or is_asked_for(name, args)]
    if not args.run and not args.compare:
        parser.error("give --run or --compare")
    if args.all_arms and not args.compare:
        parser.error("--all_arms is for --compare: --run measures all controls, or those of --arms")
    return args


def main() -> int:
    args = parse_cli()
    transformers_logging.disable_progress_bar()
    if args.compare:
        print(compare(args.compare, args.all_arms))
        return 0
    results = evaluate(args)
    show(results)
    name = results.path.name
    if results.larger:
        kept = "; ".join(results.larger)
        print(f"\n{name} keeps its results of more questions: {kept}; delete it to replace them")
    if args.bank:
        print(f"\nresults with the bank {args.bank}: {results.path}")
    elif name != FILE:
        print(f"\nthe bank was edited, so these results stand apart from {FILE}, in {name}")
    if results.problem:
        raise ValueError(f"the results above are not stored in {args.run} ({results.problem})")
    if args.bank:  # the record is about the bank of the training
        return 0
    if Run(args.run).info.get("swanlab"):
        try:
            print(f"\nSwanLab: {replay(args.run, has_metrics=True)}")
        except ValueError as problem:
            print(problem, file=sys.stderr)
    print(f"\nrecord: {fill_record(args.run, args.experiment_dir)}")
    return 0


if __name__ == "__main__":
    run_command(main, MemoryError)
