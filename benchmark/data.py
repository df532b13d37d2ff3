r"""Data: the tokenizer's speed, the time that training waits for batches, and the time to a run's first step.

python -m benchmark.data                        # writes 0.5 GB to the temporary folder, then deletes it
python -m benchmark.data --text_path my.jsonl --knowledge_mb 50 --knowledge_num 65536
python -m benchmark.data --text_mb 2 --knowledge_mb 1 --knowledge_num 1024 --batch_size 2 --seq_len 64 \
    --accumulation_steps 1 --dim 32 --n_layers 1 --n_heads 4 --repeats 4 --no_compile

tokeniser: MB/s from JSON Lines to the token cache, with reading and writing. The text is made from the quick start's
  facts. Its words repeat more than those of real text, so `--text_path` gives the truer figure.
loader: batches/s of BatchLoader alone, batches/s that full training steps of the plain model take, and the share of
  that training in which it waits for a batch.
start: seconds from the start of the training script with 1.4.8's flags until its first logged step: imports, data,
  model, compilation. Cold: text and knowledge file are new; warm: the same again. The operating system has both files
  in memory either way.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import datetime
from functools import partial
from itertools import cycle, islice
from pathlib import Path
from typing import TextIO

import torch

from common.cli import run_command
from dataset.loader import BatchLoader
from dataset.making import documents
from dataset.pretrain import open_pretrain_data
from dataset.quickstart import WORDINGS, read_facts
from dataset.tokenizer import load_tokenizer

from .harness import Cases, flags_of, make_parser, script_config, set_up, sizes_of
from .subject import Subject, prepare, release, train_step

ROOT = Path(__file__).parent.parent
NUMBER = "<number>"
SUPPLIED = 200  # batches that the loader alone is timed for


def write_text(path: Path, megabytes: float) -> None:
    """JSON Lines of documents about the quick start's facts."""
    lines = [json.dumps(document) + "\n" for document in documents(read_facts(), WORDINGS, random.Random(0))]
    with open(path, "w", encoding="utf-8") as file:
        write_until(file, cycle(lines), megabytes)


def write_until(file: TextIO, pieces: Iterator[str], megabytes: float) -> None:
    size = 0
    while size < megabytes * 1e6:
        size += file.write(next(pieces))


def write_knowledge(path: Path, megabytes: float) -> None:
    """A JSON array of `{"target": [...]}` in the form of T-REx; every sentence is different."""
    templates = []
    for fact in read_facts():
        sentence = f"{fact.sentence.rstrip('.')}, says page {NUMBER} of the almanac that was printed in that year."
        item = {"sentence": sentence, "subject": fact.subject, "predicate": fact.predicate}
        item |= {"object": fact.object, "uuid": fact.uuid}
        templates.append(json.dumps({"target": [item]}).split(NUMBER))
    elements = (f"{before}{number}{after}" for number, (before, after) in enumerate(cycle(templates)))
    with open(path, "w", encoding="utf-8") as file:
        file.write("[" + next(elements))
        write_until(file, (f",\n{element}" for element in elements), megabytes)
        file.write("]\n")


def open_rows(path: Path, cache: Path, args: argparse.Namespace):
    tokenizer = load_tokenizer(ROOT / "dataset/tokenizer")
    return open_pretrain_data(path, tokenizer, args.seq_len, mode="packed", cache_dir=cache)


def tokenise(path: Path, cache: Path, args: argparse.Namespace) -> dict:
    report = open_rows(path, cache, args).report
    seconds = report["bytes"] / 1e6 / report["tokenise_mb_per_s"]
    return {
        "mb_per_s": report["tokenise_mb_per_s"], "tokens_per_s": report["tokens"] / seconds,
        "mb": report["bytes"] / 1e6, "cpu_cores": os.cpu_count(),
    }  # fmt: skip


def load_and_train(path: Path, cache: Path, args: argparse.Namespace, device: torch.device) -> dict:
    """The loader alone, then the loop of forward, backward and optimizer that it feeds."""
    rows = open_rows(path, cache, args)
    loader = BatchLoader(rows, args.batch_size, 0, pin_memory=device.type == "cuda")
    if not len(loader):
        raise ValueError(f"the text gives fewer than one batch of {args.batch_size} rows: give more --text_mb")
    batches = loader.iterate(0, ahead=1)  # else the first ones are ready before they are asked for
    next(batches)
    start = time.perf_counter()
    for _ in islice(batches, SUPPLIED):
        pass
    supplied = SUPPLIED / (time.perf_counter() - start)
    batches.close()

    config = script_config("1_4_0", **sizes_of(args))
    subject = Subject("1_4_0", config, compiled=not args.no_compile)
    batches = loader.iterate(0)

    def next_batch() -> dict:
        return {name: value.to(device, non_blocking=True) for name, value in next(batches).items()}

    prepare(subject, None, next_batch(), device)
    for _ in range(3):
        float(train_step(subject, next_batch(), device))
    n_steps = 4 * args.repeats
    waits, start = [], time.perf_counter()
    for _ in range(n_steps):
        before = time.perf_counter()
        batch = next_batch()
        waits.append(time.perf_counter() - before)
        loss = train_step(subject, batch, device)
    float(loss)  # waits for the GPU
    seconds = time.perf_counter() - start
    batches.close()
    release(subject)  # the training script needs the memory
    return {
        "batches_per_s": supplied, "needed_per_s": n_steps / seconds, "margin": supplied * seconds / n_steps,
        "waited_share": sum(waits) / seconds, "longest_wait_ms": 1000 * max(waits), "steps": n_steps,
        "tokens_per_s": n_steps * args.batch_size * args.seq_len / seconds,
    }  # fmt: skip


