"""The curves that are drawn are those of the runs."""

import json

import pytest

from runs.metrics import ASKED, USES
from runs.plots import ANSWERS, clock_of, figure_of
from runs.run import Run
from tests.runs.test_record import write_run


def panels_of(figure) -> dict:
    return {axes.get_title(): axes for axes in figure.axes}


def with_lines(run: Run, *lines: dict) -> Run:
    with open(run.path / "metrics.jsonl", "a") as file:
        file.write("".join(json.dumps(line) + "\n" for line in lines))
    return Run(run.path)


def test_each_panel_holds_a_line_for_each_run_and_the_legend_stands_outside(tmp_path):
    runs = {name: [Run(write_run(tmp_path / name, losses=[4.0] * 20 + [None]))] for name in ("a", "b")}
    figure = figure_of(runs)
    panels = list(panels_of(figure).values())
    assert [axes.get_title().split(",")[0] for axes in panels[:2]] == ["loss", "learning rate"]
    assert len(panels) == 4 and all(axes.has_data() and axes.get_legend() is None for axes in panels)
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["a", "b"]
    for axes in panels[1:3]:
        assert [line.get_color() for line in axes.get_lines()] == ["C0", "C1"]
    marks = [line.get_xdata()[0] for line in panels[0].get_lines() if line.get_linestyle() == "--"]
    assert marks == [21, 21]  # where the loss is not finite
    assert list(panels[0].get_lines()[0].get_xdata()) == list(range(1, 21))


def test_seeds_are_one_line_and_a_band(tmp_path):
    runs = [Run(write_run(tmp_path / f"a{i}", losses=[4.0 + i, 3.0 + 2 * i, 2.0][: 3 - i])) for i in (0, 1)]
    axes = figure_of({"a x 2": runs}).axes[0]
    line = axes.get_lines()[0]
    assert list(line.get_xdata()) == [1, 2] and list(line.get_ydata()) == [4.5, 4.0]  # the steps that both have
    band = axes.collections[0].get_paths()[0].vertices[:, 1]
    assert band.min() == pytest.approx(4.0 - 2**0.5) and band.max() == pytest.approx(4.0 + 2**0.5)


def test_a_long_loss_is_smoothed_and_what_spans_much_has_a_log_scale(tmp_path):
    losses = [10.0 - 0.08 * i + (i % 2) for i in range(100)]
    run = Run(write_run(tmp_path / "a", losses=losses))
    panels = list(panels_of(figure_of({"a": [run]})).values())
    raw, mean = panels[0].get_lines()[:2]
    assert list(raw.get_ydata()) == losses and raw.get_linewidth() < mean.get_linewidth()
    assert mean.get_ydata()[-1] == pytest.approx(sum(losses[-5:]) / 5)
    assert panels[0].get_yscale() == "log" and panels[2].get_yscale() == "linear"  # the norm is 1 at all steps


def test_the_axis_is_steps_tokens_or_seconds(tmp_path):
    run = Run(write_run(tmp_path / "a", losses=[]))
    run = with_lines(
        run, *({"step": s, "loss": 3.0, "tokens": 100 * s, "tokens_per_s": r} for s, r in ((2, 50), (4, 100)))
    )
    assert [clock_of(run, axis)(4) for axis in ("steps", "tokens", "seconds")] == [4, 400, 6.0]
    assert clock_of(run, "seconds")(1) == 2.0 and clock_of(run, "seconds")(3) == 5.0
    axes = figure_of({"a": [run]}, "seconds").axes[0]
    assert list(axes.get_lines()[0].get_xdata()) == [4.0, 6.0] and "seconds" in axes.get_xlabel()
    with pytest.raises(ValueError, match="has logged no seconds: draw it with --axis steps"):
        clock_of(Run(write_run(tmp_path / "b")), "seconds")


def test_readers_and_questions_are_told_apart_and_answers_have_a_panel(tmp_path):
    run = Run(write_run(tmp_path / "a"))
    line = {"step": 100, "questions/right": 0.5, "questions/read/block_1": 0.7, "memory/uses/block_1": [5, 2],
            "memory/uses/pointer": [4, 2, 1]}  # fmt: skip
    run = with_lines(run, line)
    answer = {"accuracy": 0.9, "chance": 0.2, "n": 10, "parts": {"seen": {"accuracy": 0.9}}}
    results = {"object": answer, "arms": {"bank shuffled": {"object": answer | {"accuracy": 0.25}}}}
    (run.path / "eval.json").write_text(json.dumps(results))
    panels = panels_of(figure_of({"a": [Run(run.path)]}))
    assert [t.get_text() for t in panels[ASKED].get_legend().get_texts()] == ["right", "entry read, block 1"]
    assert [t.get_text() for t in panels[USES].get_xticklabels()] == ["0", "1", "2+"]
    assert [t.get_text() for t in panels[ANSWERS].get_yticklabels()] == ["object"]
    assert [list(line.get_xdata()) for line in panels[ANSWERS].get_lines()] == [[0.9], [0.25], [0.2, 0.2]]


def test_of_many_readers_several_groups_show_the_mean(tmp_path):
    line = {"step": 100} | {f"questions/read/block_{block}": block / 10 for block in range(5)}
    groups = {name: [with_lines(Run(write_run(tmp_path / name)), line)] for name in "ab"}
    panel = panels_of(figure_of(groups))[ASKED]
    assert [t.get_text() for t in panel.get_legend().get_texts()] == ["entry read, mean of 5"]
    assert [list(drawn.get_ydata()) for drawn in panel.get_lines()] == [[0.2], [0.2]]
    alone = panels_of(figure_of({"a": groups["a"]}))[ASKED]
    assert len(alone.get_lines()) == 5


@pytest.mark.parametrize("n_bins", [1, 11, 12, 17])
def test_the_bins_of_a_histogram_have_names_that_do_not_overlap(tmp_path, n_bins):
    readers = {f"memory/uses/block_{block}": list(range(n_bins, 0, -1)) for block in (2, 5)}
    run = with_lines(Run(write_run(tmp_path / "a")), {"step": 100} | readers)
    figure = figure_of({"a": [run]})
    figure.canvas.draw()
    labels = panels_of(figure)[USES].get_xticklabels()
    boxes = [label.get_window_extent() for label in labels]
    assert labels[0].get_text() == "0" and (n_bins < 12 or labels[-1].get_text().endswith(("k+", "512+")))
    assert all(left.x1 < right.x0 for left, right in zip(boxes, boxes[1:], strict=False))


def test_a_run_without_metrics_is_an_empty_picture(tmp_path):
    (tmp_path / "run").mkdir()
    assert figure_of({"run": [Run(tmp_path / "run")]}).axes == []
