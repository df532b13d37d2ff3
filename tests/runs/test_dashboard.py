"""The local SwanLab dashboard: runs that go on, replayed runs, and what a browser shows of them."""

import json
import os
import socket
import sqlite3
import subprocess
import sys
import time
from datetime import datetime
from pathlib import Path

import pytest

from editing.picture import CHROMIUM, QUIET
from runs import dashboard as dashboard_files
from runs import tracking
from runs.tracking import Tracker
from tests.runs.test_record import write_run


def dashboard(folder: Path, question: str) -> list[tuple]:
    return sqlite3.connect(folder / "swanlog/runs.swanlab").execute(question).fetchall()


def test_a_local_run_that_goes_on_is_one_run_with_all_its_steps(no_login, monkeypatch, tmp_path):
    monkeypatch.setattr(tracking, "SWANLAB_DIR", str(tmp_path / "swanlog"))
    before = None
    for resumed_at in (0, 2):
        tracker = Tracker(tmp_path, True, True, "Test", "tiny", {"model": {"dim": 8}}, "local", before)
        tracker.rewind(resumed_at)
        for step in (1, 2, 3):
            tracker.log({"loss": 2.0, "val_loss": 2.5}, resumed_at + step)
        before = tracker.facts["swanlab"]
        assert tracker.facts["swanlab_url"].startswith("swanlab watch")
        tracker.finish()
    assert dashboard(tmp_path, "select name, status from experiment") == [("tiny", 1)]
    assert set(dashboard(tmp_path, "select name from tag")) >= {("train/loss",), ("val/val_loss",)}
    [(folder,)] = dashboard(tmp_path, "select folder from tag where name = 'train/loss'")
    points = (tmp_path / "swanlog" / before["folder"] / "logs" / folder / "1000.log").read_text().splitlines()
    assert [json.loads(point)["index"] for point in points] == [1, 2, 3, 4, 5]


@pytest.fixture(scope="module")
def replayed(tmp_path_factory) -> Path:
    """The folder of a finished and evaluated run that was brought into the local SwanLab beside it twice."""
    folder = tmp_path_factory.mktemp("replayed")
    path = write_run(folder / "run", losses=[4 - 0.02 * i for i in range(30)])
    sample = {"prompt": "巴黎是", "greedy": "法国的首都", "first_10_tokens": "法国", "sampled": "x"}
    evaluation = {"object": {"accuracy": 0.5}, "generation": {"samples": [sample]}, "arms": {"x": {"accuracy": 1.0}}}
    (path / "eval.json").write_text(json.dumps(evaluation))
    flags = json.loads((path / "flags.json").read_text())
    (path / "flags.json").write_text(json.dumps(flags | {"run": flags["run"] | {"swanlab_project": "Test"}}))
    with pytest.MonkeyPatch.context() as patched:
        for name in ("SWANLAB_API_KEY", "SWANLAB_MODE"):
            patched.delenv(name, raising=False)
        patched.setenv("HOME", str(folder))
        patched.setattr(tracking, "SWANLAB_DIR", str(folder / "swanlog"))
        for _ in range(2):
            tracking.replay(path)
    return path


def test_a_run_is_replayed_with_its_evaluation_samples_and_curves(replayed):
    assert dashboard(replayed.parent, "select name, status from experiment") == [("run", 1)]
    tags = {name: kind for name, kind in dashboard(replayed.parent, "select name, type from tag")}
    assert tags["train/loss"] == tags["eval/object_accuracy"] == "line"
    assert tags["results/samples"] == tags["results/table"] == "text" and tags["train/curves"] == "image"
    assert not any("accuracy" in name and "object" not in name for name in tags)
    facts = json.loads((replayed / "run.json").read_text())
    assert facts["swanlab"]["mode"] == "local" and facts["swanlab_url"].startswith("swanlab watch")


def test_the_local_dashboard_shows_results_first_and_true_times(replayed):
    placed = (
        "select namespace.name, chart.name from display join namespace on namespace.id = namespace_id join chart on "
        "chart.id = chart_id where namespace.experiment_id is not null order by namespace.id, display.id"
    )
    charts = dashboard(replayed.parent, placed)
    assert charts[0] == ("results", "results/table") and all(name.startswith(section) for section, name in charts)
    sections = list(dict.fromkeys(section for section, _ in charts))
    assert sections == [section for section in dashboard_files.SECTIONS if section in sections]
    info = json.loads((replayed / "run.json").read_text())
    [times] = dashboard(replayed.parent, "select create_time, finish_time from experiment")
    assert [datetime.fromisoformat(time).astimezone().replace(tzinfo=None).isoformat() for time in times] == [
        info["start_time"], info["end_time"],
    ]  # fmt: skip


def test_the_tables_of_the_local_dashboard_read_the_points_of_their_column(replayed):
    """The dashboard takes them from the folder named by the column's place."""
    run = replayed.parent / "swanlog" / json.loads((replayed / "run.json").read_text())["swanlab"]["folder"]
    tags = dashboard(replayed.parent, "select name, sort, folder from tag order by sort")
    assert tags[0][0].startswith("eval/") and all(folder == str(sort) for _, sort, folder in tags)
    place = {name: folder for name, _, folder in tags}
    points = (run / "logs" / place["eval/object_accuracy"] / "1000.log").read_text().splitlines()
    assert [json.loads(point)["data"] for point in points] == [0.5]
    assert [path.suffix for path in (run / "media" / place["train/curves"]).iterdir()] == [".png"]
    assert not list(run.glob("*/_*"))


@pytest.mark.slow
def test_the_local_dashboard_shows_the_curves_in_a_browser(replayed, tmp_path):
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    if CHROMIUM is None:
        pytest.skip("needs Chromium")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    watch = [sys.executable, "-m", "swanlab", "watch", str(replayed.parent / "swanlog"), "-p", str(port)]
    server = subprocess.Popen(watch, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(100):
            with socket.socket() as attempt:
                if attempt.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.2)
        with playwright.sync_playwright() as browsers:
            browser = browsers.chromium.launch(executable_path=CHROMIUM, args=QUIET)
            tab = browser.new_page(viewport={"width": 1400, "height": 1000})
            [(number,)] = dashboard(replayed.parent, "select id from experiment")
            tab.goto(f"http://127.0.0.1:{port}/experiment/{number}/chart")
            for text in ("results/table", "train/loss", "val/val_loss", "results/samples"):
                tab.get_by_text(text).first.wait_for(state="attached", timeout=30_000)
            tab.get_by_text("50.0%").first.wait_for(timeout=30_000)
            tab.get_by_text("results/samples").first.scroll_into_view_if_needed()  # what is not in view is not loaded
            tab.get_by_text("法国的首都").first.wait_for(timeout=30_000)
            tab.goto(f"http://127.0.0.1:{port}/charts")
            tab.get_by_text("train/loss").first.wait_for(timeout=30_000)
            tab.wait_for_timeout(2000)  # the curve is animated
            ink = tab.evaluate(
                "Array.from(document.querySelectorAll('canvas')).map(c => new Set(c.getContext('2d')"
                ".getImageData(0, 0, c.width, c.height).data).size)"
            )
            assert ink and max(ink) > 10, ink
            tab.screenshot(path=os.environ.get("SCREENSHOT", tmp_path / "dashboard.png"))
            browser.close()
    finally:
        server.kill()
        server.wait()
