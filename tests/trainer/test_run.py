"""Whole runs of the training script, as a user starts them: tiny, on the CPU."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.conftest import tiny_model
from tests.runs import Runs, metrics
from trainer.checkpoint import load_weights

ROOT = Path(__file__).parents[2]


def train(runs: Runs, out: str, *flags: str, processes: int) -> subprocess.CompletedProcess:
    """A run as a launcher starts it, in processes of their own."""
    launcher = ["-m", "torch.distributed.run", f"--nproc_per_node={processes}"]
    command = [sys.executable, *launcher, "train_pretrain_accelerate.py", *runs.argv(out, *flags)]
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)


def test_a_run_starts_from_the_weights_of_another(tmp_path):
    first, second = tiny_model(seed=1), tiny_model(seed=2)
    first.save_pretrained(tmp_path)
    second.bank.tokens.fill_(7)
    load_weights(second, tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert (second.bank.tokens == 7).all()
    with pytest.raises(ValueError, match="another architecture: only one of the two models has blocks"):
        load_weights(tiny_model(keep_ffn=True), tmp_path)
    with pytest.raises(ValueError, match="has the shape"):
        load_weights(tiny_model(dim=64), tmp_path)
    with pytest.raises(FileNotFoundError, match="--init_path"):
        load_weights(second, tmp_path / "nowhere")


def test_a_run_leaves_what_it_promises(runs, tmp_path):
    out = tmp_path / "run"
    assert runs.start("run").code == 0
    assert {"step", "loss", "lr", "tokens_per_s", "grad_norm"} <= json.loads(
        (out / "metrics.jsonl").read_text().splitlines()[0]
    ).keys()
    assert metrics(out, "loss")[-1][1] < metrics(out, "loss")[0][1]
    assert json.loads((out / "run.json").read_text())["state"] == "finished"
    record = (tmp_path / "records" / "EXPERIMENT_run.md").read_text()
    assert f"{metrics(out, 'val_loss')[-1][1]:.4f}" in record


def test_two_processes_equal_one_with_the_whole_batch(runs, tmp_path):
    still = ("--attention_dropout", "0", "--fusion_dropout", "0", "--balance_loss_coef", "0")
    two = train(runs, "two", *still, "--batch_size", "2", processes=2)
    assert runs.start("one", *still).code == 0 and two.returncode == 0, two.stderr[-800:]
    assert json.loads((tmp_path / "two" / "run.json").read_text())["processes"] == 2
    # Before the first update everything but rounding is the same; Adam's first steps then magnify the rounding.
    for name in ("loss", "grad_norm"):
        first_one, first_two = metrics(tmp_path / "one", name)[0], metrics(tmp_path / "two", name)[0]
        assert first_one == pytest.approx(first_two, rel=1e-4)
    for one_step, two_steps in zip(metrics(tmp_path / "one", "loss"), metrics(tmp_path / "two", "loss"), strict=True):
        assert one_step == pytest.approx(two_steps, abs=5e-3)


@pytest.mark.parametrize(
    "flags, sentence",
    [
        (["--data_path", "nowhere.jsonl"], "there is no file nowhere.jsonl: give another --data_path"),
        (["--knowledge_num", "64"], "fewer than --knowledge_num 64"),
        (["--tokenizer_path", "nowhere"], "give another --tokenizer_path"),
        (["--knowledge_num", "50"], "--knowledge_num 50 is not a square"),
    ],
)
def test_bad_input_ends_before_training_with_one_sentence(runs, tmp_path, flags, sentence):
    ended = runs.start("bad", *flags)
    assert ended.code == 1 and sentence in ended.output and "Traceback" not in ended.output
    assert not (tmp_path / "bad" / "metrics.jsonl").exists()
