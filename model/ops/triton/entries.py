"""Vectors of entries: the mean embeddings of their tokens, as they are or at unit scale beside the states.

One warp an entry; rows of the table come from the L2 cache. `unit_entries` divides an entry's vector by its root mean
square. The gradient of each entry is computed from the vector in the output and goes to its tokens: to common ones,
at whose rows atomics would wait for each other, by a product with how often they stand in each entry; to the others
by atomics.

Axes: B batch · T position · S entries per position · L tokens per entry · D width · V vocabulary
      X any number of entries; in `unit_entries` the S rows of a position, or S + 1: its state first
      Z entries of all positions · K common tokens
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import custom_op

SMALLEST = tl.constexpr(1e-30)  # what a vector of weight 0 is divided by instead


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


def _read_setup(ctx, inputs, output) -> None:
    token_XL, table_VD, ctx.padding = inputs
    ctx.n_rows, ctx.dtype = table_VD.shape[0], table_VD.dtype
    ctx.save_for_backward(token_XL)


def _read_backward(ctx, grad_XD: Tensor) -> tuple[None, Tensor, None]:
    (token_XL,) = ctx.saved_tensors
    return None, spread_gradient(token_XL, grad_XD, ctx.n_rows, ctx.padding).to(ctx.dtype), None


read_entries.register_autograd(_read_backward, setup_context=_read_setup)


@triton.jit
def _unit_entries(
    x_ptr, token_ptr, table_ptr, log_weight_ptr, vector_ptr, scale_ptr, eps,
    PADDING: tl.constexpr, WEIGHTED: tl.constexpr, STATES: tl.constexpr, S: tl.constexpr, L: tl.constexpr,
    D: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0)
    place = row % (S + STATES)
    position = (row // (S + STATES)).to(tl.int64)
    to = vector_ptr + row.to(tl.int64) * D
    column = tl.arange(0, BLOCK)
    inside = column < D
    if STATES:
        if place == 0:
            state = tl.load(x_ptr + position * D + column, mask=inside)
            tl.store(to + column, state.to(vector_ptr.dtype.element_ty), mask=inside)
    if place >= STATES:
        entry = position * S + place - STATES
        total, n_words = sum_of_words(token_ptr + entry * L, table_ptr, D, PADDING, L, BLOCK)
        mean = total / n_words
        scale = tl.rsqrt(tl.sum(mean * mean, axis=0) / D + eps)
        tl.store(scale_ptr + entry, scale / n_words)
        if WEIGHTED:
            scale *= S * tl.exp(tl.load(log_weight_ptr + entry).to(tl.float32))
        tl.store(to + column, (mean * scale).to(vector_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _unit_gradient(
    grad_ptr, vector_ptr, scale_ptr, token_ptr, log_weight_ptr, place_ptr, grad_table_ptr, grad_log_weight_ptr,
    share_ptr, count_ptr,
    PADDING: tl.constexpr, WEIGHTED: tl.constexpr, STATES: tl.constexpr, S: tl.constexpr, L: tl.constexpr,
    D: tl.constexpr, K: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    entry = tl.program_id(0).to(tl.int64)
    row = entry // S * (S + STATES) + entry % S + STATES
    column, common = tl.arange(0, BLOCK), tl.arange(0, BLOCK_K)
    inside = column < D
    grad = tl.load(grad_ptr + row * D + column, mask=inside, other=0.0).to(tl.float32)
    vector = tl.load(vector_ptr + row * D + column, mask=inside, other=0.0).to(tl.float32)
    along = tl.sum(grad * vector, axis=0)
    scale = tl.load(scale_ptr + entry)
    if WEIGHTED:
        tl.store(grad_log_weight_ptr + entry, along)
        weight = S * tl.exp(tl.load(log_weight_ptr + entry).to(tl.float32))
        share = (grad * weight - vector * (along / (D * tl.maximum(weight, SMALLEST)))) * scale
    else:
        share = (grad - vector * (along / D)) * scale
    count = tl.zeros([BLOCK_K], dtype=tl.int32)
    for word in tl.static_range(L):
        token = tl.load(token_ptr + entry * L + word).to(tl.int64)
        rare = token != PADDING
        if K:
            place = tl.load(place_ptr + token).to(tl.int32)
            rare &= place < 0
            count += (common == place).to(tl.int32)
        to = grad_table_ptr + token * D + column
        tl.atomic_add(to, share, mask=column < tl.where(rare, D, 0), sem="relaxed")
    if K:
        tl.store(share_ptr + entry * D + column, share.to(share_ptr.dtype.element_ty), mask=inside)
        tl.store(count_ptr + entry * K + common, count.to(count_ptr.dtype.element_ty), mask=common < K)


@custom_op
def unit_entries(
    x_BTD: Tensor | None, token_BTSL: Tensor, table_VD: Tensor, eps: float, log_weight_BTS: Tensor | None,
    common_K: Tensor | None, place_V: Tensor | None, padding: int,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The state of each position if given, then the vectors of its entries at unit scale.

    Args:
        log_weight_BTS: each vector is multiplied by S times its weight; None: they stay as they are.
        common_K, place_V: see `CommonTokens`; both or none.
        padding: the token that is not read.  eps: as in `F.rms_norm`, which brings the means to unit scale.
    Returns:
        vector_BTXD: contiguous, in the dtype of the table.  scale_BTS: float32, what the sum of an entry's words was
        multiplied by for unit scale. The gradients of table and log-weights are summed in float32; in which order
        atomics add up that of the table is open.
    """
    (B, T, S, L), D = token_BTSL.shape, table_VD.shape[1]
    states, weighted = x_BTD is not None, log_weight_BTS is not None
    vector_BTXD = table_VD.new_empty(B, T, S + states, D)
    scale_BTS = table_VD.new_empty(B, T, S, dtype=torch.float32)
    _unit_entries[(B * T * (S + states),)](
        x_BTD.contiguous() if states else None, token_BTSL.contiguous(), table_VD.contiguous(),
        log_weight_BTS.contiguous() if weighted else None, vector_BTXD, scale_BTS, eps,
        padding, weighted, int(states), S, L, D, **one_warp(D),
    )  # fmt: skip
    return vector_BTXD, scale_BTS


