"""What the fork server imports once: the training script, on the CPU, with one thread, and what draws its curves."""

import io
import os
import sys

os.environ |= {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}

import torch  # noqa: E402

import train_pretrain_accelerate as script  # noqa: E402
from runs.plots import figure_of  # noqa: E402

figure_of({}).savefig(io.BytesIO())  # an import and a font that each run would pay for


def run_script(argv: list[str]) -> None:
    """The script as `python train_pretrain_accelerate.py ...` runs it, up to the exit code."""
    torch.set_num_threads(1)
    sys.argv = ["train_pretrain_accelerate.py", *argv]
    script.command()
