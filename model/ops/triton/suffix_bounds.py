"""Search in a suffix index: of many queries a binary search, one lane each, both bounds in one launch.

Of few queries, as in decoding, a program for each bound looks at 256 places at once: four reads in a row find one of
a hundred million places, where a binary search needs 27.

Axes: X queries · P places · K numbers of a suffix · M tokens that are compared · N bank entries · L tokens per entry
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 128
FEW, WIDE = 256, 256  # queries that leave most of a GPU idle; places that each of them looks at in one step
LANES = 32  # a search of several levels is long, and waits for memory: many short programs


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


@triton.jit(do_not_specialize=["P", "X"])
def _wide(
    query_ptr, key_ptr, place_ptr, token_ptr, free_ptr, low_ptr, high_ptr, X, P, L, K: tl.constexpr, FREE: tl.constexpr,
    LENGTH: tl.constexpr, BITS: tl.constexpr, PER_KEY: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    query, m, is_high = tl.program_id(0), tl.program_id(1), tl.program_id(2) == 1
    lane = tl.arange(0, WIDE)
    low = tl.program_id(0).to(tl.int64) * 0
    high = low + P
    free = low
    if FREE:
        free = tl.load(free_ptr + m)
    while low < high:
        middle = low + (lane + 1).to(tl.int64) * (high - low) // (WIDE + 1)
        below, equal = lane < 0, lane >= 0
        for k in tl.static_range(K):
            wanted = tl.load(query_ptr + k * X + query)
            wanted = tl.where(is_high, wanted | free, wanted & ~free)
            if k == 0:
                key = tl.load(key_ptr + middle)
            else:
                place = tl.load(place_ptr + middle, mask=equal, other=0)
                key = _number(token_ptr, place, equal, L, k, LENGTH, BITS, PER_KEY)
            below = below | (equal & (key < wanted))
            equal = equal & (key == wanted)
        on = below | (equal & is_high)  # of the first places, up to one
        first, end = low, high
        low = tl.max(tl.where(on, middle + 1, first), axis=0)
        high = tl.min(tl.where(on, end, middle), axis=0)
    tl.store(low_ptr + m * X + query, low, mask=~is_high)
    tl.store(high_ptr + m * X + query, low, mask=is_high)


@triton.jit(do_not_specialize=["P"])  # 1 would be no tensor
def _bounds(
    query_ptr, key_ptr, place_ptr, token_ptr, low_ptr, high_ptr, X, P, L, n_steps, K: tl.constexpr,
    LENGTH: tl.constexpr, BITS: tl.constexpr, PER_KEY: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    query = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = query < X
    low = tl.zeros([BLOCK], dtype=tl.int64)
    for bound in tl.static_range(2):
        high = tl.zeros([BLOCK], dtype=tl.int64) + P
        for _ in range(n_steps):
            middle = (low + high) // 2
            is_open = (low < high) & inside
            below = low < 0
            equal = is_open
            for k in tl.static_range(K):
                if k == 0:
                    key = tl.load(key_ptr + middle, mask=equal, other=0)
                else:
                    place = tl.load(place_ptr + middle, mask=equal, other=0)
                    key = _number(token_ptr, place, equal, L, k, LENGTH, BITS, PER_KEY)
                wanted = tl.load(query_ptr + k * X + query, mask=inside, other=0)
                below = below | (equal & (key < wanted))
                equal = equal & (key == wanted)
            on = below | equal if bound == 1 else below
            low, high = tl.where(is_open & on, middle + 1, low), tl.where(is_open & ~on, middle, high)
        tl.store((low_ptr if bound == 0 else high_ptr) + query, low, mask=inside)


def suffix_bounds(
    query_KX: Tensor, key_P: Tensor, place_P: Tensor, token_NL: Tensor, length: int, bits: int, per_key: int
) -> tuple[Tensor, Tensor]:
    """The first place whose suffix is not below a query, and the first above it, each (X,) int64."""
    (K, X), P = query_KX.shape, len(key_P)
    low_X, high_X = torch.empty_like(query_KX[0]), torch.empty_like(query_KX[0])
    places, form = (query_KX.contiguous(), key_P, place_P, token_NL), (length, bits, per_key)
    sizes = low_X, high_X, X, P, token_NL.shape[1]
    if X <= FEW:
        _wide[(X, 1, 2)](*places, key_P, *sizes, K, False, *form, WIDE, num_warps=4)
    else:
        _bounds[(triton.cdiv(X, BLOCK),)](*places, *sizes, P.bit_length(), K, *form, BLOCK, num_warps=4)
    return low_X, high_X


@triton.jit(do_not_specialize=["P"])
def _levels(query_ptr, key_ptr, free_ptr, low_ptr, high_ptr, X, P, M: tl.constexpr, BLOCK: tl.constexpr):
    query = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = query < X
    wanted = tl.load(query_ptr + query, mask=inside, other=0)
    first = tl.zeros([BLOCK], dtype=tl.int64)
    end = tl.where(inside, first + P, 0)
    for m in tl.static_range(M):  # each inside of the one before
        free = tl.load(free_ptr + m)
        low, high = first, end
        while tl.max((low < high).to(tl.int32), axis=0) > 0:
            middle, is_open = (low + high) // 2, low < high
            key = tl.load(key_ptr + middle, mask=is_open, other=0)
            on = key < (wanted & ~free)
            low, high = tl.where(is_open & on, middle + 1, low), tl.where(is_open & ~on, middle, high)
        first, high = low, end
        while tl.max((low < high).to(tl.int32), axis=0) > 0:
            middle, is_open = (low + high) // 2, low < high
            key = tl.load(key_ptr + middle, mask=is_open, other=0)
            on = key <= (wanted | free)
            low, high = tl.where(is_open & on, middle + 1, low), tl.where(is_open & ~on, middle, high)
        end = low
        tl.store(low_ptr + m * X + query, first, mask=inside)
        tl.store(high_ptr + m * X + query, end, mask=inside)


def suffix_levels(query_X: Tensor, key_P: Tensor, free_M: Tensor) -> tuple[Tensor, Tensor]:
    """The first place that shares the first 1, 2, ... tokens with a query, and the first after them, (M, X) int64."""
    X, M = len(query_X), len(free_M)
    low_MX, high_MX = query_X.new_empty(M, X), query_X.new_empty(M, X)
    if X <= FEW:
        places = query_X.contiguous(), key_P, key_P, key_P  # their other numbers are not read
        _wide[(X, M, 2)](*places, free_M, low_MX, high_MX, X, len(key_P), 1, 1, True, 1, 1, 1, WIDE, num_warps=4)
        return low_MX, high_MX
    _levels[(triton.cdiv(X, LANES),)](
        query_X.contiguous(), key_P, free_M, low_MX, high_MX, X, len(key_P), M, LANES, num_warps=1
    )
    return low_MX, high_MX
