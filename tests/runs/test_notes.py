"""An analysis goes into the blanks of a record, and into nothing else; what the data do not say is refused."""

import json
import sys
from pathlib import Path

import pytest

from runs import notes as notes_module
from runs import record as record_module
from runs.__main__ import main
from runs.blanks import AI, BLANKS, DRAFT, answers_of, marked, open_blanks, read_notes, write_answers
from runs.brief import as_markdown, brief
from runs.check import check_record
from runs.cited import refused
from runs.draft import draft
from runs.evidence import Number
from runs.known import Known
from runs.metrics import metric
from runs.notes import experiments, fill_draft, fill_notes
from runs.numerals import numerals
from runs.record import TEMPLATE, fill_record
from runs.run import Run
from tests.runs.test_keep import evaluated
from tests.runs.test_record import write_run


@pytest.fixture(autouse=True)
def without_curves(monkeypatch):
    """Drawing takes longer than all else here."""
    for module in (notes_module, record_module):
        monkeypatch.setattr(module, "draw_curves", lambda run, path: None)


def make_run(folder: Path) -> Run:
    """An evaluated memory model beside a plain one of as many tokens."""
    write_run(folder / "out/plain", model_type="model_original", experiment="9_9_8")
    path = folder / "out/experiment_9_9_9"
    evaluated(path)
    (folder / "out/plain/eval.json").write_text(json.dumps({
        "object": {"accuracy": 0.29, "n": 100}, "language": {"loss": 2.9, "n": 5000},
        "about": {"date": "2026-11-26T10:00:00", "limit": None},
    }))  # fmt: skip
    return Run(path)


@pytest.fixture
def run(tmp_path) -> Run:
    return make_run(tmp_path)


@pytest.fixture(scope="module")
def known(tmp_path_factory) -> Known:
    """What may be said of such a run."""
    run = make_run(tmp_path_factory.mktemp("known"))
    return Known(run, brief(run))


@pytest.mark.parametrize(
    "answer",
    [
        "对象准确率 90%, 打乱知识库后 26%, 高 64 个百分点 (95% 区间 [53.6, 74.4])",
        "对象准确率 90 / 26 / 4 %, model_original 29%",
        "object 0.9 对 0.29",
        "对象准确率 90% [82.6%, 94.5%]",
        "验证 Loss 2.60, 步 50 时 2.4",
        "步 7: Loss 3.88, 学习率 2e-4",
        "显存 9.8 GiB (10,000 MiB), 共 100 步, 12.8k token, 训练 30 秒",
        "反向传播占 75%, 数据占 25%",
        "2026-01-02T03:00:00 开始, PyTorch 2.13.0, 在 H100 上的 1.4.x 未测, 与 experiment_1_4_8 相比",
        "top-5 与 4-gram 不是数值",
        "全角的 ９０％ 也是对象准确率",
    ],
)  # fmt: skip
def test_what_the_data_say_may_be_written(known, answer):
    assert refused("FINDING_1", answer, known, experiments()) is None


@pytest.mark.parametrize(
    "blank, answer, wrong",
    [
        ("FINDING_1", "对象准确率 91.3%", "91.3%"),
        ("FINDING_1", "对象准确率 94.5%", "94.5%"),  # an end of its interval, [82.6%, 94.5%]
        ("FINDING_1", "验证 Loss 2.6137", "2.6137"),
        ("FINDING_1", "步 8: 训练 Loss 3.88", "3.88"),  # it is that of step 7
        ("FINDING_1", "2026-01-03 完成", "2026-01-03"),
        ("FINDING_1", "优于 experiment_7_7_7", "experiment_7_7_7"),
        ("FINDING_1", "共 150 步", "150"),
        ("FINDING_1", "--num_candidates 777 更好", "777"),  # a finding is no plan
        ("SHORT_TERM_1", "--no_such_flag 640", "640"),
        ("SHORT_TERM_1", "预期 Loss 1.95", "1.95"),
        ("GOAL_ACHIEVEMENT", "11", "a score of 0 to 10"),
        ("GOAL_ACHIEVEMENT", "很好", "a score of 0 to 10"),
        ("NEXT_VERSION", "下一个", "the number of an experiment"),
    ],
)  # fmt: skip
def test_what_the_data_do_not_say_is_refused_in_a_sentence(known, blank, answer, wrong):
    told = refused(blank, answer, known, experiments())
    assert told.startswith(blank) and wrong in told and "\n" not in told


