"""The places that share most tokens with a query: a warp for each query, all of its places in registers.

Axes: B batch · T position · X queries · P places · K numbers of a suffix · Y places looked at · S places given
      W places among which the own ones are left out
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from common.constants import NO_ENTRY

from ..own_places import LOOKED_AT, Own
from .suffix_bounds import _number

BLOCK = 128


@triton.jit(do_not_specialize=["P", "n_given", "shift"])
def _neighbours(
    query_ptr, place_ptr, token_ptr, low_ptr, high_ptr, given_ptr, document_ptr, own_ptr, out_ptr, matched_ptr, X, P,
    L, n_given, shift, n: tl.constexpr, Y: tl.constexpr, S: tl.constexpr, LENGTH: tl.constexpr,
    BITS: tl.constexpr, PER_KEY: tl.constexpr, NONE: tl.constexpr, OWN: tl.constexpr, W: tl.constexpr, WB: tl.constexpr,
):  # fmt: skip
    position, slot = tl.program_id(0).to(tl.int64), tl.arange(0, WB)
    P, shift, n_given = P.to(tl.int64), shift.to(tl.int64), n_given.to(tl.int64)
    low = tl.load(low_ptr + position)
    count = tl.load(high_ptr + position) - low
    MANY: tl.constexpr = W if OWN else n
    is_many = count >= MANY
    around = tl.maximum(tl.minimum(low - tl.maximum(W - count, 0) // 2, P - W), 0)
    index = tl.where(is_many, low + slot * count // MANY, around + slot)
    going = (index < P) & (slot < tl.where(is_many, MANY, W))
    index = tl.minimum(index, P - 1)
    if OWN:  # the same rule among the others, by their rank
        place = tl.load(given_ptr + (index + shift) % n_given, mask=going, other=0)
        document = tl.load(document_ptr + place // L, mask=going, other=0)
        other = going & (document != tl.load(own_ptr + position))
        rank = tl.cumsum(other.to(tl.int32), axis=0) - 1
        before = tl.sum((other & (index < low)).to(tl.int32), axis=0)
        equal = tl.sum((other & (index >= low) & (index < low + count)).to(tl.int32), axis=0)
        others = tl.sum(other.to(tl.int32), axis=0)
        around = tl.maximum(tl.minimum(before - tl.maximum(Y - equal, 0) // 2, others - Y), 0)
        nth = rank - before
        spaced = (nth * n + equal - 1) // tl.maximum(equal, 1)  # the slot that this one has, if it has any
        is_spaced = (nth >= 0) & (nth < equal) & (spaced * equal // n == nth)
        going = other & tl.where(equal >= n, is_spaced, (rank >= around) & (rank < around + Y))
    here, matched = tl.load(place_ptr + index, mask=going, other=0), tl.zeros([WB], dtype=tl.int32)
    for k in tl.static_range((LENGTH + PER_KEY - 1) // PER_KEY):
        query = tl.load(query_ptr + k * X + position)
        key = _number(token_ptr, here, going, L, k, LENGTH, BITS, PER_KEY)
        for m in tl.static_range(PER_KEY):
            if k * PER_KEY + m < LENGTH:
                asked = query >> (BITS * (PER_KEY - 1 - m))
                is_token = (asked & ((1 << BITS) - 1)) != 0
                going = going & (key >> (BITS * (PER_KEY - 1 - m)) == asked) & is_token
                matched += going.to(tl.int32)
    place = tl.load(given_ptr + (index + shift) % n_given, mask=matched > 0, other=NONE)
    order = tl.sort(matched * WB + (WB - 1 - slot), descending=True)
    place = tl.gather(place, WB - 1 - order % WB, 0)
    tl.store(out_ptr + position * S + slot, place.to(tl.int64), mask=slot < S)
    tl.store(matched_ptr + position * S + slot, (order // WB).to(tl.int64), mask=slot < S)


def suffix_neighbours(
    query_KX: Tensor, place_P: Tensor, token_NL: Tensor, low_X: Tensor, high_X: Tensor, given_P: Tensor, shift: int,
    n: int, n_ranked: int, n_given: int, length: int, bits: int, per_key: int, own: Own | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The places around each query, or n evenly spaced ones of those that equal it, if there are as many."""
    X, W = query_KX.shape[1], n_ranked if own is None else LOOKED_AT * n_ranked
    block, documents = max(triton.next_power_of_2(W), 32), (place_P, place_P)  # never read
    if own is not None:
        documents = own.document_N, own.document_X.contiguous()
    place_XS, matched_XS = low_X.new_empty(X, n_given), low_X.new_empty(X, n_given)
    _neighbours[(X,)](
        query_KX.contiguous(), place_P, token_NL, low_X.contiguous(), high_X.contiguous(), given_P, *documents,
        place_XS, matched_XS, X, len(place_P), token_NL.shape[1], len(given_P), shift, n, n_ranked, n_given, length,
        bits, per_key, NO_ENTRY, own is not None, W, block, num_warps=max(block // 128, 1),
    )  # fmt: skip
    return place_XS, matched_XS


@triton.jit(do_not_specialize=["T", "n"])
def _queries(
    text_ptr, start_ptr, query_ptr, T, n, LENGTH: tl.constexpr, BITS: tl.constexpr, PER_KEY: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = at < n
    goes_on = inside
    for k in tl.static_range((LENGTH + PER_KEY - 1) // PER_KEY):
        query = tl.zeros([BLOCK], dtype=tl.int64)
        for m in tl.static_range(PER_KEY):
            back = k * PER_KEY + m
            if k * PER_KEY + m < LENGTH:
                goes_on = goes_on & (at % T >= back)
                token = tl.load(text_ptr + at - back, mask=goes_on, other=0).to(tl.int64)
                query |= token << (BITS * (PER_KEY - 1 - m))
                goes_on = goes_on & (tl.load(start_ptr + at - back, mask=goes_on, other=1) == 0)
        tl.store(query_ptr + k * n.to(tl.int64) + at, query, mask=inside)


def suffix_queries(text_BT: Tensor, start_BT: Tensor, length: int, bits: int, per_key: int) -> Tensor:
    """(K, B, T) int64: the last M tokens up to each position, the last one in the highest bits, inside its document."""
    n, T = text_BT.numel(), text_BT.shape[1]
    query_KBT = text_BT.new_empty(triton.cdiv(length, per_key), *text_BT.shape, dtype=torch.int64)
    _queries[(triton.cdiv(n, BLOCK),)](
        text_BT.contiguous(), start_BT.contiguous(), query_KBT, T, n, length, bits, per_key, BLOCK, num_warps=4
    )
    return query_KBT
