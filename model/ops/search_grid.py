"""Product-key search: the best C of N = R*R entries from the scores of 2R sub-keys.

Axes: B batch · T position · M = B*T positions · R sub-keys per half · C candidates
      P pairs of ranks in the two half-lists that can be among the best C
"""

from typing import NamedTuple

import torch
from torch import Tensor

from .rank_pairs import rank_pairs
from .triton import call
from .twin import twin


class KeyUsage(NamedTuple):
    """How evenly the sub-keys are used: the two factors of the balance loss."""

    count_2R: Tensor  # how often each is among the best C of its half
    probability_2R: Tensor  # float32, the mean over positions of the softmax over the sub-keys of a half


def _kernel(
    score_BT2R: Tensor, num_candidates: int, usage: bool = False, scale: float = 1.0
) -> tuple[Tensor, Tensor, KeyUsage | None]:
    from .triton.search_grid import search_grid as kernel

    check_candidates(score_BT2R, num_candidates)
    B, T = score_BT2R.shape[:2]
    score_MC, entry_MC, count_2R, total_2R, _ = call(kernel, score_BT2R.flatten(0, 1), num_candidates, usage, scale)
    found = score_MC.unflatten(0, (B, T)), entry_MC.unflatten(0, (B, T))
    return *found, KeyUsage(count_2R, total_2R / (B * T)) if usage else None


@twin(_kernel, deterministic=True)
def search_grid(
    score_BT2R: Tensor, num_candidates: int, usage: bool = False, scale: float = 1.0
) -> tuple[Tensor, Tensor, KeyUsage | None]:
    """The best C entries and their scores, and how evenly the sub-keys are used if `usage`; in one pass on a GPU.

    Args:
        score_BT2R: float; scores of the two sets of sub-keys.
        num_candidates: C, in [1, R].
        scale: positive factor of the scores, applied to the C results instead of the R inputs.
    Returns:
        score_BTC: float32, best first.  entry_BTC: int64 in [0, R*R).  KeyUsage, or None.
    Raises:
        ValueError: C is outside [1, R].
    """
    score_BTC, entry_BTC, index_BT2C = product_key_topk(score_BT2R, num_candidates)
    used = usage_of_keys(score_BT2R.float() * scale, index_BT2C) if usage else None
    return score_BTC.float() * scale, entry_BTC, used


def check_candidates(score_BT2R: Tensor, num_candidates: int) -> None:
    R = score_BT2R.shape[-1]
    if not 1 <= num_candidates <= R:
        raise ValueError(f"num_candidates must lie in [1, {R}], got {num_candidates}")


def product_key_topk(score_BT2R: Tensor, num_candidates: int) -> tuple[Tensor, Tensor, Tensor]:
    """Exact best C of N = R*R entries from the scores of their sub-keys: 2R scores and about C ln C sums, not N.

    score(i, j) = score[0, i] + score[1, j], and the entry is i * R + j. Where several entries tie for the last
    ranks, any of them may be taken.

    Args:
        score_BT2R: float; scores of the two sets of sub-keys.
        num_candidates: C, in [1, R].
    Returns:
        score_BTC: float, best first.  entry_BTC: int64 in [0, R*R), no repeats in a row.
        index_BT2C: int64; the best C sub-keys of each half, best first.
    Raises:
        ValueError: C is outside [1, R].
    Source: Lample et al. 2019, arXiv:1907.05242. Differs: one head, no batch norm on the query.
    """
    check_candidates(score_BT2R, num_candidates)
    R = score_BT2R.shape[-1]
    half_BT2C, index_BT2C = score_BT2R.topk(num_candidates, dim=-1)
    i_P, j_P = torch.tensor(rank_pairs(num_candidates), device=score_BT2R.device).T
    pair_BTP = half_BT2C[..., 0, i_P] + half_BT2C[..., 1, j_P]
    entry_BTP = index_BT2C[..., 0, i_P] * R + index_BT2C[..., 1, j_P]
    score_BTC, best_BTC = pair_BTP.topk(num_candidates, dim=-1)
    return score_BTC, entry_BTP.gather(-1, best_BTC), index_BT2C


def usage_of_keys(score_BT2R: Tensor, index_BT2C: Tensor) -> KeyUsage:
    """How often `product_key_topk` chose each sub-key, and how probable each was."""
    index_2X = index_BT2C.permute(2, 0, 1, 3).flatten(1)
    count_2R = index_2X.new_zeros(2, score_BT2R.shape[-1]).scatter_add(1, index_2X, torch.ones_like(index_2X))
    return KeyUsage(count_2R, score_BT2R.float().softmax(dim=-1).mean(dim=(0, 1)))