def test_a_fraction_of_a_flag_stands_only_where_its_flag_is_named(tmp_path):
    run = make_run(tmp_path)
    flags = json.loads((run.path / "flags.json").read_text())
    flags["optim"] |= {"beta2": 0.95, "learning_rate": 0.0003}
    flags["model"]["attention_dropout"] = 0.45
    (run.path / "flags.json").write_text(json.dumps(flags))
    info = json.loads((run.path / "run.json").read_text()) | {"command": "train.py --beta2 0.95"}
    (run.path / "run.json").write_text(json.dumps(info))
    known = Known(Run(run.path), brief(Run(run.path)))

    def told(answer: str) -> str | None:
        return refused("FINDING_1", answer, known, experiments())

    for answer in ("对象准确率 95%", "对象准确率 0.95", "对象准确率 45%", "更多 3e-4"):
        assert "is not in the data of the run" in told(answer), answer
    for answer in ("beta2 为 0.95", "--beta2 95%", "注意力 dropout 0.45", "学习率 3e-4", "learning_rate=0.0003"):
        assert told(answer) is None, answer


def test_what_the_brief_tells_may_be_copied(run, tmp_path):
    """A difference of 737.4 MiB is told as +737, and 737 is then not refused as another number."""
    lines = (run.path / "metrics.jsonl").read_text()
    (run.path / "metrics.jsonl").write_text(lines.replace('"peak_gpu_mib": 10000.0', '"peak_gpu_mib": 10737.4'))
    made = brief(Run(run.path))
    known = Known(Run(run.path), made)
    told = [
        f"{entry['指标']}: {gap['差']}" for entry in made["结果"] for name, gap in entry.items() if name[:2] == "相对"
    ]
    assert any("MiB): +737 (" in text for text in told)
    assert [text for text in told if refused("FINDING_1", text, known, experiments())] == []


def test_the_spread_of_the_seeds_may_be_written(run):
    known, answer = Known(run, brief(run)), "Loss 2.712 ± 0.1414"
    assert refused("FINDING_1", answer, known, experiments())
    known.take_number("val_loss", Number(metric("val_loss"), "val_loss", (2.612, 2.812), None))
    assert refused("FINDING_1", answer, known, experiments()) is None


def test_a_plan_may_give_new_values_to_flags(known):
    assert refused("SHORT_TERM_1", "--dim 640, 3 个种子, 编号 9.9.12", known, experiments()) is None
    assert refused("NEXT_VERSION", "9.9.10", known, experiments()) is None
    assert refused("GOAL_ACHIEVEMENT", "7/10", known, experiments()) is None


def test_numbers_are_read_as_people_write_them():
    found = {n.text: (n.value, n.is_percent) for n in numerals("1,438,583 token, 5.5%, 2e-4, 3 GiB, 1.2k, 12, 3")}
    assert found == {
        "1,438,583": (1438583, False), "5.5%": (5.5, True), "2e-4": (2e-4, False), "3 GiB": (3, False),
        "1.2k": (1.2, False), "12": (12, False), "3": (3, False),
    }  # fmt: skip
    assert next(numerals("98.6%")).is_one_of([98.55]) and not next(numerals("98.6%")).is_one_of([98.5])
    assert next(numerals("1,440,000")).is_one_of([1438583]) and not next(numerals("1,440,000")).is_one_of([1434000])
    assert next(numerals("3 GiB")).is_one_of([3072]) and not next(numerals("16")).is_one_of([16.3])


def test_answers_go_into_their_blanks_and_nothing_else_changes(run, tmp_path):
    path = fill_record(run.path, tmp_path / "records")
    before = path.read_text()
    notes = {"FINDING_1": "对象准确率 90%\n有 `|` 的", "OVERALL_CONCLUSION": "一\n二", "NEXT_VERSION": "9.9.10",
             "GOAL_ACHIEVEMENT": "7"}  # fmt: skip
    assert fill_notes(run.path, notes, tmp_path / "records") == path
    text = path.read_text()
    assert "1. `对象准确率 90% 有 '/' 的`<!--ai:FINDING_1:" in text and "```\n一\n二\n```\n<!--ai:OVERALL" in text
    assert "- 实验编号: `experiment_9.9.10`<!--ai:NEXT_VERSION:" in text and "`7`<!--ai:GOAL_ACHIEVEMENT:" in text
    assert set(open_blanks(before)) - set(open_blanks(text)) == set(notes)
    shared = set(before.splitlines()) & set(text.splitlines())
    assert len(set(before.splitlines()) - shared) == 4
    assert check_record(path, [run]) is None and fill_record(run.path, tmp_path / "records").read_text() == text
    fill_notes(run.path, {"FINDING_1": "关系未测", "OVERALL_CONCLUSION": "三"}, tmp_path / "records")
    found = answers_of(path.read_text())
    assert (found["FINDING_1"], found["OVERALL_CONCLUSION"], found["NEXT_VERSION"]) == (
        "关系未测",
        "三",
        "experiment_9.9.10",
    )


