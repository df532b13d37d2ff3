"""Several processes learn what one would, stop together, and end when one of them dies."""

import json
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import psutil
import pytest
import torch

from tests.tiny_runs import metrics
from trainer.checkpoint import checkpoint_dirs, read_state
from trainer.stop import StopVotes

from .faults import die_noting, fault, note_bank_hashes, on_rank, on_ranks, refuse, send, set_variables, wait_before

ROOT = Path(__file__).parents[2]
STILL = ("--attention_dropout", "0", "--fusion_dropout", "0", "--balance_loss_coef", "0")
REWRITTEN = ("--selection", "gumbel", "--ema_interval", "2", "--ema_decay", "0.5")


def test_two_processes_equal_one_with_the_whole_batch(runs):
    every_row = ("--eval_batches", "1000")  # an uneven number of validation batches, the last of them not full
    assert runs.start("one", *STILL, *every_row).code == 0
    two = runs.start_ranks("two", *STILL, *every_row, "--batch_size", "2")
    assert [ended.code for ended in two] == [0, 0], two[1].output
    one, two = runs.folder / "one", runs.folder / "two"
    assert json.loads((two / "run.json").read_text())["processes"] == 2
    # Before the first update everything but rounding is the same; Adam's first steps then magnify the rounding.
    for name in ("loss", "grad_norm"):
        assert metrics(one, name)[0] == pytest.approx(metrics(two, name)[0], rel=1e-4)
    for name in ("loss", "val_loss"):
        for one_step, two_steps in zip(metrics(one, name), metrics(two, name), strict=True):
            assert one_step == pytest.approx(two_steps, abs=5e-3)


def test_the_bank_stays_the_same_in_every_process(runs):
    ended = runs.start_ranks("run", *REWRITTEN, "--batch_size", "2", fault=partial(note_bank_hashes, runs.folder))
    assert [one.code for one in ended] == [0, 0], ended[1].output
    hashes = [(runs.folder / f"bank_hashes_{rank}").read_text().splitlines() for rank in (0, 1)]
    assert hashes[0] == hashes[1] and len(set(hashes[0])) == 6
    assert any(int(line.split()[0]) for line in hashes[0]), "some entries were rewritten"


@pytest.mark.slow
def test_a_signal_to_one_process_stops_all_after_the_same_step_and_they_go_on_bit_for_bit(runs, survives):
    flags = (*REWRITTEN, "--batch_size", "2")
    assert [ended.code for ended in runs.start_ranks("whole", *flags)] == [0, 0]
    signalled = fault("trainer.step:count_targets", 11, partial(send, signal.SIGTERM))  # in step 6
    with survives("SIGTERM to one process of two"):
        ended = runs.start_ranks("cut", *flags, fault=partial(on_rank, 1, signalled))
        assert [one.code for one in ended] == [143, 143], ended[0].output
        assert "stopped by signal 15 at step 7;" in (runs.folder / "cut" / "train.log").read_text()
        ended = runs.start("cut", *flags)
        assert ended.code == 1 and "was written with --num_processes 2 and this run has 1" in ended.output
        assert [one.code for one in runs.start_ranks("cut", *flags)] == [0, 0]
        states = [read_state(checkpoint_dirs(runs.folder / name)[-1]) for name in ("whole", "cut")]
        assert states[0] == states[1]


def test_a_signal_in_the_last_step_is_known_to_all_processes(runs):
    signalled = fault("trainer.step:count_targets", 7, partial(send, signal.SIGTERM))
    ended = runs.start_ranks("run", "--max_steps", "4", "--batch_size", "2", fault=partial(on_rank, 1, signalled))
    assert [one.code for one in ended] == [143, 143], ended[0].output
    assert "stopped by signal 15 at step 4;" in (runs.folder / "run" / "train.log").read_text()


SECONDS = 10  # which a process may outlive another by


