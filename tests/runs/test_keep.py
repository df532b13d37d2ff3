"""Rows are made of finished, whole evaluations, and state what eval.json states."""

import json
from pathlib import Path

import pytest

from runs.compare import compare
from runs.keep import mean_interval, plan_of, rows_of, wilson_interval
from runs.record import fill_record
from runs.results import find, read_rows
from runs.run import Run
from tests.runs.test_experiment import command
from tests.runs.test_record import write_run


def answers(right: int, n: int = 100) -> dict:
    return {"accuracy": right / n, "n": n, "ci95": wilson_interval(right / n, n), "chance": 0.2}


def evaluated(path: Path, seed: int = 1, right: int = 90, **about) -> Run:
    """A finished run with an evaluation of a memory model under two controls."""
    write_run(path, seed=seed, experiment=path.name.removeprefix("experiment_"))
    flags = json.loads((path / "flags.json").read_text())
    flags["run"]["seed"], flags["data"]["init_path"] = seed, f"out/text_seed{seed}"
    (path / "flags.json").write_text(json.dumps(flags))
    results = {
        "language": {"loss": 2.5 + seed / 100, "n": 5000, "sources": {"films": {"loss": 2.0, "n": 10}}},
        "object": answers(right) | {"planted": answers(3), "parts": {"seen": answers(40, 50)}},
        "retrieval": {"layers": {"block 2": {"selected": answers(80), "candidate_4": answers(70)}}},
        "edits": {"1": {"ES": 0.9, "PS": 0.8, "NS": None, "n": {"ES": 50, "PS": 100}, "ms_per_edit": 0.4, "edits": 1}},
        "frequency": {"object": answers(23)},
        "lookup": {"object": answers(88), "reworded_0": answers(50), "reworded_1": answers(120, 300)},
        "resources": {"host_mib": 900.0},
        "arms": {"bank shuffled": {"object": answers(26)}, "bank counterfactual": {"object": answers(4)}},
        "about": {"date": "2026-11-26T10:00:00", "limit": None, "git_commit": "0123abcdef"} | about,
    }
    (path / "eval.json").write_text(json.dumps(results))
    return Run(path)


def test_one_run_gives_a_row_for_each_number_with_the_interval_of_a_share(tmp_path):
    run = evaluated(tmp_path / "knowledge_1_5_0_10000_seed1")
    rows = {(row.arm, row.measure): row for row in rows_of([run])}
    row = rows["memory", "object"]
    assert (row.experiment, row.protocol, row.split) == ("1.5.0", "knowledge-10k", "dev")
    assert (row.value, row.unit, row.n, row.seeds, row.values) == (90.0, "%", 100, [1], [90.0])
    assert row.interval == pytest.approx([82.56, 94.48], abs=0.01)
    assert (row.commit, row.machine, row.date, row.source) == ("0123abc", "Card", "2026-11-26", "run")
    assert rows["memory", "object_seen"].value == 80.0 and rows["memory", "val_loss_films"].n == 10
    assert rows["memory", "val_loss"].interval is None and "one seed" in rows["memory", "val_loss"].note
    assert rows["memory", "gold_read_block_2"].value == 80.0 and rows["memory", "edit_success"].n == 50
    assert ("memory", "edit_neighbourhood") not in rows
    assert [rows[arm, "object"].value for arm in ("shuffled", "counterfactual", "frequency", "lookup")] == [
        26,
        4,
        23,
        88,
    ]
    reworded = rows["lookup", "object_reworded"]  # 50 of 100 and 120 of 300
    assert (reworded.value, reworded.n) == (42.5, 400) and ("frequency", "object_reworded") not in rows
    assert rows["memory", "peak_mib"].value == 10000 and rows["memory", "best_val_loss"].value == 2.4


