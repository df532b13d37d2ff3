"""On a GPU: a killed run goes on bit for bit, and a long one takes no more memory at its end. All of these are slow.

SOAK_MINUTES=60 python -m pytest tests/reliability/test_gpu.py -k minutes      # 10 without it
"""

import json
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from statistics import median

import pytest
import torch

from runs.load import load_run
from tests.evaluation.test_while_training import WORDS as ASKED
from tests.evaluation.test_while_training import assert_asked_as_evaluated, write_questions
from tests.tiny_runs import Ended, Runs, metrics, redirect

from .faults import die_half_written, fault
from .test_long import assert_no_growth, read_resources, watch_resources
from .test_processes import STILL, assert_ended_by, start_and_kill
from .test_resume import CHECKPOINT, REWRITTEN, STEP, TAUGHT, WORDS, assert_same_run

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.slow,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
# Rows of whole blocks of FlexAttention, in bfloat16: the kernels of a real run.
SIZES = ("--dim", "128", "--max_seq_len", "128", "--dtype", "bfloat16")
MODELS = {"plain": ("--model_type", "model_original"), "product_key": REWRITTEN, "ngram": WORDS, "taught": TAUGHT}
GROWTH_MB, GROWTH_GPU_MIB = 16, 1


class GpuRuns(Runs):
    """Starts tiny runs on the GPU, each in a new interpreter: a process that has used CUDA cannot be forked."""

    def start(self, out: str, *flags: str, fault: Callable | None = None, kill_after: float | None = 600) -> Ended:
        return super().start(out, *flags, fault=fault, kill_after=kill_after)

    def argv(self, out: str, *flags: str) -> list[str]:
        return super().argv(out, *SIZES, *flags)

    def make_process(self, argv: list[str], output: Path, fault: Callable | None, environment: dict[str, str]):
        arguments = (argv, output, fault, environment)
        return multiprocessing.get_context("spawn").Process(target=run_script, args=arguments)


def run_script(argv: list[str], output: Path, fault: Callable | None, environment: dict[str, str]) -> None:
    os.environ |= environment
    redirect(output)
    import train_pretrain_accelerate as script

    if fault:
        fault()
    sys.argv = ["train_pretrain_accelerate.py", *argv]
    script.command()


@pytest.fixture
def gpu_runs(run_data, tmp_path) -> GpuRuns:
    return GpuRuns(run_data, tmp_path)


@pytest.mark.parametrize("model", MODELS)
def test_a_killed_deterministic_run_on_a_gpu_goes_on_bit_for_bit(gpu_runs, survives, model):
    flags = (*MODELS[model], "--deterministic")
    ended = gpu_runs.start("whole", *flags)
    assert ended.code == 0, ended.output
    assert "1 x cuda, bfloat16" in (gpu_runs.folder / "whole" / "run.json").read_text()
    kills = [
        fault(f"{STEP}:count_targets", 11),  # in step 6, after the checkpoint of step 4
        fault(f"{CHECKPOINT}:save_file", 2, die_half_written),  # the weights of the next checkpoint
    ]
    with survives("kill -9 of a training run on a GPU", len(kills)):
        for kill in kills:
            ended = gpu_runs.start("cut", *flags, fault=kill)
            assert ended.code == -signal.SIGKILL, ended.output
        ended = gpu_runs.start("cut", *flags)
        assert ended.code == 0, ended.output
        assert "resumed from" in (gpu_runs.folder / "cut" / "train.log").read_text()
        assert_same_run(gpu_runs.folder / "whole", gpu_runs.folder / "cut")


