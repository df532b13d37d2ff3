"""A full disk is one sentence, and a killed build leaves nothing that the next one does not delete."""

import os
import resource
import signal
import sys

import pytest

from common.files import atomic
from dataset.knowledge import load_bank
from dataset.making import write_lines
from dataset.pretrain import open_token_cache
from dataset.tokenizer import load_tokenizer, save_tokenizer
from tests.tiny_runs import FORKS


def build_on_a_full_disk(folder, report, make) -> None:
    """Files end at 60,000 bytes, as on a disk that is full there."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))
    try:
        make(folder)
    except OSError as problem:
        report.write_text(str(problem))
        sys.exit(3)


def make_bank(folder) -> None:
    load_bank(folder / "k.jsonl", load_tokenizer("dataset/tokenizer"), 4000, 32, folder / "cache")


def make_text(folder) -> None:
    open_token_cache(folder / "t.jsonl", load_tokenizer("dataset/tokenizer"), folder / "cache")


def make_tokenizer(folder) -> None:
    save_tokenizer(load_tokenizer("dataset/tokenizer"), folder / "tokenizer")


def make_lines(folder) -> None:
    write_lines(folder / "lines.jsonl", [{"text": "Town."}] * 9000)


@pytest.mark.parametrize("make", [make_tokenizer, make_lines])
def test_a_disk_that_fills_while_a_file_is_written_is_one_sentence(tmp_path, survives, make):
    process = FORKS.Process(target=build_on_a_full_disk, args=(tmp_path, tmp_path / "report", make))
    with survives("disk full while a file is written"):
        process.start()
        process.join()
        assert process.exitcode == 3
        sentence = (tmp_path / "report").read_text()
        assert sentence.startswith("no room to write") and str(tmp_path) in sentence and "\n" not in sentence


@pytest.mark.parametrize("make", [make_bank, make_text])
def test_a_disk_that_fills_while_a_cache_is_built_is_one_sentence(tmp_path, survives, make):
    (tmp_path / "k.jsonl").write_text("".join(f'"Town {n} lies by the river."\n' for n in range(5000)))
    (tmp_path / "t.jsonl").write_text("".join(f'{{"text": "Town {n}."}}\n' for n in range(9000)))
    process = FORKS.Process(target=build_on_a_full_disk, args=(tmp_path, tmp_path / "report", make))
    with survives("disk full while a cache is built"):
        process.start()
        process.join()
        assert process.exitcode == 3
        sentence = (tmp_path / "report").read_text()
        assert sentence.startswith(f"no room to write {tmp_path / 'cache'}") and "\n" not in sentence
        assert [path.name for path in (tmp_path / "cache").iterdir()] == ["hashes"]
        make(tmp_path)


def kill_in_the_middle(path) -> None:
    with atomic(path) as temporary:
        temporary.mkdir()
        (temporary / "half").write_text("x")
        os.kill(os.getpid(), signal.SIGKILL)


def test_what_a_killed_build_has_left_is_deleted_by_the_next_one(tmp_path, survives):
    with survives("kill -9 while a cache is built"):
        process = FORKS.Process(target=kill_in_the_middle, args=(tmp_path / "old",))
        process.start()
        process.join()
        assert process.exitcode == -signal.SIGKILL
        (left,) = tmp_path.iterdir()
        living = left.with_name(f"{left.name.rsplit('.', 1)[0]}.{os.getppid()}")
        elsewhere = [left.with_name(f".{name}.unfinished.another-machine.{process.pid}") for name in ("new", "old")]
        others = tmp_path / ".mine.another-machine.2019"  # a person's file
        for path in (living, *elsewhere, others):
            path.mkdir()
        for path in (elsewhere[1], others):
            os.utime(path, (0, 0))
        with atomic(tmp_path / "new") as temporary:
            temporary.write_text("whole")
        assert sorted(tmp_path.iterdir()) == sorted([tmp_path / "new", living, elsewhere[0], others])
