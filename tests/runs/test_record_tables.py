"""The generated tables of a record: results first, seeds together, knowledge, flags that apply, the curve."""

import json
import math
from pathlib import Path
from statistics import mean

import pytest

from runs import compare, record
from runs.check import check_record
from runs.draft import conclusion_of
from runs.evidence import Difference, Number
from runs.keep import plan_of
from runs.metrics import metric
from runs.record import fill_record
from runs.record_tables import changed_flags, knowledge, verdict
from runs.run import Run, open_run
from runs.significance import LEVEL, welch, welch_half
from tests.runs.test_record import filled, write_run


def seeded(path: Path, seed: int, loss: float, model_type: str = "model_memory") -> Path:
    """A run of one seed, whose last validation loss is `loss`."""
    write_run(path, seed=seed, experiment=path.name.removeprefix("experiment_"), model_type=model_type)
    flags = json.loads((path / "flags.json").read_text())
    flags["run"]["seed"] = seed
    (path / "flags.json").write_text(json.dumps(flags))
    lines = (path / "metrics.jsonl").read_text().replace('"val_loss": 2.6', f'"val_loss": {loss}')
    (path / "metrics.jsonl").write_text(lines)
    return path


def test_the_seeds_of_an_experiment_make_one_record_with_mean_and_spread(tmp_path, no_curves):
    runs = [seeded(tmp_path / f"out/experiment_9_9_9_seed{seed}", seed, loss) for seed, loss in ((1, 2.6), (2, 2.7))]
    write_run(tmp_path / "out/experiment_9_9_9_seed3", seed=3, experiment="9_9_9_seed3", state="failed")
    for seed, loss in ((1, 3.0), (2, 3.1)):
        seeded(tmp_path / f"out/experiment_9_0_0_seed{seed}", seed, loss, "model_original")
    paths = {fill_record(run, tmp_path / "experiment") for run in runs}
    assert [path.name for path in paths] == ["EXPERIMENT_9_9_9.md"]
    values = filled(paths.pop().read_text())
    assert values["FINAL_LOSS"] == values["CURRENT_LOSS"] == "2.6500 ± 0.0707 (2 个种子)"
    assert values["BEST_LOSS"] == "2.4000 (种子 1)" and values["BEST_PPL"].endswith(" (种子 1)")
    assert values["EXPERIMENT"] == "experiment_9_9_9" and "验证 Loss: 2.6500 ± 0.0707\n" in values["ALL_METRICS"]
    assert values["BASELINE_LOSS"] == "3.0500 ± 0.0707 (2 个种子)"
    assert values["LOSS_IMPROVEMENT"] == "-13.1% (正数为更差)"
    assert "| 1 | " in values["SUMMARY"] and "| 2 | " in values["SUMMARY"] and "| 3 | " not in values["SUMMARY"]
    assert "种子: 1, 2 (均值 ± 标准差)" in values["SUMMARY"]
    failed = filled(fill_record(tmp_path / "out/experiment_9_9_9_seed3", tmp_path / "other").read_text())
    assert failed["STATE"] == "❌ 失败" and "种子: " in failed["SUMMARY"]


def test_the_curves_of_all_seeds_are_drawn_beside_their_record(tmp_path):
    runs = [seeded(tmp_path / f"out/experiment_9_9_9_seed{seed}", seed, 2.6) for seed in (1, 2)]
    path = tmp_path / "experiment/EXPERIMENT_9_9_9.md"
    record.draw_curves(Run(runs[0]), path)
    picture = (tmp_path / "experiment/curves/EXPERIMENT_9_9_9.png").read_bytes()
    assert picture.startswith(b"\x89PNG") and picture != (runs[0] / "curves.png").read_bytes()


def test_an_experiment_that_has_folders_of_its_seeds_alone_is_opened_and_kept_by_its_number(tmp_path):
    runs = [seeded(tmp_path / f"out/experiment_9_9_9_seed{seed}", seed, 2.6) for seed in (1, 2)]
    assert open_run("9.9.9", tmp_path / "out").path in runs
    assert plan_of(Run(runs[0])) == ("9.9.9", "pretraining")
    with pytest.raises(FileNotFoundError, match="9.9.8 has no run.json"):
        open_run("9.9.8", tmp_path / "out")


