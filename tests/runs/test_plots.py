"""The curves that are drawn are those of the runs."""

from runs.plots import figure_of
from runs.run import Run
from tests.runs.test_record import write_run


def test_each_panel_holds_a_line_for_each_run_and_the_first_one_the_legend(tmp_path):
    runs = {name: Run(write_run(tmp_path / name, losses=[4.0] * 20 + [None])) for name in ("a", "b")}
    panels = [axes for axes in figure_of(runs).axes if axes.axison]
    assert [axes.get_title().split(",")[0] for axes in panels[:2]] == ["loss", "learning rate"]
    assert len(panels) == 4
    assert [text.get_text() for text in panels[0].get_legend().get_texts()] == ["a", "b"]
    assert all(axes.get_legend() is None for axes in panels[1:])
    for axes in panels[1:3]:
        assert [line.get_color() for line in axes.get_lines()] == ["C0", "C1"]
    marks = [line.get_xdata()[0] for line in panels[0].get_lines() if line.get_linestyle() == "--"]
    assert marks == [21, 21]  # where the loss is not finite
    assert list(panels[0].get_lines()[0].get_xdata()) == list(range(1, 21))


def test_a_run_without_metrics_is_an_empty_picture(tmp_path):
    (tmp_path / "run").mkdir()
    assert not any(axes.axison for axes in figure_of({"run": Run(tmp_path / "run")}).axes)
