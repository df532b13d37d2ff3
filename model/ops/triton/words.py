"""Rows of words, read from a small table that stays in the L2 cache; a program for each position.

Three operations, each other's gradients: a score of each word, a weighted sum of words, and the spreading of weighted
vectors over the table's rows.

Axes: X positions · W words of a position · R width · V vocabulary
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import custom_op
from .token_attention import COPIED_FLOATS, MOST_COPIES, _rows

WORDS = 64  # at a time
NO_ROW = -1


@triton.jit
def _row(ptr, position, stride, word, W, other):
    return tl.load(ptr + position * stride + word, mask=word < W, other=other)


@triton.jit
def _score(
    query_ptr, table_ptr, token_ptr, score_ptr, stride, token_stride, W, R, SKIP: tl.constexpr, WB: tl.constexpr,
    RB: tl.constexpr,
):  # fmt: skip
    position, column = tl.program_id(0).to(tl.int64), tl.arange(0, RB)
    word = tl.program_id(1) * WB + tl.arange(0, WB)
    query = _row(query_ptr, position, stride, column, R, 0.0).to(tl.float32)
    row = _rows(table_ptr, _row(token_ptr, position, token_stride, word, W, SKIP), column, R, SKIP).to(tl.float32)
    tl.store(score_ptr + position * W + word, tl.sum(row * query[None, :], axis=1), mask=word < W)


@triton.jit
def _sum(
    weight_ptr, table_ptr, token_ptr, sum_ptr, stride, token_stride, W, R, SKIP: tl.constexpr, WB: tl.constexpr,
    RB: tl.constexpr,
):  # fmt: skip
    position, column = tl.program_id(0).to(tl.int64), tl.arange(0, RB)
    total = tl.zeros([RB], dtype=tl.float32)
    for begin in range(0, W, WB):
        word = begin + tl.arange(0, WB)
        weight = _row(weight_ptr, position, stride, word, W, 0.0).to(tl.float32)
        row = _rows(table_ptr, _row(token_ptr, position, token_stride, word, W, SKIP), column, R, SKIP).to(tl.float32)
        total += tl.sum(row * weight[:, None], axis=0)
    tl.store(sum_ptr + position * R + column, total.to(sum_ptr.dtype.element_ty), mask=column < R)


@triton.jit
def _spread(
    weight_ptr, vector_ptr, token_ptr, table_ptr, stride, token_stride, W, R, SKIP: tl.constexpr, WB: tl.constexpr,
    RB: tl.constexpr, n_rows, n_copies,
):  # fmt: skip
    position, column = tl.program_id(0).to(tl.int64), tl.arange(0, RB)
    table_ptr += (position % n_copies) * n_rows * R
    word = tl.program_id(1) * WB + tl.arange(0, WB)
    vector = tl.load(vector_ptr + position * R + column, mask=column < R, other=0.0).to(tl.float32)
    weight = _row(weight_ptr, position, stride, word, W, 0.0).to(tl.float32)
    token = _row(token_ptr, position, token_stride, word, W, SKIP)
    add = ((token != SKIP) & (weight != 0.0))[:, None] & (column < R)[None, :]
    place = table_ptr + token[:, None] * R + column[None, :]
    tl.atomic_add(place, weight[:, None] * vector[None, :], mask=add, sem="relaxed")


def _launch(kernel, first: Tensor, second: Tensor, token_XW: Tensor, out: Tensor, skip: int, *more) -> Tensor:
    (X, W), R = token_XW.shape, second.shape[1]
    block_W, block_R = min(WORDS, triton.next_power_of_2(W)), triton.next_power_of_2(R)
    parts = 1 if kernel is _sum else triton.cdiv(W, block_W)
    # Part of a wider row is read where it stands.
    first, token_XW = (x if x.stride(1) == 1 else x.contiguous() for x in (first, token_XW))
    strides = first.stride(0), token_XW.stride(0)
    warps = min(max(block_W * block_R // 1024, 1), 8)
    kernel[(X, parts)](
        first, second.contiguous(), token_XW, out, *strides, W, R, skip, block_W, block_R, *more, num_warps=warps
    )
    return out


@custom_op
def score_words(query_XR: Tensor, table_VR: Tensor, token_XW: Tensor, skip: int) -> Tensor:
    """(X, W) float32: the product of each position's query with the table's row of each of its words; 0 for `skip`."""
    return _launch(_score, query_XR, table_VR, token_XW, query_XR.new_empty(token_XW.shape, dtype=torch.float32), skip)


@custom_op
def sum_words(weight_XW: Tensor, table_VR: Tensor, token_XW: Tensor, skip: int) -> Tensor:
    """(X, R) in the table's dtype: the sum of the rows of a position's words, each times its weight."""
    out = table_VR.new_empty(token_XW.shape[0], table_VR.shape[1])
    return _launch(_sum, weight_XW, table_VR, token_XW, out, skip)


@custom_op
def spread_words(weight_XW: Tensor, vector_XR: Tensor, token_XW: Tensor, n_rows: int, skip: int) -> Tensor:
    """(n_rows, R) float32: each position's vector, times the weight of a word, added to the row of that word.

    The order in which sums are made is open.
    """
    R = vector_XR.shape[1]
    n_copies = min(max(COPIED_FLOATS // (n_rows * R), 1), MOST_COPIES)
    out = vector_XR.new_zeros(n_copies, n_rows, R, dtype=torch.float32)
    return _launch(_spread, weight_XW, vector_XR, token_XW, out, skip, n_rows, n_copies).sum(dim=0)


def row_products(query_XR: Tensor, table_NR: Tensor, row_XW: Tensor) -> Tensor:
    """(X, W) float32, without gradient: the product of each position's query with some rows of the table."""
    return score_words.launch(query_XR.to(table_NR.dtype), table_NR, row_XW, NO_ROW)


@score_words.register_fake
def _(query_XR, table_VR, token_XW, skip):
    return query_XR.new_empty(token_XW.shape, dtype=torch.float32)


@sum_words.register_fake
def _(weight_XW, table_VR, token_XW, skip):
    return table_VR.new_empty(token_XW.shape[0], table_VR.shape[1])


@spread_words.register_fake
def _(weight_XW, vector_XR, token_XW, n_rows, skip):
    return vector_XR.new_empty(n_rows, vector_XR.shape[1], dtype=torch.float32)


def _setup(ctx, inputs, output) -> None:
    *tensors, ctx.skip = inputs
    ctx.save_for_backward(*tensors)


def _score_backward(ctx, grad_XW: Tensor):
    query_XR, table_VR, token_XW = ctx.saved_tensors
    grad_query_XR = sum_words(grad_XW, table_VR, token_XW, ctx.skip).to(query_XR.dtype)
    grad_table_VR = spread_words(grad_XW, query_XR, token_XW, table_VR.shape[0], ctx.skip).to(table_VR.dtype)
    return grad_query_XR, grad_table_VR, None, None


def _sum_backward(ctx, grad_XR: Tensor):
    weight_XW, table_VR, token_XW = ctx.saved_tensors
    grad_weight_XW = score_words(grad_XR, table_VR, token_XW, ctx.skip).to(weight_XW.dtype)
    grad_table_VR = spread_words(weight_XW, grad_XR, token_XW, table_VR.shape[0], ctx.skip).to(table_VR.dtype)
    return grad_weight_XW, grad_table_VR, None, None


score_words.register_autograd(_score_backward, setup_context=_setup)
sum_words.register_autograd(_sum_backward, setup_context=_setup)
