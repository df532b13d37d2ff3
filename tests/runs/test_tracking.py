"""metrics.jsonl is always right; SwanLab may be missing, may fail, and never stops a run."""

import hashlib
import importlib.util
import json
import logging
import math
import os
import re
import subprocess
import time
from pathlib import Path

import pytest

from runs import dashboard as dashboard_files
from runs import tracking
from runs.folder import RunFolder, hold_lock, make_log
from runs.tracking import Tracker, swanlab_mode
from tests.runs.test_record import write_run


def lines_of(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


class FakeRun:
    """A SwanLab run on which `behave` is called whenever something is logged."""

    id, dir, url = "abc", Path("swanlog/run-abc"), "https://example.org/abc"

    def __init__(self, behave):
        self.behave, self.logged, self.texts, self.state = behave, [], {}, None

    def log(self, values, step):
        self.logged.append((step, values))
        self.behave()

    def log_text(self, key, data, caption, step):
        self.texts[key] = dict(zip(caption, data, strict=True))

    def finish(self, **state):
        self.state = state


@pytest.fixture
def fake_swanlab(monkeypatch):
    """`fake_swanlab(behave)` has every SwanLab run opened from then on be a FakeRun; returns the options of opening."""
    import swanlab

    def install(behave, opens=lambda: None) -> dict:
        opened = {}

        def init(**options):
            opens()
            opened.update(options, run=FakeRun(behave))
            return opened["run"]

        monkeypatch.setattr(swanlab, "init", init)
        return opened

    return install


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


def raise_error():
    raise RuntimeError("no connection")


def delete_run():
    raise KeyboardInterrupt("The experiment has been deleted by the user")


@pytest.mark.parametrize(
    "behave, opens, told",
    [
        (raise_error, lambda: None, "no connection"),
        (delete_run, lambda: None, "deleted by the user"),
        (lambda: time.sleep(60), lambda: None, "no answer in 0.3 s"),
        (lambda: None, raise_error, "no connection"),
        (lambda: None, lambda: time.sleep(60), "no answer in 0.3 s"),
    ],
    ids=["fails", "deleted", "hangs", "fails to open", "hangs to open"],
)
def test_the_run_goes_on_when_swanlab_fails_and_says_so_once(
    tmp_path, fake_swanlab, monkeypatch, capsys, behave, opens, told
):
    monkeypatch.setattr(tracking, "PATIENCE", 0.3)
    make_log(tmp_path, writes=True)
    fake_swanlab(behave, opens)
    start = time.monotonic()
    tracker = Tracker(tmp_path, True, True, "Test", "tiny", {}, "online")
    tracker.rewind(0)
    tracker.log({"loss": 1.0}, 1)
    tracker.log({"loss": 0.5}, 2)
    tracker.finish()
    assert time.monotonic() - start < 5
    assert [line["loss"] for line in lines_of(tmp_path)] == [1.0, 0.5]
    assert (tmp_path / "train.log").read_text().count("SwanLab failed") == 1
    assert capsys.readouterr().err.count(told) == 1


def test_a_failure_is_not_waited_for(tmp_path, fake_swanlab):
    fake_swanlab(lambda: None, opens=raise_error)
    start = time.monotonic()
    Tracker(tmp_path, True, True, "Test", "tiny", {}, "online").finish()
    assert time.monotonic() - start < tracking.PATIENCE / 10


def test_metrics_reach_swanlab_in_groups(tmp_path, fake_swanlab):
    opened = fake_swanlab(lambda: None)
    flags = {"model": {"model_type": "model_memory"}, "run": {"seed": 7, "baseline": None}}
    tracker = Tracker(tmp_path, True, True, "Test", "tiny", flags, "online")
    tracker.rewind(0)
    names = (
        "loss",
        "val_loss",
        "epoch",
        "tokens",
        "ppl",
        "gpu_mib",
        "tokens_per_s",
        "memory/used_share",
        "aux/balance",
        "time_share/data",
    )
    tracker.log(dict.fromkeys(names, 1.0) | {"memory/uses": [3, 1]}, 1)
    tracker.finish(error="ValueError: x")
    assert opened["tags"] == ["model_type model_memory", "seed 7"] and opened["config"]["run/baseline"] == "None"
    assert opened["run"].state == {"state": "crashed", "error": "ValueError: x"}
    [(step, values)] = opened["run"].logged
    assert step == 1 and set(values) == {
        "train/loss", "val/val_loss", "system/gpu_mib", "speed/tokens_per_s", "memory/used_share", "train/aux_balance",
        "speed/share_data",
    }  # fmt: skip
    assert lines_of(tmp_path)[0]["memory/uses"] == [3, 1] and lines_of(tmp_path)[0]["epoch"] == 1.0


@pytest.mark.parametrize(
    "name, out_dir, group",
    [
        ("knowledge_1_5_0_seed7", "out/knowledge_1_5_0_seed7", "knowledge_1_5_0"),
        ("learning_rate_1e-4__seed_1", "out/sweep/learning_rate_1e-4__seed_1", "sweep/learning_rate_1e-4"),
        ("seed_1", "out/sweep/seed_1", "sweep"),
        ("run", "run", "run"),
    ],
)
def test_the_seeds_of_an_experiment_are_one_group_of_one_colour(tmp_path, fake_swanlab, name, out_dir, group):
    opened = fake_swanlab(lambda: None)
    Tracker(tmp_path, True, True, "Test", name, {"run": {"out_dir": out_dir}}, "online").finish()
    assert opened["group"] == group and opened["color"] == dashboard_files.color_of(group)
    assert re.fullmatch("#[0-9a-f]{6}", opened["color"])


def test_the_results_are_a_table_when_the_run_ends(tmp_path, fake_swanlab):
    opened = fake_swanlab(lambda: None)
    path = write_run(tmp_path / "run", losses=[4.0, 3.5])
    tracker = Tracker(path, True, True, "Test", "run", {}, "online")
    tracker.finish()
    table = opened["run"].texts["results/table"]
    assert table["state"] == "finished" and table["val loss"] and table["time in training"]


def test_an_online_run_goes_on_in_the_same_run(tmp_path, fake_swanlab):
    opened = fake_swanlab(lambda: None)
    first = Tracker(tmp_path, True, True, "Test", "tiny", {}, "online")
    first.rewind(0)
    first.log({"loss": 1.0}, 1)
    first.finish()
    assert "id" not in opened and first.facts["swanlab_url"] == FakeRun.url
    second = Tracker(tmp_path, True, True, "Test", "tiny", {}, "online", first.facts["swanlab"])
    second.rewind(1)
    second.log({"loss": 0.5}, 2)
    second.finish()
    assert (opened["id"], opened["resume"]) == ("abc", "allow")
    assert [step for step, _ in opened["run"].logged] == [2]


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


def test_a_run_that_still_trains_is_not_replayed(tmp_path):
    path = write_run(tmp_path / "run", state="running")
    hold_lock(path)
    with pytest.raises(ValueError, match="still being trained"):
        tracking.replay(path)


def test_a_long_run_is_replayed_no_faster_than_swanlab_takes_it(tmp_path, fake_swanlab, monkeypatch):
    opened = fake_swanlab(lambda: time.sleep(1e-4))
    monkeypatch.setattr(tracking, "BACKLOG", 1500)
    swanlab = tracking.SwanLab("run", "Test", {}, "online")
    swanlab.log_lines([{"step": step, "loss": None if step == 7 else 1.0} for step in range(4000)])
    swanlab.finish()
    assert swanlab.problem is None and [step for step, _ in opened["run"].logged] == list(range(4000))
    assert math.isnan(opened["run"].logged[7][1]["train/loss"])


def test_run_json_tells_the_stage_that_failed(tmp_path):
    info = RunFolder(tmp_path, name="tiny")
    with info.stage("env"):
        assert json.loads((tmp_path / "run.json").read_text())["stages"][0]["state"] == "running"
    with pytest.raises(ValueError), info.stage("data"):
        info.note("reading")
        raise ValueError("line 7")
    facts = json.loads((tmp_path / "run.json").read_text())
    assert [stage["state"] for stage in facts["stages"]] == ["finished", "failed"]
    assert facts["state"] == "failed" and "line 7" in facts["error"] and facts["end_time"]
    assert {path.name for path in tmp_path.iterdir()} == {"run.json", ".alive"}


def test_run_json_holds_no_secret_and_needs_no_git(tmp_path, monkeypatch):
    monkeypatch.setenv("SWANLAB_API_KEY", "do-not-tell")
    monkeypatch.setattr("runs.run.ROOT", tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    facts = RunFolder(tmp_path).facts
    assert facts["git_commit"] is None
    assert "do-not-tell" not in (tmp_path / "run.json").read_text()


def test_run_json_holds_the_code_of_this_project_that_git_does_not_track(tmp_path, monkeypatch):
    elsewhere = tmp_path.with_name(f"{tmp_path.name}_elsewhere")  # where the command is started, another repository
    elsewhere.mkdir()
    for folder in (tmp_path, elsewhere):
        subprocess.run(["git", "init", "-q", str(folder)], check=True)
    (elsewhere / "theirs.py").write_text("a = 1\n")
    (tmp_path / os.fsdecode(b"latin_\xe9.txt")).write_text("one\n")  # a name that is not UTF-8 is no error
    monkeypatch.chdir(elsewhere)
    for module in ("runs.run", "runs.folder"):
        monkeypatch.setattr(f"{module}.ROOT", tmp_path)
    for name, text in ((".gitignore", "out/\n"), ("new fusion.py", "a = 1\nb = 2\n"), ("notes.txt", "one\n")):
        (tmp_path / name).write_text(text)
    (tmp_path / "large.bin").write_bytes(bytes(2_000_000))
    (tmp_path / "out").mkdir()
    found = {file.pop("path"): file for file in RunFolder(tmp_path / "out").facts["git_untracked"]}
    assert set(found) == {".gitignore", "new fusion.py", "notes.txt", "large.bin"}
    new = found["new fusion.py"]
    assert new["lines"] == 2
    assert new["sha256"] == hashlib.sha256(b"a = 1\nb = 2\n").hexdigest()
    assert found["large.bin"] == {"bytes": 2_000_000}


def test_a_new_log_does_not_write_into_the_old_one(tmp_path):
    (tmp_path / "a").mkdir(), (tmp_path / "b").mkdir()
    make_log(tmp_path / "a", writes=True).info("first")
    make_log(tmp_path / "b", writes=True).info("second")
    assert "second" not in (tmp_path / "a/train.log").read_text()
    assert "second" in (tmp_path / "b/train.log").read_text()
    logging.getLogger("run").handlers.clear()
