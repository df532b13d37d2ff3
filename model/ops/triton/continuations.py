"""Attention to what follows places of the bank, and its gradients: a program for each position.

The gradients of the tables are sums over all positions that read a token. Sorted by token, most of them are added up in
registers; few reach the table, by atomics.

Axes: X positions · Y tokens read after a place · S places per position, in groups · G groups · R width · V vocabulary
      Z = X Y S words read
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from common.constants import MASKED, PADDING

from ..continuations import order_of_words
from . import custom_op
from .token_attention import _rows

WORDS = 32  # of a program that adds up gradients of the tables
OF_WARP = 4096  # numbers of a tile; sums across warps take longer than what more of them do at once


@triton.jit
def _scaled_query(query_ptr, key_ptr, offset, mask, scale):
    """Rounded as the reference rounds it."""
    query = tl.load(query_ptr + offset, mask=mask, other=0.0)
    return (query.to(tl.float32) * scale).to(query_ptr.dtype.element_ty).to(key_ptr.dtype.element_ty).to(tl.float32)


@triton.jit
def _logits(key, query, log_weight, token, PADDING: tl.constexpr, MASKED: tl.constexpr):
    return tl.where(token == PADDING, MASKED, tl.sum(key * query[None, :], axis=1) + log_weight)


@triton.jit
def _attention(logit, nothing, slot, FIRST: tl.constexpr, FURTHER: tl.constexpr, g: tl.constexpr):
    """The attention to the places of one group, 0 elsewhere, and to nothing."""
    begin = FIRST + (g - 1) * FURTHER if g > 0 else 0
    own = tl.where((slot >= begin) & (slot < FIRST + g * FURTHER), logit, float("-inf"))
    most = tl.maximum(tl.max(own, axis=0), nothing)
    part, rest = tl.exp(own - most), tl.exp(nothing - most)
    total = tl.sum(part, axis=0) + rest
    return part / total, rest / total


@triton.jit
def _attend(
    query_ptr, key_ptr, value_ptr, token_ptr, log_weight_ptr, nothing_ptr, read_ptr, weight_ptr, scale,
    OF_QUERY: tl.constexpr, OF_NOTHING: tl.constexpr, S: tl.constexpr, R: tl.constexpr, FIRST: tl.constexpr,
    FURTHER: tl.constexpr, Y: tl.constexpr, G: tl.constexpr, PADDING: tl.constexpr, MASKED: tl.constexpr,
    SB: tl.constexpr, RB: tl.constexpr,
):  # fmt: skip
    position, slot, column = tl.program_id(0).to(tl.int64), tl.arange(0, SB), tl.arange(0, RB)
    query = _scaled_query(query_ptr, key_ptr, position * OF_QUERY + column, column < R, scale)
    log_weight = tl.load(log_weight_ptr + position * S + slot, mask=slot < S, other=0.0)
    total_weight = tl.zeros([SB], dtype=tl.float32)
    for y in tl.static_range(Y):
        token = tl.load(token_ptr + (position * Y + y) * S + slot, mask=slot < S, other=PADDING)
        key = _rows(key_ptr, token, column, R, PADDING).to(tl.float32)
        value = _rows(value_ptr, token, column, R, PADDING).to(tl.float32)
        logit = _logits(key, query, log_weight, token, PADDING, MASKED)
        for g in tl.static_range(G):
            at = (position * G + g) * Y + y
            nothing = tl.load(nothing_ptr + position * OF_NOTHING + g * Y + y).to(tl.float32)
            attention, _ = _attention(logit, nothing, slot, FIRST, FURTHER, g)
            total_weight += attention
            read = tl.sum(value * attention[:, None], axis=0)
            tl.store(read_ptr + at * R + column, read.to(read_ptr.dtype.element_ty), mask=column < R)
    tl.store(weight_ptr + position * S + slot, total_weight / (Y * G), mask=slot < S)


@triton.jit
def _backward(
    query_ptr, key_ptr, value_ptr, token_ptr, log_weight_ptr, nothing_ptr, grad_read_ptr, grad_query_ptr,
    grad_log_weight_ptr, grad_nothing_ptr, attention_ptr, grad_logit_ptr, scale, OF_QUERY: tl.constexpr,
    OF_NOTHING: tl.constexpr, S: tl.constexpr, R: tl.constexpr,
    FIRST: tl.constexpr, FURTHER: tl.constexpr, Y: tl.constexpr, G: tl.constexpr, PADDING: tl.constexpr,
    MASKED: tl.constexpr, SB: tl.constexpr, RB: tl.constexpr,
):  # fmt: skip
    position, slot, column = tl.program_id(0).to(tl.int64), tl.arange(0, SB), tl.arange(0, RB)
    query = _scaled_query(query_ptr, key_ptr, position * OF_QUERY + column, column < R, scale)
    log_weight = tl.load(log_weight_ptr + position * S + slot, mask=slot < S, other=0.0)
    grad_query, grad_log_weight = tl.zeros([RB], dtype=tl.float32), tl.zeros([SB], dtype=tl.float32)
    for y in tl.static_range(Y):
        word = (position * Y + y) * S + slot
        token = tl.load(token_ptr + word, mask=slot < S, other=PADDING)
        key = _rows(key_ptr, token, column, R, PADDING).to(tl.float32)
        value = _rows(value_ptr, token, column, R, PADDING).to(tl.float32)
        logit = _logits(key, query, log_weight, token, PADDING, MASKED)
        all_attention, grad_logit = tl.zeros([SB], dtype=tl.float32), tl.zeros([SB], dtype=tl.float32)
        for g in tl.static_range(G):
            at = (position * G + g) * Y + y
            nothing = tl.load(nothing_ptr + position * OF_NOTHING + g * Y + y).to(tl.float32)
            attention, rest = _attention(logit, nothing, slot, FIRST, FURTHER, g)
            grad_read = tl.load(grad_read_ptr + at * R + column, mask=column < R, other=0.0).to(tl.float32)
            grad_attention = tl.sum(value * grad_read[None, :], axis=1)
            mean = tl.sum(attention * grad_attention, axis=0)
            all_attention += attention
            grad_logit += attention * (grad_attention - mean)
            tl.store(grad_nothing_ptr + at, (-rest * mean).to(grad_nothing_ptr.dtype.element_ty))
        grad_logit = tl.where(token == PADDING, 0.0, grad_logit)
        grad_log_weight += grad_logit
        grad_query += tl.sum(key * grad_logit[:, None], axis=0)
        tl.store(attention_ptr + word, all_attention, mask=slot < S)
        tl.store(grad_logit_ptr + word, grad_logit, mask=slot < S)
    grad_query = (grad_query * scale).to(grad_query_ptr.dtype.element_ty)
    tl.store(grad_query_ptr + position * R + column, grad_query, mask=column < R)
    tl.store(grad_log_weight_ptr + position * S + slot, grad_log_weight, mask=slot < S)


@triton.jit
def _spread(
    token_ptr, word_ptr, query_ptr, key_ptr, grad_read_ptr, attention_ptr, grad_logit_ptr, grad_key_ptr, grad_value_ptr,
    scale, Z, OF_QUERY: tl.constexpr, S: tl.constexpr, R: tl.constexpr, FIRST: tl.constexpr, FURTHER: tl.constexpr,
    Y: tl.constexpr, G: tl.constexpr, PADDING: tl.constexpr, NONE: tl.constexpr, ZB: tl.constexpr, RB: tl.constexpr,
):  # fmt: skip
    at, column = tl.program_id(0) * ZB + tl.arange(0, ZB), tl.arange(0, RB)
    token = tl.load(token_ptr + at, mask=at < Z, other=PADDING).to(tl.int32)
    is_read = token != PADDING
    word = tl.load(word_ptr + at, mask=is_read, other=0).to(tl.int32)
    slot, row = word % S, word // S
    group = tl.where(slot < FIRST, 0, (slot - FIRST) // FURTHER + 1)
    position, of_read = (row // Y).to(tl.int64), (row // Y * G + group).to(tl.int64) * Y + row % Y
    mask = is_read[:, None] & (column < R)[None, :]
    of_key = _scaled_query(query_ptr, key_ptr, position[:, None] * OF_QUERY + column[None, :], mask, scale)
    of_key *= tl.load(grad_logit_ptr + word, mask=is_read, other=0.0)[:, None]
    grad_read = tl.load(grad_read_ptr + of_read[:, None] * R + column[None, :], mask=mask, other=0.0)
    of_value = grad_read.to(tl.float32) * tl.load(attention_ptr + word, mask=is_read, other=0.0)[:, None]
    left = tl.where(is_read, token, NONE)
    token = tl.min(left, axis=0)
    while token < NONE:
        mine = (left == token)[:, None]
        to = token.to(tl.int64) * R + column
        key_sum = tl.sum(tl.where(mine, of_key, 0.0), axis=0)
        value_sum = tl.sum(tl.where(mine, of_value, 0.0), axis=0)
        tl.atomic_add(grad_key_ptr + to, key_sum, mask=column < R, sem="relaxed")
        tl.atomic_add(grad_value_ptr + to, value_sum, mask=column < R, sem="relaxed")
        left = tl.where(left == token, NONE, left)
        token = tl.min(left, axis=0)


@custom_op
def attend_continuations(
    query_XR: Tensor, key_VR: Tensor, value_VR: Tensor, token_XYS: Tensor, log_weight_XS: Tensor, nothing_XGY: Tensor,
    groups: list[int], token_Z: Tensor | None = None, word_Z: Tensor | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """What is read, (X, G, Y, R) in the table's dtype, and the weight of each place, (X, S) float32."""
    (X, Y, S), (G, R) = token_XYS.shape, (len(groups), query_XR.shape[1])
    read_XGYR, weight_XS = value_VR.new_empty(X, G, Y, R), log_weight_XS.new_empty(X, S)
    query_XR, nothing_XGY = _with_whole_rows(query_XR), _with_whole_rows(nothing_XGY)
    block_S, block_R, warps = _blocks(S, R)
    _attend[(X,)](
        query_XR, key_VR.contiguous(), value_VR.contiguous(), token_XYS.contiguous(), log_weight_XS.contiguous(),
        nothing_XGY, read_XGYR, weight_XS, R**-0.5, query_XR.stride(0), nothing_XGY.stride(0), S, R, groups[0],
        groups[-1], Y, G, PADDING, MASKED, block_S, block_R, num_warps=warps,
    )  # fmt: skip
    return read_XGYR, weight_XS


