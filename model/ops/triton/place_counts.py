"""Next tokens after many places, counted in registers: a warp for each position, where torch takes some forty passes.

Three kernels: which places; the token and the topic of each, which are reads of single lines of a large bank; then, for
each position, the tokens sorted, their weights added up, and the best of them taken.

Axes: X positions · P sorted places · Y places looked at · U next tokens given · N bank entries · L tokens per entry
      K width of a topic
"""

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra import libdevice

from common.constants import NO_ENTRY, PADDING

from ..own_places import LOOKED_AT, Own
from ..place_counts import MATCHED_BITS, SHARE_BITS, SHARE_STEPS, SHARPNESS, UNITS

ROWS, PLACES, READ = 4, 64, 512  # of a program: positions; places of one at a time; places that are read


@triton.jit(do_not_specialize=["X", "P", "n_places", "shift"])
def _spaced(
    low_ptr, count_ptr, place_ptr, document_ptr, own_ptr, out_ptr, X, P, L, n_places, shift, n: tl.constexpr,
    NONE: tl.constexpr, OWN: tl.constexpr, W: tl.constexpr, ROWS: tl.constexpr, WB: tl.constexpr,
):  # fmt: skip
    row, slot = tl.program_id(0) * ROWS + tl.arange(0, ROWS), tl.arange(0, WB)
    low = tl.load(low_ptr + row, mask=row < X, other=0)[:, None]
    count = tl.load(count_ptr + row, mask=row < X, other=0)[:, None]
    wide = slot.to(tl.int64)[None, :]
    at = low + tl.where(count > W, wide * count // W, wide)
    at = (tl.minimum(at, n_places.to(tl.int64) - 1) + shift.to(tl.int64)) % P.to(tl.int64)
    inside = (row < X)[:, None] & (slot < W)[None, :]
    is_place = inside & (wide < count)
    place = tl.load(place_ptr + at, mask=is_place, other=NONE)
    out = out_ptr + row.to(tl.int64)[:, None] * n
    if OWN:
        document = tl.load(document_ptr + place // L, mask=is_place, other=0)
        other = is_place & (document != tl.load(own_ptr + row, mask=row < X, other=0)[:, None])
        rank = tl.cumsum(other.to(tl.int32), axis=1) - 1
        others = tl.sum(other.to(tl.int32), axis=1)[:, None]
        spaced = (rank * n + others - 1) // tl.maximum(others, 1)  # the slot that this one has, if it has any
        given = tl.where(others > n, spaced, rank)
        is_given = other & ((others <= n) | (spaced * others // n == rank))
        tl.store(out + given, place, mask=is_given)
        empty = inside & (slot[None, :] >= others) & (slot < n)[None, :]
        tl.store(out + slot[None, :], place * 0 + NONE, mask=empty)
    else:
        tl.store(out + slot[None, :], place, mask=inside)


@triton.jit
def _look_up(
    place_ptr, token_ptr, topic_ptr, topics_ptr, next_ptr, near_ptr, n_tokens, Y, L, K, vocab_size,
    TOPICS: tl.constexpr, PADDING: tl.constexpr, YB: tl.constexpr, KB: tl.constexpr,
):  # fmt: skip
    position, slot = tl.program_id(0).to(tl.int64), tl.program_id(1) * YB + tl.arange(0, YB)
    place = tl.load(place_ptr + position * Y + slot, mask=slot < Y, other=-1)
    following = tl.minimum(place + 1, n_tokens - 1)
    token = tl.load(token_ptr + following, mask=place >= 0, other=PADDING).to(tl.int32)
    is_place = token != PADDING
    tl.store(next_ptr + position * Y + slot, tl.where(is_place, token, vocab_size), mask=slot < Y)
    if TOPICS:
        column = tl.arange(0, KB)
        topic = tl.load(topic_ptr + position * K + column, mask=column < K, other=0.0).to(tl.float32)
        entry = (place // L).to(tl.int64)
        rows = topics_ptr + entry[:, None] * K + column[None, :]
        row = tl.load(rows, mask=is_place[:, None] & (column < K)[None, :], other=0.0).to(tl.float32)
        near = tl.where(is_place, tl.sum(row * topic[None, :], axis=1), -1.0)
        tl.store(near_ptr + position * Y + slot, near, mask=slot < Y)


@triton.jit
def _larger(a, b):
    return tl.maximum(a, b)


@triton.jit
def _step(numerator, denominator, STEPS: tl.constexpr, BITS: tl.constexpr):
    share = tl.div_rn(numerator.to(tl.float32), denominator.to(tl.float32))
    step = libdevice.rint(-STEPS * libdevice.log(share))
    return tl.minimum(tl.maximum(step, 0.0), (1 << BITS) - 1.0).to(tl.int64)


@triton.jit
def _merge(
    place_ptr, next_ptr, near_ptr, matched_ptr, out_ptr, score_ptr, Y, U, vocab_size, TOPICS: tl.constexpr,
    NONE: tl.constexpr, SHARPNESS: tl.constexpr, UNITS: tl.constexpr, STEPS: tl.constexpr, MATCHED: tl.constexpr,
    SHARE: tl.constexpr, YB: tl.constexpr, UB: tl.constexpr,
):  # fmt: skip
    position, slot = tl.program_id(0).to(tl.int64), tl.arange(0, YB)
    token = tl.load(next_ptr + position * Y + slot, mask=slot < Y, other=vocab_size)
    is_place = (token != vocab_size).to(tl.int32)
    weight = is_place * UNITS
    if TOPICS:
        near = tl.load(near_ptr + position * Y + slot, mask=slot < Y, other=float("-inf"))
        near = near - tl.max(near, axis=0)
        weight = libdevice.rint(libdevice.exp(SHARPNESS * near) * UNITS).to(tl.int32) * is_place
    # Sorted by token, then by slot; what is no place comes last.
    key = tl.sort(token * YB + slot)
    token, from_slot = key // YB, key % YB
    weight = tl.gather(weight, from_slot, 0)
    sums = tl.cumsum(weight, axis=0)
    is_first = (slot == 0) | (token != tl.gather(token, tl.maximum(slot - 1, 0), 0))
    is_last = (slot == YB - 1) | (token != tl.gather(token, tl.minimum(slot + 1, YB - 1), 0))
    # Both grow along the row: the largest so far is that of the token's own first slot.
    before = tl.associative_scan(tl.where(is_first, sums - weight, 0), 0, _larger)
    first = tl.associative_scan(tl.where(is_first, slot, 0), 0, _larger)
    own = tl.where(is_last & (token != vocab_size), sums - before, 0)
    best = tl.topk(own.to(tl.int64) * YB + (YB - 1 - slot), UB)  # of equal ones the first
    own, last = (best // YB).to(tl.int32), YB - 1 - (best % YB).to(tl.int32)
    first = tl.gather(first, last, 0)
    from_slot = tl.gather(from_slot, first, 0)
    given, found = tl.arange(0, UB), own > 0
    place = tl.load(place_ptr + position * Y + from_slot, mask=found, other=NONE).to(tl.int64)
    score = tl.load(matched_ptr + position)
    score += _step(own, tl.maximum(tl.sum(weight, axis=0), 1), STEPS, SHARE) << MATCHED
    score += _step(last - first + 1, tl.maximum(tl.sum(is_place, axis=0), 1), STEPS, SHARE) << (MATCHED + SHARE)
    tl.store(out_ptr + position * U + given, place, mask=given < U)
    tl.store(score_ptr + position * U + given, tl.where(found, score, 0), mask=given < U)


@triton.jit
def _read(
    place_ptr, score_ptr, token_ptr, entry_ptr, next_ptr, missing_ptr, weight_ptr, plain_ptr, X, L,
    PADDING: tl.constexpr, STEPS: tl.constexpr, MATCHED: tl.constexpr, SHARE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    place = tl.load(place_ptr + at, mask=at < X, other=-1)
    is_place, place = place >= 0, tl.maximum(place, 0)
    token = tl.load(token_ptr + place + 1, mask=is_place & (place % L + 1 < L), other=PADDING).to(tl.int64)
    score = tl.load(score_ptr + at, mask=at < X, other=0)
    step = (score >> MATCHED) & ((1 << SHARE) - 1)
    plain_step = (score >> (MATCHED + SHARE)) & ((1 << SHARE) - 1)
    weight = (score & ((1 << MATCHED) - 1)).to(tl.float32) + step.to(tl.float32) * (-1.0 / STEPS)
    tl.store(entry_ptr + at, place // L, mask=at < X)
    tl.store(next_ptr + at, token, mask=at < X)
    tl.store(missing_ptr + at, ~is_place, mask=at < X)
    tl.store(weight_ptr + at, weight, mask=at < X)
    tl.store(plain_ptr + at, plain_step.to(tl.float32) * (-1.0 / STEPS), mask=at < X)


def spaced_places(
    low_X: Tensor, count_X: Tensor, place_P: Tensor, n: int, n_places: int, shift: int, own: Own | None = None
) -> Tensor:
    """(X, n) int32: n of `count_X` places from `low_X` on, evenly spaced, NO_ENTRY beyond them."""
    X, W, documents, L = len(low_X), n, (place_P, place_P), 1  # never read
    if own is not None:
        W, documents, L = LOOKED_AT * n, (own.document_N, own.document_X.contiguous()), own.L
    out_XY, block = place_P.new_empty(X, n), triton.next_power_of_2(W)
    _spaced[(triton.cdiv(X, ROWS),)](
        low_X.contiguous(), count_X.contiguous(), place_P, *documents, out_XY, X, len(place_P), L, n_places, shift, n,
        NO_ENTRY, own is not None, W, ROWS, block, num_warps=min(max(ROWS * block // 128, 1), 8),
    )  # fmt: skip
    return out_XY


def next_tokens(
    place_XY: Tensor, matched_X: Tensor, token_NL: Tensor, vocab_size: int, topic_XK: Tensor | None,
    topic_NK: Tensor | None, n_given: int,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The most frequent tokens after some places, of which one is given, and their scores, (X, U) int64 each."""
    (X, Y), L, has_topics = place_XY.shape, token_NL.shape[1], topic_XK is not None
    place_XY, next_XY = place_XY.int().contiguous(), torch.empty_like(place_XY, dtype=torch.int32)
    near_XY, topics, K = next_XY, (next_XY, next_XY), 1  # never read
    if has_topics:
        near_XY, K = torch.empty_like(next_XY, dtype=torch.float32), topic_NK.shape[1]
        topics = topic_XK.to(topic_NK.dtype).contiguous(), topic_NK
    block = min(PLACES, triton.next_power_of_2(Y))
    block_K = triton.next_power_of_2(K)
    _look_up[(X, triton.cdiv(Y, block))](
        place_XY, token_NL, *topics, next_XY, near_XY, token_NL.numel(), Y, L, K, vocab_size, has_topics, PADDING,
        block, block_K, num_warps=min(max(block * block_K // 1024, 1), 8),
    )  # fmt: skip
    U, block = min(n_given, Y), max(triton.next_power_of_2(Y), 32)
    place_XU, score_XU = matched_X.new_empty(X, U), matched_X.new_empty(X, U)
    _merge[(X,)](
        place_XY, next_XY, near_XY, matched_X.contiguous(), place_XU, score_XU, Y, U, vocab_size, has_topics, NO_ENTRY,
        SHARPNESS, UNITS, SHARE_STEPS, MATCHED_BITS, SHARE_BITS, block, max(triton.next_power_of_2(U), 2),
        num_warps=max(block // 128, 1),
    )  # fmt: skip
    beyond = (0, n_given - U)  # fewer places than tokens asked for
    return F.pad(place_XU, beyond, value=NO_ENTRY), F.pad(score_XU, beyond)


def read_places(place_X: Tensor, score_X: Tensor, token_NL: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """What stands after places of the bank, and what their scores say: entry, token, whether none, two log-weights."""
    place_X, score_X = place_X.contiguous(), score_X.contiguous()
    numbers = torch.empty_like(place_X), torch.empty_like(place_X), torch.empty_like(place_X, dtype=torch.bool)
    weights = (torch.empty_like(place_X, dtype=torch.float32) for _ in range(2))
    made = *numbers, *weights
    _read[(triton.cdiv(place_X.numel(), READ),)](
        place_X, score_X, token_NL, *made, place_X.numel(), token_NL.shape[1], PADDING, SHARE_STEPS, MATCHED_BITS,
        SHARE_BITS, READ, num_warps=4,
    )  # fmt: skip
    return made