def test_a_table_that_a_person_changed_stays(tmp_path, no_curves):
    run = write_run(tmp_path / "out/run")
    path = fill_record(run, tmp_path / "experiment")
    path.write_text(path.read_text().replace("| 验证 Loss | 2.6000 |", "| 验证 Loss | 2.6 (mine) |"))
    lines = (run / "metrics.jsonl").read_text().replace('"val_loss": 2.6', '"val_loss": 2.7')
    (run / "metrics.jsonl").write_text(lines)
    values = filled(fill_record(run, tmp_path / "experiment").read_text())
    assert "2.6 (mine)" in values["SUMMARY"] and "2.7000" in values["CURVE"] and values["FINAL_LOSS"] == "2.7000"
    text = path.read_text().replace("<!--begin:CURVE-->", "")
    path.write_text(text)
    assert "1 of " in check_record(path, [])


def test_a_run_without_a_number_keeps_its_record_in_its_own_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    own = write_run(tmp_path / "out/mine", experiment="mine")
    assert (
        fill_record(own) == own / "EXPERIMENT_mine.md"
        and "![训练曲线](curves.png)" in (own / "EXPERIMENT_mine.md").read_text()
    )
    assert fill_record(own, "records") == Path("records/EXPERIMENT_mine.md")
    numbered = write_run(tmp_path / "out/experiment_9_9_9_heads")
    Run(numbered).update(experiment="9_9_9_heads")
    path = fill_record(numbered)
    assert path == Path("experiment/EXPERIMENT_9_9_9_heads.md")
    assert "![训练曲线](curves/EXPERIMENT_9_9_9_heads.png)" in path.read_text()
    assert Path("experiment/curves/EXPERIMENT_9_9_9_heads.png").read_bytes().startswith(b"\x89PNG")


def test_base_and_baseline_are_found_wherever_they_lie(tmp_path):
    run = Run(write_run(tmp_path / "out/sweep/point"))
    assert run.base is None and run.baseline is None
    write_run(tmp_path / "out/experiment_9_9_8", experiment="9_9_8")
    plain = write_run(tmp_path / "out/other/plain", model_type="model_original")
    run = Run(run.path)
    assert run.base.path == tmp_path / "out/experiment_9_9_8" and run.baseline.path == plain
    near = write_run(tmp_path / "out/sweep/base_seed1", experiment="9_9_8_seed1", start_time="2025-01-01T00:00:00")
    assert Run(run.path).base.path == near


def test_a_flag_that_the_base_does_not_use_is_told_though_its_value_is_the_same(tmp_path):
    base = write_run(tmp_path / "out/experiment_9_9_8", experiment="9_9_8", model_type="model_original")
    paths = [base, write_run(tmp_path / "out/run")]
    for path in paths:
        flags = json.loads((path / "flags.json").read_text())
        flags["model"] |= {"knowledge_length": 8, "fusion_heads": 8, "use_moe": False}
        (path / "flags.json").write_text(json.dumps(flags))
    Run(paths[1]).update(idle_flags=["fusion_heads"])
    changes = changed_flags(Run(paths[1]))
    assert changes["knowledge_length"] == ("不适用", 8) and "fusion_heads" not in changes and "use_moe" not in changes


