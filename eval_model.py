"""Evaluate a trained run: a table on the screen, eval.json beside the weights, the run's record completed.

python eval_model.py --run out/experiment_1_4_8
python eval_model.py --compare out/quickstart_plain out/quickstart_memory
"""

import argparse
import os
import sys
import time
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import torch
from transformers.utils import logging as transformers_logging

from common.files import read_json
from dataset.tokenizer import load_tokenizer
from evaluation import TASKS, Settings
from evaluation.controls import arms_of
from evaluation.gold import Gold, find_gold
from evaluation.likelihood import read_questions
from model import load_run
from runs.record import fill_record
from runs.run import Run, git, now, write_json
from runs.tracking import replay
from trainer.meters import memory_readings

PATHS = ("val_path", "object_path", "relation_path", "verification_path", "edit_path")
QUESTIONS = ("object", "relation", "verification", "edit")
ARM_TASKS = ("language", "object", "relation", "verification")
AUTOCAST = {"bfloat16": torch.bfloat16, "float16": torch.float16}


def settings_of(args: argparse.Namespace, flags: dict) -> Settings:
    """Paths from the command line, else from the run's own flags."""
    data = flags["data"]
    paths = {name: getattr(args, name) or data.get(name) for name in PATHS}
    val_fraction = 0.0
    if paths["val_path"] is None:
        paths["val_path"], val_fraction = data["data_path"], data["val_fraction"]
    return Settings(
        **paths, val_fraction=val_fraction, cache_dir=data["cache_dir"], limit=args.limit, batch_size=args.batch_size,
        seed=args.seed,
    )  # fmt: skip


def gold_of(run_dir: Path, flags: dict, model, tokenizer, settings: Settings) -> Gold | None:
    """Where the asked facts stand in the bank; None where no question names one."""
    uuids = set()
    for kind in QUESTIONS:
        if path := getattr(settings, f"{kind}_path"):
            uuids |= {row["uuid"] for row in read_questions(path, (), settings.limit, f"{kind}_path") if "uuid" in row}
    knowledge = flags["data"]["database_init_path"]
    # A plain run names a knowledge file by default only; without the file it has no prompt with the right sentence.
    if not uuids or not knowledge or not (model.settings.reads_bank or Path(knowledge).is_file()):
        return None
    return find_gold(run_dir, knowledge, tokenizer, uuids, model.settings.reads_bank)


def arm_tasks_of(arm: str) -> tuple[str, ...]:
    """Another bank may change any task; handing over the right entry says something of questions alone."""
    if arm == "bank counterfactual":
        return ("object",)
    return ARM_TASKS if arm.startswith("bank") else ARM_TASKS[1:]


def run_tasks(model, tokenizer, settings: Settings, tasks) -> dict:
    results = {}
    for name in tasks:
        start = time.perf_counter()
        result = TASKS[name](model, tokenizer, settings)
        if result is not None:
            results[name] = result | {"seconds": round(time.perf_counter() - start, 2)}
    return results


