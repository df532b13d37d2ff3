"""Search in a suffix index: of many queries binary searches, a lane for each bound, all in one launch.

A search looks at samples first, which a GPU's cache holds, and then at the few places between two of them, whose
numbers are read from the tokens of the bank.

Of few queries, as in decoding, a program for each bound looks at 256 samples at once: three reads in a row find one
of 16 million, where a binary search needs 24. One more looks at all places between two samples.

Axes: X queries · P places · S samples · K numbers of a suffix · M tokens that are compared · N bank entries
      L tokens per entry
"""

import triton
import triton.language as tl
from torch import Tensor

from ..suffix_bounds import STEP

FEW, WIDE = 256, 256  # queries that leave most of a GPU idle; places that each of them looks at in one step
LANES = 16  # a search is long, and waits for memory: many short programs


@triton.jit
def _number(
    token_ptr, place, mask, L, k: tl.constexpr, LENGTH: tl.constexpr, BITS: tl.constexpr, PER_KEY: tl.constexpr
):  # fmt: skip
    """The k-th number of the suffixes that end at places: their tokens stand before each other in one row."""
    number = place.to(tl.int64) * 0
    for m in tl.static_range(PER_KEY):
        if k * PER_KEY + m < LENGTH:
            back = k * PER_KEY + m
            token = tl.load(token_ptr + place - back, mask=mask & (place % L >= back), other=0)
            number |= token.to(tl.int64) << (BITS * (PER_KEY - 1 - m))
    return number


@triton.jit
def _before(
    query_ptr, sample_ptr, place_ptr, token_ptr, query, free, is_high, index, mask, X, L, EVERY: tl.constexpr,
    K: tl.constexpr, LENGTH: tl.constexpr, BITS: tl.constexpr, PER_KEY: tl.constexpr,
):  # fmt: skip
    """Whether places stand before the bounds of queries. With EVERY > 1 the index is that of samples."""
    below, equal = mask & (index < 0), mask
    for k in tl.static_range(K):
        wanted = tl.load(query_ptr + k * X + query)
        wanted = tl.where(is_high, wanted | free, wanted & ~free)
        if (k == 0) & (EVERY > 1):
            key = tl.load(sample_ptr + index, mask=equal, other=0)
        else:
            place = tl.load(place_ptr + index * EVERY, mask=equal, other=0)
            key = _number(token_ptr, place, equal, L, k, LENGTH, BITS, PER_KEY)
        below = below | (equal & (key < wanted))
        equal = equal & (key == wanted)
    return below | (equal & is_high)


@triton.jit(do_not_specialize=["P", "X"])
def _wide(
    query_ptr, sample_ptr, place_ptr, token_ptr, free_ptr, low_ptr, high_ptr, X, P, L, K: tl.constexpr,
    LENGTH: tl.constexpr, BITS: tl.constexpr, PER_KEY: tl.constexpr, FREE: tl.constexpr, STEP: tl.constexpr,
    WIDE: tl.constexpr,
):  # fmt: skip
    query, m, is_high = tl.program_id(0), tl.program_id(1), tl.program_id(2) == 1
    lane = tl.arange(0, WIDE)
    low = tl.program_id(0).to(tl.int64) * 0
    free = low
    if FREE:
        free = tl.load(free_ptr + m)
    P = low + P
    high = (P + STEP - 1) // STEP
    while low < high:  # among the samples
        index = low + (lane + 1).to(tl.int64) * (high - low) // (WIDE + 1)
        before = _before(
            query_ptr, sample_ptr, place_ptr, token_ptr, query, free, is_high, index, lane >= 0, X, L, STEP, K, LENGTH,
            BITS, PER_KEY,
        )  # fmt: skip
        first, end = low, high
        low = tl.max(tl.where(before, index + 1, first), axis=0)  # they are the first ones, up to one
        high = tl.min(tl.where(before, end, index), axis=0)
    first = tl.maximum(low * STEP - (STEP - 1), 0)  # after the last sample before the bound
    index = first + lane
    before = _before(
        query_ptr, sample_ptr, place_ptr, token_ptr, query, free, is_high, index, index < tl.minimum(low * STEP, P),
        X, L, 1, K, LENGTH, BITS, PER_KEY,
    )  # fmt: skip
    bound = first + tl.sum(before.to(tl.int64), axis=0)
    tl.store(low_ptr + m * X + query, bound, mask=~is_high)
    tl.store(high_ptr + m * X + query, bound, mask=is_high)