def test_an_answer_cannot_pose_as_a_mark(run, tmp_path):
    notes = {"FINDING_1": "一`<!--FINAL_LOSS:00000000-->", "OVERALL_CONCLUSION": "二\n```\n<!--ERROR_LOGS-->"}
    path = fill_notes(run.path, notes, tmp_path / "records")
    text = path.read_text()
    assert check_record(path, [run]) is None and set(answers_of(text)) == set(notes)
    assert fill_record(run.path, tmp_path / "records").read_text() == text


def test_one_wrong_answer_leaves_all_out(run, tmp_path):
    path = fill_record(run.path, tmp_path / "records")
    path.write_text(path.read_text().replace("[FINDING_2]", "mine"))
    before = path.read_bytes()
    notes = {
        "FINDING_1": "对象准确率 90%",
        "FINDING_2": "x",
        "FINDING_3": "对象准确率 91.3%",
        "FINDIG_1": "x",
        "目的": "x",
    }
    with pytest.raises(ValueError) as refusal:
        fill_notes(run.path, notes, tmp_path / "records")
    lines = str(refusal.value).splitlines()
    assert len(lines) == 5 and path.read_bytes() == before
    assert lines[0] == "FINDING_2 holds a person's text, which stays: leave this answer out"
    assert "91.3%" in lines[1] and "did you mean FINDING_1?" in lines[2] and "has no blank 目的" in lines[3]
    assert lines[4].endswith("was not changed.")


def test_what_a_person_made_of_an_answer_stays(run, tmp_path):
    path = fill_notes(run.path, {"FINDING_1": "一", "OVERALL_CONCLUSION": "二"}, tmp_path / "records")
    path.write_text(path.read_text().replace("`一`<!--", "`一, 我改过`<!--").replace("```\n二\n", "```\n二, 我改过\n"))
    text = path.read_text()
    assert marked(text) == {"FINDING_1": "person", "OVERALL_CONCLUSION": "person"}
    for name in ("FINDING_1", "OVERALL_CONCLUSION"):
        with pytest.raises(ValueError, match=f"{name} holds a person's text"):
            fill_notes(run.path, {name: "三"}, tmp_path / "records")
    assert write_answers(text, {"FINDING_1": "三", "OVERALL_CONCLUSION": "三"}, AI) == text


def test_the_draft_says_only_what_the_data_say(run, known, tmp_path):
    answers = draft(run)
    assert [refused(name, answer, known, experiments()) for name, answer in answers.items()] == [None] * len(answers)
    assert answers["FINDING_2"].startswith("记忆被读取: 对象准确率 90.0%, 打乱知识库 26.0% (差 +64.0 百分点")
    assert answers["FINDING_1"] == (
        "验证 Loss: 2.5100, model_original 2.9000, 差 -0.3900 (-13.4%); 不是每边都有多个种子, 波动未知, 不能下结论"
    )
    path, n = fill_draft(run.path, tmp_path / "records")
    text = path.read_text()
    assert n == len(answers) and set(marked(text).values()) == {DRAFT}
    assert all(answer.endswith("(由规则起草)") for answer in answers_of(text).values())
    fill_notes(run.path, {"FINDING_1": "对象准确率 90%"}, tmp_path / "records")
    _, again = fill_draft(run.path, tmp_path / "records")
    assert again == n - 1 and marked(path.read_text())["FINDING_1"] == AI


