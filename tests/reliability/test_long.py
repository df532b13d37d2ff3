"""Large files and long runs take no more memory than small ones. All of these are slow."""

import json
import os
import random
import resource
import shutil
import signal
import time
from functools import partial
from pathlib import Path
from statistics import median

import psutil
import pytest

from dataset.knowledge import load_bank
from dataset.pretrain import open_token_cache
from dataset.tokenizer import load_tokenizer
from tests.tiny_runs import FORKS, metrics

pytestmark = pytest.mark.slow
MB = 10**6
WORDS = [line.split("\t")[0] for line in Path("dataset/facts.tsv").read_text().splitlines()[:2000]]


def measure(function, report: Path) -> None:
    start = time.perf_counter()
    function()
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    report.write_text(json.dumps({"seconds": seconds, "peak": peak}))


def assert_bounded(function, path: Path, capsys) -> None:
    """Run a reader in a process of its own; print its speed, and refuse more than 1.5 GB of resident memory."""
    report = path.with_name("measured.json")
    process = FORKS.Process(target=measure, args=(function, report))
    process.start()
    process.join()
    size = path.stat().st_size / MB
    for left in (path, path.parent / "cache"):  # gigabytes, which pytest would keep
        shutil.rmtree(left) if left.is_dir() else left.unlink()
    assert process.exitcode == 0
    measured = json.loads(report.read_text())
    with capsys.disabled():
        speed, peak = size / measured["seconds"], measured["peak"] / MB
        print(f"\n{path.name}: {size:,.0f} MB at {speed:.1f} MB/s, at most {peak:,.0f} MB of memory")
    assert measured["peak"] < 1500 * MB


def open_text(path: Path, n_lines: int) -> None:
    cache = open_token_cache(path, load_tokenizer("dataset/tokenizer"), path.parent / "cache")
    assert cache.report["documents"] + cache.report["empty_documents"] == n_lines


def open_knowledge(path: Path) -> None:
    bank = load_bank(path, load_tokenizer("dataset/tokenizer"), 1024**2, 32, path.parent / "cache")
    assert bank.tokens.shape == (1024**2, 32) and bank.report["read"] == 1_200_000


def test_two_gigabytes_of_text_are_tokenised_in_bounded_memory(tmp_path, capsys):
    rng, path = random.Random(0), tmp_path / "text.jsonl"
    texts = (" ".join(rng.choices(WORDS, k=rng.randint(0, 120))) for _ in range(5000))
    block = "".join(json.dumps({"text": text}) + "\n" for text in texts)
    n_blocks = 2000 * MB // len(block) + 1
    with open(path, "w") as file:
        for _ in range(n_blocks):
            file.write(block)
    assert path.stat().st_size >= 2000 * MB
    assert_bounded(partial(open_text, path, 5000 * n_blocks), path, capsys)


def test_a_knowledge_file_of_446_mb_becomes_a_bank_in_bounded_memory(tmp_path, capsys):
    rng, path = random.Random(0), tmp_path / "knowledge.json"
    with open(path, "w") as file:
        for number in range(1_200_000):
            subject, object = rng.choices(WORDS, k=2)
            fact = {
                "sentence": f"{subject} met {object} in {number}.", "subject": subject, "predicate": "met",
                "object": object, "uuid": f"{number:036}", "source": "a source that is described at some length" * 5,
            }  # fmt: skip
            file.write(("[\n" if number == 0 else ",\n") + json.dumps({"target": [fact]}))
        file.write("\n]\n")
    assert path.stat().st_size >= 446 * MB
    assert_bounded(partial(open_knowledge, path), path, capsys)


def watch_resources(report: Path, minutes: float | None = None) -> None:
    """Note the memory, the open files and the threads of a run at every log step; ask it to stop after `minutes`."""
    from runs.tracking import Tracker

    original, process, first = Tracker.log, psutil.Process(), None

    def log(self, metrics, step):
        nonlocal first
        first = first or time.monotonic()
        with open(report, "a") as file:
            file.write(f"{step} {process.memory_info().rss} {process.num_fds()} {process.num_threads()}\n")
        if minutes and time.monotonic() - first > 60 * minutes:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(self, metrics, step)

    Tracker.log = log


def read_resources(report: Path) -> list[tuple[int, ...]]:
    """(step, bytes of memory, open files, threads), as they were noted."""
    return [tuple(map(int, line.split())) for line in report.read_text().splitlines()]


def assert_no_growth(early: list[tuple], late: list[tuple], megabytes: float, capsys) -> None:
    """Less growth of memory, from the median of the early rows to that of the late ones; no more files or threads."""
    growth = median(row[1] for row in late) - median(row[1] for row in early)
    with capsys.disabled():
        print(
            f"\nfrom steps {early[0][0]:,} to {early[-1][0]:,} to steps {late[0][0]:,} to {late[-1][0]:,}: "
            f"{growth / MB:+.1f} MB of memory, now {late[-1][1] / MB:,.0f} MB, {late[-1][2]} open files, "
            f"{late[-1][3]} threads"
        )
    assert growth < megabytes * MB
    assert max(row[2] for row in late) <= max(row[2] for row in early)
    assert max(row[3] for row in late) <= max(row[3] for row in early)


def test_two_thousand_steps_take_no_more_memory_nor_files_at_their_end(runs, capsys):
    report = runs.folder / "resources"
    flags = ("--max_steps", "2000", "--eval_interval", "100", "--save_interval", "100", "--selection", "gumbel")
    ended = runs.start("run", *flags, "--ema_interval", "5", "--epochs", "1000", fault=partial(watch_resources, report))
    assert ended.code == 0, ended.output
    assert len(metrics(runs.folder / "run", "loss")) == 2000
    rows = read_resources(report)
    early, late = [row for row in rows if 300 <= row[0] <= 600], [row for row in rows if row[0] > 1700]
    assert_no_growth(early, late, 10, capsys)