def evaluate(args: argparse.Namespace) -> dict:
    """All tasks of a run, and those that its arms change, under each arm."""
    run_dir = Path(args.run)
    device = torch.device(args.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    model = load_run(run_dir, device)
    tokenizer = load_tokenizer(run_dir)
    flags = read_json(run_dir / "flags.json")
    settings = settings_of(args, flags)
    settings = replace(settings, gold=gold_of(run_dir, flags, model, tokenizer, settings))
    dtype = AUTOCAST.get(flags["optim"]["dtype"])
    # On the GPU in the precision of the training; a CPU is slower and less exact in it.
    with torch.autocast("cuda", dtype) if device.type == "cuda" and dtype else nullcontext():
        results = run_tasks(model, tokenizer, settings, args.tasks)
        results["arms"] = {}
        arms = arms_of(model, settings)
        for name in arms if args.arms is None else args.arms:
            if name not in arms:
                raise ValueError(
                    f"--arms {name!r} cannot be made of {run_dir}: choose from {', '.join(map(repr, arms))}"
                )
            arm = arms[name]
            with arm(model, tokenizer, settings) as changed:
                arm_tasks = [task for task in args.tasks if task in arm_tasks_of(name)]
                results["arms"][name] = run_tasks(model, tokenizer, changed, arm_tasks)
    results["resources"] = memory_readings(device) | {"parameters": sum(p.numel() for p in model.parameters())}
    results["about"] = {
        "run": run_dir.name, "date": now(), "git_commit": git("rev-parse", "HEAD"), "torch": torch.__version__,
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu", "limit": args.limit,
    }  # fmt: skip
    return results


def columns(results: dict) -> dict[str, str]:
    """The numbers of a table row, by column name."""
    cells = {}
    if "language" in results:
        cells["val loss"] = f"{results['language']['loss']:.4f}"
        cells["ppl"] = f"{results['language']['perplexity']:.2f}"
        cells["bits/byte"] = f"{results['language']['bits_per_byte']:.4f}"
        for source, part in results["language"].get("sources", {}).items():
            cells[f"loss, {source}"] = f"{part['loss']:.4f}"
    for task in ("object", "relation", "verification"):
        if task in results:
            result = results[task]
            for name, part in ({"": result} | result.get("parts", {})).items():
                low, high = part["ci95"]
                cells[f"{task} {name}".strip()] = f"{part['accuracy']:.1%} ±{(high - low) / 2:.1%}"
    if "exact_match" in results:
        cells["object, written freely"] = f"{results['exact_match']['accuracy']:.1%}"
    if "object" in results:
        cells["object planted"] = f"{results['object']['planted']['accuracy']:.1%}"
    for layer, shares in results.get("retrieval", {}).get("layers", {}).items():
        cells[f"gold entry read, {layer}"] = f"{shares['selected']['accuracy']:.1%}"
        among = [f"{shares[f'candidate_{n}']['accuracy']:.1%}" for n in (4, 16, 64)]
        cells[f"gold entry among 4/16/64, {layer}"] = "/".join(among)
    for number in ("1", "100", "10000"):
        if number in results.get("edits", {}):
            shares = [results["edits"][number][name] for name in ("ES", "PS", "NS")]
            cells[f"ES/PS/NS, edits: {results['edits'][number]['edits']}"] = "/".join(
                f"{share:.0%}" for share in shares
            )
    return cells


def table(rows: dict[str, dict]) -> str:
    """An aligned table: a column for each named result, its arm on the second line, and one for chance."""
    cells = {name: columns(results) for name, results in rows.items()}
    measures = list(dict.fromkeys(measure for own in cells.values() for measure in own))
    chance = {}
    for task in ("object", "relation", "verification"):
        known = [results[task]["chance"] for results in rows.values() if task in results]
        chance |= {measure: f"{known[0]:.1%}" for measure in measures if known and measure.split()[0] == task}
    guesses = next((results["frequency"] for results in rows.values() if "frequency" in results), {})
    frequent = {m: f"{guesses[m.split()[0]]['accuracy']:.1%}" for m in measures if m in guesses}
    cells |= ({"chance": chance} if chance else {}) | ({"chance, by frequency": frequent} if frequent else {})
    head = column_titles(list(cells))
    grid = [*head, *([measure, *(own.get(measure, "-") for own in cells.values())] for measure in measures)]
    widths = [max(map(len, column)) for column in zip(*grid, strict=True)]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if place else cell.ljust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in grid
    )


def column_titles(names: list[str]) -> list[list[str]]:
    """The lines over the columns: what the run names share is left out, an arm stands below its run."""
    runs = {name.split(", ")[0] for name in names if not name.startswith("chance")}
    common = os.path.commonprefix(list(runs)) if len(runs) > 1 else ""
    shared = max(common.rfind(end) for end in "_-/") + 1  # words are left whole
    titles = [
        [run if run == "chance" else run[shared:], *(arm.rsplit(" ", 1) if arm else ())]
        for run, _, arm in (name.partition(", ") for name in names)
    ]
    height = max(map(len, titles))
    columns = [[""] * height, *(title + [""] * (height - len(title)) for title in titles)]
    return [list(line) for line in zip(*columns, strict=True)]


def with_arms(name: str, results: dict) -> dict[str, dict]:
    return {name: results} | {f"{name}, {arm}": values for arm, values in results.get("arms", {}).items()}


def compare(run_dirs: list[str]) -> str:
    """One table of runs that were evaluated before, memory models with their arms."""
    rows = {}
    for run_dir in map(Path, run_dirs):
        path = run_dir / "eval.json"
        if not path.exists():
            raise FileNotFoundError(f"{run_dir} has no eval.json: run eval_model.py --run {run_dir} first")
        rows |= with_arms(run_dir.name, read_json(path))
    return table(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", help="run folder to evaluate")
    parser.add_argument("--compare", nargs="+", metavar="RUN", help="print one table of evaluated runs")
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument(
        "--arms", nargs="*", help="such as 'bank shuffled'; without it all that the run allows; with no name none"
    )
    for name in PATHS:
        parser.add_argument(f"--{name}", help="file to use instead of the run's own")
    parser.add_argument("--limit", type=int, help="questions, and validation rows, at most")
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", help="cpu or cuda; without it cuda where there is one")
    parser.add_argument("--experiment_dir", help="where the records are; without it as the run was told")
    args = parser.parse_args()
    transformers_logging.disable_progress_bar()
    if args.compare:
        print(compare(args.compare))
        return
    if not args.run:
        parser.error("give --run or --compare")
    results = evaluate(args)
    write_json(Path(args.run) / "eval.json", results)
    print(table(with_arms(Path(args.run).name, results)))
    for sample in results.get("generation", {}).get("samples", [])[:3]:
        print(f"\n{sample['prompt']!r} ->{sample['greedy']!r}")
    if Run(args.run).info.get("swanlab"):
        try:
            print(f"\nSwanLab: {replay(args.run, has_metrics=True)}")
        except ValueError as problem:
            print(problem, file=sys.stderr)
    print(f"\nrecord: {fill_record(args.run, args.experiment_dir)}")


if __name__ == "__main__":
    try:
        main()
    except (ValueError, FileNotFoundError) as problem:
        sys.exit(f"error: {problem}")