def start_training(folder: Path, out: Path, text: Path, knowledge: Path, args: argparse.Namespace) -> dict:
    """Start the training script and stop it after its first step."""
    flags = sizes_of(args) | {
        "knowledge_num": args.knowledge_num, "batch_size": args.batch_size, "database_init_path": knowledge,
        "accumulation_steps": args.accumulation_steps, "data_path": text, "cache_dir": folder / "start", "out_dir": out,
        "experiment_dir": folder, "use_swanlab": False, "log_interval": 1, "save_interval": 1_000_000,
        "eval_interval": 1_000_000, "epochs": 1000, "use_compile": False if args.no_compile else None,
    }  # fmt: skip
    words = [word for name, value in flags.items() if value is not None for word in (f"--{name}", str(value))]
    command = [sys.executable, "train_pretrain_accelerate.py", *flags_of("1_4_8"), *words]
    metrics, log = out / "metrics.jsonl", folder / f"{out.name}.log"
    start = time.perf_counter()
    with open(log, "w", encoding="utf-8") as output:
        process = subprocess.Popen(command, cwd=ROOT, stdout=output, stderr=output)
        try:
            while not (metrics.exists() and '"loss"' in metrics.read_text(encoding="utf-8")):
                if process.poll() is not None:
                    said = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
                    raise RuntimeError(f"the training script ended too soon: {said[-1]}")
                if time.perf_counter() - start > args.start_limit:
                    raise RuntimeError(f"no step within --start_limit {args.start_limit} s")
                time.sleep(0.05)
            seconds = time.perf_counter() - start
        finally:
            process.terminate()
            try:
                process.wait(timeout=30)
            except subprocess.TimeoutExpired:
                process.kill()
    stages = {stage["name"]: stage for stage in json.loads((out / "run.json").read_text(encoding="utf-8"))["stages"]}
    spans = {
        name: [datetime.fromisoformat(stages[name][end]) for end in ("start", "end")] for name in ("data", "model")
    }
    return {
        "first_step_s": seconds, **{f"{name}_s": (end - begin).total_seconds() for name, (begin, end) in spans.items()},
        "knowledge_mb": knowledge.stat().st_size / 1e6,
    }  # fmt: skip


def main() -> None:
    parser = make_parser(__doc__, seconds=150)
    parser.add_argument("--batch_size", type=int, default=48)
    parser.add_argument("--accumulation_steps", type=int, help="of the start, instead of 1.4.8's own")
    parser.add_argument("--text_path", type=Path, help="JSON Lines to tokenise, instead of text made here")
    parser.add_argument("--text_mb", type=float, default=20)
    parser.add_argument("--knowledge_mb", type=float, default=446)
    parser.add_argument("--knowledge_num", type=int, help="instead of 1.4.8's own")
    parser.add_argument("--start_limit", type=float, default=240, help="seconds after which a start has failed")
    args = parser.parse_args()
    device = set_up()
    cases = Cases("data", args, device)

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        text, knowledge = args.text_path or folder / "text.jsonl", folder / "knowledge.json"
        if args.text_path is None:
            write_text(text, args.text_mb)
        write_knowledge(knowledge, args.knowledge_mb)
        parts = {
            "tokeniser": partial(tokenise, text, folder / "cache", args),
            "loader": partial(load_and_train, text, folder / "cache", args, device),
            "start, cold": partial(start_training, folder, folder / "cold", text, knowledge, args),
            "start, warm": partial(start_training, folder, folder / "warm", text, knowledge, args),
        }
        for part, function in parts.items():
            measured = cases.attempt({"part": part}, function)
            if measured is not None:
                cases.add({"part": part}, **measured)
    columns = {"part": "", "mb_per_s": ".1f", "batches_per_s": ".1f", "needed_per_s": ".1f", "waited_share": ".2%"}
    print(cases.table(columns | {"first_step_s": ".1f", "data_s": ".0f", "model_s": ".0f"}))


if __name__ == "__main__":
    run_command(main)
