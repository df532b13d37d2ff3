"""States and entries side by side, written at once: the source of the fusion's keys and values, or its wide input.

An entry's vector is the mean embedding of its words at unit scale, times a gain. One warp an entry; rows of the table
come from the L2 cache, in the backward pass once more: writing the vectors out and reading them would cost as much.
The gradient of each entry goes to its words: of common ones, at whose rows atomics would wait for each other, by a
product with how often they stand in each entry; of the others by atomics.

Axes: B batch · T position · S entries per position · L tokens per entry · D width · V vocabulary
      X = S + 1 rows of a position · Z entries of all positions · K common words · G programs
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import custom_op
from .read_entries import one_warp, sum_of_words

PROGRAMS = 2048  # that share the entries in the backward pass; each sums the gain's gradient over its own


@triton.jit
def _join_entries(
    x_ptr, token_ptr, table_ptr, gain_ptr, log_weight_ptr, joined_ptr, eps,
    PADDING: tl.constexpr, WEIGHTED: tl.constexpr, S: tl.constexpr, L: tl.constexpr, D: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0)
    place = row % (S + 1)
    position = (row // (S + 1)).to(tl.int64)
    row = row.to(tl.int64)
    column = tl.arange(0, BLOCK)
    inside = column < D
    if place == 0:
        state = tl.load(x_ptr + position * D + column, mask=inside)
        tl.store(joined_ptr + row * D + column, state.to(joined_ptr.dtype.element_ty), mask=inside)
    else:
        entry = position * S + place - 1
        total, n_words = sum_of_words(token_ptr + entry * L, table_ptr, D, PADDING, L, BLOCK)
        mean = total / n_words
        gain = tl.load(gain_ptr + column, mask=inside, other=0.0).to(tl.float32)
        vector = mean * tl.rsqrt(tl.sum(mean * mean, axis=0) / D + eps) * gain
        if WEIGHTED:
            vector *= S * tl.exp(tl.load(log_weight_ptr + entry).to(tl.float32))
        tl.store(joined_ptr + row * D + column, vector.to(joined_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _join_gradient(
    grad_ptr, token_ptr, table_ptr, gain_ptr, log_weight_ptr, place_ptr, grad_table_ptr, partial_ptr,
    grad_log_weight_ptr, share_ptr, count_ptr, n_entries, eps,
    PADDING: tl.constexpr, WEIGHTED: tl.constexpr, S: tl.constexpr, L: tl.constexpr, D: tl.constexpr,
    K: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    column, common = tl.arange(0, BLOCK), tl.arange(0, BLOCK_K)
    inside = column < D
    gain = tl.load(gain_ptr + column, mask=inside, other=0.0).to(tl.float32)
    grad_gain = tl.zeros([BLOCK], dtype=tl.float32)
    first = tl.program_id(0).to(tl.int64)
    for turn in range(tl.cdiv(n_entries - tl.program_id(0), tl.num_programs(0))):
        entry = first + turn * tl.num_programs(0)
        row = entry // S * (S + 1) + entry % S + 1
        grad = tl.load(grad_ptr + row * D + column, mask=inside, other=0.0).to(tl.float32)
        if WEIGHTED:
            grad *= S * tl.exp(tl.load(log_weight_ptr + entry).to(tl.float32))
        total, n_words = sum_of_words(token_ptr + entry * L, table_ptr, D, PADDING, L, BLOCK)
        mean = total / n_words
        scale = tl.rsqrt(tl.sum(mean * mean, axis=0) / D + eps)
        unit = mean * scale
        grad_gain += grad * unit
        grad *= gain
        along = tl.sum(grad * unit, axis=0)
        share = (grad - unit * (along / D)) * scale / n_words
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
        if WEIGHTED:
            tl.store(grad_log_weight_ptr + entry, along)
    tl.store(partial_ptr + first * D + column, grad_gain, mask=inside)


@custom_op
def join_entries(
    x_BTD: Tensor, token_BTSL: Tensor, table_VD: Tensor, gain_D: Tensor, eps: float, log_weight_BTS: Tensor | None,
    common_K: Tensor | None, place_V: Tensor | None, padding: int,
) -> Tensor:  # fmt: skip
    """The twin of `fusion.join_reference`: the state of each position, then its entries' vectors.

    Args:
        log_weight_BTS: each vector is multiplied by S times its weight; None: they stay as they are.
        common_K, place_V: see `CommonWords`; both or none.
        padding: the token that is not read.  eps: as in `F.rms_norm`, which brings the means to unit scale.
    Returns:
        joined_BTXD: contiguous, in the dtype of x. The gradients of table, gain and log-weights are summed in float32;
        in which order atomics add up that of the table is open.
    """
    (B, T, D), (S, L) = x_BTD.shape, token_BTSL.shape[-2:]
    joined_BTXD = x_BTD.new_empty(B, T, S + 1, D)
    weighted = log_weight_BTS is not None
    _join_entries[(B * T * (S + 1),)](
        x_BTD.contiguous(), token_BTSL.contiguous(), table_VD.contiguous(), gain_D,
        log_weight_BTS.contiguous() if weighted else None, joined_BTXD, eps, padding, weighted, S, L, D, **one_warp(D),
    )  # fmt: skip
    return joined_BTXD


@join_entries.register_fake
def _(x_BTD, token_BTSL, table_VD, gain_D, eps, log_weight_BTS, common_K, place_V, padding):
    B, T, D = x_BTD.shape
    return x_BTD.new_empty(B, T, token_BTSL.shape[2] + 1, D)


@custom_op
def join_entries_gradient(
    grad_BTXD: Tensor, token_BTSL: Tensor, table_VD: Tensor, gain_D: Tensor, eps: float,
    log_weight_BTS: Tensor | None, common_K: Tensor | None, place_V: Tensor | None, padding: int,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """The gradients of `join_entries`, float32: grad_table_VD, grad_gain_D, grad_log_weight_BTS (or an empty one)."""
    (V, D), (S, L) = table_VD.shape, token_BTSL.shape[-2:]
    n_entries, weighted = token_BTSL.numel() // L, log_weight_BTS is not None
    n_programs, n_common = min(PROGRAMS, n_entries), 0 if common_K is None else len(common_K)
    grad_table_VD = table_VD.new_zeros(V, D, dtype=torch.float32)
    partial_GD = table_VD.new_empty(n_programs, D, dtype=torch.float32)
    grad_log_weight_BTS = table_VD.new_empty(log_weight_BTS.shape if weighted else 0, dtype=torch.float32)
    share_ZD = count_ZK = None
    if n_common:
        share_ZD, count_ZK = table_VD.new_empty(n_entries, D), table_VD.new_empty(n_entries, n_common)
    _join_gradient[(n_programs,)](
        grad_BTXD.contiguous(), token_BTSL.contiguous(), table_VD.contiguous(), gain_D,
        log_weight_BTS.contiguous() if weighted else None, place_V, grad_table_VD, partial_GD, grad_log_weight_BTS,
        share_ZD, count_ZK, n_entries, eps, padding, weighted, S, L, D, n_common,
        triton.next_power_of_2(max(n_common, 1)), **one_warp(D),
    )  # fmt: skip
    if n_common:
        grad_table_VD.index_copy_(0, common_K, (count_ZK.T @ share_ZD).float())
    return grad_table_VD, partial_GD.sum(dim=0), grad_log_weight_BTS


@join_entries_gradient.register_fake
def _(grad_BTXD, token_BTSL, table_VD, gain_D, eps, log_weight_BTS, common_K, place_V, padding):
    shapes = table_VD.shape, gain_D.shape, 0 if log_weight_BTS is None else log_weight_BTS.shape
    return tuple(grad_BTXD.new_empty(shape, dtype=torch.float32) for shape in shapes)


def _setup(ctx, inputs, output) -> None:
    _, token_BTSL, table_VD, gain_D, ctx.eps, log_weight_BTS, common_K, place_V, ctx.padding = inputs
    ctx.save_for_backward(token_BTSL, table_VD, gain_D, log_weight_BTS, common_K, place_V)


def _backward(ctx, grad_BTXD: Tensor):
    token_BTSL, table_VD, gain_D, log_weight_BTS, *common = ctx.saved_tensors
    grads = join_entries_gradient(
        grad_BTXD, token_BTSL, table_VD, gain_D, ctx.eps, log_weight_BTS, *common, ctx.padding
    )
    grad_table_VD, grad_gain_D = grads[0].to(table_VD.dtype), grads[1].to(gain_D.dtype)
    grad_log_weight_BTS = None if log_weight_BTS is None else grads[2].to(log_weight_BTS.dtype)
    # A view: compiled, the sum with the state's other gradients reads it where it stands.
    return grad_BTXD[:, :, 0], None, grad_table_VD, grad_gain_D, None, grad_log_weight_BTS, None, None, None


join_entries.register_autograd(_backward, setup_context=_setup)
