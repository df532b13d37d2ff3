"""The k largest values of each row, for rows of up to a few thousand: one pass over memory, k maxima in registers.

Axes: X rows · R columns · K values kept
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import custom_op


@triton.jit
def _best_of_rows(score_ptr, value_ptr, index_ptr, n_columns, K: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    inside = column < n_columns
    score = tl.load(score_ptr + row * n_columns + column, mask=inside, other=float("-inf")).to(tl.float32)
    left = inside
    for k in tl.static_range(K):
        # A taken column must lose even against minus infinity, so it is put aside by its place, not its value.
        best = tl.max(tl.where(left, score, float("-inf")), axis=0)
        place = tl.min(tl.where(left & (score == best), column, BLOCK), axis=0)
        # A row of NaN has no best place; the loss will show it, a wild pointer must not.
        place = tl.minimum(place, n_columns - 1)
        tl.store(value_ptr + row * K + k, best.to(value_ptr.dtype.element_ty))
        tl.store(index_ptr + row * K + k, place.to(tl.int64))
        left = left & (column != place)


@custom_op
def best_of_rows(score: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Like `score.topk(k)` over the last axis, best first; among equal scores the smaller index comes first.

    Args:
        score: (..., R) float on CUDA, without NaN.  k: in [1, R].
    Returns:
        value: (..., k), of the dtype of `score`.  index: (..., k) int64.
    """
    score = score.contiguous()
    R = score.shape[-1]
    value = score.new_empty(*score.shape[:-1], k)
    index = torch.empty_like(value, dtype=torch.int64)
    n_rows = score.numel() // R
    # One warp a row: its maxima need shuffles only, no barrier.
    _best_of_rows[(n_rows,)](score, value, index, R, K=k, BLOCK=triton.next_power_of_2(R), num_warps=1)
    return value, index


@best_of_rows.register_fake
def _(score: Tensor, k: int) -> tuple[Tensor, Tensor]:
    shape = (*score.shape[:-1], k)
    return score.new_empty(shape), score.new_empty(shape, dtype=torch.int64)


def _setup(ctx, inputs, output) -> None:
    ctx.n_columns = inputs[0].shape[-1]
    ctx.save_for_backward(output[1])
    ctx.mark_non_differentiable(output[1])


def _backward(ctx, grad_value: Tensor, grad_index) -> tuple[Tensor, None]:
    (index,) = ctx.saved_tensors
    grad = grad_value.new_zeros(*index.shape[:-1], ctx.n_columns)
    return grad.scatter(-1, index, grad_value), None


best_of_rows.register_autograd(_backward, setup_context=_setup)
