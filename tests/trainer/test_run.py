"""Whole runs of the training script, as a user starts them: tiny, on the CPU."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.conftest import tiny_model
from trainer.checkpoint import load_weights

ROOT = Path(__file__).parents[2]
TINY = (
    "--dim 32 --n_layers 2 --n_heads 4 --fusion_heads 4 --max_seq_len 32 --knowledge_num 49 --knowledge_length 6 "
    "--num_candidates 5 --num_selected 2 --max_steps 12 --batch_size 4 --accumulation_steps 2 --dtype float32 "
    "--log_interval 1 --eval_interval 6 --save_interval 4 --memory_monitor_interval 6 --eval_batches 2"
).split()

REWRITTEN = ("--selection", "gumbel", "--ema_interval", "3", "--ema_decay", "0.5")
WORDS = ("--retrieval", "ngram", "--fusion", "words", "--pointer", "--keep_ffn", "--retrieval_noise", "0.3")


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    texts = [f"The village of number {n} has {n * 7} houses, {n % 5} wells and a tower." for n in range(400)]
    (folder / "text.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    (folder / "facts.json").write_text(json.dumps([f"Village {n} lies by river {n % 9}." for n in range(60)]))
    return folder


def train(data: Path, out: Path, *flags: str, processes: int = 1) -> subprocess.CompletedProcess:
    launcher = ["-m", "torch.distributed.run", f"--nproc_per_node={processes}"] if processes > 1 else []
    command = [
        sys.executable, *launcher, "train_pretrain_accelerate.py", *TINY, "--out_dir", str(out),
        "--data_path", str(data / "text.jsonl"), "--val_fraction", "0.1", "--cache_dir", str(data / "cache"),
        "--database_init_path", str(data / "facts.json"), "--experiment_dir", str(out.parent / "records"), *flags,
    ]  # fmt: skip
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)


def metrics(out: Path, name: str) -> list:
    lines = map(json.loads, (out / "metrics.jsonl").read_text().splitlines())
    return [(line["step"], line[name]) for line in lines if name in line]


@pytest.mark.parametrize("options", [REWRITTEN, WORDS], ids=["rewritten", "words"])
def test_a_killed_run_goes_on_bit_for_bit(data, tmp_path, options):
    assert train(data, tmp_path / "whole", *options).returncode == 0
    assert train(data, tmp_path / "cut", *options).returncode == 0
    # As after a kill between step 8 and the end: the last checkpoint and the final weights are not there.
    for path in (tmp_path / "cut" / "checkpoint_00000012").iterdir():
        path.unlink()
    (tmp_path / "cut" / "model.safetensors").unlink()
    assert train(data, tmp_path / "cut", *options).returncode == 0
    assert "resumed from" in (tmp_path / "cut" / "train.log").read_text()
    for name in ("loss", "val_loss"):
        assert metrics(tmp_path / "cut", name) == metrics(tmp_path / "whole", name)
    for file in ("model.safetensors", "checkpoint_00000012/optimizer.safetensors"):
        whole, cut = load_file(tmp_path / "whole" / file), load_file(tmp_path / "cut" / file)
        assert whole.keys() == cut.keys()
        assert all((whole[key] == cut[key]).all() for key in whole)


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


def test_a_run_leaves_what_it_promises(data, tmp_path):
    out = tmp_path / "run"
    assert train(data, out).returncode == 0
    assert {"step", "loss", "lr", "tokens_per_s", "grad_norm"} <= json.loads(
        (out / "metrics.jsonl").read_text().splitlines()[0]
    ).keys()
    assert metrics(out, "loss")[-1][1] < metrics(out, "loss")[0][1]
    assert json.loads((out / "run.json").read_text())["state"] == "finished"
    record = (tmp_path / "records" / "EXPERIMENT_run.md").read_text()
    assert f"{metrics(out, 'val_loss')[-1][1]:.4f}" in record


def test_two_processes_equal_one_with_the_whole_batch(data, tmp_path):
    still = ("--attention_dropout", "0", "--fusion_dropout", "0", "--balance_loss_coef", "0")
    one = train(data, tmp_path / "one", *still)
    two = train(data, tmp_path / "two", *still, "--batch_size", "2", processes=2)
    assert one.returncode == 0 and two.returncode == 0, two.stderr[-800:]
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
def test_bad_input_ends_before_training_with_one_sentence(data, tmp_path, flags, sentence):
    result = train(data, tmp_path / "bad", *flags)
    assert result.returncode != 0
    assert sentence in result.stderr
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "bad" / "metrics.jsonl").exists()
