"""What the fork server imports and makes once: the training script, on the CPU, with one thread.

Runs do not draw their curves, which takes as long as all else: they write a picture made here, unless
`faults.draw_curves` is installed.
"""

import io
import os
import sys

os.environ |= {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}

import torch  # noqa: E402

import train_pretrain_accelerate as script  # noqa: E402
from runs import record, source  # noqa: E402
from runs.plots import figure_of  # noqa: E402

PICTURE, PACKAGES = io.BytesIO(), source.packages()
figure_of({}).savefig(PICTURE)  # its imports and fonts are for those that draw


def write_picture(run):
    path = run.path / "curves.png"
    path.write_bytes(PICTURE.getvalue())
    return path


record.draw_run, source.packages = write_picture, lambda: PACKAGES


def run_script(argv: list[str]) -> None:
    """The script as `python train_pretrain_accelerate.py ...` runs it, up to the exit code."""
    torch.set_num_threads(1)
    sys.argv = ["train_pretrain_accelerate.py", *argv]
    script.command()
