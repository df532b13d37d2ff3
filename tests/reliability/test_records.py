"""A record is the old or the new one, whole, with the words of its authors, wherever its filling is killed."""

import signal
import sys
from functools import partial
from pathlib import Path

import pytest

from runs.__main__ import main
from runs.check import problems
from runs.record import fill_record
from tests.runs.test_record import filled, write_run
from tests.tiny_runs import FORKS

from .faults import die, die_after, die_text_half_written, fault, then

NAME = "EXPERIMENT_9_9_9.md"


def in_the_record(place: str, number: int, action=die) -> partial:
    """A fault whose calls are counted from the beginning of the filling of a record."""
    return fault("runs.record:write_record", 1, partial(then, fault(place, number, action)))


# What the filling is killed at, and whether the record is the new one by then.
MOMENTS = {
    "before_reading": (in_the_record("pathlib:Path.read_text", 1), False),
    "at_a_value": (in_the_record("runs.record:value_of", 20), False),
    "before_writing": (in_the_record("pathlib:Path.write_text", 1), False),
    "half_written": (in_the_record("pathlib:Path.write_text", 1, die_text_half_written), False),
    "written": (in_the_record("pathlib:Path.write_text", 1, die_after), False),
    "on_disk": (in_the_record("os:fsync", 1, die_after), False),
    "before_renaming": (in_the_record("os:replace", 1), False),
    "renamed": (in_the_record("os:replace", 1, die_after), True),
    "drawing": (fault("runs.record:draw_run", 1), True),
}


def write_words(record: Path) -> None:
    """What a person writes into a filled record: in the place of values, in blanks, and between the lines."""
    text = record.read_text()
    for old, new in (
        ("`2.4000`<!--BEST_LOSS:", "`2.4 (seed 1)`<!--BEST_LOSS:"),
        ("Loss 尖峰: 0 次", "Loss 尖峰: 没有"),
        ("[FINDING_1]", "the bank is unread"),
        ("**实验目的**: [待填写]", "**实验目的**: mine"),
    ):
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    record.write_text(text + "\nMore of mine.\n")


def assert_words_stand(text: str) -> None:
    values = filled(text)
    assert values["BEST_LOSS"] == "2.4 (seed 1)" and "Loss 尖峰: 没有" in values["TRAINING_STABILITY_ANALYSIS"]
    assert "the bank is unread" in text and "**实验目的**: mine" in text and text.endswith("\nMore of mine.\n")


def fill(run: Path, records: Path, before=None) -> None:
    if before:
        before()
    sys.argv = ["experiment", "fill", str(run), "--experiment_dir", str(records)]
    sys.exit(main())


def fill_forked(*arguments) -> int:
    process = FORKS.Process(target=fill, args=arguments)
    process.start()
    process.join()
    return process.exitcode


@pytest.fixture(scope="module")
def unharmed(tmp_path_factory) -> tuple[Path, str, str]:
    """(a second run, the record of the first with a person's words, the record that the second makes of it)."""
    folder = tmp_path_factory.mktemp("unharmed")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("runs.record.draw_curves", lambda run, path: None)
        record = fill_record(write_run(folder / "first/run"), folder / "records")
        write_words(record)
        old = record.read_text()
        run = write_run(folder / "out/run", target_loss=1.25, start_time="2026-01-03T03:00:00")
        new = fill_record(run, folder / "records").read_text()
    assert old != new and filled(new)["TARGET_LOSS"] == "1.2500"
    assert_words_stand(new)
    return run, old, new


# The other moments change nothing on the disk that these do not: each is killed among the slow tests.
OFTEN = {"at_a_value", "half_written", "before_renaming", "renamed", "drawing"}


@pytest.mark.parametrize(
    "moment", [pytest.param(moment, marks=[] if moment in OFTEN else pytest.mark.slow) for moment in MOMENTS]
)
def test_a_record_whose_filling_is_killed_is_the_old_or_the_new_one(tmp_path, survives, unharmed, moment):
    (run, old, new), records = unharmed, tmp_path / "experiment"
    records.mkdir()
    record = records / NAME
    record.write_text(old)

    kill, is_new = MOMENTS[moment]
    with survives("kill -9 while a record is filled"):
        assert fill_forked(run, records, kill) == -signal.SIGKILL
        assert record.read_text() == (new if is_new else old)
        assert list(records.glob("EXPERIMENT_*.md")) == [record]
        assert {path for path, _ in problems(tmp_path, tmp_path / "none")} == set()
        assert fill_forked(run, records) == 0
        assert record.read_text() == new
        assert {path.name for path in records.glob("[!.]*")} == {NAME, "curves"}


@pytest.mark.parametrize("moment", [pytest.param("half_written", marks=pytest.mark.slow), "before_renaming"])
def test_a_run_killed_while_it_fills_its_record_fills_it_the_next_time(runs, survives, moment):
    records = runs.folder / "records"
    records.mkdir()
    record = records / "EXPERIMENT_run.md"
    template = Path("experiment/TEMPLATE.md").read_text()
    words = template.replace("[FINDING_1]", "expected: the bank is unread") + "\nMore of mine.\n"
    assert words.count("expected:") == 1
    record.write_text(words)
    with survives("kill -9 while a record is filled"):
        assert runs.start("run", fault=MOMENTS[moment][0]).code == -signal.SIGKILL
        assert record.read_text() == words
        ended = runs.start("run")
        assert ended.code == 0, ended.output
        text = record.read_text()
        assert filled(text)["STATE"] == "✅ 完成" and "[FINAL_LOSS]" not in text
        assert "expected: the bank is unread" in text and text.endswith("\nMore of mine.\n")
        assert list(records.glob("EXPERIMENT_*.md")) == [record]
