"""Attention of positions to states and to vectors of entries: the inner part of the cross-attention fusion.

`attend_entries` is causal: X keys for each position up to the query's own, in the same document. It is FlashAttention
(Dao 2023, arXiv:2307.08691) for this layout: keys stand position by position and a document is a run of positions. So
a tile of queries meets one stretch of states and one of entries. An entry's log-weight is added to its logits.

`attend_own` attends to the X keys of the position itself. Positions share nothing, so it is bound by memory traffic:
each key and value is read once, forward and backward. One program a position; its tiles have a row for each head.

Neither uses atomics: the same inputs give the same bits.

Axes: B batch · T queries among P positions · X keys of a position, its state and S entries · J = P X keys
      H heads · E per-head width · D = H E · F = 2 D: a key, then its value · M queries and N keys of a tile
      G keys of a position in one stretch: 1 state, or S entries · Y = 3 D · Z: see `attend_entries`
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import custom_op
from .search_grid import LOG2E

UNROLL = tl.constexpr(5)  # slots whose keys are asked for before the first is needed


@triton.jit
def _rows(base_ptr, place, e, keep, E: tl.constexpr):
    """A tile of rows of one head's E channels; zeros where a row is not kept and behind the channels."""
    return tl.load(base_ptr + place[:, None] + e[None, :], mask=keep[:, None] & (e < E)[None, :], other=0.0)