def test_questions_at_a_validation_leave_captured_steps_and_the_bank_as_they_are(gpu_runs):
    knowledge, questions = write_questions(gpu_runs.folder)
    flags = (*ASKED, "--database_init_path", knowledge, "--use_cuda_graph", "True", "--dtype", "float32")
    more = {"plain": (), "asked": ("--val_questions", questions)}
    with ThreadPoolExecutor() as pool:
        ended = list(pool.map(lambda out: gpu_runs.start(out, *flags, *more[out]), more))
    assert [one.code for one in ended] == [0, 0], ended[1].output
    plain, asked = (gpu_runs.folder / out for out in more)
    assert [step for step, _ in metrics(asked, "questions/right")] == [6, 12]
    assert_asked_as_evaluated(asked, knowledge, questions, str(gpu_runs.data / "cache"), "cuda")
    assert torch.equal(load_run(plain).bank.tokens, load_run(asked).bank.tokens)
    for name in ("loss", "val_loss"):
        losses = [[value for _, value in metrics(out, name)] for out in (plain, asked)]
        assert losses[1] == pytest.approx(losses[0], abs=1e-2)


two_gpus = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")


@two_gpus
@pytest.mark.parametrize("model", MODELS)
def test_two_gpus_learn_what_one_does_from_captured_steps(gpu_runs, model):
    flags = (*MODELS[model], *STILL, "--use_cuda_graph", "True", "--dtype", "float32")
    ended = gpu_runs.start("one", *flags)
    assert ended.code == 0, ended.output
    halves = ("--batch_size", "2", *(("--entry_rows", "1") if "--entry_rows" in flags else ()))
    for one in gpu_runs.start_ranks("two", *flags, *halves):
        assert one.code == 0, one.output
        # NCCL's warning at the end, where a process group was left open.
        assert "destroy_process_group" not in one.output and "ProcessGroup" not in one.output, one.output
    for name in ("loss", "val_loss"):
        pairs = zip(*(metrics(gpu_runs.folder / out, name) for out in ("one", "two")), strict=True)
        for one_step, two_steps in pairs:
            assert one_step == pytest.approx(two_steps, abs=5e-2)


@two_gpus
def test_a_dead_process_ends_the_one_that_waits_for_it_on_its_gpu(gpu_runs, survives):
    with survives("kill -9 of a process of two GPUs"):
        (other,) = start_and_kill(gpu_runs, "cut", 1, 2)
        assert_ended_by(1, other, 2)
        facts = json.loads((gpu_runs.folder / "cut" / "run.json").read_text())
        assert facts["state"] == "failed" and "process 1 of 2 has died" in facts["error"]
        assert [one.code for one in gpu_runs.start_ranks("cut", "--batch_size", "2")] == [0, 0]


def thirds(rows: list) -> tuple[list, list]:
    """The first third and the last."""
    return rows[: len(rows) // 3], rows[-(len(rows) // 3) :]


def test_minutes_on_a_gpu_take_no_more_memory_nor_files_at_their_end(gpu_runs, capsys):
    minutes, report, out = float(os.environ.get("SOAK_MINUTES", 10)), gpu_runs.folder / "resources", "run"
    intervals = "--log_interval 20 --memory_monitor_interval 20 --eval_interval 200 --save_interval 200".split()
    endless = ("--max_steps", "1000000000", "--epochs", "1000000000")
    watch = partial(watch_resources, report, minutes)
    ended = gpu_runs.start(out, *WORDS, *intervals, *endless, fault=watch, kill_after=60 * minutes + 600)
    assert ended.code == 128 + signal.SIGTERM, ended.output  # which it sent itself when the minutes were over
    rows, allocated = read_resources(report), metrics(gpu_runs.folder / out, "gpu_mib")
    assert len(metrics(gpu_runs.folder / out, "val_loss")) >= 2 and len(allocated) >= 30
    early, late = (median(mib for _, mib in part) for part in thirds(allocated))
    with capsys.disabled():
        _, reserved = metrics(gpu_runs.folder / out, "peak_gpu_mib")[-1]
        print(
            f"\n{minutes:g} minutes on {torch.cuda.get_device_name()}, {rows[-1][0]:,} steps: {late - early:+.2f} MiB "
            f"of allocated GPU memory, now {allocated[-1][1]:,.1f} MiB, at most {reserved:,.0f} MiB reserved",
            end="",
        )
    assert_no_growth(*thirds(rows), GROWTH_MB, capsys)
    assert late - early < GROWTH_GPU_MIB
