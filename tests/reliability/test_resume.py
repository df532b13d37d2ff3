"""No run is lost: killed at any moment, stopped, damaged or out of disk, the same command goes on bit for bit."""

import json
import random
import signal
from functools import partial
from itertools import count
from pathlib import Path

import pytest
from safetensors.torch import load_file

from tests.tiny_runs import Runs, metrics
from trainer.checkpoint import BANKS, checkpoint_dirs, read_state

from .faults import die_after, die_half_written, disk_full, fault, send

REWRITTEN = ("--selection", "gumbel", "--ema_interval", "1", "--ema_decay", "0.5")
WORDS = ("--retrieval", "ngram", "--fusion", "words", "--pointer", "--keep_ffn", "--retrieval_noise", "0.3")
TAUGHT = (
    "--fusion", "words", "--keep_ffn", "--retrieval_loss_coef", "1", "--teacher_forcing", "0.5", "--ngram_lengths", "2",
    "--entry_rows", "2",
)  # fmt: skip
SCRIPT, STEP, CHECKPOINT = "train_pretrain_accelerate", "trainer.step", "trainer.checkpoint"

# Where a run is killed: the number of the call is counted anew by each session.
MOMENTS = [
    fault(f"{STEP}:count_targets", 9),  # in the middle of a step
    fault(f"{CHECKPOINT}:save_file", 2, die_half_written),  # while the weights are being written
    fault("model.memory.ema:nearest_tokens", 2),  # while the bank is being rewritten
    fault(f"{CHECKPOINT}:save_bank", 1, die_after),
    fault(f"{CHECKPOINT}:flush", 3),
    fault(f"{CHECKPOINT}:prune", 1),
    fault("pathlib:Path.unlink", 1, die_after),  # while old checkpoints are being deleted
    fault(f"{SCRIPT}:validate", 1, die_after),
    fault("runs.tracking:Tracker.log", 4, die_after),
    fault("transformers:PreTrainedModel.save_pretrained", 1, die_after),  # while the result is being written
    fault("runs.folder:fill_record", 1),
    fault("runs.record:fill_text", 1, die_after),  # while the record is being filled
]


def assert_same_run(one: Path, other: Path) -> None:
    """Every loss, the final weights and bank, and the newest checkpoint with all that it holds, bit for bit."""
    for name in ("loss", "grad_norm", "val_loss", "skipped_steps"):
        assert metrics(one, name) == metrics(other, name)
    weights = [load_file(out / "model.safetensors") for out in (one, other)]
    assert weights[0].keys() == weights[1].keys()
    assert all((weights[0][name] == weights[1][name]).all() for name in weights[0])
    # A state holds the position in the data and the checksums of weights, optimizer, random state and bank.
    states = [read_state(checkpoint_dirs(out)[-1]) for out in (one, other)]
    assert states[0] == states[1]


@pytest.mark.parametrize(
    "options, moments",
    [
        pytest.param(REWRITTEN, [1, 2, 6], id="rewritten", marks=pytest.mark.slow),
        pytest.param(WORDS, [0, 9, 11], id="words"),
        pytest.param(TAUGHT, [0, 9, 11], id="taught", marks=pytest.mark.slow),
    ],
)
def test_a_killed_run_goes_on_bit_for_bit(runs, survives, options, moments):
    assert runs.start("whole", *options).code == 0
    with survives("kill -9 of a training run", len(moments)):
        for moment in moments:
            assert runs.start("cut", *options, fault=MOMENTS[moment]).code == -signal.SIGKILL
        ended = runs.start("cut", *options)
        assert ended.code == 0, ended.output
        assert_same_run(runs.folder / "whole", runs.folder / "cut")
    assert not list((runs.folder / "cut").glob(".writing_*"))
    assert all((path / "state.json").exists() for path in (runs.folder / "cut").glob("checkpoint_*"))
    assert "was left half written" in (runs.folder / "cut" / "train.log").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_twenty_kills_lose_nothing(runs, seed, survives):
    long = (*REWRITTEN, "--max_steps", "60", "--save_interval", "3", "--keep_checkpoints", "1")
    assert runs.start("whole", *long).code == 0
    rng, kills = random.Random(seed), 0
    for number in count():
        if kills >= 20:
            break
        ended, sessions, before = None, 0, kills
        while ended is None or ended.code:
            moment = {"fault": rng.choice(MOMENTS)} if rng.random() < 0.5 else {"kill_after": rng.uniform(0.3, 2.0)}
            ended, sessions = runs.start(f"cut{number}", *long, **moment), sessions + 1
            assert ended.code in (0, -signal.SIGKILL) and sessions < 50, ended.output
            kills += ended.code != 0
        with survives("kill -9 of a training run", kills - before):
            assert_same_run(runs.folder / "whole", runs.folder / f"cut{number}")


@pytest.fixture(scope="module")
def whole(run_data, tmp_path_factory) -> Path:
    """A finished run without further flags."""
    runs = Runs(run_data, tmp_path_factory.mktemp("runs"))
    assert runs.start("whole").code == 0
    return runs.folder / "whole"


