"""The optimizer step of a table of which a training step reads a few rows.

Axes: R rows of the table · W width of a row
"""

import torch
from torch import Tensor

from .twin import twin

SQUARE_DECAY, EPSILON = 0.99, 1e-10


def _kernel(
    weight_RW: Tensor, gradient_RW: Tensor, square_R: Tensor, visits_R: Tensor, touched_R: Tensor, lr: float,
    decay: float, skip: Tensor,
) -> None:  # fmt: skip
    from .triton.learn_rows import learn_rows as kernel

    kernel(weight_RW, gradient_RW, square_R, visits_R, touched_R, lr, decay, skip)


@twin(_kernel, deterministic=True, excludes=(torch.float64,))
def learn_rows(
    weight_RW: Tensor, gradient_RW: Tensor, square_R: Tensor, visits_R: Tensor, touched_R: Tensor, lr: float,
    decay: float, skip: Tensor,
) -> None:  # fmt: skip
    """Step the touched rows in place; then gradient and touched are zero.

    A touched row moves against its gradient by about `lr` a number: the gradient is divided by the root of a running
    mean of its squares, over the numbers of the row and over its earlier visits. Other rows stay as they are, whatever
    the time between two visits, so the work is that of the touched rows.

    Args:
        weight_RW, gradient_RW: float, of one dtype.
        square_R: float32, the running mean.  visits_R: float32, steps of each row.
        touched_R: uint8, not 0 for the rows to step; the gradient of other rows is zero.
        lr: learning rate.  decay: decoupled decay of the touched rows, times lr.
        skip: bool, 0-d on the device; True leaves weight, square and visits as they are.
    Source: Adam (Kingma & Ba 2015, arXiv:1412.6980). Differs: no momentum; one scale a row, as in row-wise Adagrad
    (Mudigere et al. 2022, arXiv:2104.05158); corrected by the visits of the row.
    """
    steps_R = (touched_R > 0) & ~skip
    visits_R += steps_R
    mean_R = SQUARE_DECAY * square_R + (1 - SQUARE_DECAY) * gradient_RW.square().mean(dim=-1)
    square_R.copy_(mean_R.where(steps_R, square_R))
    root_R = (square_R / (1 - SQUARE_DECAY**visits_R)).sqrt() + EPSILON
    moved_RW = (1 - lr * decay) * weight_RW - lr / root_R[:, None] * gradient_RW
    weight_RW.copy_(moved_RW.where(steps_R[:, None], weight_RW))
    gradient_RW.zero_()
    touched_R.zero_()