def test_an_interval_that_the_evaluation_knows_better_is_kept(tmp_path):
    run = evaluated(tmp_path / "knowledge_1_5_0_10000_seed1")
    of_few_facts = {"accuracy": 0.9, "n": 1000, "facts": 50, "ci95": [0.78, 0.96], "chance": 0.2}
    run.eval["pararel"] = {"parts": {"other wordings": of_few_facts}}
    run.eval["absent"] = {"knowing": {"choice": {"auroc": 0.8, "n": 100, "ci95": [0.7, 0.9]}}}
    rows = {row.measure: row for row in rows_of([run]) if row.arm == "memory"}
    assert rows["pararel_other"].interval == [78.0, 96.0] and rows["absent_auroc_choice"].interval == [0.7, 0.9]


def test_times_of_a_run_that_shared_its_gpu_are_no_rows_and_win_nothing(tmp_path):
    paths = [evaluated(tmp_path / f"knowledge_1_5_0_10000_seed{seed}", seed).path for seed in (1, 2)]
    for other, shared in ((2000, False), (9000, True)):
        for speed, path in enumerate(paths, 1):
            with open(path / "metrics.jsonl", "a") as file:
                file.write(json.dumps({"step": 100, "tokens_per_s": 1000.0 * speed, "other_gpu_mib": other}) + "\n")
        runs = [Run(path) for path in paths]
        measures = {row.measure for row in rows_of(runs)}
        assert ("train_s" in measures) != shared and "peak_mib" in measures
        rows = {row["result"]: row for row in compare(runs, {run: run.name for run in runs})[1].rows}
        label = "tokens/s" + ", GPU shared" * shared
        assert label in rows and bool(rows[label]["difference"]) != shared and rows["val loss"]["difference"]
        assert ("与其他进程共用 GPU" in fill_record(paths[0], tmp_path).read_text()) == shared


def test_a_loss_of_the_first_rows_alone_has_a_name_of_its_own(tmp_path):
    path = evaluated(tmp_path / "knowledge_1_5_0_10000_seed1").path
    info, results = (json.loads((path / name).read_text()) for name in ("run.json", "eval.json"))
    info["data"] = {"val": {"rows": 1000}}
    shuffled = results["arms"]["bank shuffled"] | {"language": {"loss": 2.8, "n": 50}}
    results["language"][bits := "bits_per_byte"] = 1.5
    for limit, name, own in ((500, "val_loss_first_500", 2.6), (1000, "val_loss", 2.51)):
        results["language"]["limit"] = limit
        results["arms"] = {"bank shuffled": shuffled}
        (path / "run.json").write_text(json.dumps(info))
        (path / "eval.json").write_text(json.dumps(results))
        rows = {(row.arm, row.measure): row.value for row in rows_of([Run(path)], allow_limit=True)}
        assert rows["memory", name] == 2.51 and rows["shuffled", name] == 2.8
        assert rows["memory", "val_loss"] == own  # that of the last validation, which reads the whole text
        assert ("shuffled", "val_loss") not in rows or limit == 1000
        assert (("memory", "bits_per_byte") in rows) == (limit == 1000) == (("memory", f"{bits}_first_500") not in rows)
    results["language"]["limit"] = 500
    (path / "eval.json").write_text(json.dumps(results))
    told = [row["result"] for row in compare([Run(path), Run(path)])[1].rows]
    assert "val loss, first 500 rows, bank shuffled" in told and "val loss, bank shuffled" not in told
    assert "bits/byte, first 500 rows" in told and "bits/byte" not in told


def test_an_evaluation_that_was_cut_short_is_kept_on_request_and_noted(tmp_path):
    path = evaluated(tmp_path / "knowledge_1_5_0_10000_seed1").path
    results = json.loads((path / "eval.json").read_text())
    del results["resources"]
    (path / "eval.json").write_text(json.dumps(results))
    with pytest.raises(ValueError, match="has no whole eval.json"):
        rows_of([Run(path)])
    assert "the evaluation was cut short" in rows_of([Run(path)], allow_limit=True)[0].note


def test_seeds_of_one_experiment_give_one_row_with_their_spread(tmp_path):
    runs = [evaluated(tmp_path / f"knowledge_1_5_0_10000_seed{seed}", seed, 88 + seed) for seed in (1, 2, 3)]
    row = find(rows_of(runs), arm="memory", measure="object")
    assert (row.value, row.values, row.seeds) == (90.0, [89.0, 90.0, 91.0], [1, 2, 3])
    assert row.interval == pytest.approx([90 - 4.303 / 3**0.5, 90 + 4.303 / 3**0.5], abs=1e-3)


