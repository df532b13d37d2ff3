"""An experiment whose run folder is gone has a record from its rows of results, which states nothing else."""

import copy
import json
import sys
from dataclasses import replace
from functools import cache

import pytest

from runs.__main__ import main
from runs.blanks import AI, marked
from runs.documents.rows import Rows
from runs.record import checksum
from runs.rows_record import ROOT, stale_tables
from tests.runs.test_record_tables import filled


@pytest.fixture(scope="module", autouse=True)
def rows_read_once():
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Rows, "load", cache(Rows.load))
        yield


def fill(monkeypatch, tmp_path, number: str, answers: dict, protocol: str = "wiki-49M") -> None:
    (tmp_path / "notes.json").write_text(json.dumps(answers))
    words = ["fill", number, "--rows", protocol, "--notes", str(tmp_path / "notes.json"), "--experiment_dir"]
    monkeypatch.setattr(sys, "argv", ["experiment", *words, str(tmp_path / "experiment")])
    assert main() == 0


def test_a_record_from_rows_holds_their_numbers_and_says_what_is_not_known(monkeypatch, tmp_path, capsys):
    fill(monkeypatch, tmp_path, "1.6.8", {"FINDING_1": "验证 Loss 2.9681, 1.6.0 为 3.0382 (-2.3%)", "DECISION": "检索"})
    assert "2 answers written; 4 blanks are left for people, 50 for an analysis" in capsys.readouterr().out
    text = (tmp_path / "experiment/archive/EXPERIMENT_1_6_8.md").read_text()  # where its script is
    values = filled(text)
    assert values["FINAL_LOSS"] == "2.9681" and values["LOSS_IMPROVEMENT"] == "-2.3% (正数为更差)"
    assert values["BASELINE_LOSS"].endswith("(1.6.0)") and "| 验证 Loss | 2.9681 | 2.9673 |" in values["SUMMARY"]
    assert "| ngram_max_places | `64` | `100000` |" in values["CHANGED_FLAGS"]
    assert values["START_TIME"] == "未记录(没有运行文件夹)" and values["DIVERSITY_SCORE"].startswith("未测")
    assert marked(text)["FINDING_1"] == AI


def test_a_record_that_awaits_its_run_is_filled_from_rows(monkeypatch, tmp_path):
    path = tmp_path / "experiment/archive/EXPERIMENT_1_6_8.md"
    fill(monkeypatch, tmp_path, "1.6.8", {"DECISION": "检索"})
    path.write_text((ROOT / "experiment/TEMPLATE.md").read_text())
    kept = "out/experiment_1_6_8"  # as `new` writes it
    path.write_text(path.read_text().replace("`[OUT_DIR]`<!--OUT_DIR-->", f"`{kept}`<!--OUT_DIR:{checksum(kept)}-->"))
    fill(monkeypatch, tmp_path, "1.6.8", {"DECISION": "检索"})
    assert filled(path.read_text())["FINAL_LOSS"] == "2.9681"


def test_a_record_may_state_the_loss_of_a_plain_model_that_trained_for_as_long(monkeypatch, tmp_path):
    fill(monkeypatch, tmp_path, "1.4.8", {"FINDING_1": "时间相同时普通模型的 Loss 4.846"}, "own-flags-42M")
    with pytest.raises(ValueError, match="states 4.836"):
        fill(monkeypatch, tmp_path, "1.4.8", {"FINDING_1": "时间相同时普通模型的 Loss 4.836"}, "own-flags-42M")


def test_a_record_of_a_started_script_has_its_flags_its_controls_and_numbers_of_added_protocols(monkeypatch, tmp_path):
    calibrated = (
        "CounterFact 自由写出 ES 87.2%; 1.6.0 的小说 Loss 3.484"  # of `..., pointer_scale 2`, of the plain rows
    )
    fill(monkeypatch, tmp_path, "1.6.14", {"FINDING_1": calibrated}, "asked-74M, text before questions")
    values = filled((tmp_path / "experiment/EXPERIMENT_1_6_14.md").read_text())
    assert "| knowledge_num | `auto` |" in values["MODEL_FLAGS"] and "| `TEXT+QUESTIONS` |" in values["TRAIN_FLAGS"]
    assert "| max_steps | `3000` |" in values["TRAIN_FLAGS"]
    assert "| 对象准确率 | 1999 | 98.9% ± 0.1% | 27.9% ± 0.3% |" in values["KNOWLEDGE"]


def test_a_record_of_a_run_of_asked_sh_has_the_flags_that_it_adds(monkeypatch, tmp_path):
    fill(monkeypatch, tmp_path, "1.6.37", {"DECISION": "检索"}, "asked-74M, scrambled but not shortened")
    values = filled((tmp_path / "experiment/EXPERIMENT_1_6_37.md").read_text())
    assert "| knowledge_num | `auto` |" in values["MODEL_FLAGS"] and "| max_steps | `3000` |" in values["TRAIN_FLAGS"]
    assert "| database_init_path | `KEPT+INVENTED` | `KEPT+INVENTED+PASSAGES` |" in values["CHANGED_FLAGS"]
    assert "bm25_also_words" not in values["CHANGED_FLAGS"]


