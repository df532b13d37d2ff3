"""The running sum of hints and its best C entries, left to right: one warp a row, its state in registers.

What does not depend on the state is done for all positions at once before: hints of the same entry are added up and the
rest sorted, so that a position of the walk compares C kept entries with X hints, and no hint with another.

Axes: B rows · T positions · X hints at one position · C entries kept
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

NO_ENTRY: tl.constexpr = tl.constexpr(-1)
FEW: tl.constexpr = tl.constexpr(16)  # most positions have no more hints than this; a shorter walk serves them


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
def _keep(entry, score, hint, weight, slot, C: tl.constexpr):
    """The best C of the kept entries, with the hints added to them, and of the other hints. Ties: kept ones first."""
    match = (entry[:, None] == hint[None, :]) & (hint[None, :] != NO_ENTRY)
    score += tl.sum(tl.where(match, weight[None, :], 0.0), axis=1)
    fresh = (hint != NO_ENTRY) & (tl.max(match.to(tl.int32), axis=0) == 0)
    earlier = slot[None, :] < slot[:, None]
    ahead = (score[None, :] > score[:, None]) | ((score[None, :] == score[:, None]) & earlier)
    beaten = fresh[None, :] & (weight[None, :] > score[:, None])
    rank = tl.sum(ahead.to(tl.int32), axis=1) + tl.sum(beaten.to(tl.int32), axis=1)
    # Hints come sorted: before each stand the fresh ones to its left, and the kept ones that are no lighter.
    hint_rank = tl.cumsum(fresh.to(tl.int32), axis=0) - 1
    hint_rank += tl.sum((score[:, None] >= weight[None, :]).to(tl.int32), axis=0)
    stays = rank[None, :] == slot[:, None]
    joins = (hint_rank[None, :] == slot[:, None]) & fresh[None, :]
    # A sum with one term in it picks; entries are shifted so that NO_ENTRY, -1, is the empty sum.
    picked = tl.sum(tl.where(stays, entry[None, :] + 1, 0), axis=1)
    picked += tl.sum(tl.where(joins, hint[None, :] + 1, 0), axis=1)
    total = tl.sum(tl.where(stays, score[None, :], 0.0), axis=1)
    total += tl.sum(tl.where(joins, weight[None, :], 0.0), axis=1)
    return tl.where(total > 0, picked - 1, NO_ENTRY), total


@triton.jit
def _keep_best(
    hint_ptr, weight_ptr, count_ptr, start_ptr, before_entry_ptr, before_score_ptr, entry_ptr, score_ptr, n_positions,
    n_kept, decay, C: tl.constexpr, X: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    slot = tl.arange(0, C)
    few, every = tl.arange(0, FEW), tl.arange(0, X)
    is_slot = slot < n_kept
    entry = tl.load(before_entry_ptr + row * n_kept + slot, mask=is_slot, other=NO_ENTRY).to(tl.int32)
    score = tl.load(before_score_ptr + row * n_kept + slot, mask=is_slot, other=0.0)
    first = row * n_positions
    hint = tl.load(hint_ptr + first * X + few, mask=few < X, other=NO_ENTRY)
    weight = tl.load(weight_ptr + first * X + few, mask=few < X, other=0.0)
    count, start = tl.load(count_ptr + first), tl.load(start_ptr + first)
    for t in range(n_positions):
        position = first + t
        score = tl.where(start == 0, score * decay, 0.0)
        entry = tl.where(start == 0, entry, NO_ENTRY)
        if X > FEW and count > FEW:  # without X > FEW, Triton 3.6 fails at X = 16 and hangs at X = 1
            many, many_weight = tl.load(hint_ptr + position * X + every), tl.load(weight_ptr + position * X + every)
            entry, score = _keep(entry, score, many, many_weight, slot, C)
        elif count > 0:
            entry, score = _keep(entry, score, hint, weight, slot, C)
        # The slots beyond n_kept fill C up to a power of two.
        entry, score = tl.where(is_slot, entry, NO_ENTRY), tl.where(is_slot, score, 0.0)
        tl.store(entry_ptr + position * n_kept + slot, entry.to(tl.int64), mask=is_slot)
        tl.store(score_ptr + position * n_kept + slot, score, mask=is_slot)
        following = tl.minimum(position + 1, first + n_positions - 1)
        hint = tl.load(hint_ptr + following * X + few, mask=few < X, other=NO_ENTRY)
        weight = tl.load(weight_ptr + following * X + few, mask=few < X, other=0.0)
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
    n_kept, X = kept_BC.shape[1], triton.next_power_of_2(n_hints)
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
        C=triton.next_power_of_2(n_kept), X=X, num_warps=1,
    )  # fmt: skip
    return best_BTC, score_BTC
