"""A sweep: each point of a grid is run once, and what failed is run again."""

import sys
from pathlib import Path

import pytest

from runs.sweep import read_grid, run_sweep

SWEPT = """import json, sys
from pathlib import Path
flags = dict(zip(sys.argv[1::2], sys.argv[2::2]))
out = Path(flags["--out_dir"])
out.mkdir(exist_ok=True)
with open(out.parent / "calls", "a") as calls:
    calls.write(out.name + "\\n")
if flags["--dim"] == flags.get("--breaks"):
    sys.exit("error: no such dim")
(out / "run.json").write_text(json.dumps({"state": "finished", "experiment": flags["--experiment"]}))
line = {"step": 1, "val_loss": float(flags["--dim"]) + int(flags["--seed"]) / 10, "val_ppl": 1.0, "epoch": 1.0}
(out / "metrics.jsonl").write_text(json.dumps(line) + "\\n")
"""


@pytest.fixture
def swept(tmp_path, monkeypatch) -> Path:
    """A script that leaves a run folder at once."""
    monkeypatch.setenv("EVALUATE", "0")
    (tmp_path / "train.py").write_text(SWEPT)
    script = tmp_path / "experiment_0.sh"
    script.write_text(f'exec {sys.executable} {tmp_path}/train.py "$@"')
    return script


def test_a_sweep_runs_each_point_once_and_goes_on_with_what_failed(swept, tmp_path, capsys):
    grid, folder = read_grid(["dim=8,4", "--seed=1,2"]), tmp_path / "out"
    tables, unfinished = run_sweep(swept, grid, ["--breaks", "8"], folder, tmp_path)
    assert unfinished == 2 and "error: no such dim" in capsys.readouterr().out
    assert [(row["dim"], row["seed"], row["state"]) for row in tables[0].rows] == [
        ("4", "1", "finished"), ("4", "2", "finished"), ("8", "1", "failed"), ("8", "2", "failed"),
    ]  # fmt: skip
    assert tables[1].rows[0]["dim"] == "4" and tables[1].rows[0]["mean loss"]["text"] == "4.1500 ± 0.0707"
    assert tables[1].rows[1]["mean loss"] is None
    run_sweep(swept, grid, ["--breaks", "8"], folder, tmp_path)
    calls = (folder / "calls").read_text().split()
    assert sorted(calls) == sorted(["dim_4__seed_1", "dim_4__seed_2", *["dim_8__seed_1", "dim_8__seed_2"] * 2])
    with pytest.raises(ValueError, match="holds another sweep"):
        run_sweep(swept, grid, [], folder, tmp_path)


def test_a_sweep_ends_with_the_run_that_was_stopped(swept, tmp_path):
    script = swept.parent / "train.py"
    script.write_text(script.read_text().replace('"finished"', '"stopped"'))
    with pytest.raises(KeyboardInterrupt, match="the same command continues it"):
        run_sweep(swept, read_grid(["dim=8,4", "seed=1"]), [], tmp_path / "out", tmp_path)
    assert (tmp_path / "out/calls").read_text().split() == ["dim_8__seed_1"]


@pytest.mark.parametrize("axes", [["dim"], ["dim=1", "dim=2"], ["=1"]])
def test_a_grid_that_says_nothing_is_refused(axes):
    with pytest.raises(ValueError, match="must be FLAG=VALUE"):
        read_grid(axes)