@triton.jit
def _halve(
    query_ptr, sample_ptr, place_ptr, token_ptr, query, free, is_high, low, high, X, L, EVERY: tl.constexpr,
    K: tl.constexpr, LENGTH: tl.constexpr, BITS: tl.constexpr, PER_KEY: tl.constexpr,
):  # fmt: skip
    middle, is_open = (low + high) // 2, low < high
    before = _before(
        query_ptr, sample_ptr, place_ptr, token_ptr, query, free, is_high, middle, is_open, X, L, EVERY, K, LENGTH,
        BITS, PER_KEY,
    )  # fmt: skip
    return tl.where(before, middle + 1, low), tl.where(is_open & ~before, middle, high)


@triton.jit(do_not_specialize=["P"])  # 1 would be no tensor
def _lanes(
    query_ptr, sample_ptr, place_ptr, token_ptr, free_ptr, low_ptr, high_ptr, X, P, L, K: tl.constexpr,
    LENGTH: tl.constexpr, BITS: tl.constexpr, PER_KEY: tl.constexpr, FREE: tl.constexpr, STEP: tl.constexpr,
    M: tl.constexpr, LANES: tl.constexpr,
):  # fmt: skip
    query, is_high = tl.program_id(0) * LANES + tl.arange(0, LANES)[:, None], tl.arange(0, 2)[None, :] == 1
    inside = query < X
    asked = tl.minimum(query, X - 1)
    first = tl.zeros([LANES, 1], dtype=tl.int64)
    end = tl.where(inside, first + P, 0)
    for m in tl.static_range(M):  # each inside of the one before
        free = tl.program_id(0).to(tl.int64) * 0
        if FREE:
            free = tl.load(free_ptr + m)
        low = (first + STEP - 1) // STEP + tl.zeros([LANES, 2], dtype=tl.int64)
        high = (end + STEP - 1) // STEP + tl.zeros([LANES, 2], dtype=tl.int64)
        while tl.max((low < high).to(tl.int32)) > 0:  # among the samples
            low, high = _halve(
                query_ptr, sample_ptr, place_ptr, token_ptr, asked, free, is_high, low, high, X, L, STEP, K, LENGTH,
                BITS, PER_KEY,
            )  # fmt: skip
        low, high = tl.maximum(low * STEP - (STEP - 1), first), tl.minimum(low * STEP, end)
        while tl.max((low < high).to(tl.int32)) > 0:  # after the last sample before the bound
            low, high = _halve(
                query_ptr, sample_ptr, place_ptr, token_ptr, asked, free, is_high, low, high, X, L, 1, K, LENGTH,
                BITS, PER_KEY,
            )  # fmt: skip
        first, end = tl.min(low, axis=1, keep_dims=True), tl.max(low, axis=1, keep_dims=True)
        tl.store(low_ptr + m * X + query, first, mask=inside)
        tl.store(high_ptr + m * X + query, end, mask=inside)


def _search(query_KX: Tensor, places: tuple, form: tuple, free_M: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """(M, X) int64 each, M = 1 without `free_M`: the first place that equals a query in all other bits, and the end."""
    (K, X), M = query_KX.shape, 1 if free_M is None else len(free_M)
    sample_S, place_P, token_NL = places
    low_MX, high_MX = query_KX.new_empty(M, X), query_KX.new_empty(M, X)
    free = sample_S if free_M is None else free_M  # not read without it
    args = query_KX.contiguous(), *places, free, low_MX, high_MX, X, len(place_P), token_NL.shape[1], K, *form
    if X <= FEW:
        _wide[(X, M, 2)](*args, free_M is not None, STEP, WIDE, num_warps=4)
    else:
        _lanes[(triton.cdiv(X, LANES),)](*args, free_M is not None, STEP, M, LANES, num_warps=1)
    return low_MX, high_MX


def suffix_bounds(
    query_KX: Tensor, sample_S: Tensor, place_P: Tensor, token_NL: Tensor, length: int, bits: int, per_key: int
) -> tuple[Tensor, Tensor]:
    """The first place whose suffix is not below a query, and the first above it, each (X,) int64."""
    low_1X, high_1X = _search(query_KX, (sample_S, place_P, token_NL), (length, bits, per_key))
    return low_1X[0], high_1X[0]


def suffix_levels(
    query_X: Tensor, sample_S: Tensor, place_P: Tensor, token_NL: Tensor, free_M: Tensor, length: int, bits: int,
    per_key: int,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The first place that shares the first 1, 2, ... tokens with a query, and the first after them, (M, X) int64."""
    return _search(query_X[None], (sample_S, place_P, token_NL), (length, bits, per_key), free_M)
