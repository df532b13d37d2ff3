"""A winner is named only where noise alone would seldom name one: over seeds, and over the same questions."""

import json
import random
from pathlib import Path
from statistics import mean

import numpy as np
import pytest

from evaluation.config import EvalConfig, accuracy_by_part
from runs.__main__ import labelled_runs
from runs.compare import compare, groups_of, shared_name, verdict
from runs.metrics import metric
from runs.outcomes import MAX_DOCUMENTS, outcomes_of, packed_losses
from runs.run import Run
from runs.significance import exact_mcnemar, paired_p, two_sided_p, welch
from tests.runs.test_experiment import run_with
from tests.runs.test_record import write_run

LOSS, PPL = metric("val_loss"), metric("val_ppl")


@pytest.mark.parametrize("t, degrees", [(12.706, 1), (4.303, 2), (2.776, 4), (2.262, 9), (1.962, 1000), (1.96, 1e9)])
def test_the_quantiles_are_those_of_the_tables(t, degrees):
    assert two_sided_p(t, degrees) == two_sided_p(-t, degrees) == pytest.approx(0.05, abs=1e-4)


def test_welch_agrees_with_a_worked_example():
    first = [27.5, 21.0, 19.0, 23.6, 17.0, 17.9, 16.9, 20.1, 21.9, 22.6, 23.1, 19.6, 19.0, 21.7, 21.4]
    second = [27.1, 22.0, 20.8, 23.4, 23.4, 23.5, 25.8, 22.0, 24.8, 20.2, 21.9, 22.1, 22.9, 20.5, 24.4]
    error, p = welch(first, second)
    assert (mean(first) - mean(second)) / error == pytest.approx(-2.46, abs=0.01) and p == pytest.approx(
        0.021, abs=5e-4
    )
    assert welch([1.0, 1.0], [2.0, 2.0])[1] == 0 and welch([1.0, 1.0], [1.0, 1.0])[1] == 1


@pytest.mark.parametrize("n_groups, n_seeds, widest", [(2, 2, 1), (2, 2, 4), (2, 3, 1), (4, 2, 1)])
def test_equal_experiments_have_a_winner_in_at_most_one_case_of_twenty(n_groups, n_seeds, widest):
    rng, false = random.Random(n_groups + n_seeds + widest), 0
    for _ in range(1000):
        widths = [widest, *[1] * (n_groups - 1)]
        values = {str(i): [rng.gauss(3, 0.01 * width) for _ in range(n_seeds)] for i, width in enumerate(widths)}
        false += not verdict(values, LOSS).startswith("no winner")
    assert false <= 50


def test_a_real_difference_is_found():
    rng = random.Random(0)
    told = [
        verdict({"a": [rng.gauss(3, 0.01) for _ in "xyz"], "b": [rng.gauss(3.1, 0.01) for _ in "xyz"]}, LOSS)
        for _ in range(200)
    ]
    assert sum(text.startswith("a by 0.1") or text.startswith("a by 0.0") for text in told) > 190


def test_a_loss_wins_exactly_where_its_perplexity_does():
    rng, won = random.Random(1), 0
    for _ in range(300):
        losses = {name: [rng.gauss(middle, 0.05) for _ in "xy"] for name, middle in (("a", 3.0), ("b", 3.3))}
        ppl = {name: [np.exp(value) for value in own] for name, own in losses.items()}
        one, other = verdict(losses, LOSS), verdict(ppl, PPL)
        assert one.split(" by ")[0].split(":")[0] == other.split(" by ")[0].split(":")[0]
        won += one.startswith("a")
    assert 20 < won < 280


@pytest.mark.parametrize(
    "values, told",
    [
        ({"a": [2.0, 2.2], "b": [2.05, 2.25]}, "no winner: 0.0500 apart ± 0.1414, p 0.76 over seeds"),
        ({"a": [2.0, 2.01], "b": [3.0, 3.01]}, "a by 1.0000 ± 0.0071, p < 0.001"),
        ({"a": [2.0], "b": [1.5]}, "no winner: 0.5000 apart, one seed each"),
        ({"a": [2.0, 2.01], "b": [1.5]}, "no winner: 0.5050 apart, one seed of b"),
        ({"a": [2.0, 2.01], "b": [3.0, 3.01], "c": [4.0]}, "a by 1.0000 ± 0.0071, p < 0.001; one seed of c"),
        ({"a": [2.0], "b": [2.0]}, "equal"),
        ({"a": [2.0], "b": []}, ""),
    ],
)
def test_what_is_told_of_a_row(values, told):
    assert verdict(values, LOSS) == told


def test_a_lead_on_few_questions_is_no_win():
    values = {"a": [0.9, 0.901], "b": [0.8, 0.801]}
    assert verdict(values, metric("object")).startswith("a by 10.0%")
    assert verdict(values, metric("object"), paired=0.2) == "no winner: 10.0% apart ± 0.1%, p 0.2 over questions"


def test_answers_to_the_same_questions_are_compared_in_pairs():
    assert exact_mcnemar(10, 2) == pytest.approx(0.03857, abs=1e-5) and exact_mcnemar(3, 3) == 1
    pairs = np.array([1] * 10 + [-1] * 2 + [0] * 50)
    assert paired_p(pairs) == exact_mcnemar(10, 2) and paired_p(-pairs) == paired_p(pairs)
    rng = np.random.default_rng(0)
    draws = rng.exponential(size=(400, 80)) * rng.standard_normal((400, 80))
    tokens_X = rng.integers(10, 400, 80)
    assert np.mean([paired_p(row, tokens_X) < 0.05 for row in draws]) <= 0.075
    assert paired_p(draws[0] + 1.0, tokens_X) < 1e-4


