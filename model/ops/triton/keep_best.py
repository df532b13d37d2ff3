"""The running sum of hints and its best C entries, left to right: one program a row, its state in registers.

What does not depend on the state is done for all positions at once before: hints of the same entry are added up and the
rest sorted. Kept entries are sorted too, and stay so among themselves but for those that a hint adds to. So a position
of the walk compares each hint with the kept entries and the other hints, and no kept entry with another. Pairs are
reduced along their first axis, which one warp has within its threads: reduced along the other, they shuffle.

Axes: B rows · T positions · X hints at one position · C entries kept
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

NO_ENTRY: tl.constexpr = tl.constexpr(-1)
FEW = 32  # most positions have no more hints than this: they compare fewer pairs (measured on an H200: docs/log.md)


@triton.jit
def _merge_hints(entry_ptr, weight_ptr, merged_ptr, total_ptr, count_ptr, n_hints, X: tl.constexpr):
    """One program a position: each entry once with the sum of its weights, heaviest first, NO_ENTRY behind them."""
    position = tl.program_id(0).to(tl.int64)
    slot = tl.arange(0, X)
    inside = slot < n_hints
    entry = tl.load(entry_ptr + position * n_hints + slot, mask=inside, other=NO_ENTRY).to(tl.int32)
    weight = tl.load(weight_ptr + position * n_hints + slot, mask=inside, other=0.0)
    same = entry[:, None] == entry[None, :]
    earlier = slot[None, :] < slot[:, None]
    total = tl.sum(tl.where(same, weight[None, :], 0.0), axis=1)
    repeated = tl.max((same & earlier).to(tl.int32), axis=1)
    total = tl.where((repeated == 0) & (entry != NO_ENTRY), total, 0.0)
    ahead = (total[None, :] > total[:, None]) | ((total[None, :] == total[:, None]) & earlier)
    rank = tl.sum(ahead.to(tl.int32), axis=1)
    tl.store(merged_ptr + position * X + rank, tl.where(total > 0, entry, NO_ENTRY))
    tl.store(total_ptr + position * X + rank, total)
    tl.store(count_ptr + position, tl.sum((total > 0).to(tl.int32), axis=0))


@triton.jit
def _keep(entry, score, hint, weight, C: tl.constexpr, X: tl.constexpr):
    """The best C of the kept entries, with the hints added to them, and of the other hints. Ties: kept ones first.

    Both come sorted, best first, and no entry twice among either.
    """
    slot, place = tl.arange(0, C), tl.arange(0, X)
    is_hint = hint != NO_ENTRY
    at = tl.min(tl.where(entry[:, None] == hint[None, :], slot[:, None], C), axis=0)
    at = tl.where(is_hint, at, C)  # where the entry of a hint is kept; C: nowhere
    total = weight + tl.where(at < C, tl.gather(score, tl.minimum(at, C - 1), axis=0), 0.0)
    # A hint with what it adds to stands behind this many kept entries.
    behind = tl.minimum(tl.sum((score[:, None] >= total[None, :]).to(tl.int32), axis=0), at)
    order = tl.where(at < C, at, C + place)
    ahead = (total[:, None] > total[None, :]) | ((total[:, None] == total[None, :]) & (order[:, None] < order[None, :]))
    rank = behind + tl.sum(ahead.to(tl.int32) - (at[:, None] < behind[None, :]).to(tl.int32), axis=0)
    rank = tl.where(is_hint, rank, C)
    # The other kept entries fill the slots in between, in their order: the n-th of them has skipped those added to.
    skip = at - tl.sum((at[:, None] < at[None, :]).to(tl.int32), axis=0)
    skip = tl.where(at < C, skip, C)
    joins = tl.max(tl.where(rank[:, None] == slot[None, :], place[:, None], -1), axis=0)
    joined = (joins >= 0).to(tl.int32)
    nth = slot - (tl.cumsum(joined, axis=0) - joined)
    source = tl.minimum(nth + tl.sum((skip[:, None] <= nth[None, :]).to(tl.int32), axis=0), C - 1)
    place_joins = tl.maximum(joins, 0)
    kept = tl.where(joins >= 0, tl.gather(hint, place_joins, axis=0), tl.gather(entry, source, axis=0))
    return kept, tl.where(joins >= 0, tl.gather(total, place_joins, axis=0), tl.gather(score, source, axis=0))


@triton.jit
def _keep_loaded(entry, score, hint_ptr, weight_ptr, C: tl.constexpr, X: tl.constexpr):
    """As `_keep`, with the first X hints of a position."""
    place = tl.arange(0, X)
    return _keep(entry, score, tl.load(hint_ptr + place), tl.load(weight_ptr + place), C, X)


@triton.jit
def _keep_best(
    hint_ptr, weight_ptr, count_ptr, start_ptr, before_entry_ptr, before_score_ptr, entry_ptr, score_ptr, n_positions,
    n_kept, decay, C: tl.constexpr, X: tl.constexpr, FEW: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    slot, few = tl.arange(0, C), tl.arange(0, FEW)
    is_slot = slot < n_kept
    entry = tl.load(before_entry_ptr + row * n_kept + slot, mask=is_slot, other=NO_ENTRY).to(tl.int32)
    score = tl.load(before_score_ptr + row * n_kept + slot, mask=is_slot, other=0.0)
    first = row * n_positions
    hint, weight = tl.load(hint_ptr + first * X + few), tl.load(weight_ptr + first * X + few)
    count, start = tl.load(count_ptr + first), tl.load(start_ptr + first)
    for t in range(n_positions):
        position = first + t
        score = tl.where(start == 0, score * decay, 0.0)
        entry = tl.where(score > 0, entry, NO_ENTRY)
        if X > 2 * FEW and count > 2 * FEW:  # X is known to the compiler: it makes no walk that no position takes
            entry, score = _keep_loaded(entry, score, hint_ptr + position * X, weight_ptr + position * X, C, X)
        elif X > FEW and count > FEW:
            entry, score = _keep_loaded(entry, score, hint_ptr + position * X, weight_ptr + position * X, C, 2 * FEW)
        elif count > 0:
            entry, score = _keep(entry, score, hint, weight, C, FEW)
        # The slots beyond n_kept fill C up to a power of two.
        entry, score = tl.where(is_slot, entry, NO_ENTRY), tl.where(is_slot, score, 0.0)
        tl.store(entry_ptr + position * n_kept + slot, entry.to(tl.int64), mask=is_slot)
        tl.store(score_ptr + position * n_kept + slot, score, mask=is_slot)
        following = tl.minimum(position + 1, first + n_positions - 1)
        hint, weight = tl.load(hint_ptr + following * X + few), tl.load(weight_ptr + following * X + few)
        count, start = tl.load(count_ptr + following), tl.load(start_ptr + following)


def keep_best(
    entry_BTX: Tensor, weight_BTX: Tensor, start_BT: Tensor, kept_BC: Tensor, score_BC: Tensor, decay: float
) -> tuple[Tensor, Tensor]:
    """The best C entries of every position, for banks of fewer than 2^31 entries.

    Args:
        kept_BC, score_BC: what was kept before the first position.
    Returns:
        entry_BTC: int64.  score_BTC: float32.
    """
    B, T, n_hints = entry_BTX.shape
    n_kept, X = kept_BC.shape[1], max(triton.next_power_of_2(n_hints), FEW)
    hint_BTX = torch.empty(B, T, X, dtype=torch.int32, device=entry_BTX.device)
    total_BTX = torch.empty(B, T, X, dtype=torch.float32, device=entry_BTX.device)
    count_BT = torch.empty(B, T, dtype=torch.int32, device=entry_BTX.device)
    # Every pair of hints is compared: 4096 pairs a warp.
    _merge_hints[(B * T,)](
        entry_BTX.contiguous(), weight_BTX.float().contiguous(), hint_BTX, total_BTX, count_BT, n_hints, X,
        num_warps=min(max(X * X // 4096, 1), 16),
    )  # fmt: skip
    best_BTC = torch.empty(B, T, n_kept, dtype=torch.int64, device=entry_BTX.device)
    score_BTC = torch.empty(B, T, n_kept, dtype=torch.float32, device=entry_BTX.device)
    _keep_best[(B,)](
        hint_BTX, total_BTX, count_BT, start_BT.to(torch.int8).contiguous(), kept_BC.contiguous(),
        score_BC.float().contiguous(), best_BTC, score_BTC, T, n_kept, decay,
        C=triton.next_power_of_2(n_kept), X=X, FEW=FEW, num_warps=X // 32,
    )  # fmt: skip
    return best_BTC, score_BTC
