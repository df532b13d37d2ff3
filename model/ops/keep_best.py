"""The running best entries of an n-gram search, from left to right.

Axes: B batch · T position · X matches that end at one position · C entries that go on to the next position
      M = C + X entries that compete at one position
"""

import torch
from torch import Tensor

from common.constants import NO_ENTRY

from .twin import twin


def _kernel(
    entry_BTX: Tensor, weight_BTX: Tensor, start_BT: Tensor, best_BC: Tensor, score_BC: Tensor, decay: float
) -> tuple[Tensor, Tensor]:
    from .triton.keep_best import keep_best as kernel

    return kernel(entry_BTX, weight_BTX, start_BT, best_BC, score_BC, decay)


@twin(_kernel, deterministic=True)
def keep_best(
    entry_BTX: Tensor, weight_BTX: Tensor, start_BT: Tensor, best_BC: Tensor, score_BC: Tensor, decay: float
) -> tuple[Tensor, Tensor]:
    """Add up the matches of each document from left to right; the best C entries of a position go on to the next.

    An entry's score at t is `decay` times its score at t - 1, if it was among the best there, plus its weights at t.
    Equal scores keep their order: the best of t - 1 come first, then the matches in their order.

    Args:
        entry_BTX: int32 or int64, NO_ENTRY for no match.  weight_BTX: float32, 0 there.
        start_BT: bool, True where nothing earlier counts.
        best_BC: int64, the best entries before the first position.  score_BC: float32, their scores.
        decay: in (0, 1].
    Returns:
        entry_BTC: int64, best first, NO_ENTRY where fewer than C were found.  score_BTC: float32, 0 there.
    """
    C = best_BC.shape[1]
    M = C + entry_BTX.shape[-1]
    earlier_MM = torch.ones(M, M, dtype=torch.bool, device=entry_BTX.device).tril(-1)
    entries, scores = [], []
    for entry_BX, weight_BX, start_B in zip(
        entry_BTX.unbind(dim=1), weight_BTX.unbind(dim=1), start_BT.unbind(dim=1), strict=True
    ):
        score_BC = (score_BC * decay).masked_fill(start_B[:, None], 0.0)
        best_BC = best_BC.masked_fill(start_B[:, None], NO_ENTRY)
        entry_BM, weight_BM = torch.cat([best_BC, entry_BX], dim=1), torch.cat([score_BC, weight_BX], dim=1)
        same_BMM = entry_BM[:, :, None] == entry_BM[:, None, :]
        total_BM = (same_BMM * weight_BM[:, None, :]).sum(dim=-1)
        repeated_BM = (same_BMM & earlier_MM).any(dim=-1)
        total_BM = total_BM.masked_fill(repeated_BM | (entry_BM == NO_ENTRY), 0.0)
        score_BM, slot_BM = total_BM.sort(dim=-1, descending=True, stable=True)
        score_BC = score_BM[:, :C]
        best_BC = entry_BM.gather(1, slot_BM[:, :C]).masked_fill(score_BC <= 0, NO_ENTRY)
        entries.append(best_BC)
        scores.append(score_BC)
    return torch.stack(entries, dim=1), torch.stack(scores, dim=1)
