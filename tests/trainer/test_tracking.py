"""metrics.jsonl is always right; SwanLab may be missing, may fail, and never stops a run."""

import importlib.util
import json
import logging
import math
import sqlite3
from pathlib import Path

import pytest

from trainer import tracking
from trainer.runinfo import RunInfo, make_log
from trainer.tracking import Tracker, swanlab_mode


def lines_of(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


class BrokenRun:
    """A SwanLab run whose every call fails."""

    def __init__(self):
        self.calls = 0

    def log(self, *args, **kwargs):
        self.calls += 1
        raise RuntimeError("no connection")


@pytest.fixture
def no_login(monkeypatch, tmp_path):
    monkeypatch.delenv("SWANLAB_API_KEY", raising=False)
    monkeypatch.delenv("SWANLAB_MODE", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))


def test_each_line_is_on_disk_at_once_and_valid_json(tmp_path):
    tracker = Tracker(tmp_path)
    tracker.rewind(0)
    tracker.log({"loss": math.nan, "grad_norm": math.inf, "lr": 0.5}, step=3)
    assert lines_of(tmp_path) == [{"step": 3, "loss": None, "grad_norm": None, "lr": 0.5}]


@pytest.mark.parametrize("resumed_at, kept", [(0, []), (2, [1, 2]), (9, [1, 2, 3])])
def test_no_step_stands_twice_after_a_resume(tmp_path, resumed_at, kept):
    first = Tracker(tmp_path)
    first.rewind(0)
    for step in (1, 2, 3):
        first.log({"loss": 1.0}, step)
    first.finish()
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 4, "lo')  # killed while it wrote
    second = Tracker(tmp_path)
    second.rewind(resumed_at)
    second.log({"loss": 2.0}, 10)
    assert [line["step"] for line in lines_of(tmp_path)] == [*kept, 10]


def test_only_the_main_process_writes(tmp_path):
    tracker = Tracker(tmp_path, writes=False, use_swanlab=True)
    tracker.rewind(0)
    tracker.log({"loss": 1.0}, 1)
    tracker.finish()
    assert list(tmp_path.iterdir()) == []


def test_the_run_goes_on_when_swanlab_fails_and_says_so_once(tmp_path):
    make_log(tmp_path, writes=True)
    tracker = Tracker(tmp_path)
    tracker.run = broken = BrokenRun()
    tracker.rewind(0)
    tracker.log({"loss": 1.0}, 1)
    tracker.log({"loss": 0.5}, 2)
    tracker.finish()
    assert broken.calls == 1
    assert [line["loss"] for line in lines_of(tmp_path)] == [1.0, 0.5]
    assert (tmp_path / "train.log").read_text().count("no connection") == 1


def test_the_mode_follows_flag_then_environment_then_key(no_login, monkeypatch):
    assert swanlab_mode(None) == "local"
    monkeypatch.setenv("SWANLAB_API_KEY", "x")
    assert swanlab_mode(None) == "online"
    monkeypatch.setenv("SWANLAB_MODE", "offline")
    assert swanlab_mode(None) == "offline"
    assert swanlab_mode("disabled") == "disabled"


@pytest.mark.parametrize("package", ["swanlab", "swanboard"])
def test_a_missing_package_stops_before_training(no_login, monkeypatch, tmp_path, package):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == package else find(name, *rest))
    with pytest.raises(ValueError, match=r"pip install 'swanlab\[dashboard\]'"):
        Tracker(tmp_path, use_swanlab=True)


def test_local_mode_reaches_the_dashboards_database(no_login, monkeypatch, tmp_path):
    monkeypatch.setattr(tracking, "SWANLAB_DIR", str(tmp_path / "swanlog"))
    tracker = Tracker(tmp_path, True, True, "Test", "tiny", {"model": {"dim": 8, "path": None}}, "local")
    tracker.rewind(0)
    tracker.log({"loss": 2.0, "val_loss": 2.5}, 1)
    tracker.log_text("samples", "一句话", 1)
    assert tracker.run is not None and tracker.url.startswith("swanlab watch")
    tracker.finish()
    database = sqlite3.connect(tmp_path / "swanlog/runs.swanlab")
    assert database.execute("select name, status from experiment").fetchall() == [("tiny", 1)]
    assert {name for (name,) in database.execute("select name from tag")} >= {"train/loss", "val/val_loss"}


def test_run_json_tells_the_stage_that_failed(tmp_path):
    info = RunInfo(tmp_path, name="tiny")
    with info.stage("env"):
        assert json.loads((tmp_path / "run.json").read_text())["stages"][0]["state"] == "running"
    with pytest.raises(ValueError), info.stage("data") as stage:
        stage["notes"] = "reading"
        raise ValueError("line 7")
    facts = json.loads((tmp_path / "run.json").read_text())
    assert [stage["state"] for stage in facts["stages"]] == ["finished", "failed"]
    assert facts["state"] == "failed" and "line 7" in facts["error"] and facts["end_time"]
    assert {path.name for path in tmp_path.iterdir()} == {"run.json", ".lock"}


def test_run_json_holds_no_secret_and_needs_no_git(tmp_path, monkeypatch):
    monkeypatch.setenv("SWANLAB_API_KEY", "do-not-tell")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    facts = RunInfo(tmp_path).facts
    assert facts["git_commit"] is None
    assert "do-not-tell" not in (tmp_path / "run.json").read_text()


def test_a_new_log_does_not_write_into_the_old_one(tmp_path):
    (tmp_path / "a").mkdir(), (tmp_path / "b").mkdir()
    make_log(tmp_path / "a", writes=True).info("first")
    make_log(tmp_path / "b", writes=True).info("second")
    assert "second" not in (tmp_path / "a/train.log").read_text()
    assert "second" in (tmp_path / "b/train.log").read_text()
    logging.getLogger("run").handlers.clear()
