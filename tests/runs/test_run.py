"""Whole runs of the training script, as a user starts them: tiny, on the CPU."""

import json
import math

import pytest
import torch
from safetensors.torch import load_file

from tests.conftest import tiny_model
from tests.reliability.faults import draw_curves
from tests.tiny_runs import metrics
from trainer.start import load_weights


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


@pytest.mark.slow
def test_a_memory_starts_from_a_plain_run_and_what_is_new_starts_fresh(runs, tmp_path):
    assert runs.start("plain", "--model_type", "model_original", "--max_steps", "2").code == 0
    start = ["--init_path", str(tmp_path / "plain"), "--retrieval", "ngram", "--fusion", "words", "--pointer",
             "--memory_layers", "1", "--max_steps", "1", "--learning_rate", "1e-12"]  # fmt: skip
    ended = runs.start("memory", *start, "--keep_ffn")
    assert ended.code == 0, ended.output
    parts = "blocks.1.fusion, blocks.1.memory_norm, blocks.1.retrieval, pointer"
    assert f"has no memory, so these parts start fresh: {parts}\n" in ended.output
    idle = "these flags do nothing here: --fusion_heads (needs --fusion cross_attention)\n"
    assert ended.output.count(idle) == 1 and idle in (tmp_path / "memory/train.log").read_text()
    plain, memory = (load_file(tmp_path / name / "model.safetensors") for name in ("plain", "memory"))
    for name, tensor in plain.items():
        torch.testing.assert_close(memory[name], tensor)
    ended = runs.start("without", *start)
    assert ended.code == 1 and "blocks.1.feed_forward" in ended.output and "lacks: give --keep_ffn" in ended.output
    ended = runs.start("back", "--model_type", "model_original", "--init_path", str(tmp_path / "memory"))
    assert ended.code == 1 and "is another architecture" in ended.output


def test_a_run_with_an_ngram_table_starts_from_another(tmp_path):
    table = {"ngram_table_rows": 50, "ngram_table_layers": [1]}
    first, second = tiny_model(**table), tiny_model(**table)
    with torch.no_grad():
        first.ngram_table.rows.weight.normal_()
        first.ngram_table.multiplier_KO[first.ngram_table.multiplier_KO != 0] += 2
    first.save_pretrained(tmp_path)
    load_weights(second, tmp_path)
    ids = torch.randint(3, 61, (2, 9))
    assert torch.equal(second(ids).logits, first(ids).logits)


@pytest.mark.slow
def test_a_run_over_a_bank_in_order_starts_from_the_sub_keys_of_another(runs, tmp_path):
    order = ["--cluster_cache_path", str(tmp_path / "order.npz")]
    assert runs.start("first", *order).code == 0
    later = ["--init_path", str(tmp_path / "first"), "--learning_rate", "1e-12", "--max_steps", "1"]
    assert runs.start("second", *order, *later).code == 0
    first, second = (load_file(tmp_path / name / "model.safetensors") for name in ("first", "second"))
    torch.testing.assert_close(second, first)
    for other in ([], ["--cluster_cache_path", str(tmp_path / "other.npz"), "--seed", "7"]):
        refused = runs.start("third", *other, *later)
        assert refused.code == 1 and "was trained with its bank in another order" in refused.output


@pytest.mark.slow
def test_a_run_teaches_its_retrieval_and_asks_for_the_same_rows_of_entries(runs, tmp_path):
    taught = [
        "--retrieval_loss_coef", "1", "--ngram_lengths", "2", "3", "--entry_rows", "2",
        "--cluster_cache_path", str(tmp_path / "order.npz"), "--cluster_words", "4",
    ]  # fmt: skip
    assert runs.start("whole", *taught).code == 0
    losses = [loss for _, loss in metrics(tmp_path / "whole", "aux/retrieval")]
    assert losses[-1] < losses[0] < 2 * math.log(7) and len(losses) == 12
    assert runs.start("halves", *taught, "--max_steps", "4").code == 0
    assert runs.start("halves", *taught).code == 0
    plain_again = runs.start("halves", *taught[:-6], *taught[-4:], "--max_steps", "13")
    assert plain_again.code == 1 and "was written with --entry_rows 2 and this run has 0" in plain_again.output
    refused = runs.start("crowded", *taught[:5], "--entry_rows", "400", *taught[7:])
    assert refused.code == 1 and "fewer than --entry_rows 400" in refused.output


@pytest.mark.slow
def test_an_evaluation_is_put_aside_when_its_run_goes_on(runs, tmp_path):
    scores = tmp_path / "run" / "eval.json"
    assert runs.start("run", "--max_steps", "4").code == 0
    scores.write_text("{}")
    assert runs.start("run", "--max_steps", "4").code == 0 and scores.exists()
    assert runs.start("run", "--max_steps", "6").code == 0
    assert not scores.exists() and scores.with_name("eval_step4.json").exists()


def test_a_run_leaves_what_it_promises(runs, tmp_path):
    out = tmp_path / "run"
    assert runs.start("run", fault=draw_curves).code == 0
    assert (out / "curves.png").stat().st_size > 40_000  # the curves of a run, not the empty picture of other tests
    assert {"step", "loss", "lr", "tokens_per_s", "grad_norm"} <= json.loads(
        (out / "metrics.jsonl").read_text().splitlines()[0]
    ).keys()
    assert metrics(out, "loss")[-1][1] < metrics(out, "loss")[0][1]
    assert json.loads((out / "run.json").read_text())["state"] == "finished"
    record = (tmp_path / "records" / "EXPERIMENT_run.md").read_text()
    assert f"{metrics(out, 'val_loss')[-1][1]:.4f}" in record


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


@pytest.mark.parametrize("flag", ["data_path", "val_path", "database_init_path", "tokenizer_path", "init_path"])
def test_a_path_that_leads_nowhere_is_told_before_anything_is_started_or_written(runs, tmp_path, flag):
    ended = runs.start("bad", f"--{flag}", str(tmp_path / "nowhere"), "--use_swanlab", "--swanlab_mode", "local")
    assert ended.code == 1 and f"give another --{flag}" in ended.output and "Traceback" not in ended.output
    assert "swanlab" not in ended.output.lower() and not (tmp_path / "bad").exists()
