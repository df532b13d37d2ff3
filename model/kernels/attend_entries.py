"""Causal attention of positions to states and entries, X keys a position: the cross-attention fusion's inner part.

FlashAttention (Dao 2023, arXiv:2307.08691) that knows its layout: keys stand position by position and a document is a
run of positions, so that a tile of queries meets one stretch of keys; an entry's log-weight is added to its logits.
Nothing is added up by atomics: the same inputs give the same bits.

Axes: B batch · T queries among P positions · X keys of a position, its state and S entries · J = P X keys
      H heads · E per-head width · D = H E · F = 2 D: a key, then its value · M queries and N keys of a tile
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import custom_op
from .search_grid import LOG2E


@triton.jit
def _rows(base_ptr, place, stride, e, keep, E: tl.constexpr):
    """A tile of rows of one head's E channels; zeros where a row is not kept and behind the channels."""
    return tl.load(base_ptr + place[:, None] * stride + e[None, :], mask=keep[:, None] & (e < E)[None, :], other=0.0)


@triton.jit
def _bias(log_weight_ptr, drop_ptr, j, end, DROPS: tl.constexpr, X: tl.constexpr):
    """What is added to the logits of N keys.

    Loaded twice over, so that there are enough for every thread: half of them would each load all of it.
    """
    j = j[:, None] + tl.zeros([1, 2], tl.int32)
    slot, inside = j % X, j < end
    bias = tl.load(log_weight_ptr + j // X * (X - 1) + slot - 1, mask=inside & (slot > 0), other=0.0)
    if DROPS:
        bias += tl.load(drop_ptr + j, mask=inside, other=0.0)
    return tl.max(bias, axis=1)


@triton.jit
def _keys(
    kv_ptr, log_weight_ptr, drop_ptr, j, end, e,
    DROPS: tl.constexpr, X: tl.constexpr, D: tl.constexpr, E: tl.constexpr,
):  # fmt: skip
    """N keys of a head, their values, and what is added to their logits."""
    k = _rows(kv_ptr, j, 2 * D, e, j < end, E)
    v = _rows(kv_ptr + D, j, 2 * D, e, j < end, E)
    return k, v, _bias(log_weight_ptr, drop_ptr, j, end, DROPS, X)


@triton.jit
def _logits(q, k, bias, j, begins, ends, scale, PRECISION: tl.constexpr):
    """Of M queries and N keys; minus infinity where a query does not see a key."""
    logit = tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale + bias[None, :]
    visible = (j[None, :] >= begins[:, None]) & (j[None, :] < ends[:, None])
    return tl.where(visible, logit, float("-inf"))


@triton.jit
def _attend(
    q_ptr, kv_ptr, log_weight_ptr, drop_ptr, position_ptr, first_ptr, out_ptr, lse_ptr, T, P, scale,
    DROPS: tl.constexpr, X: tl.constexpr, H: tl.constexpr, E: tl.constexpr, EB: tl.constexpr, PRECISION: tl.constexpr,
    M: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    D: tl.constexpr = H * E
    head, row = tl.program_id(1) % H, (tl.program_id(1) // H).to(tl.int64)
    e = tl.arange(0, EB)
    m = tl.program_id(0) * M + tl.arange(0, M)
    # A query sees the keys from `begins` to before `ends`.
    begins = tl.load(first_ptr + row * T + m, mask=m < T, other=P) * X
    ends = (tl.load(position_ptr + m, mask=m < T, other=-1) + 1) * X
    q = _rows(q_ptr + row * T * D + head * E, m, D, e, m < T, E)
    kv_ptr += row * P * X * 2 * D + head * E
    log_weight_ptr += row * P * (X - 1)
    if DROPS:
        drop_ptr += tl.program_id(1).to(tl.int64) * P * X
    best = tl.full([M], float("-inf"), dtype=tl.float32)
    total = tl.zeros([M], dtype=tl.float32)
    mixed = tl.zeros([M, EB], dtype=tl.float32)
    begin = tl.min(begins, axis=0) // N * N
    end = tl.max(ends, axis=0)
    for start in range(begin, end, N):
        j = start + tl.arange(0, N)
        k, v, bias = _keys(kv_ptr, log_weight_ptr, drop_ptr, j, P * X, e, DROPS, X, D, E)
        logit = _logits(q, k, bias, j, begins, ends, scale, PRECISION)
        higher = tl.maximum(best, tl.max(logit, axis=1))
        base = tl.where(higher == float("-inf"), 0.0, higher) * LOG2E  # of a row that has seen no key yet: 0
        weight = tl.exp2(logit * LOG2E - base[:, None])
        shrink = tl.exp2(best * LOG2E - base)
        total = total * shrink + tl.sum(weight, axis=1)
        mixed = tl.dot(weight.to(v.dtype), v, mixed * shrink[:, None], input_precision=PRECISION)
        best = higher
    total = tl.where(m < T, total, 1.0)
    out = mixed / total[:, None]
    keep = (m < T)[:, None] & (e < E)[None, :]
    tl.store(out_ptr + (row * T + m)[:, None] * D + head * E + e[None, :], out.to(out_ptr.dtype.element_ty), mask=keep)
    tl.store(lse_ptr + tl.program_id(1).to(tl.int64) * T + m, best * LOG2E + tl.log2(total), mask=m < T)


@triton.jit
def _sums(sums_ptr, m, T):
    """Of M queries: log2 of the sum, and the gradient's product with the output."""
    place = 2 * (tl.program_id(1).to(tl.int64) * T + m)
    return tl.split(tl.load(sums_ptr + place[:, None] + tl.arange(0, 2), mask=(m < T)[:, None], other=0.0))


@triton.jit
def _query_gradient(
    tile, grad_ptr, q_ptr, kv_ptr, log_weight_ptr, drop_ptr, first_ptr, sums_ptr, grad_q_ptr, T, scale,
    DROPS: tl.constexpr, X: tl.constexpr, H: tl.constexpr, E: tl.constexpr, EB: tl.constexpr, PRECISION: tl.constexpr,
    M: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    D: tl.constexpr = H * E
    head, row = tl.program_id(1) % H, (tl.program_id(1) // H).to(tl.int64)
    e = tl.arange(0, EB)
    m = tile * M + tl.arange(0, M)
    begins, ends = tl.load(first_ptr + row * T + m, mask=m < T, other=T) * X, (m + 1) * X
    here = row * T * D + head * E
    q = _rows(q_ptr + here, m, D, e, m < T, E)
    grad = _rows(grad_ptr + here, m, D, e, m < T, E)
    lse, delta = _sums(sums_ptr, m, T)
    kv_ptr += row * T * X * 2 * D + head * E
    log_weight_ptr += row * T * (X - 1)
    if DROPS:
        drop_ptr += tl.program_id(1).to(tl.int64) * T * X
    grad_q = tl.zeros([M, EB], dtype=tl.float32)
    begin = tl.min(begins, axis=0) // N * N
    end = tl.minimum((tile + 1) * M, T) * X
    for start in range(begin, end, N):
        j = start + tl.arange(0, N)
        k, v, bias = _keys(kv_ptr, log_weight_ptr, drop_ptr, j, T * X, e, DROPS, X, D, E)
        logit = _logits(q, k, bias, j, begins, ends, scale, PRECISION)
        weight = tl.exp2(logit * LOG2E - lse[:, None])
        grad_weight = tl.dot(grad, tl.trans(v), input_precision=PRECISION)
        grad_logit = weight * (grad_weight - delta[:, None])
        grad_q = tl.dot(grad_logit.to(k.dtype), k, grad_q, input_precision=PRECISION)
    grad_q *= scale
    keep = (m < T)[:, None] & (e < E)[None, :]
    tl.store(grad_q_ptr + here + m[:, None] * D + e[None, :], grad_q.to(grad_q_ptr.dtype.element_ty), mask=keep)


@triton.jit
def _key_gradient(
    tile, grad_ptr, q_ptr, kv_ptr, log_weight_ptr, drop_ptr, last_ptr, sums_ptr, grad_kv_ptr, grad_bias_ptr, T, scale,
    DROPS: tl.constexpr, X: tl.constexpr, H: tl.constexpr, E: tl.constexpr, EB: tl.constexpr, PRECISION: tl.constexpr,
    M: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    D: tl.constexpr = H * E
    head, row = tl.program_id(1) % H, (tl.program_id(1) // H).to(tl.int64)
    e = tl.arange(0, EB)
    j = tile * N + tl.arange(0, N)
    n = j // X
    here = row * T * X * 2 * D + head * E
    log_weight_ptr += row * T * (X - 1)
    if DROPS:
        drop_ptr += tl.program_id(1).to(tl.int64) * T * X
    k, v, bias = _keys(kv_ptr + here, log_weight_ptr, drop_ptr, j, T * X, e, DROPS, X, D, E)
    q_ptr += row * T * D + head * E
    grad_ptr += row * T * D + head * E
    grad_k = tl.zeros([N, EB], dtype=tl.float32)
    grad_v = tl.zeros([N, EB], dtype=tl.float32)
    grad_bias = tl.zeros([N], dtype=tl.float32)
    begin = tile * N // X // M * M
    last = tl.load(last_ptr + row * T + n, mask=n < T, other=0)
    end = tl.max(last, axis=0) + 1
    for start in range(begin, end, M):
        m = start + tl.arange(0, M)
        q = _rows(q_ptr, m, D, e, m < T, E)
        grad = _rows(grad_ptr, m, D, e, m < T, E)
        lse, delta = _sums(sums_ptr, m, T)
        logit = tl.dot(k, tl.trans(q), input_precision=PRECISION) * scale + bias[:, None]
        visible = (m[None, :] >= n[:, None]) & (m[None, :] <= last[:, None])
        weight = tl.where(visible, tl.exp2(logit * LOG2E - lse[None, :]), 0.0)
        grad_v = tl.dot(weight.to(grad.dtype), grad, grad_v, input_precision=PRECISION)
        grad_weight = tl.dot(v, tl.trans(grad), input_precision=PRECISION)
        grad_logit = weight * (grad_weight - delta[None, :])
        grad_k = tl.dot(grad_logit.to(q.dtype), q, grad_k, input_precision=PRECISION)
        grad_bias += tl.sum(grad_logit, axis=1)
    grad_k *= scale
    to = grad_kv_ptr + here + j[:, None] * 2 * D + e[None, :]
    keep = (n < T)[:, None] & (e < E)[None, :]
    tl.store(to, grad_k.to(grad_kv_ptr.dtype.element_ty), mask=keep)
    tl.store(to + D, grad_v.to(grad_kv_ptr.dtype.element_ty), mask=keep)
    tl.store(grad_bias_ptr + tl.program_id(1).to(tl.int64) * T * X + j, grad_bias, mask=n < T)


@triton.jit
def _gradient(
    grad_ptr, q_ptr, kv_ptr, log_weight_ptr, drop_ptr, first_ptr, last_ptr, sums_ptr, grad_q_ptr, grad_kv_ptr,
    grad_bias_ptr, T, scale,
    DROPS: tl.constexpr, X: tl.constexpr, H: tl.constexpr, E: tl.constexpr, EB: tl.constexpr, PRECISION: tl.constexpr,
    M: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    """Queries and keys of a row side by side, so that both find the row's keys in the L2 cache."""
    n_query_tiles = tl.cdiv(T, M)
    if tl.program_id(0) < n_query_tiles:
        _query_gradient(
            tl.program_id(0), grad_ptr, q_ptr, kv_ptr, log_weight_ptr, drop_ptr, first_ptr, sums_ptr, grad_q_ptr, T,
            scale, DROPS, X, H, E, EB, PRECISION, M, N,
        )  # fmt: skip
    else:
        _key_gradient(
            tl.program_id(0) - n_query_tiles, grad_ptr, q_ptr, kv_ptr, log_weight_ptr, drop_ptr, last_ptr, sums_ptr,
            grad_kv_ptr, grad_bias_ptr, T, scale, DROPS, X, H, E, EB, PRECISION, N, M,
        )  # fmt: skip


# M, N, warps, stages and registers a thread, measured on an H100 (benchmark/NOTES.md); in `_key_gradient` the tiles are
# N queries by M keys.
TILES = {_attend: (64, 32, 4, 4, None), _gradient: (64, 32, 4, 3, 128)}
TILES_OF_ONE_QUERY = (16, 128, 4, 3, None)


def _shape(kernel, q_BTD: Tensor, drop_BHJ: Tensor | None, X: int, n_heads: int) -> tuple[int, int, dict]:
    """M, N and what else the kernels are compiled for."""
    E = q_BTD.shape[-1] // n_heads
    EB, exact = max(16, triton.next_power_of_2(E)), q_BTD.dtype == torch.float32
    tiles = TILES_OF_ONE_QUERY if kernel is _attend and q_BTD.shape[1] == 1 else TILES[kernel]
    M, N, warps, stages, registers = (32, 32, 4, 1, None) if exact or EB > 64 else tiles
    if EB * q_BTD.element_size() > 512:  # else they would not fit the shared memory of every GPU
        M, N = 16, 16
    constants = {"DROPS": drop_BHJ is not None, "X": X, "H": n_heads, "E": E, "EB": EB, "M": M, "N": N}
    precision = {"scale": E**-0.5, "PRECISION": "ieee" if exact else "tf32"}
    options = {"num_warps": warps, "num_stages": stages, "maxnreg": registers}
    return M, N, constants | precision | options


def _contiguous(*tensors: Tensor | None) -> tuple[Tensor | None, ...]:
    return tuple(x if x is None else x.contiguous() for x in tensors)


@custom_op
def attend_entries(
    q_BTD: Tensor, kv_BJF: Tensor, log_weight_BPS: Tensor, drop_BHJ: Tensor | None, position_T: Tensor,
    first_BT: Tensor, last_BT: Tensor, n_heads: int,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The twin of `fusion.attend_joined`: softmax(q k / sqrt(E) + bias) v over the keys that a query sees.

    Query t sees the X keys of each position from `first[t]` to its own. The bias of a state is 0, that of an entry its
    log-weight; `drop` is added.

    Args:
        kv_BJF: bfloat16, float16 or float32: keys, then values; in each the E channels of one head after the other.
        log_weight_BPS, drop_BHJ: float32.
        position_T, first_BT, last_BT: int32: see `Runs`.
    Returns:
        out_BTD, in the dtype of q, and lse_BHT, float32: log2 of each query's sum. Gradients need T = P.
    """
    (B, T, D), (P, S) = q_BTD.shape, log_weight_BPS.shape[1:]
    if q_BTD.dtype == torch.float64:
        raise ValueError("attention to entries has no kernel for float64; --use_flash_attn False needs none")
    if kv_BJF.shape[1] != P * (S + 1):
        raise ValueError(f"{P} positions of {S} entries have {P * (S + 1)} keys, got {kv_BJF.shape[1]}")
    out_BTD = q_BTD.new_empty(B, T, D)
    lse_BHT = q_BTD.new_empty(B, n_heads, T, dtype=torch.float32)
    operands = _contiguous(q_BTD, kv_BJF, log_weight_BPS, drop_BHJ, position_T, first_BT)
    M, _, shape = _shape(_attend, q_BTD, drop_BHJ, S + 1, n_heads)
    _attend[(triton.cdiv(T, M), B * n_heads)](*operands, out_BTD, lse_BHT, T, P, **shape)
    return out_BTD, lse_BHT


@attend_entries.register_fake
def _(q_BTD, kv_BJF, log_weight_BPS, drop_BHJ, position_T, first_BT, last_BT, n_heads):
    B, T, D = q_BTD.shape
    return q_BTD.new_empty(B, T, D), q_BTD.new_empty(B, n_heads, T, dtype=torch.float32)


@custom_op
def attend_entries_gradient(
    grad_BTD: Tensor, q_BTD: Tensor, kv_BJF: Tensor, log_weight_BTS: Tensor, drop_BHJ: Tensor | None,
    first_BT: Tensor, last_BT: Tensor, sums_BHT2: Tensor, n_heads: int,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """The gradients of `attend_entries`: of q and kv in their dtype, that of the bias, float32 (B, H, J).

    Args:
        sums_BHT2: float32: `lse_BHT`, and the product of the output with its gradient, summed by head.
    """
    (B, T, D), X = q_BTD.shape, log_weight_BTS.shape[-1] + 1
    if log_weight_BTS.shape[1] != T:
        raise ValueError(f"no gradient goes through cached positions: {T} queries, {log_weight_BTS.shape[1]} positions")
    grad_q_BTD, grad_kv_BJF = q_BTD.new_empty(B, T, D), kv_BJF.new_empty(kv_BJF.shape)
    grad_bias_BHJ = sums_BHT2.new_empty(B, n_heads, T * X)
    operands = _contiguous(grad_BTD, q_BTD, kv_BJF, log_weight_BTS, drop_BHJ, first_BT, last_BT, sums_BHT2)
    M, _, shape = _shape(_gradient, q_BTD, drop_BHJ, X, n_heads)
    _gradient[(triton.cdiv(T, M) + triton.cdiv(T * X, M), B * n_heads)](
        *operands, grad_q_BTD, grad_kv_BJF, grad_bias_BHJ, T, **shape
    )
    return grad_q_BTD, grad_kv_BJF, grad_bias_BHJ


@attend_entries_gradient.register_fake
def _(grad_BTD, q_BTD, kv_BJF, log_weight_BTS, drop_BHJ, first_BT, last_BT, sums_BHT2, n_heads):
    grad_bias_BHJ = sums_BHT2.new_empty(len(q_BTD), n_heads, kv_BJF.shape[1])
    return q_BTD.new_empty(q_BTD.shape), kv_BJF.new_empty(kv_BJF.shape), grad_bias_BHJ


def _setup(ctx, inputs, output) -> None:
    *tensors, _, first_BT, last_BT, ctx.n_heads = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(*tensors, first_BT, last_BT, *output)


def _backward(ctx, grad_BTD: Tensor, grad_lse):
    *inputs, out_BTD, lse_BHT = ctx.saved_tensors
    along_BTH = (grad_BTD.float() * out_BTD.float()).unflatten(-1, (ctx.n_heads, -1)).sum(dim=-1)
    sums_BHT2 = torch.stack([lse_BHT, along_BTH.transpose(1, 2)], dim=-1)
    grad_q_BTD, grad_kv_BJF, grad_bias_BHJ = attend_entries_gradient(grad_BTD, *inputs, sums_BHT2, ctx.n_heads)
    grad_bias_BTX = grad_bias_BHJ.sum(dim=1).view(len(grad_BTD), grad_BTD.shape[1], -1)
    return grad_q_BTD, grad_kv_BJF, grad_bias_BTX[..., 1:], *[None] * 5


attend_entries.register_autograd(_backward, setup_context=_setup)