def test_the_seeds_are_those_of_its_own_loss_and_other_flags_of_base_and_plain_may_be_stated(monkeypatch, tmp_path):
    fill(monkeypatch, tmp_path, "1.6.20", {"FINDING_1": "1.6.0 训练 2,442 步, Loss 为 2.9876"})
    values = filled((tmp_path / "experiment/EXPERIMENT_1_6_20.md").read_text())  # a row under a control is newer
    assert "种子: 42, 1, 2。" in values["SUMMARY"]


def test_the_plain_model_of_1_4_0_is_the_one_with_the_best_learning_rate_of_its_protocol(monkeypatch, tmp_path):
    fill(monkeypatch, tmp_path, "1.6.26", {"FINDING_1": "Loss 3.1834, 1.4.0 为 3.3089 (-3.8%)"})
    values = filled((tmp_path / "experiment/EXPERIMENT_1_6_26.md").read_text())
    assert values["BASELINE_LOSS"] == "3.3089 ± 0.0126 (1.4.0)" and values["BASELINE_MEM"] == "5,860 MiB (1.4.0)"


def test_an_experiment_without_a_loss_shows_its_edits_and_the_flags_of_its_script(monkeypatch, tmp_path):
    fill(monkeypatch, tmp_path, "1.6.18", {"FINDING_1": "ES 98.7%"}, "asked-74M, text before questions, all dev edits")
    values = filled((tmp_path / "experiment/EXPERIMENT_1_6_18.md").read_text())
    assert "ES, 全部编辑 | 300 | 98.7% ± 0.5% | 97.8% ± 0.0% |" in values["SUMMARY"]
    assert "ES, 100 次编辑 | 100 | 98.0% ± 0.0% |" in values["KNOWLEDGE"] and "100 次" not in values["SUMMARY"]
    assert values["CHANGED_FLAGS"].strip().splitlines()[2:] == ["| pointer_edited | `0.0` | `2.0` |"]
    assert values["FINAL_LOSS"].startswith("未记录")


@pytest.mark.parametrize(
    "number, answer, sentence",
    [
        ("1.6.8", "验证 Loss 2.9581", "FINDING_1 states 2.9581, which is not in the data"),
        ("1.6.8", "对象准确率 98.4%", "FINDING_1 states 98.4%, which is not in the data"),
        ("1.6.3", "好", "no row of the protocol 'wiki-49M' is of 1.6.3"),
        ("1.5.4", "好", "no row of the protocol 'wiki-49M' is of 1.5.4"),
        ("1.6.99", "好", "1.6.99 has no script in run_file/"),
    ],
)
def test_what_no_row_holds_is_refused_and_nothing_is_written(monkeypatch, tmp_path, number, answer, sentence):
    with pytest.raises((ValueError, FileNotFoundError), match=sentence):
        fill(monkeypatch, tmp_path, number, {"FINDING_1": answer})
    assert not (tmp_path / "experiment").exists()


def test_a_record_that_a_run_filled_keeps_its_values(monkeypatch, tmp_path):
    fill(monkeypatch, tmp_path, "1.6.8", {"DECISION": "检索"})
    path = tmp_path / "experiment/archive/EXPERIMENT_1_6_8.md"
    lost, kept = "未记录(没有运行文件夹)", "2026-11-29T10:00:00"
    text = path.read_text().replace(
        f"`{lost}`<!--START_TIME:{checksum(lost)}-->", f"`{kept}`<!--START_TIME:{checksum(kept)}-->"
    )
    path.write_text(text)
    fill(monkeypatch, tmp_path, "1.6.8", {"FINDING_1": "验证 Loss 2.9681"})
    begin = "<!--begin:ROWS_wiki_49M-->"
    assert begin not in path.read_text()  # its command line stands in the record: the rows are those of the run
    text = text.replace("python train_pretrain", "the run's own train_pretrain")
    path.write_text(
        text.replace(f"`2.9681`<!--FINAL_LOSS:{checksum('2.9681')}-->", f"`3.5`<!--FINAL_LOSS:{checksum('3.5')}-->")
    )
    fill(monkeypatch, tmp_path, "1.6.8", {"FINDING_1": "验证 Loss 3.5"})  # it stands in the record alone
    text = path.read_text()
    assert filled(text)["FINAL_LOSS"] == "3.5" and "`验证 Loss 3.5`<!--ai:FINDING_1" in text
    assert text.index("<!--end:SUMMARY") < text.index(begin) < text.index("## 🧠 AI思考过程")
    beside = text[text.index(begin) :].split("<!--end:ROWS_")[0]
    assert "**另一协议的结果: wiki-49M**" in beside and "| 验证 Loss | 2.9681 | 2.9673 |" in beside
    fill(monkeypatch, tmp_path, "1.6.8", {"FINDING_2": "验证 Loss 2.9681"})
    again, rows = path.read_text(), copy.deepcopy(Rows.load(ROOT))
    assert again.count(begin) == 1 and stale_tables(path, again, rows) is None
    newest = max((r for r in rows.results if r.key == "1.6.8/memory/val_loss/val/wiki-49M"), key=lambda r: r.date)
    rows.results.append(replace(newest, value=2.5, values=[2.5]))
    assert stale_tables(path, again, rows).startswith("its table of wiki-49M is not what the rows give")