@custom_op
def attend_continuations_gradient(
    grad_XGYR: Tensor, query_XR: Tensor, key_VR: Tensor, value_VR: Tensor, token_XYS: Tensor, log_weight_XS: Tensor,
    nothing_XGY: Tensor, groups: list[int], token_Z: Tensor | None, word_Z: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Of queries, keys, values, log-weights and logits of nothing; those of a table are summed in no fixed order."""
    (X, Y, S), (G, R) = token_XYS.shape, (len(groups), query_XR.shape[1])
    grad_XGYR, key_VR, token_XYS = (x.contiguous() for x in (grad_XGYR, key_VR, token_XYS))
    query_XR, nothing_XGY = _with_whole_rows(query_XR), _with_whole_rows(nothing_XGY)
    grad_query_XR, grad_log_weight_XS = query_XR.new_empty(X, R), log_weight_XS.new_empty(X, S)
    grad_nothing_XGY = nothing_XGY.new_empty(X, G, Y)
    attention_XYS, grad_logit_XYS = (log_weight_XS.new_empty(X, Y, S) for _ in range(2))
    block_S, block_R, warps = _blocks(S, R)
    scale, of_query, sizes = R**-0.5, query_XR.stride(0), (S, R, groups[0], groups[-1], Y, G, PADDING)
    _backward[(X,)](
        query_XR, key_VR, value_VR.contiguous(), token_XYS, log_weight_XS.contiguous(), nothing_XGY, grad_XGYR,
        grad_query_XR, grad_log_weight_XS, grad_nothing_XGY, attention_XYS, grad_logit_XYS, scale, of_query,
        nothing_XGY.stride(0), *sizes, MASKED, block_S, block_R, num_warps=warps,
    )  # fmt: skip
    if token_Z is None:
        token_Z, word_Z = order_of_words(token_XYS, len(key_VR))
    grad_tables = [torch.zeros_like(x_VR, dtype=torch.float32) for x_VR in (key_VR, value_VR)]
    _spread[(triton.cdiv(len(word_Z), WORDS),)](
        token_Z, word_Z, query_XR, key_VR, grad_XGYR, attention_XYS, grad_logit_XYS, *grad_tables, scale,
        len(word_Z), of_query, *sizes, len(key_VR), WORDS, block_R,
        num_warps=max(WORDS * block_R // (OF_WARP // 2), 1),
    )  # fmt: skip
    grad_key_VR, grad_value_VR = (x_VR.to(key_VR.dtype) for x_VR in grad_tables)
    return grad_query_XR, grad_key_VR, grad_value_VR, grad_log_weight_XS, grad_nothing_XGY


def _with_whole_rows(x: Tensor) -> Tensor:
    """Rows may stand apart, as those of a part of a wider matrix do."""
    return x if x[0].is_contiguous() else x.contiguous()


def _blocks(S: int, R: int) -> tuple[int, int, int]:
    """Places and width of a program, and its warps."""
    block_S, block_R = max(triton.next_power_of_2(S), 2), triton.next_power_of_2(R)
    return block_S, block_R, min(max(block_S * block_R // OF_WARP, 1), 8)


@attend_continuations.register_fake
def _(query_XR, key_VR, value_VR, token_XYS, log_weight_XS, nothing_XGY, groups, token_Z=None, word_Z=None):
    (X, Y, S), R = token_XYS.shape, query_XR.shape[1]
    return value_VR.new_empty(X, len(groups), Y, R), log_weight_XS.new_empty(X, S)


@attend_continuations_gradient.register_fake
def _(grad_XGYR, query_XR, key_VR, value_VR, token_XYS, log_weight_XS, nothing_XGY, groups, token_Z, word_Z):
    like = query_XR, key_VR, value_VR, log_weight_XS, nothing_XGY
    return tuple(x.new_empty(x.shape) for x in like)


def _setup(ctx, inputs, output) -> None:
    *tensors, ctx.groups, token_Z, word_Z = inputs
    ctx.save_for_backward(*tensors, token_Z, word_Z)


def _gradient(ctx, grad_XGYR: Tensor, _):
    *tensors, token_Z, word_Z = ctx.saved_tensors
    grads = attend_continuations_gradient(grad_XGYR, *tensors, ctx.groups, token_Z, word_Z)
    grad_query_XR, grad_key_VR, grad_value_VR, grad_log_weight_XS, grad_nothing_XGY = grads
    return grad_query_XR, grad_key_VR, grad_value_VR, None, grad_log_weight_XS, grad_nothing_XGY, None, None, None


attend_continuations.register_autograd(_gradient, setup_context=_setup)