def test_the_record_shows_what_was_measured_of_knowledge_and_the_flags_that_apply(tmp_path):
    path = write_run(tmp_path / "out/run", idle_flags=["fusion_heads"])
    flags = json.loads((path / "flags.json").read_text())
    flags["model"] |= {"fusion": "words", "fusion_heads": 8, "knowledge_num": 49}
    (path / "flags.json").write_text(json.dumps(flags))
    share = {"accuracy": 0.9, "n": 100}
    (path / "eval.json").write_text(json.dumps({
        "object": share, "reworded": {"accuracy": 0.6, "n": 50}, "relation": share,
        "edits": {"1": {"ES": 0.9, "PS": 0.8, "n": {"ES": 50, "PS": 100}}},
        "retrieval": {"layers": {"block 2": {"selected": {"accuracy": 0.7, "n": 100}}}},
        "arms": {"bank shuffled": {"object": {"accuracy": 0.26, "n": 100}}},
        "about": {"date": "2026-11-26T10:00:00", "limit": None},
    }))  # fmt: skip
    values = filled(fill_record(path, tmp_path / "experiment").read_text())
    for line in (
        "| 对象准确率 | 100 | 90.0% [82.6%, 94.5%] | 26.0% [18.4%, 35.4%] |", "| 对象准确率 (换措辞) | 50 | 60.0%",
        "| 换措辞 PS | 100 | 80.0%", "| 读记忆之处 (100 题) | 读到正确条目 |", "| 第 2 层 | 70.0%",
    ):  # fmt: skip
        assert line in values["KNOWLEDGE"]
    assert "| fusion | `words` |" in values["MODEL_FLAGS"] and "fusion_heads" not in values["MODEL_FLAGS"]
    assert "| 100 |" in values["CURVE"] and "2.6000" in values["CURVE"]
    plain = write_run(tmp_path / "out/plain", model_type="model_original")
    assert "知识库" not in filled(fill_record(plain, tmp_path / "plain").read_text())["MODEL_FLAGS"]


@pytest.mark.parametrize(
    "measure, new, old, word",
    [
        ("object", (90.0,), (29.0,), "仅题目波动"),  # 61 points apart, and yet one seed
        ("object", (90.0, 91.0), (29.0,), "仅题目波动"),
        ("object", (90.0, 91.0), (29.0, 28.0), "更好"),
        ("object", (29.0, 28.0), (90.0, 91.0), "更差"),
        ("object", (90.0, 50.0), (29.0, 28.0), "在波动之内"),
        ("val_loss", (2.5,), (2.9,), "波动未知"),
        ("val_loss", (2.51, 2.5, 2.49), (2.91, 2.9, 2.89), "更好"),
    ],
)
def test_a_record_names_a_winner_only_over_seeds_as_the_comparison_does(measure, new, old, word):
    gap = Difference(*(Number(metric(measure), measure, values, 100) for values in (new, old)))
    assert verdict(gap).endswith(f"({word})") and ("更" in word) == ("含 0, 更" in conclusion_of(gap))
    told = compare.verdict({"new": list(new), "old": list(old)}, metric(measure))
    assert told.startswith("no winner") == ("更" not in word)


def test_the_interval_over_seeds_excludes_zero_where_welch_does():
    for shift in range(0, 60):
        new, old = [1.0, 1.3, 0.9], [1.2 + shift / 100, 1.25 + shift / 100]
        assert (welch_half(new, old) < mean(old) - mean(new)) == (welch(new, old)[1] < LEVEL)
    assert welch_half([1.0, 2.0], [3.0, 4.0]) == pytest.approx(4.303 * math.sqrt(0.5), abs=1e-3)


def test_the_record_shows_language_sets_and_loss_by_overlap_where_they_were_measured(tmp_path):
    path = write_run(tmp_path / "run")
    (path / "eval.json").write_text(json.dumps({"language": {"loss": 2.0, "n": 50}}))
    assert "编辑: 未测" in knowledge(Run(path)) and "公开语言题" not in knowledge(Run(path))
    sets = {"lambada": {"accuracy": 0.5, "n": 10, "word": {"perplexity": 40.0, "n": 10}}}
    groups = {"3_to_7": {"loss": {"mean": 1.25, "n": 30}, "against": {"bank zeroed": {"gain": {"mean": 2.5, "n": 30}}}}}
    found = {"language_sets": {"sets": sets}, "overlap": {"groups": groups}}
    (path / "eval.json").write_text(json.dumps(found))
    lines = knowledge(Run(path)).splitlines()
    for line in ("| Loss, 共有 3 to 7 | 30 | 1.2500 |", "| 比空知识库低, 共有 3 to 7 | 30 | 2.5000 |"):
        assert line in lines
    assert any(line.startswith("| lambada | 10 | 50.0%") for line in lines)
    assert "| lambada, 困惑度 | 10 | 40.00 |" in lines
