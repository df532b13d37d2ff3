"""What a training step compiles together: neighbouring blocks, and the stream's beginning and end.

So what one block adds to the stream joins the norm of the next, and no conversion is a pass over memory of its own.

Axes: B batch · T position · D width
"""

from collections.abc import Iterable
from itertools import groupby

import torch
from torch import Tensor, nn

from .config import ModelConfig
from .layers import Context, at_unit_scale, in_autocast

LONGEST_STRETCH = 4  # blocks; the time of the first step grows with them


def run_stretch(blocks: list[nn.Module], x_BTD: Tensor, context: Context) -> tuple[Tensor, list[dict], list]:
    """The stream after the blocks, and of each one its named loss terms and what it read."""
    terms, readings = [], []
    for block in blocks:
        # Not by a call, which would go to the block's own compilation.
        x_BTD, aux, reading = block.forward(x_BTD, context, fold=True)
        terms.append(aux)
        readings.append(reading)
    return x_BTD, terms, readings


def begin_stream(x_BTD: Tensor, config: ModelConfig) -> tuple[Tensor, Tensor | None]:
    """The stream before the first block, and the embeddings at unit scale that blocks with `residual_scalars` add."""
    x_BTD = x_BTD if config.residual_in_fp32 else in_autocast(x_BTD)
    return x_BTD, in_autocast(at_unit_scale(x_BTD)) if config.residual_scalars else None


def end_stream(x_BTD: Tensor, norm: nn.RMSNorm, every: int = 1) -> tuple[Tensor, ...]:
    """What the output layer reads and, if that is not the same, every n-th row for the pointer.

    Compiled, gradients of the two are added as the norm's is worked out.
    """
    x_BTD = in_autocast(norm(x_BTD))
    return (x_BTD,) if every == 1 else (x_BTD, x_BTD[::every].contiguous())


compiled_stretch, compiled_begin, compiled_end = map(torch.compile, (run_stretch, begin_stream, end_stream))


def make_stretches(blocks: Iterable[nn.Module]) -> list[list[nn.Module]]:
    """The blocks in turn: each run of neighbours that join is cut into parts of equal length.

    Parts with the same kinds of blocks in the same places share a compilation. A run of 5 or 7 blocks has no equal
    parts up to LONGEST_STRETCH: its blocks stay alone.
    """
    found = []
    for joins, run in groupby(blocks, key=lambda block: block.joins_stretches):
        run = list(run)
        length = max(n for n in range(1, LONGEST_STRETCH + 1) if len(run) % n == 0) if joins else 1
        found += [run[first : first + length] for first in range(0, len(run), length)]
    return found