@unit_entries.register_fake
def _(x_BTD, token_BTSL, table_VD, eps, log_weight_BTS, common_K, place_V, padding):
    B, T, S, _ = token_BTSL.shape
    vector_BTXD = table_VD.new_empty(B, T, S + (x_BTD is not None), table_VD.shape[1])
    return vector_BTXD, table_VD.new_empty(B, T, S, dtype=torch.float32)


@custom_op
def unit_entries_gradient(
    grad_BTXD: Tensor, vector_BTXD: Tensor, scale_BTS: Tensor, token_BTSL: Tensor, log_weight_BTS: Tensor | None,
    common_K: Tensor | None, place_V: Tensor | None, n_rows: int, padding: int,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Float32: grad_table_VD, where V = n_rows, and grad_log_weight_BTS or an empty one: those of `unit_entries`."""
    (S, L), (X, D) = token_BTSL.shape[-2:], vector_BTXD.shape[-2:]
    n_entries, weighted = scale_BTS.numel(), log_weight_BTS is not None
    n_common = 0 if common_K is None else len(common_K)
    grad_table_VD = scale_BTS.new_zeros(n_rows, D)
    grad_log_weight_BTS = scale_BTS.new_empty(log_weight_BTS.shape if weighted else 0)
    share_ZD = count_ZK = None
    if n_common:
        share_ZD, count_ZK = vector_BTXD.new_empty(n_entries, D), vector_BTXD.new_empty(n_entries, n_common)
    _unit_gradient[(n_entries,)](
        grad_BTXD.contiguous(), vector_BTXD, scale_BTS, token_BTSL.contiguous(),
        log_weight_BTS.contiguous() if weighted else None, place_V, grad_table_VD, grad_log_weight_BTS, share_ZD,
        count_ZK, padding, weighted, X - S, S, L, D, n_common, triton.next_power_of_2(max(n_common, 1)), **one_warp(D),
    )  # fmt: skip
    if n_common:
        grad_table_VD.index_copy_(0, common_K, (count_ZK.T @ share_ZD).float())
    return grad_table_VD, grad_log_weight_BTS


@unit_entries_gradient.register_fake
def _(grad_BTXD, vector_BTXD, scale_BTS, token_BTSL, log_weight_BTS, common_K, place_V, n_rows, padding):
    shapes = (n_rows, grad_BTXD.shape[-1]), 0 if log_weight_BTS is None else log_weight_BTS.shape
    return tuple(grad_BTXD.new_empty(shape, dtype=torch.float32) for shape in shapes)


def _unit_setup(ctx, inputs, output) -> None:
    x_BTD, token_BTSL, table_VD, _, log_weight_BTS, common_K, place_V, ctx.padding = inputs
    ctx.states, ctx.n_rows = x_BTD is not None, len(table_VD)
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(*output, token_BTSL, log_weight_BTS, common_K, place_V)


def _unit_backward(ctx, grad_BTXD: Tensor, _grad_scale):
    vector_BTXD, scale_BTS, token_BTSL, log_weight_BTS, *common = ctx.saved_tensors
    grad_table_VD, grad_log_weight_BTS = unit_entries_gradient(
        grad_BTXD, vector_BTXD, scale_BTS, token_BTSL, log_weight_BTS, *common, ctx.n_rows, ctx.padding
    )
    # A view: compiled, the sum with the state's other gradients reads it where it stands.
    grad_x_BTD = grad_BTXD[:, :, 0] if ctx.states else None
    grad_log_weight_BTS = None if log_weight_BTS is None else grad_log_weight_BTS.to(log_weight_BTS.dtype)
    return grad_x_BTD, None, grad_table_VD.to(vector_BTXD.dtype), None, grad_log_weight_BTS, None, None, None


unit_entries.register_autograd(_unit_backward, setup_context=_unit_setup)