def assert_ended_by(lost: int, ended, n: int) -> None:
    assert ended.code == 1 and "Traceback" not in ended.output, ended.output
    assert ended.output.count("error: ") == 1
    assert f"error: process {lost} of {n} has died or failed, so this one, " in ended.output
    assert "the same command goes on from the newest checkpoint" in ended.output


def start_and_kill(runs, out: str, killed: int, n: int, *flags: str, **others: partial) -> list:
    """The ranks of a run of which one dies in step 6; the others must end soon after.

    Args:
        others: a fault by rank, as `rank_0`.
    """
    died = runs.folder / "died"
    faults = {int(rank.removeprefix("rank_")): other for rank, other in others.items()}
    faults[killed] = fault("trainer.step:count_targets", 11, partial(die_noting, died))
    ended = runs.start_ranks(out, "--batch_size", "2", *flags, n=n, fault=partial(on_ranks, faults))
    assert time.time() - float(died.read_text()) < SECONDS
    assert ended[killed].code == -signal.SIGKILL
    return [one for rank, one in enumerate(ended) if rank != killed]


@pytest.mark.slow
@pytest.mark.parametrize("lost", [0, 2])
def test_a_dead_process_ends_the_others_with_one_sentence_that_names_it(runs, survives, lost):
    flags = ("--batch_size", "2", "--log_interval", "3")  # the checkpoint of step 4 lies between two log lines
    assert [one.code for one in runs.start_ranks("whole", *flags, n=3)] == [0, 0, 0]
    with survives("kill -9 of one process of three"):
        for one in start_and_kill(runs, "cut", lost, 3, *flags):
            assert_ended_by(lost, one, 3)
        if lost:
            facts = json.loads((runs.folder / "cut" / "run.json").read_text())
            assert facts["state"] == "failed" and "process 2 of 3 has died" in facts["error"]
        assert [one.code for one in runs.start_ranks("cut", *flags, n=3)] == [0, 0, 0]
        assert metrics(runs.folder / "whole", "loss") == metrics(runs.folder / "cut", "loss")
        states = [read_state(checkpoint_dirs(runs.folder / name)[-1]) for name in ("whole", "cut")]
        assert states[0] == states[1]


def test_a_process_that_hangs_when_another_has_died_is_ended_too(runs, survives):
    hangs = fault("trainer.step:count_targets", 11, partial(wait_before, 60))  # as a collective of a GPU does
    with survives("kill -9 of one process of two"):
        (other,) = start_and_kill(runs, "run", 1, 2, rank_0=hangs)
        assert_ended_by(1, other, 2)
        facts = json.loads((runs.folder / "run" / "run.json").read_text())
        assert facts["state"] == "failed" and facts["error"].startswith("process 1 of 2 has died")
    again = runs.start_ranks("run", "--batch_size", "2")
    assert [one.code for one in again] == [0, 0], again[0].output
    assert "resumed from" in (runs.folder / "run/train.log").read_text()


@pytest.mark.slow
def test_a_process_that_only_takes_long_is_left_alone(runs):
    slow = fault("trainer.step:count_targets", 3, partial(wait_before, 6))
    ended = runs.start_ranks("run", "--batch_size", "2", fault=partial(on_rank, 1, slow))
    assert [one.code for one in ended] == [0, 0], ended[0].output
    assert not any("rror" in one.output or "arning" in one.output for one in ended), ended


def test_a_failure_of_one_process_is_named_by_the_others_and_told_by_itself(runs):
    fails = fault("trainer.step:count_targets", 11, refuse)
    ended = runs.start_ranks("run", "--batch_size", "2", fault=partial(on_rank, 1, fails))
    assert_ended_by(1, ended[0], 2)
    assert ended[1].code == 1 and ended[1].output.count("error: ") == 1 and "error: no more" in ended[1].output


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_reading_the_votes_waits_for_no_step_at_hand():
    votes, no, yes = StopVotes(), *torch.tensor([0, 1], device="cuda")
    for _ in range(3):
        votes.cast(no)
    assert not votes.read(late=0)  # by now there is pinned memory, the allocation of which would wait
    votes.cast(yes)
    torch.cuda.synchronize()
    torch.cuda._sleep(2 * 10**9)  # about a second: the step at hand
    votes.cast(no)
    assert votes.read() and not torch.cuda.current_stream().query()
    assert not votes.read(late=0) and torch.cuda.current_stream().query()


