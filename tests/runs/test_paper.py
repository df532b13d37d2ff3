"""One command draws the figures of a paper."""

import json
from pathlib import Path

import pytest

from runs import paper
from runs.paper import draw_figures, loss_figure
from runs.plots import BAND, figure_of
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
    answers = paper.FIGURES["answers"]({"seeds": runs}).axes[0]
    assert answers.get_ylabel() == "right answers, %\n(line: 95 % interval)"
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


def test_a_validation_at_a_step_without_a_log_line_is_drawn_at_its_time(tmp_path):
    runs = [with_speed(write_run(tmp_path / f"run_seed{seed}", losses=[4.0 + seed] * (90 + seed))) for seed in (0, 2)]
    for run in runs:
        text = (run.path / "metrics.jsonl").read_text()
        lines = [line for line in map(json.loads, text.splitlines()) if "tokens" not in line or line["step"] % 4 == 0]
        (run.path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    groups = {"seeds": [Run(run.path) for run in runs]}
    figure = loss_figure(groups, "seconds", "minutes", 60)
    axes = figure.axes[0]
    validation, training = axes.lines
    # 128 tokens a step at 64 tokens/s are 2 s; 50 is no multiple of 4, and step 100 lies beyond the last log line.
    assert list(validation.get_xdata()) == pytest.approx([100 / 60, 200 / 60])
    assert list(validation.get_ydata()) == [2.4, 2.6] and set(training.get_ydata()) == {5.0}
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["seeds", BAND]
    assert [text.get_text() for text in figure_of(groups).legends[0].get_texts()] == [BAND]
    one = {"one": groups["seeds"][:1]}
    with open(runs[0].path / "metrics.jsonl", "a") as file:
        file.write(json.dumps({"step": 90, "other_gpu_mib": 9000.0}) + "\n")
    shared = {"one": [Run(runs[0].path)]}
    assert loss_figure(shared, "seconds", "", 1) is None and loss_figure(shared, "tokens", "", 1)
    assert not figure_of(one).legends and loss_figure(one, "tokens", "", 1).axes[0].lines[0].get_xdata()[0] == 50 * 128
