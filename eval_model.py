"""Evaluate a trained run: print a table, write eval.json into the run folder, complete the run's record.

python eval_model.py --run out/experiment_1_4_8
python eval_model.py --compare out/quickstart_plain out/quickstart_memory
"""

import argparse
import sys
import time
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import torch
from transformers.utils import logging as transformers_logging

from common.cli import run_command
from common.files import read_json
from dataset.tokenizer import load_tokenizer
from evaluation import TASKS, EvalConfig
from evaluation.controls import controls_of, tasks_of
from evaluation.gold import find_gold
from evaluation.report import compare, table, with_controls
from model import load_run
from runs.record import fill_record
from runs.run import Run, git, now, write_json
from runs.tracking import replay
from trainer.meters import memory_readings

PATHS = ("val_path", "object_path", "relation_path", "verification_path", "edit_path")
AUTOCAST = {"bfloat16": torch.bfloat16, "float16": torch.float16}


def config_of(args: argparse.Namespace, data: dict) -> EvalConfig:
    """Paths from the command line, else from the data flags of the run."""
    paths = {name: getattr(args, name) or data.get(name) for name in PATHS}
    val_fraction = 0.0
    if paths["val_path"] is None:
        paths["val_path"], val_fraction = data["data_path"], data["val_fraction"]
    return EvalConfig(
        **paths, val_fraction=val_fraction, cache_dir=data["cache_dir"], limit=args.limit, batch_size=args.batch_size,
        seed=args.seed,
    )  # fmt: skip


def run_tasks(model, tokenizer, config: EvalConfig, tasks) -> dict:
    """The results of tasks by name, with the seconds of each; tasks without files are left out."""
    results = {}
    for name in tasks:
        start = time.perf_counter()
        result = TASKS[name](model, tokenizer, config)
        if result is not None:
            results[name] = result | {"seconds": round(time.perf_counter() - start, 2)}
    return results


def evaluate(args: argparse.Namespace) -> dict:
    """The results of all tasks and, under "arms", those of the controls."""
    run_dir = Path(args.run)
    device = torch.device(args.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    model, tokenizer, flags = load_run(run_dir, device), load_tokenizer(run_dir), read_json(run_dir / "flags.json")
    config = config_of(args, flags["data"])
    knowledge = flags["data"]["database_init_path"], args.database_init_path
    config = replace(config, gold=find_gold(run_dir, model, tokenizer, config, *knowledge))
    dtype = AUTOCAST.get(flags["optim"]["dtype"])
    # In the precision of the training on a GPU. A CPU is slower and less exact in it.
    with torch.autocast("cuda", dtype) if device.type == "cuda" and dtype else nullcontext():
        results = run_tasks(model, tokenizer, config, args.tasks)
        results["arms"] = {}
        controls = controls_of(model, config)
        for name in controls if args.arms is None else args.arms:
            if name not in controls:
                raise ValueError(f"--arms {name!r} is not possible for {run_dir}: choose from {list(controls)}")
            with controls[name](model, tokenizer, config) as changed:
                tasks = [task for task in args.tasks if task in tasks_of(name)]
                results["arms"][name] = run_tasks(model, tokenizer, changed, tasks)
    results["resources"] = memory_readings(device) | {"parameters": sum(p.numel() for p in model.parameters())}
    results["about"] = {
        "run": run_dir.name, "date": now(), "git_commit": git("rev-parse", "HEAD"), "torch": torch.__version__,
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu", "limit": args.limit,
    }  # fmt: skip
    return results


def parse_cli() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", help="run folder to evaluate")
    parser.add_argument("--compare", nargs="+", metavar="RUN", help="print one table of evaluated runs")
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS), help="tasks to run; default: all")
    parser.add_argument("--arms", nargs="*", help="controls, such as 'bank shuffled'; default: all; no name: none")
    for name in PATHS:
        parser.add_argument(f"--{name}", help="file to use instead of the one in the run's flags")
    parser.add_argument("--database_init_path", help="where the run's knowledge file is, if it was moved")
    parser.add_argument("--limit", type=int, help="questions, and validation rows, at most; default: all")
    parser.add_argument("--batch_size", type=int, default=32, help="sequences of a batch")
    parser.add_argument("--seed", type=int, default=0, help="seed of samples, edits and shuffling")
    parser.add_argument("--device", help="cpu or cuda; default: cuda if there is one")
    parser.add_argument("--experiment_dir", help="folder of the records; default: as in the run's flags")
    args = parser.parse_args()
    if not args.run and not args.compare:
        parser.error("give --run or --compare")
    return args


def main() -> None:
    args = parse_cli()
    transformers_logging.disable_progress_bar()
    if args.compare:
        print(compare(args.compare))
        return
    results = evaluate(args)
    write_json(Path(args.run) / "eval.json", results)
    print(table(with_controls(Path(args.run).name, results)))
    for sample in results.get("generation", {}).get("samples", [])[:3]:
        print(f"\n{sample['prompt']!r} ->{sample['greedy']!r}")
    if Run(args.run).info.get("swanlab"):
        try:
            print(f"\nSwanLab: {replay(args.run, has_metrics=True)}")
        except ValueError as problem:
            print(problem, file=sys.stderr)
    print(f"\nrecord: {fill_record(args.run, args.experiment_dir)}")


if __name__ == "__main__":
    run_command(main)