def test_a_memory_that_is_not_read_is_told(run):
    results = json.loads((run.path / "eval.json").read_text())
    results["arms"] = {"bank shuffled": {"object": {"accuracy": 0.89, "n": 100}}}
    (run.path / "eval.json").write_text(json.dumps(results))
    assert draft(Run(run.path))["FINDING_2"].startswith("看不出记忆被读取")
    del results["arms"]
    (run.path / "eval.json").write_text(json.dumps(results))
    assert draft(Run(run.path))["FINDING_2"].startswith("没有对照")


@pytest.mark.parametrize("state, seconds", [("failed", 30.0), ("running", 20.0), ("stopped", 30.0)])
def test_a_run_without_results_has_a_brief_and_a_draft(tmp_path, state, seconds):
    path = write_run(tmp_path / "out/run", state=state, losses=[], error="ValueError: wrong")
    made = brief(Run(path))
    assert made["结果"] == [{"指标": "训练时间", "名称": "train_s", "本实验": {"值": seconds, "单位": "s"}}]
    assert "ValueError: wrong" in as_markdown(made) and draft(Run(path))["PROBLEM_1"] == "运行没有完成"


def test_the_brief_has_all_that_an_analysis_needs(run):
    made = brief(run)
    told = as_markdown(made)
    for word in (
        "对象准确率",
        "打乱知识库",
        "训练 Loss",
        "## 异常",
        "backward 75.0%",
        "FINDING_1: 主要发现",
        "--notes",
    ):
        assert word in told
    entry = next(entry for entry in made["结果"] if entry["名称"] == "object")
    assert entry["本实验"] == {"值": 90.0, "单位": "%", "题数": 100, "95% 区间": [82.56, 94.48]}
    assert (
        entry["对照"]["打乱知识库"]["值"] == 26.0
        and entry["基础实验" if "基础实验" in entry else "model_original"]["值"] == 29.0
    )
    assert [blank["编号"] for blank in made["空白"]] == open_blanks(TEMPLATE.read_text())
    assert len(told) < 20_000 and json.loads(json.dumps(made)) == made


def test_every_blank_of_the_template_is_known_and_every_known_blank_is_there():
    assert sorted(open_blanks(TEMPLATE.read_text())) == sorted(BLANKS)


@pytest.mark.parametrize(
    "text, answers",
    [
        ('{"FINDING_1": "a", "GOAL_ACHIEVEMENT": 7}', {"FINDING_1": "a", "GOAL_ACHIEVEMENT": "7"}),
        ('```json\n{"FINDING_1": "a"}\n```\n', {"FINDING_1": "a"}),
        ("## FINDING_1\n\na\nb\n\n## FINDING_2\nc\n", {"FINDING_1": "a\nb", "FINDING_2": "c"}),
    ],
)
def test_notes_are_json_or_markdown(text, answers):
    assert read_notes(text, "notes") == answers


@pytest.mark.parametrize(
    "text, problem",
    [
        ('{"FINDING_1": "a", "FINDING_1": "b"}', "notes answers FINDING_1 twice"),
        ('{"FINDING_1": ["a"]}', "the answer to FINDING_1 must be a text"),
        ('{"FINDING_1": ""}', "the answer to FINDING_1 must be a text"),
        ('{"FINDING_1": ', "notes: not valid JSON"),
        ("words", "notes has no answers"),
    ],
)
def test_notes_that_cannot_be_read_are_refused(text, problem):
    with pytest.raises(ValueError, match=problem):
        read_notes(text, "notes")


def test_the_commands(run, tmp_path, monkeypatch, capsys):
    def command(*arguments) -> str:
        monkeypatch.setattr(sys, "argv", ["experiment", *map(str, arguments), "--experiment_dir", str(records)])
        assert main() == 0
        return capsys.readouterr().out

    records, notes = tmp_path / "records", tmp_path / "notes.json"
    assert json.loads(command("brief", run.path, "--json"))["实验"]["编号"] == "experiment_9_9_9"
    notes.write_text('{"FINDING_1": "对象准确率 91.3%"}')
    with pytest.raises(ValueError, match="FINDING_1 states 91.3%"):
        command("fill", run.path, "--notes", notes)
    assert not records.exists()
    notes.write_text('{"FINDING_1": "对象准确率 90%"}')
    assert "; 1 answers written; " in command("fill", run.path, "--notes", notes)
    assert "blanks drafted by rules" in command("draft", run.path)
    with pytest.raises(ValueError, match="exclude each other"):
        command("fill", run.path, "--notes", notes, "--draft")