@pytest.mark.parametrize(
    "name, plan",
    [
        ("experiment_knowledge_1_5_0_10000_seed7", ("1.5.0", "knowledge-10k")),
        ("quickstart_plain", ("plain", "quickstart")),
        ("middle_memory_seed42", ("memory", "middle")),
        ("experiment_1_6_0_seed2", ("1.6.0", "pretraining")),
        ("mine", (None, None)),
    ],
)
def test_the_name_of_a_folder_says_what_a_run_is(tmp_path, name, plan):
    assert plan_of(Run(tmp_path / name)) == plan


def test_the_command_appends_rows_once(tmp_path):
    run, file = evaluated(tmp_path / "experiment_1_5_0"), tmp_path / "results.jsonl"
    told = command("keep", run.path, "--file", file, root=tmp_path)
    rows = read_rows(file)
    assert f"{len(rows)} rows" in told and {row.protocol for row in rows} == {"pretraining"}
    assert "already" in command("keep", run.path, "--file", file, root=tmp_path, code=1)
    assert len(read_rows(file)) == len(rows)
    command("keep", run.path, "--file", file, "--protocol", "again", "--split", "held-out", root=tmp_path)
    assert len(read_rows(file)) == 2 * len(rows)


def test_what_is_not_whole_is_refused(tmp_path):
    stopped = write_run(tmp_path / "experiment_1_1_1", state="stopped")
    with pytest.raises(ValueError, match="is stopped, not finished"):
        rows_of([Run(stopped)])
    with pytest.raises(ValueError, match="no whole eval.json"):
        rows_of([Run(write_run(tmp_path / "experiment_1_1_2"))])
    with pytest.raises(ValueError, match="evaluated before its training ended"):
        rows_of([evaluated(tmp_path / "experiment_1_1_3", date="2026-01-01T00:00:00")])
    limited = evaluated(tmp_path / "experiment_1_1_4", limit=50)
    with pytest.raises(ValueError, match="on the first 50 questions"):
        rows_of([limited])
    assert "the first 50 questions" in rows_of([limited], allow_limit=True)[0].note
    one = json.loads((limited.path / "eval.json").read_text())
    one["about"]["limit"], one["object"] = None, one["object"] | {"seconds": 1.0, "limit": 20}
    (limited.path / "eval.json").write_text(json.dumps(one))
    with pytest.raises(ValueError, match="on the first 20 questions"):
        rows_of([Run(limited.path)])
    del one["resources"]
    (limited.path / "eval.json").write_text(json.dumps(one))
    with pytest.raises(ValueError, match="no whole eval.json"):
        rows_of([Run(limited.path)])
    some = evaluated(tmp_path / "experiment_1_1_6")
    one = json.loads((some.path / "eval.json").read_text()) | {"zsre": {"asked_cases": 30}}
    (some.path / "eval.json").write_text(json.dumps(one))
    with pytest.raises(ValueError, match="was asked 30 of the cases that were edited"):
        rows_of([Run(some.path)])
    assert "all cases edited, 30 of them asked" in rows_of([Run(some.path)], allow_limit=True)[0].note
    with pytest.raises(ValueError, match="with edits in its bank"):
        rows_of([evaluated(tmp_path / "experiment_1_1_5", edits=2)])
    with pytest.raises(ValueError, match="does not say its experiment"):
        rows_of([evaluated(tmp_path / "mine")])
    assert rows_of([evaluated(tmp_path / "yours")], "9.9", "mine")[0].experiment == "9.9"


def test_the_intervals_are_those_of_the_books():
    assert wilson_interval(0.5, 100) == pytest.approx([0.4038, 0.5962], abs=1e-4)
    assert mean_interval([1.0, 2.0]) == pytest.approx([1.5 - 12.706 * 0.5, 1.5 + 12.706 * 0.5])
