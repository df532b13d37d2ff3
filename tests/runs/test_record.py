"""The record fills in what was measured, and nothing else."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from runs import record, record_text
from runs.analysis import at_fractions, divergence, last_tenth, plateaus, self_bleu, slope, spikes
from runs.folder import hold_lock, session_of
from runs.record import fill_record, fill_text, with_newer_tables
from runs.record_values import VALUES, value_of
from runs.run import Run, is_locked

pytestmark = pytest.mark.usefixtures("no_curves")
ROOT, draw_curves = Path(__file__).parents[2], record.draw_curves
MARKER = re.compile(r"<!--(?!begin:)([\w:.]+?)(:[0-9a-f]{8})?-->")
STAGE_NAMES = ("env", "data", "model", "train")


def write_run(path: Path, *, gpu=True, state="finished", losses=None, model_type="model_memory", **facts) -> Path:
    """A run folder with the files that training and evaluation leave behind."""
    path.mkdir(parents=True)
    stages = [
        {"name": name, "start": f"2026-01-02T03:0{i}:00", "end": f"2026-01-02T03:0{i}:30", "state": "finished"}
        for i, name in enumerate(STAGE_NAMES)
    ]
    info = {
        "name": path.name, "experiment": "9_9_9", "state": state, "start_time": "2026-01-02T03:00:00",
        "end_time": "2026-01-02T03:04:00", "command": "train.py --dim 64 | tee `log`", "stages": stages, "error": None,
        "git_commit": "0123abc", "git_dirty": False, "target_loss": 2.5, "baseline": None, "processes": 1,
        "base": "9.9.8",
        "environment": {
            "python": "3.11.0", "torch": "2.13.0", "cuda": "13.0" if gpu else None, "gpu": "Card" if gpu else None,
            "gpu_mib": 24000 if gpu else None, "cpu": "x86_64", "cpu_cores": 2, "packages": {"numpy": "2.0"},
        },
    } | facts  # fmt: skip
    flags = {
        "model": {"model_type": model_type, "dim": 64, "max_seq_len": 32},
        "data": {"data_path": "text.jsonl"},
        "optim": {"batch_size": 4},
        "run": {"out_dir": f"out/{path.name}"},
    }
    losses = [4 - 0.02 * i for i in range(100)] if losses is None else losses
    memory = {"gpu_mib": 9000.0, "peak_gpu_mib": 10000.0} if gpu else {}
    if state == "running":
        stages[-1] |= {"state": "running", "end": None}
    lines = []
    for i, loss in enumerate(losses):
        lines.append({"step": i + 1, "loss": loss, "lr": 2e-4, "grad_norm": 1.0, "tokens": 128 * (i + 1)})
        lines.append({"step": i + 1, "host_mib": 500.0 + i} | memory)
    if losses:
        lines.append({"step": 50, "epoch": 0.5, "val_loss": 2.4, "val_ppl": 11.02})
        lines.append({"step": 100, "epoch": 1.0, "val_loss": 2.6, "val_ppl": 13.46})
        lines.append({"step": 100, "time_share/data": 0.25, "time_share/backward": 0.75})
    (path / "run.json").write_text(json.dumps(info))
    (path / "train.log").write_text("2026-01-02 03:03:20 INFO step 100/100 loss 2.02\n")
    (path / "flags.json").write_text(json.dumps(flags))
    (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def filled(text: str) -> dict[str, str]:
    """The values of a record by the name of their marker."""
    values = {name: value for value, name in re.findall(r"`([^`\n]*)`<!--([\w:.]+?):[0-9a-f]{8}-->", text)}
    blocks = re.findall(r"```\w*\n((?:(?!```).*\n)*?)```\n<!--([\w:.]+?):[0-9a-f]{8}-->", text)
    tables = re.findall(r"<!--begin:(\w+)-->\n(.*?)<!--end:\1:[0-9a-f]{8}-->", text, flags=re.DOTALL)
    return values | {name: value for value, name in blocks} | dict(tables)


def record_of(run: Path, directory: Path) -> dict[str, str]:
    return filled(fill_record(run, directory).read_text())


RUNS = {
    "finished": {},
    "cpu": {"gpu": False},
    "failed": {"state": "failed", "error": "Traceback\nValueError: wrong", "losses": []},
    "stopped early": {"state": "stopped", "losses": [4.0], "stages": []},
    "nan": {"losses": [4.0] * 20 + [None] + [4.0] * 20},
    "killed": {"state": "running", "end_time": None},
    "nothing but NaN": {"losses": [None]},
}


DIED_OF_NAN = {"state": "failed", "error": "Traceback\nFloatingPointError: the loss is nan"}


@pytest.mark.parametrize("source", ["TEMPLATE.md", "EXPERIMENT_1_4_8.md"])
@pytest.mark.parametrize("kind", RUNS)
def test_every_marker_is_filled_whatever_became_of_the_run(tmp_path, kind, source):
    run = write_run(tmp_path / "out/run", **RUNS[kind])
    directory = tmp_path / "experiment"
    directory.mkdir()
    shutil.copy(ROOT / "experiment" / source, directory / "EXPERIMENT_9_9_9.md")
    text = fill_record(run, directory).read_text()
    markers = MARKER.findall(text)
    assert markers and all(digits for _, digits in markers)
    assert len(markers) == len(MARKER.findall(with_newer_tables((ROOT / "experiment" / source).read_text())))
    assert not any(f"[{name}]" in text for name in VALUES)


@pytest.mark.parametrize("kind", RUNS)
def test_filling_twice_changes_nothing(tmp_path, kind):
    run = write_run(tmp_path / "out/run", **RUNS[kind])
    path = fill_record(run, tmp_path / "experiment")
    path.write_text(path.read_text() + "\n<!--begin:ROWS_other-->\n[ROWS_other]\n<!--end:ROWS_other-->\n")
    once = path.read_text()  # rows of another protocol stay
    assert fill_record(run, tmp_path / "experiment").read_text() == once


def test_only_marked_values_change(tmp_path):
    run = write_run(tmp_path / "out/run")
    template = (ROOT / "experiment/TEMPLATE.md").read_text()
    text = fill_record(run, tmp_path / "experiment").read_text()

    def frame(text):
        text = re.sub(r"```\w*\n(?:(?!```).*\n)*?```\n<!--([\w:.]+?)(?::[0-9a-f]{8})?-->", r"BLOCK \1", text)
        text = re.sub(r"`[^`\n]*`<!--([\w:.]+?)(?::[0-9a-f]{8})?-->", r"VALUE \1", text)
        return re.sub(r"<!--begin:(\w+)-->.*?<!--end:\1(?::[0-9a-f]{8})?-->", r"TABLE \1", text, flags=re.DOTALL)

    assert frame(text) == frame(template)


def test_the_values_are_the_runs(tmp_path):
    values = record_of(write_run(tmp_path / "out/run"), tmp_path / "experiment")
    assert (values["FINAL_LOSS"], values["BEST_LOSS"]) == ("2.6000", "2.4000")
    assert values["BEST_LOSS_EPOCH"] == values["BEST_PPL_EPOCH"] == "0.50 (步 50)"
    assert (values["FINAL_PPL"], values["TARGET_PPL"], values["LOSS_ACHIEVED"]) == ("13.46", "12.18", "是")
    assert (values["PEAK_GPU_MEM"], values["GPU_WITHIN_LIMIT"]) == ("10000 MiB", "是 (10000 / 24000 MiB)")
    assert values["CURRENT_TIME"] == "0:00:30" and "| dim | `64` | 模型维度 |" in values["MODEL_FLAGS"]
    assert values["BOTTLENECK_1"].startswith("backward") and values["BOTTLENECK_2"].startswith("data")
    assert values["COMMAND_LINE"] == "train.py --dim 64 | tee `log`\n"


def test_a_cpu_run_says_so_and_a_missing_baseline_too(tmp_path):
    values = record_of(write_run(tmp_path / "out/run", gpu=False), tmp_path / "experiment")
    assert values["PEAK_GPU_MEM"] == "599 MiB(CPU 运行: 主机内存)"
    assert values["GPU_WITHIN_LIMIT"] == "未记录(CPU 运行)"
    assert values["BASELINE_LOSS"] == values["LOSS_IMPROVEMENT"] == "未记录(未找到基线)"
    assert values["COHERENCE_SCORE"] == "未记录(运行 eval_model.py 后填写)"


def test_a_failure_and_a_loss_that_is_not_finite_are_told(tmp_path):
    failed = record_of(write_run(tmp_path / "out/a", **RUNS["failed"]), tmp_path / "a")
    assert "ValueError: wrong" in failed["ERROR_LOGS"] and failed["ANOMALY_1"].startswith("运行失败")
    broken = record_of(write_run(tmp_path / "out/b", **RUNS["nan"]), tmp_path / "b")
    assert "Loss 为 NaN/Inf: 1 次 (步 21)" in broken["TRAINING_STABILITY_ANALYSIS"]
    assert broken["ANOMALY_1"] == "Loss 为 NaN/Inf: 1 次 (步 21)"
    ended = record_of(write_run(tmp_path / "out/c", losses=[4.0] * 100 + [None], **DIED_OF_NAN), tmp_path / "c")
    assert ended["FINAL_LOSS"] == ended["CURRENT_PPL"] == "NaN/Inf (步 101)" and ended["BEST_LOSS"] == "2.4000"
    assert "以 NaN/Inf 结束" in ended["TRAINING_STABILITY_ANALYSIS"] and "nan" in ended["ERROR_LOGS"]


@pytest.mark.slow
def test_a_run_that_was_killed_is_told_from_one_that_lives(tmp_path):
    path = write_run(tmp_path / "out/run", **RUNS["killed"])
    with subprocess.Popen(
        [sys.executable, "-c", "import os, sys; from runs.folder import hold_lock; from pathlib import Path;"
         "hold_lock(Path(sys.argv[1])); child = os.fork(); print('held' * bool(child), flush=True); sys.stdin.read()",
         str(path)],
        cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    ) as process:  # fmt: skip
        assert b"held\n" in (process.stdout.readline(), process.stdout.readline())
        living = record_of(path, tmp_path / "experiment")
        assert is_locked(path) and living["STATE"] == living["TRAIN_STATUS"] == "⏳ 运行中"
        assert living["TRAIN_END"] == "未结束" and living["CURRENT_TIME"] == "0:00:20"
        with pytest.raises(ValueError, match="another process trains in"):
            hold_lock(path)
        process.kill()
        process.wait()
        assert not is_locked(path)  # though the worker that it forked still lives
    values = record_of(path, tmp_path / "experiment")
    assert values["STATE"] == values["TRAIN_STATUS"] == "❌ 中断(进程消失)"
    assert values["TRAIN_END"] == "2026-01-02T03:03:20" and values["CURRENT_TIME"] == "0:00:20"
    assert values["COMPLETION_TIME"] == "未完成 (最后活动 2026-01-02T03:03:20)"
    assert values["ANOMALY_1"].startswith("进程没有留下结束记录就消失了") and values["FINAL_LOSS"] == "2.6000"


def test_the_time_in_training_is_that_of_all_sessions(tmp_path):
    first = write_run(tmp_path / "first", **RUNS["killed"])
    run = write_run(tmp_path / "run", earlier_sessions=[session_of(Run(first))], start_time="2026-01-03T00:00:00")
    values = record_of(run, tmp_path / "experiment")
    assert values["CURRENT_TIME"] == "0:00:50 (2 次会话)" and values["START_TIME"] == "2026-01-02T03:00:00"
    assert values["ANOMALY_1"] == "共 2 次会话: 曾中断 1 次"


def test_the_change_of_code_is_that_since_the_base_experiments_run(tmp_path, monkeypatch):
    repository = tmp_path / "repository"
    repository.mkdir()
    monkeypatch.setattr(record_text, "ROOT", repository)
    run_git = ["git", "-C", str(repository), "-c", "user.name=a", "-c", "user.email=a@b"]
    commits = []
    for text in ("one\ntwo\n", "one\n2\nthree\n"):
        (repository / "code.py").write_text(text)
        for arguments in (["init", "-q"], ["add", "."], ["commit", "-qm", "x"]):
            subprocess.run([*run_git, *arguments], check=True)
        commits.append(subprocess.check_output([*run_git, "rev-parse", "HEAD"], text=True).strip())
    new = [{"path": "new.py", "bytes": 9, "lines": 3}, {"path": "big", "bytes": 1}]
    run = write_run(tmp_path / "out/run", git_commit=commits[1], git_uncommitted=["4\t0\tmore.py"], git_untracked=new)
    assert record_of(run, tmp_path / "none")["CHANGED_FILES"] == "未记录(没有找到 experiment_9.9.8 的运行)"
    write_run(tmp_path / "out/base", experiment="9_9_8", git_commit=commits[0])
    values = record_of(run, tmp_path / "experiment")
    assert [values[name] for name in ("CHANGED_FILES", "LINES_ADDED", "LINES_DELETED")] == ["4", "+9", "-1"]
    assert values["GIT_DIFF"] == "code.py: +2, -1\nmore.py: +4, -0\nnew.py: +3, -0\nbig: +0, -0\n"


def test_texts_that_are_alike_have_a_high_self_bleu():
    one, two = "a b c d e f g h".split(), "i j k l m n o p".split()
    assert self_bleu([one, one]) == pytest.approx(1.0)
    assert self_bleu([one, two]) < 0.01 < self_bleu([one, one[:4] + two[:4]]) < 1
    assert self_bleu([one]) == self_bleu([[], one]) == 0
    # Unigrams 3/4, then (shared + 1) / (all + 1) = 3/4, 2/3, 1/2, no brevity penalty.
    expected = (3 / 4 * 3 / 4 * 2 / 3 * 1 / 2) ** (1 / 4)
    assert self_bleu(["a b c d".split(), "a b c e".split()]) == pytest.approx(expected)


def test_what_the_log_warns_of_is_told(tmp_path):
    path = write_run(tmp_path / "out/run")
    with open(path / "train.log", "a") as log:
        log.write("2026-01-02 03:03:21 ERROR SwanLab failed\n2026-01-02 03:03:22 WARNING disk low\n")
    values = record_of(path, tmp_path / "experiment")
    assert values["ANOMALY_1"] == "ERROR SwanLab failed" and values["ANOMALY_2"] == "WARNING disk low"


@pytest.mark.parametrize("kind", ["finished", "failed", "nothing but NaN"])
def test_the_curves_are_drawn_beside_the_run(tmp_path, monkeypatch, kind):
    monkeypatch.setattr(record, "draw_curves", draw_curves)
    path = write_run(tmp_path / "out/run", **RUNS[kind])
    fill_record(path, tmp_path / "experiment")
    drawn = (path / "curves.png").read_bytes()
    assert drawn.startswith(b"\x89PNG") and len(drawn) < 150_000
    fill_record(path, tmp_path / "experiment")
    assert (path / "curves.png").read_bytes() == drawn


def test_the_baseline_has_the_same_data_and_as_many_tokens(tmp_path):
    run = write_run(tmp_path / "out/run")
    write_run(tmp_path / "out/short", model_type="model_original", losses=[4.0, 3.0])
    assert Run(run).baseline is None
    plain = write_run(tmp_path / "out/plain", model_type="model_original", base="9_9_7")
    assert Run(run).baseline.path == plain
    write_run(tmp_path / "out/y_later", model_type="model_original", base="9.9.9")  # it builds on this run
    table = write_run(tmp_path / "out/z_table", model_type="model_original")
    flags = json.loads((table / "flags.json").read_text())
    flags["model"]["ngram_table_rows"] = 64
    (table / "flags.json").write_text(json.dumps(flags))
    assert Run(run).baseline.path == plain
    assert record_of(run, tmp_path / "experiment")["LOSS_IMPROVEMENT"] == "+0.0% (正数为更差)"
    named = write_run(tmp_path / "out/named", baseline=str(tmp_path / "out/short"))
    assert Run(named).baseline.path == tmp_path / "out/short"


def test_what_a_person_wrote_stays_when_another_run_is_recorded(tmp_path):
    path = fill_record(write_run(tmp_path / "out/first"), tmp_path / "experiment")
    text = path.read_text()
    text = text.replace("`2.4000`<!--BEST_LOSS", "`2.4 (seed 1)`<!--BEST_LOSS").replace("[FINDING_1]", "bank unread")
    text = text.replace("Loss 尖峰: 0 次", "Loss 尖峰: 没有").replace("**实验目的**: [待填写]", "**实验目的**: mine")
    path.write_text(text)
    second = write_run(tmp_path / "out/second", target_loss=1.25)
    values = filled(text := fill_record(second, tmp_path / "experiment").read_text())
    assert values["BEST_LOSS"] == "2.4 (seed 1)" and "Loss 尖峰: 没有" in values["TRAINING_STABILITY_ANALYSIS"]
    assert "bank unread" in text and "**实验目的**: mine" in text
    assert values["TARGET_LOSS"] == "1.2500" and values["OUT_DIR"] == "out/second"


def test_what_a_person_wrote_before_the_first_run_stays(tmp_path):
    run = Run(write_run(tmp_path / "out/run"))

    def fill(text: str) -> str:
        return fill_text(text, lambda name: value_of(name, run))

    assert fill("`2.30`<!--TARGET_LOSS-->") == "`2.30`<!--TARGET_LOSS-->"
    assert fill("```\nmine\n```\n<!--ERROR_LOGS-->") == "```\nmine\n```\n<!--ERROR_LOGS-->"


def test_a_value_cannot_break_the_table_or_the_block_it_stands_in(tmp_path):
    run = write_run(tmp_path / "out/run", command="a\n```\nb", base="x|y`z")
    path = fill_record(run, tmp_path / "experiment")
    once = path.read_text()
    values = filled(once)
    assert values["COMMAND_LINE"] == "a\n'''\nb\n" and values["BASE_EXPERIMENT"] == "experiment_x/y'z"
    assert fill_record(run, tmp_path / "experiment").read_text() == once


def test_a_killed_run_may_leave_half_a_line(tmp_path):
    run = write_run(tmp_path / "out/run")
    with open(run / "metrics.jsonl", "a") as file:
        file.write('{"step": 101, "val_loss": 1.')
    assert Run(run).last("val_loss") == 2.6


def test_a_wrong_folder_or_marker_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="has no run.json"):
        fill_record(tmp_path, tmp_path / "experiment")
    with pytest.raises(ValueError, match="<!--FINAL_LOS-->"):
        value_of("FINAL_LOS", Run(write_run(tmp_path / "out/run")))


def test_recording_does_not_import_torch():
    code = "import sys, runs.record; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_curves():
    line = [(10 * i, 5 - 0.5 * i) for i in range(40)]
    assert slope(line) == pytest.approx(-0.05) and slope(line[:1]) == 0
    assert at_fractions(list(range(1, 101))) == [10, 25, 50, 75, 100]
    assert at_fractions([7]) == [7] * 5
    assert last_tenth(line) == line[-4:] and last_tenth(line[:5]) == line[3:5]
    assert spikes(line) == []
    line[25] = (250, 9.0)
    assert spikes(line) == [250]


def test_plateaus_and_divergence():
    falling = [(i, 5 - 0.05 * i) for i in range(60)]
    still = falling[:30] + [(i, 3.5) for i in range(30, 60)]
    assert plateaus(falling) == [] and divergence(falling) == 0
    assert len(plateaus(still)) == 1
    first, last = plateaus(still)[0]
    assert 30 <= first <= 40 and last == 59
    rising = falling[:30] + [(i, 2 + 0.05 * i) for i in range(30, 60)]
    assert divergence(rising) == pytest.approx(1.2, abs=0.2)
    assert plateaus([]) == [] and divergence([]) == 0