@triton.jit
def _bias(
    log_weight_ptr, drop_ptr, j, end,
    DROPS: tl.constexpr, LOGS: tl.constexpr, G: tl.constexpr, X: tl.constexpr,
):  # fmt: skip
    """What is added to the logits of N keys; of those of entries `drop_ptr` begins behind the state.

    Loaded twice over, so that there are enough for every thread: half of them would each load all of it.
    """
    j = j[:, None] + tl.zeros([1, 2], tl.int32)
    bias = tl.zeros_like(j).to(tl.float32)
    if LOGS:
        bias += tl.load(log_weight_ptr + j, mask=j < end, other=0.0)
    if DROPS:
        bias += tl.load(drop_ptr + j // G * X + j % G, mask=j < end, other=0.0)
    return tl.max(bias, axis=1)


@triton.jit
def _keys(
    kv_ptr, stride, log_weight_ptr, drop_ptr, j, end, e,
    DROPS: tl.constexpr, LOGS: tl.constexpr, G: tl.constexpr, X: tl.constexpr, D: tl.constexpr, E: tl.constexpr,
):  # fmt: skip
    """N keys of a head, their values, and what is added to their logits."""
    place = j // G * stride + j % G * (2 * D)
    k, v = _rows(kv_ptr, place, e, j < end, E), _rows(kv_ptr + D, place, e, j < end, E)
    return k, v, _bias(log_weight_ptr, drop_ptr, j, end, DROPS, LOGS, G, X)


@triton.jit
def _logits(q, k, bias, j, begins, ends, scale, PRECISION: tl.constexpr):
    """Of M queries and N keys; minus infinity where a query does not see a key."""
    logit = tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale + bias[None, :]
    visible = (j[None, :] >= begins[:, None]) & (j[None, :] < ends[:, None])
    return tl.where(visible, logit, float("-inf"))


@triton.jit
def _attend_to(
    best, total, mixed, q, kv_ptr, stride, log_weight_ptr, drop_ptr, begins, ends, P, e, scale,
    DROPS: tl.constexpr, LOGS: tl.constexpr, G: tl.constexpr, X: tl.constexpr, D: tl.constexpr, E: tl.constexpr,
    PRECISION: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    """What M queries have seen, after one more stretch of keys."""
    begins, ends = begins * G, ends * G
    for start in range(tl.min(begins, axis=0) // N * N, tl.max(ends, axis=0), N):
        j = start + tl.arange(0, N)
        k, v, bias = _keys(kv_ptr, stride, log_weight_ptr, drop_ptr, j, P * G, e, DROPS, LOGS, G, X, D, E)
        logit = _logits(q, k, bias, j, begins, ends, scale, PRECISION)
        higher = tl.maximum(best, tl.max(logit, axis=1))
        base = tl.where(higher == float("-inf"), 0.0, higher) * LOG2E  # of a row that has seen no key yet: 0
        weight = tl.exp2(logit * LOG2E - base[:, None])
        shrink = tl.exp2(best * LOG2E - base)
        total = total * shrink + tl.sum(weight, axis=1)
        mixed = tl.dot(weight.to(v.dtype), v, mixed * shrink[:, None], input_precision=PRECISION)
        best = higher
    return best, total, mixed


@triton.jit
def _attend(
    q_ptr, state_ptr, entry_ptr, log_weight_ptr, drop_ptr, position_ptr, first_ptr, out_ptr, lse_ptr, T, P,
    state_stride, entry_stride, scale,
    DROPS: tl.constexpr, X: tl.constexpr, H: tl.constexpr, E: tl.constexpr, EB: tl.constexpr, PRECISION: tl.constexpr,
    M: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    D: tl.constexpr = H * E
    head, row = tl.program_id(1) % H, (tl.program_id(1) // H).to(tl.int64)
    e = tl.arange(0, EB)
    m = tl.program_id(0) * M + tl.arange(0, M)
    # A query sees the positions from `begins` to before `ends`.
    begins = tl.load(first_ptr + row * T + m, mask=m < T, other=P)
    ends = tl.load(position_ptr + m, mask=m < T, other=-1) + 1
    q = _rows(q_ptr + row * T * 3 * D + head * E, m * (3 * D), e, m < T, E)
    state_ptr += row * P * state_stride + head * E
    entry_ptr += row * P * entry_stride + head * E
    log_weight_ptr += row * P * (X - 1)
    if DROPS:
        drop_ptr += tl.program_id(1).to(tl.int64) * P * X
    best = tl.full([M], float("-inf"), dtype=tl.float32)
    total = tl.zeros([M], dtype=tl.float32)
    mixed = tl.zeros([M, EB], dtype=tl.float32)
    best, total, mixed = _attend_to(
        best, total, mixed, q, state_ptr, state_stride, log_weight_ptr, drop_ptr, begins, ends, P, e, scale,
        DROPS, False, 1, X, D, E, PRECISION, N,
    )  # fmt: skip
    best, total, mixed = _attend_to(
        best, total, mixed, q, entry_ptr, entry_stride, log_weight_ptr, drop_ptr + 1 if DROPS else drop_ptr, begins,
        ends, P, e, scale, DROPS, True, X - 1, X, D, E, PRECISION, N,
    )  # fmt: skip
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
def _gradient_from(
    grad_q, q, grad, lse, delta, kv_ptr, stride, log_weight_ptr, drop_ptr, begins, ends, T, e, scale,
    DROPS: tl.constexpr, LOGS: tl.constexpr, G: tl.constexpr, X: tl.constexpr, D: tl.constexpr, E: tl.constexpr,
    PRECISION: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    """The gradient of M queries, with that from one more stretch of keys."""
    begins, ends = begins * G, ends * G
    for start in range(tl.min(begins, axis=0) // N * N, tl.minimum(tl.max(ends, axis=0), T * G), N):
        j = start + tl.arange(0, N)
        k, v, bias = _keys(kv_ptr, stride, log_weight_ptr, drop_ptr, j, T * G, e, DROPS, LOGS, G, X, D, E)
        logit = _logits(q, k, bias, j, begins, ends, scale, PRECISION)
        weight = tl.exp2(logit * LOG2E - lse[:, None])
        grad_weight = tl.dot(grad, tl.trans(v), input_precision=PRECISION)
        grad_logit = weight * (grad_weight - delta[:, None])
        grad_q = tl.dot(grad_logit.to(k.dtype), k, grad_q, input_precision=PRECISION)
    return grad_q


@triton.jit
def _query_gradient(
    tile, grad_ptr, packed_ptr, entry_ptr, log_weight_ptr, drop_ptr, first_ptr, sums_ptr, grad_packed_ptr, T, scale,
    DROPS: tl.constexpr, X: tl.constexpr, H: tl.constexpr, E: tl.constexpr, EB: tl.constexpr, PRECISION: tl.constexpr,
    M: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    D: tl.constexpr = H * E
    head, row = tl.program_id(1) % H, (tl.program_id(1) // H).to(tl.int64)
    e = tl.arange(0, EB)
    m = tile * M + tl.arange(0, M)
    begins, ends = tl.load(first_ptr + row * T + m, mask=m < T, other=T), m + 1
    here = row * T * 3 * D + head * E
    q = _rows(packed_ptr + here, m * (3 * D), e, m < T, E)
    grad = _rows(grad_ptr + row * T * D + head * E, m * D, e, m < T, E)
    lse, delta = _sums(sums_ptr, m, T)
    entry_ptr += row * T * (X - 1) * 2 * D + head * E
    log_weight_ptr += row * T * (X - 1)
    if DROPS:
        drop_ptr += tl.program_id(1).to(tl.int64) * T * X
    grad_q = tl.zeros([M, EB], dtype=tl.float32)
    grad_q = _gradient_from(
        grad_q, q, grad, lse, delta, packed_ptr + here + D, 3 * D, log_weight_ptr, drop_ptr, begins, ends, T, e, scale,
        DROPS, False, 1, X, D, E, PRECISION, N,
    )  # fmt: skip
    grad_q = _gradient_from(
        grad_q, q, grad, lse, delta, entry_ptr, (X - 1) * 2 * D, log_weight_ptr, drop_ptr + 1 if DROPS else drop_ptr,
        begins, ends, T, e, scale, DROPS, True, X - 1, X, D, E, PRECISION, N,
    )  # fmt: skip
    grad_q *= scale
    keep = (m < T)[:, None] & (e < E)[None, :]
    to = grad_packed_ptr + here + m[:, None] * (3 * D) + e[None, :]
    tl.store(to, grad_q.to(grad_packed_ptr.dtype.element_ty), mask=keep)


@triton.jit
def _key_gradient(
    tile, grad_ptr, packed_ptr, kv_ptr, log_weight_ptr, drop_ptr, last_ptr, sums_ptr, grad_kv_ptr, grad_bias_ptr, T,
    scale,
    STRIDE: tl.constexpr, DROPS: tl.constexpr, LOGS: tl.constexpr, G: tl.constexpr, X: tl.constexpr, H: tl.constexpr,
    E: tl.constexpr, EB: tl.constexpr, PRECISION: tl.constexpr, M: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    """The gradients of N keys of one kind, STRIDE apart from position to position, their values and log-weights."""
    D: tl.constexpr = H * E
    head, row = tl.program_id(1) % H, (tl.program_id(1) // H).to(tl.int64)
    e = tl.arange(0, EB)
    j = tile * N + tl.arange(0, N)
    n = j // G
    here = row * T * STRIDE + head * E
    if DROPS:
        drop_ptr += tl.program_id(1).to(tl.int64) * T * X
    k, v, bias = _keys(
        kv_ptr + here, STRIDE, log_weight_ptr + row * T * G, drop_ptr, j, T * G, e, DROPS, LOGS, G, X, D, E
    )
    packed_ptr += row * T * 3 * D + head * E
    grad_ptr += row * T * D + head * E
    grad_k = tl.zeros([N, EB], dtype=tl.float32)
    grad_v = tl.zeros([N, EB], dtype=tl.float32)
    grad_bias = tl.zeros([N], dtype=tl.float32)
    begin = tile * N // G // M * M
    last = tl.load(last_ptr + row * T + n, mask=n < T, other=0)
    end = tl.max(last, axis=0) + 1
    for start in range(begin, end, M):
        m = start + tl.arange(0, M)
        q = _rows(packed_ptr, m * (3 * D), e, m < T, E)
        grad = _rows(grad_ptr, m * D, e, m < T, E)
        lse, delta = _sums(sums_ptr, m, T)
        logit = tl.dot(k, tl.trans(q), input_precision=PRECISION) * scale + bias[:, None]
        visible = (m[None, :] >= n[:, None]) & (m[None, :] <= last[:, None])
        weight = tl.where(visible, tl.exp2(logit * LOG2E - lse[None, :]), 0.0)
        grad_v = tl.dot(weight.to(grad.dtype), grad, grad_v, input_precision=PRECISION)
        grad_weight = tl.dot(v, tl.trans(grad), input_precision=PRECISION)
        grad_logit = weight * (grad_weight - delta[None, :])
        grad_k = tl.dot(grad_logit.to(q.dtype), q, grad_k, input_precision=PRECISION)
        if LOGS:
            grad_bias += tl.sum(grad_logit, axis=1)
    grad_k *= scale
    to = grad_kv_ptr + here + (n * STRIDE + j % G * (2 * D))[:, None] + e[None, :]
    keep = (n < T)[:, None] & (e < E)[None, :]
    tl.store(to, grad_k.to(grad_kv_ptr.dtype.element_ty), mask=keep)
    tl.store(to + D, grad_v.to(grad_kv_ptr.dtype.element_ty), mask=keep)
    if LOGS:
        tl.store(grad_bias_ptr + tl.program_id(1).to(tl.int64) * T * G + j, grad_bias, mask=n < T)


@triton.jit
def _gradient(
    grad_ptr, packed_ptr, entry_ptr, log_weight_ptr, drop_ptr, first_ptr, last_ptr, sums_ptr, grad_packed_ptr,
    grad_entry_ptr, grad_bias_ptr, T, scale,
    DROPS: tl.constexpr, X: tl.constexpr, H: tl.constexpr, E: tl.constexpr, EB: tl.constexpr, PRECISION: tl.constexpr,
    M: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    """Queries, entries and states of a row side by side, so that all find the row in the L2 cache.

    In the tiles of keys there are N queries by M keys.
    """
    D: tl.constexpr = H * E
    tile, n_tiles = tl.program_id(0), tl.cdiv(T, M)  # as many of queries as of states
    if tile < n_tiles:
        _query_gradient(
            tile, grad_ptr, packed_ptr, entry_ptr, log_weight_ptr, drop_ptr, first_ptr, sums_ptr, grad_packed_ptr, T,
            scale, DROPS, X, H, E, EB, PRECISION, M, N,
        )  # fmt: skip
    elif tile < 2 * n_tiles:
        _key_gradient(
            tile - n_tiles, grad_ptr, packed_ptr, packed_ptr + D, log_weight_ptr, drop_ptr, last_ptr, sums_ptr,
            grad_packed_ptr + D, grad_bias_ptr, T, scale, 3 * D, DROPS, False, 1, X, H, E, EB, PRECISION, N, M,
        )  # fmt: skip
    else:
        _key_gradient(
            tile - 2 * n_tiles, grad_ptr, packed_ptr, entry_ptr, log_weight_ptr,
            drop_ptr + 1 if DROPS else drop_ptr, last_ptr, sums_ptr, grad_entry_ptr, grad_bias_ptr, T, scale,
            (X - 1) * 2 * D, DROPS, True, X - 1, X, H, E, EB, PRECISION, N, M,
        )  # fmt: skip


# M, N, warps, stages and registers a thread, measured on an H100 (docs/speed.md).
TILES = {_attend: (64, 64, 4, 3, None), _gradient: (64, 32, 4, 3, 128)}
TILES_OF_ONE_QUERY = (16, 128, 4, 3, None)


def _shape(kernel, D: int, dtype: torch.dtype, T: int, drop_BHJ: Tensor | None, X: int, n_heads: int):
    """M, N and what else the kernels are compiled for."""
    E = D // n_heads
    EB, exact = max(16, triton.next_power_of_2(E)), dtype == torch.float32
    tiles = TILES_OF_ONE_QUERY if kernel is _attend and T == 1 else TILES[kernel]
    M, N, warps, stages, registers = (32, 32, 4, 1, None) if exact or EB > 64 else tiles
    if EB * dtype.itemsize > 512:  # else they would not fit the shared memory of every GPU
        M, N = 16, 16
    constants = {"DROPS": drop_BHJ is not None, "X": X, "H": n_heads, "E": E, "EB": EB, "M": M, "N": N}
    precision = {"scale": E**-0.5, "PRECISION": "ieee" if exact else "tf32"}
    options = {"num_warps": warps, "num_stages": stages, "maxnreg": registers}
    return M, constants | precision | options


def _contiguous(*tensors: Tensor | None) -> tuple[Tensor | None, ...]:
    return tuple(x if x is None else x.contiguous() for x in tensors)


@custom_op
def attend_entries(
    packed_BTY: Tensor, entry_BPZ: Tensor, log_weight_BPS: Tensor, drop_BHJ: Tensor | None, position_T: Tensor,
    first_BT: Tensor, last_BT: Tensor, n_heads: int,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """softmax(q k / sqrt(E) + bias) v over the keys that a query sees.

    Query t sees the X keys of each position from `first[t]` to its own. The bias of a state is 0, that of an entry its
    log-weight; `drop` is added.

    Args:
        packed_BTY: Y = 3 D, bfloat16, float16 or float32: query, key and value of each state; in each the E channels
        of one head after the other.
        entry_BPZ: Z = S F: each entry's key, then its value; or, where there is a past, Z = X F: each position's state
        first.
        log_weight_BPS, drop_BHJ: float32; J: the state of a position, then its entries.
        position_T, first_BT, last_BT: int32: see `Runs`.
    Returns:
        out_BTD, in the dtype of `packed`, and lse_BHT, float32: log2 of each query's sum. Gradients need Z = S F.
    """
    (B, T, Y), (P, Z), S = packed_BTY.shape, entry_BPZ.shape[1:], log_weight_BPS.shape[2]
    D = Y // 3
    if packed_BTY.dtype == torch.float64:
        raise ValueError("attention to entries has no kernel for float64; --use_flash_attn False needs none")
    if Z not in (2 * D * S, 2 * D * (S + 1)) or (Z == 2 * D * S and P != T):
        raise ValueError(f"{T} queries among {P} positions of {S} entries of width {D}: no keys are {Z} wide")
    out_BTD = packed_BTY.new_empty(B, T, D)
    lse_BHT = packed_BTY.new_empty(B, n_heads, T, dtype=torch.float32)
    packed_BTY, entry_BPZ, *operands = _contiguous(
        packed_BTY, entry_BPZ, log_weight_BPS, drop_BHJ, position_T, first_BT
    )
    state, stride = (packed_BTY[..., D:], Y) if Z == 2 * D * S else (entry_BPZ, Z)
    entry = entry_BPZ[..., Z - 2 * D * S :]
    M, shape = _shape(_attend, D, packed_BTY.dtype, T, drop_BHJ, S + 1, n_heads)
    _attend[(triton.cdiv(T, M), B * n_heads)](
        packed_BTY, state, entry, *operands, out_BTD, lse_BHT, T, P, stride, Z, **shape
    )
    return out_BTD, lse_BHT


@attend_entries.register_fake
def _(packed_BTY, entry_BPZ, log_weight_BPS, drop_BHJ, position_T, first_BT, last_BT, n_heads):
    B, T, Y = packed_BTY.shape
    return packed_BTY.new_empty(B, T, Y // 3), packed_BTY.new_empty(B, n_heads, T, dtype=torch.float32)


@custom_op
def attend_entries_gradient(
    grad_BTD: Tensor, packed_BTY: Tensor, entry_BTZ: Tensor, log_weight_BTS: Tensor, drop_BHJ: Tensor | None,
    first_BT: Tensor, last_BT: Tensor, sums_BHT2: Tensor, n_heads: int,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """The gradients of `attend_entries`.

    Of `packed` and entries in their dtype; of the bias of entries, float32 (B, H, T S).

    Args:
        sums_BHT2: float32: `lse_BHT`, and the product of the output with its gradient, summed by head.
    """
    (B, T, D), S = grad_BTD.shape, log_weight_BTS.shape[2]
    if entry_BTZ.shape[1:] != (T, 2 * D * S):
        raise ValueError("no gradient goes through cached positions")
    grad_packed_BTY, grad_entry_BTZ = packed_BTY.new_empty(packed_BTY.shape), entry_BTZ.new_empty(entry_BTZ.shape)
    grad_bias_BHN = sums_BHT2.new_empty(B, n_heads, T * S)
    operands = _contiguous(grad_BTD, packed_BTY, entry_BTZ, log_weight_BTS, drop_BHJ, first_BT, last_BT, sums_BHT2)
    M, shape = _shape(_gradient, D, packed_BTY.dtype, T, drop_BHJ, S + 1, n_heads)
    _gradient[(2 * triton.cdiv(T, M) + triton.cdiv(T * S, M), B * n_heads)](
        *operands, grad_packed_BTY, grad_entry_BTZ, grad_bias_BHN, T, **shape
    )
    return grad_packed_BTY, grad_entry_BTZ, grad_bias_BHN


@attend_entries_gradient.register_fake
def _(grad_BTD, packed_BTY, entry_BTZ, log_weight_BTS, drop_BHJ, first_BT, last_BT, sums_BHT2, n_heads):
    B, T, S = log_weight_BTS.shape
    grad_bias_BHN = sums_BHT2.new_empty(B, n_heads, T * S)
    return packed_BTY.new_empty(packed_BTY.shape), entry_BTZ.new_empty(entry_BTZ.shape), grad_bias_BHN


def _entries_setup(ctx, inputs, output) -> None:
    *tensors, _, first_BT, last_BT, ctx.n_heads = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(*tensors, first_BT, last_BT, *output)


def _entries_backward(ctx, grad_BTD: Tensor, _grad_lse):
    *inputs, out_BTD, lse_BHT = ctx.saved_tensors
    along_BTH = (grad_BTD.float() * out_BTD.float()).unflatten(-1, (ctx.n_heads, -1)).sum(dim=-1)
    sums_BHT2 = torch.stack([lse_BHT, along_BTH.transpose(1, 2)], dim=-1)
    *grads, grad_bias_BHN = attend_entries_gradient(grad_BTD, *inputs, sums_BHT2, ctx.n_heads)
    return *grads, grad_bias_BHN.sum(dim=1).view(inputs[2].shape), *[None] * 5


attend_entries.register_autograd(_entries_backward, setup_context=_entries_setup)


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


def _launch_own(kernel, tensors, log_weight_BTS: Tensor, drop_BTHX: Tensor | None, D: int, n_heads: int) -> None:
    (B, T, S), E = log_weight_BTS.shape, D // n_heads
    HB, EB = triton.next_power_of_2(n_heads), triton.next_power_of_2(E)
    n_warps = min(max(1, HB * EB // 256), 16)
    kernel[(B * T,)](*tensors, E**-0.5, drop_BTHX is not None, S, n_heads, HB, E, EB, num_warps=n_warps)


@custom_op
def attend_own(
    packed_BTY: Tensor, entry_BTZ: Tensor, log_weight_BTS: Tensor, drop_BTHX: Tensor | None, n_heads: int
) -> tuple[Tensor, Tensor]:
    """softmax(q k / sqrt(E) + bias) v over the S + 1 keys of each position.

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
    _launch_own(_attend_own, (*inputs, out_BTD, lse_BTH), log_weight_BTS, drop_BTHX, D, n_heads)
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
    _launch_own(_own_gradient, tensors, log_weight_BTS, drop_BTHX, grad_BTD.shape[2], n_heads)
    return grad_packed_BTY, grad_entry_BTZ, grad_log_weight_BTS


@attend_own_gradient.register_fake
def _(grad_BTD, packed_BTY, entry_BTZ, log_weight_BTS, drop_BTHX, lse_BTH, n_heads):
    grad_log_weight_BTS = lse_BTH.new_empty(log_weight_BTS.shape)
    return packed_BTY.new_empty(packed_BTY.shape), entry_BTZ.new_empty(entry_BTZ.shape), grad_log_weight_BTS


def _own_setup(ctx, inputs, output) -> None:
    *tensors, ctx.n_heads = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(*tensors, output[1])


def _own_backward(ctx, grad_BTD: Tensor, _grad_lse):
    return *attend_own_gradient(grad_BTD, *ctx.saved_tensors, ctx.n_heads), None, None


attend_own.register_autograd(_own_backward, setup_context=_own_setup)