SHARDED = [("ACCELERATE_USE_FSDP", "FSDP"), ("ACCELERATE_USE_DEEPSPEED", "DeepSpeed")]


@pytest.mark.parametrize("variable, name", SHARDED, ids=[name for _, name in SHARDED])
def test_sharded_weights_are_refused_in_one_sentence_before_anything_is_read(runs, variable, name):
    for ended in runs.start_ranks("run", fault=partial(set_variables, {variable: "true"})):
        assert ended.code == 1 and ended.output.count("\n") == 1
        assert ended.output.startswith(f"error: Accelerate is told to use {name} ({variable}), but ")
        assert "launch with --multi_gpu instead" in ended.output
    assert not (runs.folder / "run").exists()


@pytest.mark.slow
@pytest.mark.parametrize("version", "12")
def test_the_launcher_tells_the_script_of_fsdp(runs, version):
    launch = "--quiet --num_processes 2 --num_machines 1 --mixed_precision no --dynamo_backend no --use_fsdp".split()
    launch = [sys.executable, "-m", "accelerate.commands.launch", *launch, "--fsdp_version", version]
    command = [*launch, "train_pretrain_accelerate.py", *runs.argv("run")]
    ended = subprocess.run(command, cwd=ROOT, env=launch_environment(), capture_output=True, text=True)
    assert ended.returncode == 1 and "error: Accelerate is told to use FSDP" in ended.stderr
    assert not (runs.folder / "run").exists()


def launch_environment(**variables: str) -> dict[str, str]:
    return os.environ | {"PYTHON": sys.executable, "EVALUATE": "0", "CUDA_VISIBLE_DEVICES": ""} | variables


@pytest.mark.slow
def test_the_launcher_hands_on_a_signal_and_the_exit_code(runs, survives):
    with survives("SIGTERM to a run of a script"):
        output = open(runs.folder / "output", "w+")
        command = ["bash", "run_file/_launch.sh", *runs.argv("run", "--max_steps", "100000")]
        launcher = subprocess.Popen(command, cwd=ROOT, env=launch_environment(), stdout=output, stderr=output)
        while not checkpoint_dirs(runs.folder / "run"):
            assert launcher.poll() is None, (runs.folder / "output").read_text()
            time.sleep(0.2)
        (run,) = psutil.Process(launcher.pid).children()
        run.terminate()
        assert launcher.wait(timeout=30) == 143
        assert json.loads((runs.folder / "run" / "run.json").read_text())["state"] == "stopped"


@pytest.mark.slow
def test_a_killed_process_ends_the_others_in_seconds(runs, survives):
    command = ["bash", "run_file/_launch.sh", *runs.argv("run", "--max_steps", "100000", "--batch_size", "2")]
    output = open(runs.folder / "output", "w+")
    environment = launch_environment(NUM_PROCESSES="2")
    launcher = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=output, stderr=output)
    try:
        while not checkpoint_dirs(runs.folder / "run"):
            assert launcher.poll() is None, (runs.folder / "output").read_text()
            time.sleep(0.2)
        children = psutil.Process(launcher.pid).children(recursive=True)
        workers = [p for p in children if "train_pretrain_accelerate.py" in p.cmdline() and not p.children()]
        assert len(workers) == 2
        with survives("kill -9 of one process of two"):
            workers[1].kill()
            assert launcher.wait(timeout=30) != 0
            assert not any(worker.is_running() for worker in workers)
            assert "exitcode  : -9" in (runs.folder / "output").read_text()
    finally:
        launcher.kill()
