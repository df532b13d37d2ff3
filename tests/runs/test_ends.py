"""Real runs that end badly, and what their records say of it."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from runs.run import Run
from tests.runs.test_record import record_of
from tests.tiny_runs import TINY

ROOT = Path(__file__).parents[2]


def command(out: Path, *flags: str) -> list[str]:
    """The training of a tiny plain model into `out`, on a text beside it."""
    text = out.parent / "text.jsonl"
    rows = ({"text": f"The village of number {n} has {n * 7} houses and {n % 5} wells."} for n in range(400))
    text.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return [
        sys.executable, "train_pretrain_accelerate.py", *TINY, "--out_dir", str(out), "--model_type", "model_original",
        "--data_path", str(text), "--val_fraction", "0.1", "--cache_dir", str(out.parent / "cache"),
        "--experiment_dir", str(out.parent / "records"), *flags,
    ]  # fmt: skip


@pytest.fixture
def environment() -> dict:
    return os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


@pytest.mark.slow
def test_a_run_killed_without_a_word_is_recorded_as_killed_and_goes_on(tmp_path, environment):
    out = tmp_path / "run"
    endless = command(out, "--max_steps", "5000", "--epochs", "1000")
    process = subprocess.Popen(endless, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not (list(out.glob("checkpoint_*/state.json")) and Run(out).last("val_loss")):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.2)
    assert Run(out).state == "running"
    second = subprocess.run(endless, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert second.returncode != 0 and "another process" in second.stderr and str(out) in second.stderr
    assert "Traceback" not in second.stderr
    process.send_signal(signal.SIGKILL)
    process.wait()

    killed = Run(out)
    values = record_of(out, tmp_path / "records")
    assert values["STATE"] == values["TRAIN_STATUS"] == "❌ 中断(进程消失)"
    assert values["COMPLETION_TIME"].startswith("未完成") and killed.end_time in values["COMPLETION_TIME"]
    assert values["FINAL_LOSS"] == f"{killed.last('val_loss'):.4f}" and values["ANOMALY_1"].startswith("进程没有留下")

    seconds, step = killed.seconds, killed.metrics[-1]["step"]
    resumed = command(out, "--max_steps", str(step + 2), "--epochs", "1000")
    assert subprocess.run(resumed, cwd=ROOT, env=environment, capture_output=True).returncode == 0
    values = record_of(out, tmp_path / "records")
    assert values["STATE"] == "✅ 完成" and "(2 次会话)" in values["CURRENT_TIME"]
    assert Run(out).info["earlier_sessions"][0]["state"] == "killed"
    assert Run(out).seconds >= seconds > 0


@pytest.mark.slow
def test_a_run_whose_loss_is_not_a_number_has_it_in_its_record(tmp_path, environment):
    out = tmp_path / "run"
    broken = command(out, "--learning_rate", "1e30", "--grad_clip", "0", "--max_steps", "60", "--epochs", "10")
    done = subprocess.run(broken, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode != 0 and "Traceback" not in done.stderr
    values = record_of(out, tmp_path / "records")
    assert values["STATE"] == "❌ 失败" and values["FINAL_LOSS"].startswith("NaN/Inf (步 ")
    assert "FloatingPointError" in values["ERROR_LOGS"] and "以 NaN/Inf 结束" in values["TRAINING_STABILITY_ANALYSIS"]
    assert (out / "curves.png").exists()
