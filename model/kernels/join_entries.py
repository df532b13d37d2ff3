"""States and entries side by side, written at once: the source of the fusion's keys and values, or its wide input.

An entry's vector is the mean embedding of its words at unit scale, times a gain. One warp an entry; rows of the table
come from the L2 cache, in the backward pass once more: writing the vectors out and reading them would cost as much.

Axes: B batch · T position · S entries per position · L tokens per entry · D width · V vocabulary · H fusion heads
      X = S + 1 rows of a position · Y = D channels and what stands behind them · G programs
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import custom_op
from .read_entries import add_to_words, one_warp, sum_of_words

PROGRAMS = 2048  # that share the entries in the backward pass; each sums the gain's gradient over its own


@triton.jit
def _join_entries(
    x_ptr, token_ptr, table_ptr, gain_ptr, log_weight_ptr, drop_ptr, joined_ptr, eps, DROPPED,
    PADDING: tl.constexpr, DROPS: tl.constexpr, S: tl.constexpr, L: tl.constexpr, H: tl.constexpr, D: tl.constexpr,
    Y: tl.constexpr, BLOCK: tl.constexpr, BLOCK_H: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0)
    place = row % (S + 1)
    position = (row // (S + 1)).to(tl.int64)
    row = row.to(tl.int64)
    entry = position * S + place - 1
    column = tl.arange(0, BLOCK)
    inside = column < D
    log_weight = tl.load(log_weight_ptr + entry, mask=place > 0, other=0.0).to(tl.float32)
    if place == 0:
        state = tl.load(x_ptr + position * D + column, mask=inside)
        tl.store(joined_ptr + row * Y + column, state.to(joined_ptr.dtype.element_ty), mask=inside)
    else:
        total, n_words = sum_of_words(token_ptr + entry * L, table_ptr, D, PADDING, L, BLOCK)
        mean = total / n_words
        gain = tl.load(gain_ptr + column, mask=inside, other=0.0).to(tl.float32)
        vector = mean * tl.rsqrt(tl.sum(mean * mean, axis=0) / D + eps) * gain
        if H == 0:
            vector *= S * tl.exp(log_weight)
        tl.store(joined_ptr + row * Y + column, vector.to(joined_ptr.dtype.element_ty), mask=inside)
    if H > 0:
        head = tl.arange(0, BLOCK_H)
        bias = tl.where(head < H, log_weight, 0.0)
        if DROPS:
            dropped = tl.load(drop_ptr + row * H + head, mask=head < H, other=0)
            bias = tl.where(dropped != 0, DROPPED, bias)
        tl.store(joined_ptr + row * Y + D + head, bias.to(joined_ptr.dtype.element_ty), mask=head < Y - D)


@triton.jit
def _join_gradient(
    grad_ptr, token_ptr, table_ptr, gain_ptr, log_weight_ptr, drop_ptr, grad_table_ptr, partial_ptr,
    grad_log_weight_ptr, n_entries, eps,
    PADDING: tl.constexpr, DROPS: tl.constexpr, S: tl.constexpr, L: tl.constexpr, H: tl.constexpr, D: tl.constexpr,
    Y: tl.constexpr, BLOCK: tl.constexpr, BLOCK_H: tl.constexpr,
):  # fmt: skip
    column = tl.arange(0, BLOCK)
    inside = column < D
    gain = tl.load(gain_ptr + column, mask=inside, other=0.0).to(tl.float32)
    grad_gain = tl.zeros([BLOCK], dtype=tl.float32)
    first = tl.program_id(0).to(tl.int64)
    for turn in range(tl.cdiv(n_entries - tl.program_id(0), tl.num_programs(0))):
        entry = first + turn * tl.num_programs(0)
        row = entry // S * (S + 1) + entry % S + 1
        grad = tl.load(grad_ptr + row * Y + column, mask=inside, other=0.0).to(tl.float32)
        if H == 0:
            grad *= S * tl.exp(tl.load(log_weight_ptr + entry).to(tl.float32))
        total, n_words = sum_of_words(token_ptr + entry * L, table_ptr, D, PADDING, L, BLOCK)
        mean = total / n_words
        scale = tl.rsqrt(tl.sum(mean * mean, axis=0) / D + eps)
        unit = mean * scale
        grad_gain += grad * unit
        grad *= gain
        along = tl.sum(grad * unit, axis=0)
        add_to_words(
            token_ptr + entry * L, grad_table_ptr, (grad - unit * (along / D)) * scale / n_words, D, PADDING, L, BLOCK
        )
        if H == 0:
            grad_log_weight = along
        else:
            head = tl.arange(0, BLOCK_H)
            kept = head < H
            if DROPS:
                kept &= tl.load(drop_ptr + row * H + head, mask=kept, other=1) == 0
            behind = tl.load(grad_ptr + row * Y + D + head, mask=kept, other=0.0)
            grad_log_weight = tl.sum(behind.to(tl.float32), axis=0)
        tl.store(grad_log_weight_ptr + entry, grad_log_weight)
    tl.store(partial_ptr + first * D + column, grad_gain, mask=inside)


def _shape(token_BTSL: Tensor, drop_BTXH: Tensor | None, padding: int, H: int, D: int, Y: int) -> tuple[list, dict]:
    """The constants of both kernels, and their blocks."""
    S, L = token_BTSL.shape[-2:]
    blocks = one_warp(D) | {"BLOCK_H": triton.next_power_of_2(max(Y - D, 1))}
    return [padding, drop_BTXH is not None, S, L, H, D, Y], blocks


@custom_op
def join_entries(
    x_BTD: Tensor, token_BTSL: Tensor, table_VD: Tensor, gain_D: Tensor, eps: float, log_weight_BTS: Tensor,
    drop_BTXH: Tensor | None, n_heads: int, n_behind: int, padding: int, dropped: float,
) -> Tensor:  # fmt: skip
    """The twin of `fusion.join_reference`: the state of each position, then its entries' vectors.

    Without heads each vector is multiplied by S times its weight. With them the log-weight, 0 for the state, stands
    behind the channels once a head, or `dropped` where `drop` says so, and then zeros.

    Args:
        drop_BTXH: bool.  n_behind: Y - D.  padding: the token that is not read.
        eps: as in `F.rms_norm`, which brings the means to unit scale.
    Returns:
        joined_BTXY: contiguous, in the dtype of x. The gradients of table, gain and log-weights are summed in float32;
        in which order atomics add up that of the table is open.
    """
    (B, T, D), X, Y = x_BTD.shape, token_BTSL.shape[2] + 1, x_BTD.shape[-1] + n_behind
    joined_BTXY = x_BTD.new_empty(B, T, X, Y)
    constants, blocks = _shape(token_BTSL, drop_BTXH, padding, n_heads, D, Y)
    _join_entries[(B * T * X,)](
        x_BTD.contiguous(), token_BTSL.contiguous(), table_VD.contiguous(), gain_D, log_weight_BTS.contiguous(),
        None if drop_BTXH is None else drop_BTXH.contiguous(), joined_BTXY, eps, dropped, *constants, **blocks,
    )  # fmt: skip
    return joined_BTXY


@join_entries.register_fake
def _(x_BTD, token_BTSL, table_VD, gain_D, eps, log_weight_BTS, drop_BTXH, n_heads, n_behind, padding, dropped):
    B, T, D = x_BTD.shape
    return x_BTD.new_empty(B, T, token_BTSL.shape[2] + 1, D + n_behind)


@custom_op
def join_entries_gradient(
    grad_BTXY: Tensor, token_BTSL: Tensor, table_VD: Tensor, gain_D: Tensor, eps: float, log_weight_BTS: Tensor,
    drop_BTXH: Tensor | None, n_heads: int, padding: int,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """The gradients of `join_entries`, float32: grad_table_VD, grad_gain_D, grad_log_weight_BTS."""
    (V, D), Y, n_entries = table_VD.shape, grad_BTXY.shape[-1], log_weight_BTS.numel()
    n_programs = min(PROGRAMS, n_entries)
    grad_table_VD = table_VD.new_zeros(V, D, dtype=torch.float32)
    partial_GD = table_VD.new_empty(n_programs, D, dtype=torch.float32)
    grad_log_weight_BTS = log_weight_BTS.new_empty(log_weight_BTS.shape, dtype=torch.float32)
    constants, blocks = _shape(token_BTSL, drop_BTXH, padding, n_heads, D, Y)
    _join_gradient[(n_programs,)](
        grad_BTXY.contiguous(), token_BTSL.contiguous(), table_VD.contiguous(), gain_D, log_weight_BTS.contiguous(),
        None if drop_BTXH is None else drop_BTXH.contiguous(), grad_table_VD, partial_GD, grad_log_weight_BTS,
        n_entries, eps, *constants, **blocks,
    )  # fmt: skip
    return grad_table_VD, partial_GD.sum(dim=0), grad_log_weight_BTS


@join_entries_gradient.register_fake
def _(grad_BTXY, token_BTSL, table_VD, gain_D, eps, log_weight_BTS, drop_BTXH, n_heads, padding):
    shapes = table_VD.shape, gain_D.shape, log_weight_BTS.shape
    return tuple(grad_BTXY.new_empty(shape, dtype=torch.float32) for shape in shapes)


def _setup(ctx, inputs, output) -> None:
    _, token_BTSL, table_VD, gain_D, ctx.eps, log_weight_BTS, drop_BTXH, ctx.n_heads, _, ctx.padding, _ = inputs
    ctx.save_for_backward(token_BTSL, table_VD, gain_D, log_weight_BTS, drop_BTXH)


def _backward(ctx, grad_BTXY: Tensor):
    token_BTSL, table_VD, gain_D, log_weight_BTS, drop_BTXH = ctx.saved_tensors
    grads = join_entries_gradient(
        grad_BTXY, token_BTSL, table_VD, gain_D, ctx.eps, log_weight_BTS, drop_BTXH, ctx.n_heads, ctx.padding
    )
    floats = (table_VD, gain_D, log_weight_BTS)
    grad_table_VD, grad_gain_D, grad_log_weight_BTS = (g.to(x.dtype) for g, x in zip(grads, floats, strict=True))
    # A view: compiled, the sum with the state's other gradients reads it where it stands.
    grad_x_BTD = grad_BTXY[:, :, 0, : table_VD.shape[1]]
    return grad_x_BTD, None, grad_table_VD, grad_gain_D, None, grad_log_weight_BTS, *[None] * 5


join_entries.register_autograd(_backward, setup_context=_setup)