def answered(folder: Path, seed: int, right: list[bool], questions: list[dict], **changes) -> Run:
    run = run_with(folder, 2.6, seed=seed, **changes)
    result = {"object": accuracy_by_part(questions, right, 0.2, EvalConfig(), 1)}
    (run.path / "eval.json").write_text(json.dumps(result))
    return Run(run.path)


def test_compare_tests_the_same_questions_and_those_alone(tmp_path):
    rng, rows = random.Random(0), [{"uuid": i, "part": "seen" if i % 2 else "bank_only"} for i in range(60)]
    right = {name: [rng.random() < share for _ in rows] for name, share in (("a", 0.9), ("b", 0.3))}
    runs = [
        answered(tmp_path / f"{name}_seed{seed}", seed, [own[0] ^ (seed == 2), *own[1:]], rows, dtype=name)
        for name, own in right.items()
        for seed in (1, 2)
    ]
    assert outcomes_of(runs[0].result("object")).value_X.tolist() == right["a"]
    results = {row["result"]: row for row in compare(runs)[1].rows}
    assert results["object"]["same questions"] == "p < 0.001, n 60"
    assert results["object bank_only"]["same questions"].endswith("n 30")
    assert results["object"]["winner"].startswith("a x 2 by ") and results["val loss"]["same questions"] is None
    others = [answered(tmp_path / "c_seed1", 1, right["a"], [row | {"uuid": -1} for row in rows], dtype="c"), runs[0]]
    assert "same questions" not in compare(others)[1].columns


def test_one_seed_each_has_no_winner_and_the_controls_of_a_run_stand_below_its_results(tmp_path):
    paths = [
        write_run(tmp_path / name, model_type=f"model_{kind}") for name, kind in (("a", "original"), ("b", "memory"))
    ]
    for path, share in zip(paths, (0.2, 0.9), strict=True):
        flags = json.loads((path / "flags.json").read_text())
        flags["model"] |= {"knowledge_num": round(share * 10), "dim": round(share * 10), "num_selected": 4}
        (path / "flags.json").write_text(json.dumps(flags))
        result = {"object": {"accuracy": share}}
        shuffled = {"arms": {"bank shuffled": {"object": {"accuracy": 0.3}}}} if share > 0.5 else {}
        (path / "eval.json").write_text(json.dumps(result | shuffled))
    differing, results = compare([Run(path) for path in paths])
    assert {"flag": "knowledge_num", "a": "–", "b": "9"} in differing.rows
    assert {"flag": "dim", "a": "2", "b": "9"} in differing.rows
    assert not any(row["flag"] == "num_selected" for row in differing.rows)  # equal, though idle in one
    rows = {row["result"]: row for row in results.rows}
    assert results.title == "results (one seed each: no winner is named)" and "winner" not in results.columns
    assert rows["object"]["difference"] == "70.0 points" and rows["val loss"]["difference"] == "0.0000"
    shuffled = rows["object, bank shuffled"]
    assert shuffled["a"] is None and shuffled["b"]["text"] == "30.0%" and shuffled["difference"] == ""
    idle = json.loads((paths[0] / "run.json").read_text()) | {"idle_flags": ["dim"]}
    (paths[0] / "run.json").write_text(json.dumps(idle))
    assert {"flag": "dim", "a": "–", "b": "9"} in compare([Run(path) for path in paths])[0].rows


def test_losses_of_documents_are_kept_in_groups_where_they_are_many():
    n_X = np.arange(1, 3 * MAX_DOCUMENTS + 1)
    kept = outcomes_of({"documents": packed_losses(2.0 * n_X, n_X, n_X.astype(np.int16))})
    assert len(kept.value_X) == MAX_DOCUMENTS and kept.weight_X.sum() == n_X.sum()
    assert np.allclose(kept.value_X, 2.0)


@pytest.mark.parametrize(
    "names, shared",
    [
        (["a_seed_1", "a_seed_2"], "a x 2"),
        (["knowledge_1_5_0_10000_seed1", "knowledge_1_5_0_10000_seed2"], "knowledge_1_5_0_10000 x 2"),
        (["lr_1e-4__seed_1", "lr_1e-4__seed_2"], "lr_1e-4 x 2"),
        (["seed1_wiki", "seed2_wiki"], "wiki x 2"),
        (["run_a", "run_b", "run_c"], "run x 3"),
        (["one", "two"], "out x 2"),
        (["one_seed1"], "one_seed1"),
    ],
)
def test_a_group_is_named_by_what_its_runs_share(names, shared):
    assert shared_name([Path("out") / name for name in names]) == shared


def test_runs_get_labels_on_the_command_line(tmp_path):
    for name, changes in (("x", {"seed": 1}), ("y", {"seed": 2}), ("z", {"seed": 1, "dtype": "q"})):
        run_with(tmp_path / name, 2.6, **changes)
    runs, labels = labelled_runs(["memory=x", f"memory={tmp_path / 'y'}", "z"], str(tmp_path))
    assert {label: len(group) for label, group in groups_of(runs, labels).items()} == {"memory": 2, "z": 1}
    runs, labels = labelled_runs(["memory=x", "memory=z"], str(tmp_path))
    with pytest.raises(ValueError, match="'memory' differ by more than their seed, in --dtype: give them labels"):
        groups_of(runs, labels)
    write_run(tmp_path / "odd=name")
    assert labelled_runs([str(tmp_path / "odd=name")], str(tmp_path))[1] == {}
