"""A metric is one line of the table, and every place that shows numbers reads it."""

import json

import pytest

from runs.compare import compare
from runs.evidence import Evidence
from runs.metrics import METRICS, PANELS, Metric, dashboard_name, log_text, metric, panels, scores_of
from runs.outcomes import packed_answers
from runs.plots import figure_of
from runs.record_tables import all_metrics
from runs.run import Run
from tests.runs.test_record import write_run


@pytest.fixture
def run(tmp_path) -> Run:
    """A run that logs `surprise`, and whose evaluation has it as a score."""
    path = write_run(tmp_path / "run")
    with open(path / "metrics.jsonl", "a") as file:
        file.write("".join(json.dumps({"step": step, "surprise": 7.0 + step}) + "\n" for step in (1, 2)))
    (path / "eval.json").write_text(json.dumps({"object": {"surprise": 0.25, "n": 4}}))
    return Run(path)


def test_a_metric_of_one_line_appears_everywhere(run):
    logged = Metric(
        "surprise", "surprise, bits", "bits", min, "{:.1f}".format, group="val", panel="surprise", chinese="惊讶度",
        is_compared=True, in_log="surprise {:.1f}",
    )  # fmt: skip
    score = Metric(
        "asked", "asked, bits", "bits", max, path=("object", "surprise"), chinese="提问惊讶度", is_compared=True
    )
    METRICS.extend([logged, score])
    try:
        assert dashboard_name("surprise") == "val/surprise"
        assert "surprise" in [axes.get_title() for axes in figure_of({"run": [run]}).axes]
        assert list(panels())[-1] == "surprise"
        assert log_text({"surprise": 9.0, "loss": 1.0}) == "loss 1.0000 surprise 9.0"
        told = all_metrics(Evidence(run))
        assert "惊讶度: 9.0" in told and "提问惊讶度: 0.2500" in told
        results = {row["result"]: row for row in compare([run])[1].rows}
        assert results["surprise, bits"]["run"]["text"] == "9.0" and "asked, bits" in results
        assert scores_of(run)["object_surprise"] == 0.25
    finally:
        del METRICS[-2:]


def test_the_names_of_the_table_are_each_used_once_and_say_where_they_go():
    names = [m.name for m in METRICS]
    assert len(names) == len(set(names))
    labels = [m.label for m in METRICS if m.is_compared]
    assert len(labels) == len(set(labels)) and all(m.label for m in METRICS)
    assert {m.panel for m in METRICS if m.panel} == set(PANELS)
    assert all(m.group or m.panel or m.path or m.get for m in METRICS)
    with pytest.raises(ValueError, match="no metric 'los'"):
        metric("los")


@pytest.mark.parametrize(
    "name, shown",
    [
        ("loss", "train/loss"), ("val_loss", "val/val_loss"), ("host_mib", "system/host_mib"),
        ("tokens_per_s", "speed/tokens_per_s"), ("eval_s", "speed/eval_s"), ("aux/balance", "train/aux_balance"),
        ("time_share/data", "speed/share_data"), ("memory/used_share", "memory/used_share"), ("new", "train/new"),
        ("eval/object_accuracy", "eval/object_accuracy"), ("train/curves", "train/curves"),
        ("epoch", None), ("tokens", None), ("ppl", None),
    ],
)  # fmt: skip
def test_the_dashboard_shows_the_group_of_each_metric(name, shown):
    assert dashboard_name(name) == shown


def test_the_panels_are_in_the_order_of_the_picture():
    assert list(panels()) == list(PANELS)
    assert panels()[PANELS[0]] == {"loss": "-", "val_loss": "o"}
    assert panels()[PANELS[-1]] == {"gpu_mib": "-", "peak_gpu_mib": "--", "host_mib": ":"}


def test_a_star_in_a_path_stands_for_every_key():
    results = {"language": {"sources": {"films": {"loss": 2.5, "n": 7}, "wiki": {"loss": 3.0, "n": 8}}}}
    found = list(metric("val_loss_*").scores(results))
    assert [(star, around["n"], value) for star, around, value in found] == [("films", 7, 2.5), ("wiki", 8, 3.0)]
    assert list(metric("object").scores(results)) == []


def test_a_measure_with_a_star_is_compared_for_each_key_that_it_matches(run, tmp_path):
    other = Run(write_run(tmp_path / "other"))
    for own, right in ((run, [True] * 9 + [False]), (other, [False] * 10)):
        share = {"accuracy": sum(right) / 10, "n": 10, "answers": packed_answers(right, [])}
        (own.path / "eval.json").write_text(json.dumps({"language_sets": {"sets": {"blimp": share}}}))
    run, other = Run(run.path), Run(other.path)
    rows = {row["result"]: row for row in compare([run, other], {run: "mine", other: "theirs"})[1].rows}
    cells = [cell["text"] for cell in rows["blimp"].values() if isinstance(cell, dict)]
    assert cells == ["90.0%", "0.0%"] and rows["blimp"]["same questions"] == "p 0.0039, n 10"


def test_everything_that_a_run_logs_is_in_the_table(runs, tmp_path):
    assert runs.start("run", "--max_steps", "6").code == 0
    logged = {name for line in Run(tmp_path / "run").metrics for name in line} - {"step"}
    stars = [m.name[:-1] for m in METRICS if m.name.endswith("*") and m.group]
    known = {m.name for m in METRICS}
    unknown = {name for name in logged - known if not name.startswith(("memory/", *stars))}
    assert len(logged) > 15 and unknown == set()
