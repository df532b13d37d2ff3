"""One command draws the figures of a paper."""

import json
from pathlib import Path

import pytest

from runs import paper
from runs.paper import curve, draw_figures
from runs.run import Run
from tests.runs.test_keep import evaluated
from tests.runs.test_record import write_run


def with_speed(path: Path) -> Run:
    lines = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    lines = [line | {"tokens_per_s": 64.0} if "lr" in line else line for line in lines]
    (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return Run(path)


def test_the_figures_that_there_are_data_for_are_drawn_the_same_each_time(tmp_path, monkeypatch):
    monkeypatch.setattr(paper, "DPI", 30)
    runs = [evaluated(tmp_path / f"knowledge_1_5_0_10000_seed{seed}", seed) for seed in (1, 2)]
    runs = [with_speed(run.path) for run in runs]
    names = {"loss_over_tokens", "loss_over_time", "answers", "edits", "speed"}
    written = draw_figures(runs, tmp_path / "figures")
    assert {path.name for path in written} == {f"{name}.{kind}" for name in names for kind in ("pdf", "png")}
    first = {path.name: path.read_bytes() for path in written}
    assert first["answers.pdf"].startswith(b"%PDF") and first["answers.png"].startswith(b"\x89PNG")
    monkeypatch.setattr(paper, "FIGURES", {name: paper.FIGURES[name] for name in ("loss_over_tokens",)})
    for path in draw_figures(runs, tmp_path / "figures"):
        assert path.read_bytes() == first[path.name]
    plain = write_run(tmp_path / "plain", model_type="model_original")
    assert {path.stem for path in draw_figures([Run(plain)], tmp_path / "few")} == {"loss_over_tokens"}
    with pytest.raises(ValueError, match="there is nothing to draw"):
        draw_figures([Run(write_run(tmp_path / "failed", losses=[]))], tmp_path / "none")


def test_the_band_is_the_interval_over_seeds_at_the_steps_that_all_have(tmp_path):
    runs = [with_speed(write_run(tmp_path / f"run_seed{seed}", losses=[4.0 + seed] * (90 + seed))) for seed in (0, 2)]
    x, y, halves = curve(runs, "loss", "minutes")
    assert len(x) == 90 and set(y) == {5.0}
    assert x[:2] == pytest.approx([2 / 60, 4 / 60])  # 128 tokens a step at 64 tokens/s
    assert halves[0] == pytest.approx(12.706)  # two values that differ by 2: t times 1
