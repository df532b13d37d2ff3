"""Mean embeddings of many short entries: one program an entry, rows of the table from the L2 cache.

Axes: X entries · L tokens per entry · D width · V vocabulary
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import custom_op


@triton.jit
def sum_of_words(token_ptr, table_ptr, D, PADDING: tl.constexpr, L: tl.constexpr, BLOCK: tl.constexpr):
    """The float32 sum of the rows of one entry's words, and how many words there are, at least 1."""
    column = tl.arange(0, BLOCK)
    total = tl.zeros([BLOCK], dtype=tl.float32)
    n_words = 0
    for place in tl.static_range(L):
        token = tl.load(token_ptr + place).to(tl.int64)
        width = tl.where(token != PADDING, D, 0)  # nothing of a padding's row is read
        n_words += (token != PADDING).to(tl.int32)
        total += tl.load(table_ptr + token * D + column, mask=column < width, other=0.0).to(tl.float32)
    return total, tl.maximum(n_words, 1).to(tl.float32)


@triton.jit
def add_to_words(token_ptr, table_ptr, share, D, PADDING: tl.constexpr, L: tl.constexpr, BLOCK: tl.constexpr):
    """Add `share` to the row of each of one entry's words."""
    column = tl.arange(0, BLOCK)
    for place in tl.static_range(L):
        token = tl.load(token_ptr + place).to(tl.int64)
        width = tl.where(token != PADDING, D, 0)
        tl.atomic_add(table_ptr + token * D + column, share, mask=column < width, sem="relaxed")


@triton.jit
def _read_entries(
    token_ptr, table_ptr, mean_ptr, D, PADDING: tl.constexpr, L: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    entry = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    total, n_words = sum_of_words(token_ptr + entry * L, table_ptr, D, PADDING, L, BLOCK)
    tl.store(mean_ptr + entry * D + column, (total / n_words).to(mean_ptr.dtype.element_ty), mask=column < D)


@triton.jit
def _spread_gradient(
    token_ptr, grad_ptr, table_ptr, D, PADDING: tl.constexpr, L: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    entry = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    n_words = 0
    for place in tl.static_range(L):
        n_words += (tl.load(token_ptr + entry * L + place) != PADDING).to(tl.int32)
    share = tl.load(grad_ptr + entry * D + column, mask=column < D, other=0.0).to(tl.float32)
    share = share / tl.maximum(n_words, 1).to(tl.float32)
    add_to_words(token_ptr + entry * L, table_ptr, share, D, PADDING, L, BLOCK)


def one_warp(D: int) -> dict[str, int]:
    """One warp an entry, for its sum needs no barrier then; more where a lane would hold too much."""
    block = triton.next_power_of_2(D)
    return {"BLOCK": block, "num_warps": max(1, block // 1024)}


@custom_op
def read_entries(token_XL: Tensor, table_VD: Tensor, padding: int) -> Tensor:
    """(X, D) in the dtype of the table: the mean of the rows of each entry's tokens, padding left out.

    The sum is in float32, as is that of the gradient, whose order atomics leave open.
    """
    X, L = token_XL.shape
    D = table_VD.shape[1]
    mean_XD = table_VD.new_empty(X, D)
    _read_entries[(X,)](token_XL.contiguous(), table_VD.contiguous(), mean_XD, D, padding, L, **one_warp(D))
    return mean_XD


@read_entries.register_fake
def _(token_XL: Tensor, table_VD: Tensor, padding: int) -> Tensor:
    return table_VD.new_empty(token_XL.shape[0], table_VD.shape[1])


@custom_op
def spread_gradient(token_XL: Tensor, grad_XD: Tensor, n_rows: int, padding: int) -> Tensor:
    """(n_rows, D) float32: the gradient of `read_entries` with respect to its table."""
    X, L = token_XL.shape
    D = grad_XD.shape[1]
    table_VD = grad_XD.new_zeros(n_rows, D, dtype=torch.float32)
    _spread_gradient[(X,)](token_XL.contiguous(), grad_XD.contiguous(), table_VD, D, padding, L, **one_warp(D))
    return table_VD


@spread_gradient.register_fake
def _(token_XL, grad_XD: Tensor, n_rows: int, padding: int) -> Tensor:
    return grad_XD.new_empty(n_rows, grad_XD.shape[1], dtype=torch.float32)


def _setup(ctx, inputs, output) -> None:
    token_XL, table_VD, ctx.padding = inputs
    ctx.n_rows, ctx.dtype = table_VD.shape[0], table_VD.dtype
    ctx.save_for_backward(token_XL)


def _backward(ctx, grad_XD: Tensor) -> tuple[None, Tensor, None]:
    (token_XL,) = ctx.saved_tensors
    return None, spread_gradient(token_XL, grad_XD, ctx.n_rows, ctx.padding).to(ctx.dtype), None


read_entries.register_autograd(_backward, setup_context=_setup)