@pytest.mark.parametrize(
    "number, code", [pytest.param(signal.SIGTERM, 143, marks=pytest.mark.slow), (signal.SIGINT, 130)]
)
def test_a_signal_saves_and_ends_the_run_and_the_same_command_goes_on(runs, whole, survives, number, code):
    with survives("SIGTERM or Ctrl-C"):
        ended = runs.start("cut", fault=fault(f"{STEP}:count_targets", 9, partial(send, number)))
        out = runs.folder / "cut"
        assert ended.code == code and "Traceback" not in ended.output
        assert checkpoint_dirs(out)[-1].name == "checkpoint_00000005"
        assert json.loads((out / "run.json").read_text())["state"] == "stopped"
        assert runs.start("cut").code == 0
        assert_same_run(whole, out)


def test_a_signal_before_the_first_step_ends_the_run_at_once(runs):
    ended = runs.start("cut", fault=fault(f"{SCRIPT}:load_data", 1, partial(send, signal.SIGTERM)))
    assert ended.code == 143 and "Traceback" not in ended.output
    assert json.loads((runs.folder / "cut" / "run.json").read_text())["state"] == "stopped"


def test_starting_over_leaves_nothing_of_the_run_before(runs):
    assert runs.start("run").code == 0
    out = runs.folder / "run"
    before = (out / "metrics.jsonl").read_text()
    left_over = (
        "eval.json", "eval_step2.json", "eval_step4.json", "evaluations.jsonl", "memory_journal.jsonl", "bank_rows.npy",
    )  # fmt: skip
    for name in left_over:
        (out / name).write_text("{}")
    assert runs.start("run", "--no_resume", "--seed", "7").code == 0
    assert not any((out / name).exists() for name in left_over)
    assert (out / "metrics.jsonl").read_text() != before and "resumed" not in (out / "train.log").read_text()


def damage(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.slow
def test_a_damaged_checkpoint_is_set_aside_for_the_one_before(runs, survives):
    assert runs.start("whole", *REWRITTEN).code == 0
    for file in ("optimizer.safetensors", "state.json", BANKS):
        assert runs.start("cut", *REWRITTEN).code == 0
        out = runs.folder / "cut"
        (out / "model.safetensors").unlink()
        newest = checkpoint_dirs(out)[-1]
        if file == BANKS:
            file = next(name for name in read_state(newest)["checksums"] if BANKS in name)
        with survives("damaged file of a checkpoint"):
            damage(newest / file)
            ended = runs.start("cut", *REWRITTEN)
            assert ended.code == 0 and f"{Path(file).name} is" in ended.output
            assert "going on from checkpoint_00000008 instead" in ended.output
            assert_same_run(runs.folder / "whole", out)
    for path in checkpoint_dirs(out):
        damage(path / "model.safetensors")
    ended = runs.start("cut", *REWRITTEN)
    assert ended.code == 1 and "no older checkpoint is whole: start over with --no_resume" in ended.output


@pytest.mark.slow
def test_a_full_disk_leaves_the_older_checkpoint_and_the_run_goes_on(runs, whole, survives):
    with survives("full disk"):
        ended = runs.start("cut", fault=fault(f"{CHECKPOINT}:save_file", 6, disk_full))  # the optimizer, at step 6
        out = runs.folder / "cut"
        assert ended.code == 1 and "Traceback" not in ended.output
        assert f"error: cannot write a checkpoint into {out}" in ended.output
        assert "the older ones are intact" in ended.output
        assert [path.name for path in checkpoint_dirs(out)] == ["checkpoint_00000004"]
        assert not list(out.glob(".writing_*"))
        assert runs.start("cut").code == 0
        assert_same_run(whole, out)


def lucky(*_) -> float:
    """A validation loss that no later one reaches."""
    return 1.0


def test_the_best_checkpoint_is_kept_beside_the_newest(runs):
    best_first = fault(f"{SCRIPT}:validate", 1, lucky)
    assert runs.start("run", "--keep_checkpoints", "1", fault=best_first).code == 0
    names = [path.name for path in checkpoint_dirs(runs.folder / "run")]
    assert names == ["checkpoint_00000006", "checkpoint_00000012"]
    assert runs.start("plain", "--keep_checkpoints", "1", "--no_keep_best", fault=best_first).code == 0
    assert [path.name for path in checkpoint_dirs(runs.folder / "plain")] == ["checkpoint_00000012"]


def test_a_bank_is_written_once_for_each_change(runs, whole):
    assert len(list((whole / BANKS).iterdir())) == 1
    assert runs.start("moving", *REWRITTEN).code == 0
    out = runs.folder / "moving"
    needed = {Path(name).name for path in checkpoint_dirs(out) for name in read_state(path)["checksums"]}
    assert {path.name for path in (out / BANKS).iterdir()} == {name for name in needed if len(name) > 40}
    assert "bank.tokens" not in load_file(checkpoint_dirs(out)[-1] / "model.safetensors")


def test_another_split_of_the_data_is_refused(runs):
    stopped = fault(f"{STEP}:count_targets", 9, partial(send, signal.SIGTERM))
    assert runs.start("run", fault=stopped).code == 143
    for flags in (("--batch_size", "2"), ("--accumulation_steps", "4"), ("--seed", "7")):
        ended = runs.start("run", *flags)
        assert ended.code == 1 and f"was written with {flags[0]}" in ended.output and "--no_resume" in ended.output
