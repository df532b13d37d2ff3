"""The running sum of hints and its best C entries, left to right: one program a row, its state in L1.

Axes: B rows · T positions · X hints at one position · C entries kept · M slots that compete, C + X rounded up
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

NO_ENTRY: tl.constexpr = tl.constexpr(-1)


@triton.jit
def _keep_best(
    entry_ptr, weight_ptr, start_ptr, kept_ptr, score_ptr, n_positions, n_hints, decay, C: tl.constexpr, M: tl.constexpr
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    slot = tl.arange(0, M)
    earlier = slot[None, :] < slot[:, None]
    for t in range(n_positions):
        hint = (row * n_positions + t) * n_hints + slot - C
        is_hint = (slot >= C) & (slot < C + n_hints)
        # `kept` and `score` have one position more: number t holds what was kept before position t.
        before = (row * (n_positions + 1) + t) * C
        # A start forgets: its mask is empty.
        n_kept = tl.where(tl.load(start_ptr + row * n_positions + t) == 0, C, 0)
        goes_on = slot < n_kept
        new = tl.load(entry_ptr + hint, mask=is_hint, other=NO_ENTRY)
        old = tl.load(kept_ptr + before + slot, mask=goes_on, other=NO_ENTRY)
        entry = tl.where(slot < C, old, new)
        weight = tl.load(weight_ptr + hint, mask=is_hint, other=0.0)
        weight += tl.load(score_ptr + before + slot, mask=goes_on, other=0.0) * decay

        same = entry[:, None] == entry[None, :]
        total = tl.sum(tl.where(same, weight[None, :], 0.0), axis=1)
        repeated = tl.max((same & earlier).to(tl.int32), axis=1) == 1
        total = tl.where(repeated | (entry == NO_ENTRY), 0.0, total)
        ahead = (total[None, :] > total[:, None]) | ((total[None, :] == total[:, None]) & earlier)
        rank = tl.sum(ahead.to(tl.int32), axis=1)
        after = before + C + rank
        tl.store(kept_ptr + after, tl.where(total > 0, entry, NO_ENTRY), mask=rank < C)
        tl.store(score_ptr + after, total, mask=rank < C)
        tl.debug_barrier()  # the next position reads what other threads have just written


def keep_best(
    entry_BTX: Tensor, weight_BTX: Tensor, start_BT: Tensor, kept_BC: Tensor, score_BC: Tensor, decay: float
) -> tuple[Tensor, Tensor]:
    """Twin of `ngrams.keep_best_reference` on CUDA.

    Args:
        kept_BC, score_BC: what was kept before the first position.
    Returns:
        entry_BTC: int64.  score_BTC: float32.
    """
    B, T, X = entry_BTX.shape
    C = kept_BC.shape[1]
    entry = torch.empty(B, T + 1, C, dtype=torch.int64, device=entry_BTX.device)
    score = torch.empty(B, T + 1, C, dtype=torch.float32, device=entry_BTX.device)
    entry[:, 0], score[:, 0] = kept_BC, score_BC
    # Sums over M x M pairs: four warps hold 32 of them a thread.
    _keep_best[(B,)](
        entry_BTX.contiguous(), weight_BTX.float().contiguous(), start_BT.to(torch.int8).contiguous(), entry, score,
        T, X, decay, C=C, M=triton.next_power_of_2(C + X), num_warps=4,
    )  # fmt: skip
    return entry[:, 1:], score[:, 1:]
