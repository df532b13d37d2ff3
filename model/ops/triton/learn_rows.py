"""The optimizer step of a sparsely read table: only the memory of touched rows is read and written.

Axes: R rows of the table · W width of a row
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..learn_rows import EPSILON, SQUARE_DECAY

ROWS = 16  # of one program; most programs of a large table find no touched row and end


@triton.jit
def _learn_rows(
    weight_ptr, gradient_ptr, square_ptr, visits_ptr, touched_ptr, skip_ptr, n_rows, width, lr, keep, square_decay,
    epsilon, ROWS: tl.constexpr, W: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    touched = tl.load(touched_ptr + row, mask=row < n_rows, other=0) != 0
    if tl.max(touched.to(tl.int32), axis=0) > 0:
        column = tl.arange(0, W)
        place = row[:, None] * width + column[None, :]
        inside = touched[:, None] & (column < width)[None, :]
        gradient = tl.load(gradient_ptr + place, mask=inside, other=0.0).to(tl.float32)
        if tl.load(skip_ptr) == 0:
            visits = tl.load(visits_ptr + row, mask=touched, other=0.0) + 1
            square = tl.load(square_ptr + row, mask=touched, other=0.0) * square_decay
            square += (1 - square_decay) * tl.sum(gradient * gradient, axis=1) / width
            root = tl.sqrt(square / (1 - tl.exp2(visits * tl.log2(square_decay)))) + epsilon
            weight = tl.load(weight_ptr + place, mask=inside, other=0.0).to(tl.float32)
            tl.store(weight_ptr + place, keep * weight - lr / root[:, None] * gradient, mask=inside)
            tl.store(square_ptr + row, square, mask=touched)
            tl.store(visits_ptr + row, visits, mask=touched)
        tl.store(gradient_ptr + place, tl.zeros_like(gradient), mask=inside)
        tl.store(touched_ptr + row, tl.zeros_like(row).to(tl.uint8), mask=touched)


def learn_rows(
    weight_RW: Tensor, gradient_RW: Tensor, square_R: Tensor, visits_R: Tensor, touched_R: Tensor, lr: float,
    decay: float, skip: Tensor,
) -> None:  # fmt: skip
    """As the reference; all tensors contiguous on CUDA."""
    R, W = weight_RW.shape
    _learn_rows[(triton.cdiv(R, ROWS),)](
        weight_RW, gradient_RW, square_R, visits_R, touched_R, skip.to(torch.uint8), R, W, lr, 1 - lr * decay,
        SQUARE_DECAY, EPSILON, ROWS=ROWS, W=triton.next_power_of_2(W),
    )  # fmt: skip
