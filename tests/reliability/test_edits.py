"""An edit of the bank is there or not there, never half, wherever its writer is killed or its disk is full."""

import errno
import os
import random
import signal
from functools import partial
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from editing.store import MemoryStore
from model import load_run
from runs.journal import Journal
from tests.editing.conftest import run  # noqa: F401
from tests.tiny_runs import FORKS

from .faults import die, die_after, fault
from .test_input import EXAMPLES, contents, lines


def edit_on(run_dir: Path, report: Path, before=None) -> None:
    """Edit without end; write down each edit that the store has confirmed."""
    if before:
        before()
    store = MemoryStore(run_dir)
    with open(report, "a", buffering=1) as file:
        while True:
            texts = [(row, f"{name} is {random.randrange(10)}.") for row, name in enumerate(("Paris", "Rome"))]
            number = store.edit_many(texts)
            file.write(f"{number}\n")


MOMENTS = [
    fault("os:fsync", 5, die),
    fault("os:fsync", 5, die_after),
    fault("model.memory.bank:MemoryBank.write", 4, die),
    fault("json:dumps", 3, die),
]


def assert_whole(run_dir: Path, report: Path) -> None:
    """All confirmed edits are there, at most one more, and the bank is what the last of them left."""
    confirmed = [int(line) for line in report.read_text().splitlines()] if report.exists() else []
    entries = Journal(run_dir).entries()
    assert len(entries) - len(confirmed) in (0, 1), (len(entries), len(confirmed))
    assert [entry.number for entry in entries][: len(confirmed)] == list(range(1, len(confirmed) + 1))
    bank = load_run(run_dir).bank
    for change in entries[-1].changes if entries else ():
        assert torch.equal(bank.tokens[change.row].long(), torch.tensor(change.new_tokens))


@pytest.mark.parametrize("moment", MOMENTS, ids=["before_disk", "after_disk", "in_memory", "before_writing"])
def test_a_killed_edit_has_happened_or_not(run, tmp_path, survives, moment):  # noqa: F811
    with survives("kill -9 of an edit"):
        process = FORKS.Process(target=edit_on, args=(run, tmp_path / "report", moment))
        process.start()
        process.join()
        assert process.exitcode == -signal.SIGKILL
        assert_whole(run, tmp_path / "report")


@pytest.mark.slow
def test_edits_killed_at_random_moments_are_whole(run, tmp_path, survives):  # noqa: F811
    rng = random.Random(0)
    for number in range(20):
        with survives("kill -9 of an edit"):
            Journal(run).path.unlink(missing_ok=True)
            process = FORKS.Process(target=edit_on, args=(run, tmp_path / f"report{number}"))
            process.start()
            process.join(rng.uniform(0.3, 1.5))
            os.kill(process.pid, signal.SIGKILL)
            process.join()
            assert_whole(run, tmp_path / f"report{number}")


def no_space(original, *args, **kwargs):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_an_edit_that_the_disk_has_no_room_for_has_not_happened(run, monkeypatch):  # noqa: F811
    store = MemoryStore(run)
    store.edit(0, "Paris is in Spain.")
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", partial(no_space, None))
        with pytest.raises(OSError, match="No space left"):
            store.edit(1, "Rome is in Chile.")
    assert store.text(1) == "Rome is in Italy." == MemoryStore(run).text(1)
    store.edit(2, "Oslo is in Peru.")
    assert [entry.number for entry in MemoryStore(run).journal.entries()] == [1, 2]


def test_half_a_character_is_refused(run):  # noqa: F811
    store = MemoryStore(run)
    for change in (lambda: store.edit(0, "\udcff"), lambda: store.search_words("\ud800"), lambda: store.add("\ud800")):
        with pytest.raises(ValueError, match="alone is half a character"):
            change()


def test_an_import_makes_all_edits_or_says_in_one_sentence_why_none(run, tmp_path, survives):  # noqa: F811
    store, path = MemoryStore(run), tmp_path / "edits.jsonl"
    whole = lines({"row": 0, "text": "Paris is in Spain."}, {"row": 1, "text": "Rome is in Chile.", "source": "me"})
    texts = st.sampled_from(["", "Bern is big.", "\ud800", "a " * 99])
    rows = st.lists(st.tuples(st.integers(-1, 7), texts), max_size=3)
    edits = rows.map(lambda pairs: lines(*({"row": row, "text": text} for row, text in pairs)) + b"\n")

    @settings(max_examples=EXAMPLES, deadline=None, derandomize=True, database=None)
    @given(content=contents(whole) | edits)
    def check(content):
        path.write_bytes(content)
        before = store.bank.tokens.clone()
        try:
            store.import_file(path)
        except ValueError as refusal:
            assert str(path) in str(refusal) and "\n" not in str(refusal)
            assert torch.equal(store.bank.tokens, before)

    with survives("fuzzed files", EXAMPLES):
        check()
    assert torch.equal(load_run(run).bank.tokens, store.bank.tokens)


def test_damaged_flags_are_named(run):  # noqa: F811
    for content in (b"{", b"\xff"):
        (run / "flags.json").write_bytes(content)
        with pytest.raises(ValueError, match="flags.json"):
            MemoryStore(run).show(0)
