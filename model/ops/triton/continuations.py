"""Attention to what follows places of the bank: a program for each position, in place of some twenty launches.

Axes: X positions · Y tokens read after a place · S places per position, in groups · G groups · R width · V vocabulary
"""

import triton
import triton.language as tl
from torch import Tensor

from common.constants import MASKED, PADDING

from .token_attention import _rows


@triton.jit(do_not_specialize=["S", "R", "first", "further"])
def _attend(
    query_ptr, key_ptr, value_ptr, token_ptr, log_weight_ptr, nothing_ptr, read_ptr, weight_ptr, scale, S, R, first,
    further, Y: tl.constexpr, G: tl.constexpr, PADDING: tl.constexpr, MASKED: tl.constexpr, SB: tl.constexpr,
    RB: tl.constexpr,
):  # fmt: skip
    position, slot, column = tl.program_id(0).to(tl.int64), tl.arange(0, SB), tl.arange(0, RB)
    query = tl.load(query_ptr + position * R + column, mask=column < R, other=0.0)
    query = (query.to(tl.float32) * scale).to(query_ptr.dtype.element_ty).to(key_ptr.dtype.element_ty).to(tl.float32)
    log_weight = tl.load(log_weight_ptr + position * S + slot, mask=slot < S, other=0.0)
    total_weight = tl.zeros([SB], dtype=tl.float32)
    for y in tl.static_range(Y):
        token = tl.load(token_ptr + (position * Y + y) * S + slot, mask=slot < S, other=PADDING)
        key = _rows(key_ptr, token, column, R, PADDING).to(tl.float32)
        value = _rows(value_ptr, token, column, R, PADDING).to(tl.float32)
        logit = tl.sum(key * query[None, :], axis=1) + log_weight
        logit = tl.where(token == PADDING, MASKED, logit)
        for g in tl.static_range(G):
            at = (position * G + g) * Y + y
            nothing = tl.load(nothing_ptr + at).to(tl.float32)
            begin = first + (g - 1) * further if g > 0 else 0
            end = first + g * further
            own = tl.where((slot >= begin) & (slot < end), logit, float("-inf"))
            most = tl.maximum(tl.max(own, axis=0), nothing)
            part = tl.exp(own - most)
            attention = part / (tl.sum(part, axis=0) + tl.exp(nothing - most))
            total_weight += attention
            read = tl.sum(value * attention[:, None], axis=0)
            tl.store(read_ptr + at * R + column, read.to(read_ptr.dtype.element_ty), mask=column < R)
    tl.store(weight_ptr + position * S + slot, total_weight / (Y * G), mask=slot < S)


def attend_continuations(
    query_XR: Tensor, key_VR: Tensor, value_VR: Tensor, token_XYS: Tensor, log_weight_XS: Tensor, nothing_XGY: Tensor,
    groups: list[int],
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """What is read, (X, G, Y, R) in the table's dtype, and the weight of each place, (X, S) float32."""
    (X, Y, S), (G, R) = token_XYS.shape, (len(groups), query_XR.shape[1])
    read_XGYR, weight_XS = value_VR.new_empty(X, G, Y, R), log_weight_XS.new_empty(X, S)
    block_S, block_R = max(triton.next_power_of_2(S), 2), triton.next_power_of_2(R)
    _attend[(X,)](
        query_XR.contiguous(), key_VR.contiguous(), value_VR.contiguous(), token_XYS.contiguous(),
        log_weight_XS.contiguous(), nothing_XGY.contiguous(), read_XGYR, weight_XS, R**-0.5, S, R, groups[0],
        groups[-1], Y, G, PADDING, MASKED, block_S, block_R, num_warps=min(max(block_S * block_R // 512, 1), 8),
    )  # fmt: skip
    return read_XGYR, weight_XS
