"""Whole runs of models with an n-gram table: they learn, go on where they stopped, and several processes equal one."""

import signal

import pytest
from safetensors.torch import load_file

from tests.reliability.faults import fault
from tests.tiny_runs import metrics

TABLE = (
    "--ngram_table_rows", "97", "--ngram_table_heads", "2", "--ngram_table_dim", "8", "--ngram_table_layers", "0", "1",
    "--ngram_table_lr_scale", "3", "--ngram_table_weight_decay", "0.1",
)  # fmt: skip
PLAIN = ("--model_type", "model_original", "--optimizer", "muon", "--learning_rate", "3e-3")
WORDS = ("--retrieval", "ngram", "--fusion", "words", "--keep_ffn", "--ngram_lengths", "2")


@pytest.mark.parametrize(
    "kind", [pytest.param(PLAIN, id="plain"), pytest.param(WORDS, id="words", marks=pytest.mark.slow)]
)
def test_a_stopped_run_goes_on_bit_for_bit(runs, kind):
    flags = (*kind, *TABLE, "--ngram_table_dropout", "0.2")
    assert runs.start("whole", *flags).code == 0
    killed = fault("trainer.step:count_targets", 13)  # in the middle of a step after the first checkpoint
    assert runs.start("again", *flags, fault=killed).code == -signal.SIGKILL
    one, other = runs.folder / "whole", runs.folder / "again"
    ended = runs.start("again", *flags)
    assert ended.code == 0, ended.output
    assert metrics(one, "loss") == metrics(other, "loss")
    weights = [load_file(out / "model.safetensors") for out in (one, other)]
    assert all((weights[0][name] == weights[1][name]).all() for name in weights[0])
    assert "ngram_table.rows.weight" in weights[0]


@pytest.mark.slow
def test_two_processes_equal_one_with_the_whole_batch(runs):
    assert runs.start("one", *PLAIN[:2], *TABLE).code == 0
    two = runs.start_ranks("two", *PLAIN[:2], *TABLE, "--batch_size", "2")
    assert [ended.code for ended in two] == [0, 0], two[1].output
    for name in ("loss", "val_loss"):
        for one_step, two_steps in zip(
            metrics(runs.folder / "one", name), metrics(runs.folder / "two", name), strict=True
        ):
            assert one_step == pytest.approx(two_steps, abs=5e-3)
