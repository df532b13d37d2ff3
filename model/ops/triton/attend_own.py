"""Attention of every position to its own state and entries alone: cross-attention in scope `token`.

Nothing is shared between positions, so the bytes are the bound: each key and value is read once, forward and backward.
One program a position; its tiles have a row for each head. The same inputs give the same bits.

Axes: X positions · S entries of a position · H heads · E per-head width · D = H E · F = 2 D: a key, then its value
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import custom_op
from .search_grid import LOG2E

UNROLL = tl.constexpr(5)  # slots whose keys are asked for before the first is needed


@triton.jit
def _tile(ptr, h, e, H: tl.constexpr, E: tl.constexpr):
    """The E channels of each head of one position; zeros behind them."""
    return tl.load(ptr + h[:, None] * E + e[None, :], mask=(h < H)[:, None] & (e < E)[None, :], other=0.0)


@triton.jit
def _put(ptr, value, h, e, H: tl.constexpr, E: tl.constexpr):
    to = ptr + h[:, None] * E + e[None, :]
    tl.store(to, value.to(ptr.dtype.element_ty), mask=(h < H)[:, None] & (e < E)[None, :])


@triton.jit
def _key(
    slot, packed_ptr, entry_ptr, log_weight_ptr, drop_ptr, position, h, e,
    DROPS: tl.constexpr, S: tl.constexpr, H: tl.constexpr, E: tl.constexpr,
):  # fmt: skip
    """Keys of one slot, their values, and what is added to their logits; slot 0 is the state."""
    D: tl.constexpr = H * E
    if slot == 0:
        k_ptr = packed_ptr + position * (3 * D) + D
        bias = tl.zeros_like(h).to(tl.float32)
    else:
        k_ptr = entry_ptr + (position * S + slot - 1) * (2 * D)
        bias = tl.zeros_like(h) + tl.load(log_weight_ptr + position * S + slot - 1)
    if DROPS:
        bias += tl.load(drop_ptr + (position * H + h) * (S + 1) + slot, mask=h < H, other=0.0)
    return _tile(k_ptr, h, e, H, E).to(tl.float32), _tile(k_ptr + D, h, e, H, E).to(tl.float32), bias


@triton.jit
def _attend_own(
    packed_ptr, entry_ptr, log_weight_ptr, drop_ptr, out_ptr, lse_ptr, scale,
    DROPS: tl.constexpr, S: tl.constexpr, H: tl.constexpr, HB: tl.constexpr, E: tl.constexpr, EB: tl.constexpr,
):  # fmt: skip
    position = tl.program_id(0).to(tl.int64)
    h, e = tl.arange(0, HB), tl.arange(0, EB)
    q = _tile(packed_ptr + position * (3 * H * E), h, e, H, E).to(tl.float32)
    best = tl.full([HB], float("-inf"), dtype=tl.float32)
    total = tl.zeros([HB], dtype=tl.float32)
    mixed = tl.zeros([HB, EB], dtype=tl.float32)
    for slot in tl.range(0, S + 1, loop_unroll_factor=UNROLL):
        k, v, bias = _key(slot, packed_ptr, entry_ptr, log_weight_ptr, drop_ptr, position, h, e, DROPS, S, H, E)
        logit = (tl.sum(q * k, axis=1) * scale + bias) * LOG2E
        higher = tl.maximum(best, logit)
        shrink, weight = tl.exp2(best - higher), tl.exp2(logit - higher)
        total = total * shrink + weight
        mixed = mixed * shrink[:, None] + weight[:, None] * v
        best = higher
    _put(out_ptr + position * (H * E), mixed / total[:, None], h, e, H, E)
    tl.store(lse_ptr + position * H + h, best + tl.log2(total), mask=h < H)


@triton.jit
def _own_gradient(
    grad_ptr, packed_ptr, entry_ptr, log_weight_ptr, drop_ptr, lse_ptr, grad_packed_ptr, grad_entry_ptr,
    grad_log_weight_ptr, scale,
    DROPS: tl.constexpr, S: tl.constexpr, H: tl.constexpr, HB: tl.constexpr, E: tl.constexpr, EB: tl.constexpr,
):  # fmt: skip
    D: tl.constexpr = H * E
    position = tl.program_id(0).to(tl.int64)
    h, e = tl.arange(0, HB), tl.arange(0, EB)
    q = _tile(packed_ptr + position * (3 * D), h, e, H, E).to(tl.float32)
    grad = _tile(grad_ptr + position * D, h, e, H, E).to(tl.float32)
    lse = tl.load(lse_ptr + position * H + h, mask=h < H, other=float("inf"))  # a head that is none has no weights
    along = tl.zeros([HB], dtype=tl.float32)  # the gradient times the output
    for slot in tl.range(0, S + 1, loop_unroll_factor=UNROLL):
        k, v, bias = _key(slot, packed_ptr, entry_ptr, log_weight_ptr, drop_ptr, position, h, e, DROPS, S, H, E)
        weight = tl.exp2((tl.sum(q * k, axis=1) * scale + bias) * LOG2E - lse)
        along += weight * tl.sum(grad * v, axis=1)
    grad_packed_ptr += position * (3 * D)
    grad_q = tl.zeros([HB, EB], dtype=tl.float32)
    for slot in tl.range(0, S + 1, loop_unroll_factor=UNROLL):  # what is read once more comes from the cache
        k, v, bias = _key(slot, packed_ptr, entry_ptr, log_weight_ptr, drop_ptr, position, h, e, DROPS, S, H, E)
        weight = tl.exp2((tl.sum(q * k, axis=1) * scale + bias) * LOG2E - lse)
        grad_logit = weight * (tl.sum(grad * v, axis=1) - along)
        grad_q += grad_logit[:, None] * k
        if slot == 0:
            to = grad_packed_ptr + D
        else:
            to = grad_entry_ptr + (position * S + slot - 1) * (2 * D)
            tl.store(grad_log_weight_ptr + position * S + slot - 1, tl.sum(grad_logit, axis=0))
        _put(to, q * (grad_logit * scale)[:, None], h, e, H, E)
        _put(to + D, grad * weight[:, None], h, e, H, E)
    _put(grad_packed_ptr, grad_q * scale, h, e, H, E)


def _launch(kernel, tensors, log_weight_BTS: Tensor, drop_BTHX: Tensor | None, D: int, n_heads: int) -> None:
    (B, T, S), E = log_weight_BTS.shape, D // n_heads
    HB, EB = triton.next_power_of_2(n_heads), triton.next_power_of_2(E)
    n_warps = min(max(1, HB * EB // 256), 16)
    kernel[(B * T,)](*tensors, E**-0.5, drop_BTHX is not None, S, n_heads, HB, E, EB, num_warps=n_warps)


@custom_op
def attend_own(
    packed_BTY: Tensor, entry_BTZ: Tensor, log_weight_BTS: Tensor, drop_BTHX: Tensor | None, n_heads: int
) -> tuple[Tensor, Tensor]:
    """What `fusion.attend_own` is on CUDA: softmax(q k / sqrt(E) + bias) v over the S + 1 keys of each position.

    Args:
        packed_BTY: not float64; Y = 3 D: query, key and value of the state; in each the E channels of one head after
        the other.
        entry_BTZ: Z = S F: each entry's key, then its value.
        log_weight_BTS, drop_BTHX: float32; added to the logits of entries, and of all keys.
    Returns:
        out_BTD, in the dtype of `packed`, and lse_BTH, float32: log2 of each head's sum.
    """
    B, T, D = *packed_BTY.shape[:2], packed_BTY.shape[2] // 3
    keys = log_weight_BTS.shape[2] + 1
    if entry_BTZ.shape[2] != (keys - 1) * 2 * D or drop_BTHX is not None and drop_BTHX.shape != (B, T, n_heads, keys):
        raise ValueError(
            f"{keys} keys of width {D}: got {entry_BTZ.shape}, {None if drop_BTHX is None else drop_BTHX.shape}"
        )
    out_BTD = packed_BTY.new_empty(B, T, D)
    lse_BTH = packed_BTY.new_empty(B, T, n_heads, dtype=torch.float32)
    inputs = (x if x is None else x.contiguous() for x in (packed_BTY, entry_BTZ, log_weight_BTS, drop_BTHX))
    _launch(_attend_own, (*inputs, out_BTD, lse_BTH), log_weight_BTS, drop_BTHX, D, n_heads)
    return out_BTD, lse_BTH


@attend_own.register_fake
def _(packed_BTY, entry_BTZ, log_weight_BTS, drop_BTHX, n_heads):
    B, T, Y = packed_BTY.shape
    return packed_BTY.new_empty(B, T, Y // 3), packed_BTY.new_empty(B, T, n_heads, dtype=torch.float32)


@custom_op
def attend_own_gradient(
    grad_BTD: Tensor, packed_BTY: Tensor, entry_BTZ: Tensor, log_weight_BTS: Tensor, drop_BTHX: Tensor | None,
    lse_BTH: Tensor, n_heads: int,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """The gradients of `attend_own`: of packed and entries in their dtype, of the log-weights in float32."""
    grad_packed_BTY, grad_entry_BTZ = packed_BTY.new_empty(packed_BTY.shape), entry_BTZ.new_empty(entry_BTZ.shape)
    grad_log_weight_BTS = lse_BTH.new_empty(log_weight_BTS.shape)
    inputs = (
        x if x is None else x.contiguous()
        for x in (grad_BTD, packed_BTY, entry_BTZ, log_weight_BTS, drop_BTHX, lse_BTH)
    )  # fmt: skip
    tensors = *inputs, grad_packed_BTY, grad_entry_BTZ, grad_log_weight_BTS
    _launch(_own_gradient, tensors, log_weight_BTS, drop_BTHX, grad_BTD.shape[2], n_heads)
    return grad_packed_BTY, grad_entry_BTZ, grad_log_weight_BTS


@attend_own_gradient.register_fake
def _(grad_BTD, packed_BTY, entry_BTZ, log_weight_BTS, drop_BTHX, lse_BTH, n_heads):
    grad_log_weight_BTS = lse_BTH.new_empty(log_weight_BTS.shape)
    return packed_BTY.new_empty(packed_BTY.shape), entry_BTZ.new_empty(entry_BTZ.shape), grad_log_weight_BTS


def _setup(ctx, inputs, output) -> None:
    *tensors, ctx.n_heads = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(*tensors, output[1])


def _backward(ctx, grad_BTD: Tensor, _grad_lse):
    return *attend_own_gradient(grad_BTD, *ctx.saved_tensors, ctx.n_heads), None, None


attend_own.register_autograd(_backward, setup_context=_setup)
