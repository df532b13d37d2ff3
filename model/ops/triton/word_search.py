"""The steps of a search by words: each position's words, entries and scores stay in registers.

Few numbers are ranked by counting those ahead of each: every pair of them is compared at once.

Axes: X positions · W tokens of the window · P postings · C entries of a position · K words of an entry
      Q words of a position · V high halves of keys
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from common.constants import NO_ENTRY

KEYS = 128  # that a program looks up


@triton.jit
def _ahead(value, slot):
    """(X, X): whether the second value comes before the first one in a stable sort, greatest first."""
    is_equal = value[None, :] == value[:, None]
    return (value[None, :] > value[:, None]) | (is_equal & (slot[None, :] < slot[:, None]))


@triton.jit
def _rarest_words(
    word_ptr, value_ptr, depth_ptr, factor_ptr, now_ptr, now_value_ptr, rarest_ptr, worth_ptr, of_ptr, W,
    Q, HAS_NOW: tl.constexpr, WB: tl.constexpr,
):  # fmt: skip
    position, slot = tl.program_id(0).to(tl.int64), tl.arange(0, WB)
    back = W - 1 - slot
    is_near = (slot < W) & (back <= tl.load(depth_ptr + position))
    word = tl.load(word_ptr + position - back, mask=is_near, other=0).to(tl.int32)
    value = tl.load(value_ptr + position - back, mask=is_near, other=0.0)
    worth = value * tl.load(factor_ptr + slot, mask=slot < W, other=0.0)
    worth = tl.where(slot < W, worth, -1.0)
    ahead = _ahead(worth, slot)
    rank = tl.sum(ahead.to(tl.int32), axis=1)
    repeated = tl.max((ahead & (word[None, :] == word[:, None])).to(tl.int32), axis=1)
    if HAS_NOW:  # the last of all: behind what is worth as much
        now, now_value = tl.load(now_ptr + position).to(tl.int32), tl.load(now_value_ptr + position)
        before = (worth >= now_value) & (slot < W)
        rank += (worth < now_value).to(tl.int32)
        repeated |= ((worth < now_value) & (word == now)).to(tl.int32)
        now_rank = tl.sum(before.to(tl.int32), axis=0)
        now_repeated = tl.max((before & (word == now)).to(tl.int32), axis=0)
        tl.store(rarest_ptr + position * Q + now_rank, tl.where(now_repeated > 0, 0, now), mask=now_rank < Q)
        tl.store(worth_ptr + position * Q + now_rank, now_value, mask=now_rank < Q)
        tl.store(of_ptr + position * Q + now_rank, now_value, mask=now_rank < Q)
    chosen = (slot < W) & (rank < Q)
    tl.store(rarest_ptr + position * Q + rank, tl.where(repeated > 0, 0, word), mask=chosen)
    tl.store(worth_ptr + position * Q + rank, worth, mask=chosen)
    tl.store(of_ptr + position * Q + rank, value, mask=chosen)


def rarest_words(
    word_BT: Tensor, value_BT: Tensor, depth_BT: Tensor, factor_W: Tensor, n: int,
    now_BT: Tensor | None = None, now_value_BT: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """As the reference."""
    W, has_now = len(factor_W), now_BT is not None
    Q, WB = min(n, W + has_now), max(triton.next_power_of_2(W), 2)
    word_BTQ = torch.empty(*word_BT.shape, Q, dtype=torch.int32, device=word_BT.device)
    worth_BTQ, value_BTQ = (torch.empty_like(word_BTQ, dtype=torch.float32) for _ in range(2))
    now, now_value = (now_BT, now_value_BT) if has_now else (word_BT, value_BT)
    tensors = (x.contiguous() for x in (word_BT, value_BT, depth_BT, factor_W, now, now_value))
    _rarest_words[(word_BT.numel(),)](
        *tensors, word_BTQ, worth_BTQ, value_BTQ, W, Q, has_now, WB, num_warps=min(max(WB * WB // 1024, 1), 8)
    )
    return word_BTQ, worth_BTQ, value_BTQ


@triton.jit
def _first_not_less(number_ptr, low, high, wanted, n_steps):
    """Binary search in the ascending numbers of [low, high): where those below the wanted one end."""
    for _ in range(n_steps):
        middle = low + (high - low) // 2
        is_open = low < high
        is_less = tl.load(number_ptr + middle, mask=is_open, other=0) < wanted
        low = tl.where(is_open & is_less, middle + 1, low)
        high = tl.where(is_open & (is_less == 0), middle, high)
    return low


# Edits change the numbers: each would be compiled anew.
@triton.jit(do_not_specialize=["n_wanted", "n_firsts", "first_steps", "second_steps"])
def _read_postings(
    wanted_ptr, weight_ptr, first_ptr, begin_ptr, second_ptr, entry_ptr, norm_ptr, found_ptr, worth_ptr, n_wanted,
    n_firsts, first_steps, second_steps, n, NONE: tl.constexpr, KB: tl.constexpr, NB: tl.constexpr,
):  # fmt: skip
    item = tl.program_id(0).to(tl.int64) * KB + tl.arange(0, KB)
    wanted = tl.load(wanted_ptr + item, mask=item < n_wanted, other=0)
    weight = tl.load(weight_ptr + item, mask=item < n_wanted, other=0.0)
    first, second = (wanted >> 32).to(tl.int32), wanted.to(tl.int32)
    v = _first_not_less(first_ptr, tl.zeros_like(first), tl.where(wanted != 0, n_firsts, 0), first, first_steps)
    is_there = (wanted != 0) & (v < n_firsts)
    is_there &= tl.load(first_ptr + v, mask=is_there, other=0) == first
    low = tl.load(begin_ptr + v, mask=is_there, other=0)
    end = tl.load(begin_ptr + v + 1, mask=is_there, other=0)
    low = _first_not_less(second_ptr, low, end, second, second_steps)
    slot = tl.arange(0, NB)
    at = low[:, None] + slot[None, :]
    inside = (slot < n)[None, :] & (at < end[:, None])
    inside &= tl.load(second_ptr + at, mask=inside, other=0) == second[:, None]
    entry = tl.load(entry_ptr + at, mask=inside, other=NONE)
    worth = weight[:, None] * tl.load(norm_ptr + entry, mask=inside, other=0.0)
    to, is_item = item[:, None] * n + slot[None, :], (item < n_wanted)[:, None] & (slot < n)[None, :]
    tl.store(found_ptr + to, entry, mask=is_item)
    tl.store(worth_ptr + to, worth, mask=is_item)


def read_postings(
    key_XY: Tensor, weight_XY: Tensor, first_V: Tensor, begin_V: Tensor, second_P: Tensor, entry_P: Tensor,
    norm_N: Tensor, n: int,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """As the reference."""
    (X, Y), V, P = key_XY.shape, len(first_V), len(second_P) - 1
    entry_XZ = torch.empty(X, Y * n, dtype=torch.int32, device=key_XY.device)
    weight_XZ = torch.empty(X, Y * n, dtype=torch.float32, device=key_XY.device)
    _read_postings[(triton.cdiv(X * Y, KEYS),)](
        key_XY.contiguous(), weight_XY.contiguous(), first_V, begin_V, second_P, entry_P, norm_N, entry_XZ, weight_XZ,
        X * Y, V, V.bit_length(), P.bit_length(), n, NO_ENTRY, KEYS, max(triton.next_power_of_2(n), 2), num_warps=4,
    )  # fmt: skip
    return entry_XZ, weight_XZ


@triton.jit
def _rank_by_words(
    entry_ptr, words_ptr, norm_ptr, word_ptr, value_ptr, ranked_ptr, score_ptr, C, K, Q, CB: tl.constexpr,
    KB: tl.constexpr,
):  # fmt: skip
    position, slot, column = tl.program_id(0).to(tl.int64), tl.arange(0, CB), tl.arange(0, KB)
    entry = tl.load(entry_ptr + position * C + slot, mask=slot < C, other=-1)
    inside = (entry >= 0)[:, None] & (column < K)[None, :]
    words = tl.load(words_ptr + entry[:, None] * K + column[None, :], mask=inside, other=0)
    # An entry's words differ, so that the sum over them counts each word of the text once.
    found = tl.zeros([CB, KB], dtype=tl.float32)
    for q in range(Q):
        word, value = tl.load(word_ptr + position * Q + q), tl.load(value_ptr + position * Q + q)
        found += tl.where((words == word) & (words != 0), value, 0.0)
    score = tl.sum(found, axis=1) * tl.load(norm_ptr + entry, mask=entry >= 0, other=0.0)
    rank = tl.sum(_ahead(tl.where(slot < C, score, -1.0), slot).to(tl.int32), axis=1)
    tl.store(ranked_ptr + position * C + rank, entry, mask=slot < C)
    tl.store(score_ptr + position * C + rank, score, mask=slot < C)


def rank_by_words(
    entry_XC: Tensor, word_NK: Tensor, norm_N: Tensor, word_XQ: Tensor, value_XQ: Tensor
) -> tuple[Tensor, Tensor]:
    """As the reference."""
    (X, C), (_, Q), K = entry_XC.shape, word_XQ.shape, word_NK.shape[1]
    block_C, block_K = max(triton.next_power_of_2(C), 2), max(triton.next_power_of_2(K), 2)
    ranked_XC = torch.empty_like(entry_XC, memory_format=torch.contiguous_format)
    score_XC = torch.empty(X, C, dtype=torch.float32, device=entry_XC.device)
    tensors = (x.contiguous() for x in (entry_XC, word_NK, norm_N, word_XQ, value_XQ))
    warps = min(max(block_C * block_K // 1024, block_C * block_C // 2048, 1), 8)
    _rank_by_words[(X,)](*tensors, ranked_XC, score_XC, C, K, Q, block_C, block_K, num_warps=warps)
    return ranked_XC, score_XC
