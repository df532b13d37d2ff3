"""Vectors of words that are known by their tokens, read from a small table that stays in the L2 cache.

Three operations, each other's gradients: a score of each word, a weighted sum of words, and the spreading of weighted
vectors over the table's rows. One program a position; the words go by in chunks, those to skip are not loaded.

Axes: X positions · W words of one · R width · V vocabulary
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import custom_op

CHUNK = 32
# Neighbouring positions read the same entries, and some words are in most of them: their sums, made in several copies
# of the table, do not wait for each other. Together the copies stay in the L2 cache.
MOST_COPIES, COPIED_FLOATS = 16, 1 << 23


@triton.jit
def _score(query_ptr, table_ptr, token_ptr, score_ptr, W, R, SKIP: tl.constexpr, BLOCK: tl.constexpr, C: tl.constexpr):
    position = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    query = tl.load(query_ptr + position * R + column, mask=column < R, other=0.0).to(tl.float32)
    for begin in range(0, W, C):
        word = begin + tl.arange(0, C)
        token = tl.load(token_ptr + position * W + word, mask=word < W, other=SKIP)
        read = (token != SKIP)[:, None] & (column < R)[None, :]
        row = tl.load(table_ptr + token[:, None] * R + column[None, :], mask=read, other=0.0).to(tl.float32)
        tl.store(score_ptr + position * W + word, tl.sum(row * query[None, :], axis=1), mask=word < W)


@triton.jit
def _sum(weight_ptr, table_ptr, token_ptr, sum_ptr, W, R, SKIP: tl.constexpr, BLOCK: tl.constexpr, C: tl.constexpr):
    position = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    # Summed over the words once, at the end: that crosses warps.
    total = tl.zeros([C, BLOCK], dtype=tl.float32)
    for begin in range(0, W, C):
        word = begin + tl.arange(0, C)
        token = tl.load(token_ptr + position * W + word, mask=word < W, other=SKIP)
        weight = tl.load(weight_ptr + position * W + word, mask=word < W, other=0.0).to(tl.float32)
        read = (token != SKIP)[:, None] & (column < R)[None, :]
        row = tl.load(table_ptr + token[:, None] * R + column[None, :], mask=read, other=0.0).to(tl.float32)
        total += row * weight[:, None]
    tl.store(sum_ptr + position * R + column, tl.sum(total, axis=0).to(sum_ptr.dtype.element_ty), mask=column < R)


@triton.jit
def _spread(
    weight_ptr, vector_ptr, token_ptr, table_ptr, W, R, SKIP: tl.constexpr, BLOCK: tl.constexpr, C: tl.constexpr,
    n_rows, n_copies,
):  # fmt: skip
    position = tl.program_id(0).to(tl.int64)
    copy_ptr = table_ptr + (position % n_copies) * n_rows * R
    column = tl.arange(0, BLOCK)
    vector = tl.load(vector_ptr + position * R + column, mask=column < R, other=0.0).to(tl.float32)
    for begin in range(0, W, C):
        word = begin + tl.arange(0, C)
        token = tl.load(token_ptr + position * W + word, mask=word < W, other=SKIP)
        weight = tl.load(weight_ptr + position * W + word, mask=word < W, other=0.0).to(tl.float32)
        read = ((token != SKIP) & (weight != 0))[:, None] & (column < R)[None, :]
        place = copy_ptr + token[:, None] * R + column[None, :]
        tl.atomic_add(place, weight[:, None] * vector[None, :], mask=read, sem="relaxed")


def _launch(kernel, first: Tensor, second: Tensor, token_XW: Tensor, out: Tensor, R: int, skip: int, *more) -> Tensor:
    X, W = token_XW.shape
    tensors = (first.contiguous(), second.contiguous(), token_XW.contiguous(), out)
    kernel[(X,)](*tensors, W, R, skip, triton.next_power_of_2(R), CHUNK, *more, num_warps=4)
    return out


@custom_op
def score_words(query_XR: Tensor, table_VR: Tensor, token_XW: Tensor, skip: int) -> Tensor:
    """(X, W) float32: the product of each position's query with the table's row of each of its words; 0 for `skip`."""
    out = torch.empty(token_XW.shape, dtype=torch.float32, device=token_XW.device)
    return _launch(_score, query_XR, table_VR, token_XW, out, table_VR.shape[1], skip)


@custom_op
def sum_words(weight_XW: Tensor, table_VR: Tensor, token_XW: Tensor, skip: int) -> Tensor:
    """(X, R) in the table's dtype: the sum of the rows of a position's words, each times its weight."""
    out = table_VR.new_empty(token_XW.shape[0], table_VR.shape[1])
    return _launch(_sum, weight_XW, table_VR, token_XW, out, table_VR.shape[1], skip)


@custom_op
def spread_words(weight_XW: Tensor, vector_XR: Tensor, token_XW: Tensor, n_rows: int, skip: int) -> Tensor:
    """(n_rows, R) float32: each position's vector, times the weight of a word, added to the row of that word.

    The order in which sums are made is open.
    """
    R = vector_XR.shape[1]
    n_copies = min(max(COPIED_FLOATS // (n_rows * R), 1), MOST_COPIES)
    out = torch.zeros(n_copies, n_rows, R, dtype=torch.float32, device=vector_XR.device)
    return _launch(_spread, weight_XW, vector_XR, token_XW, out, R, skip, n_rows, n_copies).sum(dim=0)


@score_words.register_fake
def _(query_XR: Tensor, table_VR: Tensor, token_XW: Tensor, skip: int) -> Tensor:
    return query_XR.new_empty(token_XW.shape, dtype=torch.float32)


@sum_words.register_fake
def _(weight_XW: Tensor, table_VR: Tensor, token_XW: Tensor, skip: int) -> Tensor:
    return table_VR.new_empty(token_XW.shape[0], table_VR.shape[1])


@spread_words.register_fake
def _(weight_XW: Tensor, vector_XR: Tensor, token_XW: Tensor, n_rows: int, skip: int) -> Tensor:
    return vector_XR.new_empty(n_rows, vector_XR.shape[1], dtype=torch.float32)


def _setup(ctx, inputs, output) -> None:
    first, table_VR, token_XW, ctx.skip = inputs
    ctx.save_for_backward(first, table_VR, token_XW)


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
