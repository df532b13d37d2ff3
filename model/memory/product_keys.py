"""Product-key search and selection in plain torch: the reference that any faster twin is tested against.

Axes: B batch · T position · D width · V vocabulary · N bank entries = R*R · R sub-keys per half · K sub-key width D/2
      L tokens per entry · C candidates · S selected entries · P pairs of half-lists that can be among the best C
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from common.constants import PADDING

from ..config import ModelConfig


def best_of_rows(score: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest of the last axis, best first, and their places; among equal scores any may be taken."""
    if score.is_cuda:
        from ..ops.triton import call
        from ..ops.triton.best_of_rows import best_of_rows as kernel

        return call(kernel, score, k)
    return score.topk(k, dim=-1)


class Use(NamedTuple):
    """How evenly the sub-keys are used: what the balance loss is made of."""

    count_2R: Tensor  # how often each is among the best C of its half
    probability_2R: Tensor  # float32, the mean over positions of the softmax over the sub-keys of a half


def search_grid(
    score_BT2R: Tensor, num_candidates: int, use: bool = False, scale: float = 1.0
) -> tuple[Tensor, Tensor, Use | None]:
    """The first two results of `product_key_topk`, and the use of the sub-keys if asked for; in one pass on a GPU.

    Args:
        scale: positive; what the scores are multiplied by, here where there are C of them and not R.
    Returns:
        score_BTC: float32.  entry_BTC: int64.  Use, or None.
    """
    if not score_BT2R.is_cuda:
        score_BTC, entry_BTC, index_BT2C = product_key_topk(score_BT2R, num_candidates)
        used = use_of_keys(score_BT2R.float() * scale, index_BT2C) if use else None
        return score_BTC.float() * scale, entry_BTC, used
    from ..ops.triton import call
    from ..ops.triton.search_grid import search_grid as kernel

    check_candidates(score_BT2R, num_candidates)
    B, T = score_BT2R.shape[:2]
    score_MC, entry_MC, count_2R, total_2R, _ = call(kernel, score_BT2R.flatten(0, 1), num_candidates, use, scale)
    found = score_MC.unflatten(0, (B, T)), entry_MC.unflatten(0, (B, T))
    return *found, Use(count_2R, total_2R / (B * T)) if use else None


def check_candidates(score_BT2R: Tensor, num_candidates: int) -> None:
    R = score_BT2R.shape[-1]
    if not 1 <= num_candidates <= R:
        raise ValueError(f"num_candidates must lie in [1, {R}], got {num_candidates}")


def product_key_topk(score_BT2R: Tensor, num_candidates: int) -> tuple[Tensor, Tensor, Tensor]:
    """Exact best C of N = R*R entries from the scores of their sub-keys: 2R scores and about C ln C sums, not N.

    score(i, j) = score[0, i] + score[1, j], and the entry is i * R + j. Where several entries tie for the last
    places, any of them may be taken.

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


def rank_pairs(n_candidates: int) -> list[tuple[int, int]]:
    """The pairs of ranks that can be among the best C: all (i', j') <= (i, j) are at least as good as (i, j)."""
    ranks = range(n_candidates)
    return [(i, j) for i in ranks for j in ranks if (i + 1) * (j + 1) <= n_candidates]


def use_of_keys(score_BT2R: Tensor, index_BT2C: Tensor) -> Use:
    """How often `product_key_topk` chose each sub-key, and how probable each was."""
    index_2X = index_BT2C.permute(2, 0, 1, 3).flatten(1)
    count_2R = index_2X.new_zeros(2, score_BT2R.shape[-1]).scatter_add(1, index_2X, torch.ones_like(index_2X))
    return Use(count_2R, score_BT2R.float().softmax(dim=-1).mean(dim=(0, 1)))


def entry_vectors(token_XL: Tensor, embedding_VD: Tensor) -> Tensor:
    """(X, D): the mean embedding of each entry's tokens, padding left out; zero for an entry of padding alone."""
    # The kernel adds up gradients in no fixed order.
    if token_XL.is_cuda and not torch.are_deterministic_algorithms_enabled():
        from ..ops.triton.read_entries import read_entries

        return read_entries(token_XL, embedding_VD, PADDING)
    return F.embedding_bag(token_XL.long(), embedding_VD, mode="mean", padding_idx=PADDING)


def cosine_to_entries(query_BTD: Tensor, token_BTCL: Tensor, norm_BTC: Tensor, embedding_VD: Tensor):
    """(B, T, C): cosine of each query and the mean embedding of each candidate's tokens.

    Worked out in logit space: <q, mean E[tok]> is the mean of (q @ E.T)[tok], so the C vectors of a position are never
    written out; `norm_BTC` holds their lengths and is a constant for the gradient.
    """
    logit_BTV = query_BTD @ embedding_VD.T
    word_BTCL = logit_BTV.gather(-1, token_BTCL.flatten(-2)).view(token_BTCL.shape).float()
    word_BTCL = word_BTCL.masked_fill(token_BTCL == PADDING, 0.0)
    length_BTC = (token_BTCL != PADDING).sum(dim=-1).clamp(min=1)
    query_norm_BT1 = query_BTD.float().norm(dim=-1, keepdim=True).clamp(min=1e-6)
    return word_BTCL.sum(dim=-1) / length_BTC / norm_BTC.clamp(min=1e-6) / query_norm_BT1


def mixed_entries(token_BTCL: Tensor, weight_BTC: Tensor, embedding_VD: Tensor) -> Tensor:
    """(B, T, D): the weighted sum of the C entries' vectors of each position, without writing the C vectors out."""
    word_BTCL = (token_BTCL != PADDING).to(weight_BTC.dtype)
    word_BTCL = word_BTCL * (weight_BTC / word_BTCL.sum(dim=-1).clamp(min=1))[..., None]
    return sum_by_token(word_BTCL.flatten(2), token_BTCL.flatten(2), embedding_VD) @ embedding_VD


def sum_by_token(weight_BTW: Tensor, token_BTW: Tensor, table_VX: Tensor) -> Tensor:
    """(B, T, V) in the table's dtype: the weight that the words give to each token of the vocabulary."""
    mass_BTV = table_VX.new_zeros(*token_BTW.shape[:-1], len(table_VX))
    return mass_BTV.scatter_add(-1, token_BTW, weight_BTW.to(mass_BTV.dtype))


def select(entry_BTC: Tensor, score_BTC: Tensor, config: ModelConfig, training: bool) -> tuple[Tensor, Tensor]:
    """S of the C candidates, with the logarithm of the weight that each has in the fusion.

    product_key: the first S, for the candidates come best first; cosine: the S highest. Weights are their softmax.
    gumbel: the S largest after adding Gumbel noise (in training only). The forward weight of each is 1/S; its gradient
    is that of its log-probability among all C, so the losers learn through the normaliser (straight-through).

    Args:
        score_BTC: float32, logarithms of weights up to a constant of each position.
    Returns:
        entry_BTS: int64.  log_weight_BTS: float32.
    Source: Jang et al. 2016, arXiv:1611.01144. Differs: only the winners' values enter the backward pass, which spares
    the tensor of all C candidates' vectors.
    """
    S = config.num_selected
    if config.selection == "product_key":
        return entry_BTC[..., :S], score_BTC[..., :S].log_softmax(dim=-1)
    if config.selection != "gumbel":
        selected_BTS, slot_BTS = best_of_rows(score_BTC, S)
        return entry_BTC.gather(-1, slot_BTS), selected_BTS.log_softmax(dim=-1)
    noisy_BTC = score_BTC
    if training:
        # Minus the logarithm of an exponential variable is a Gumbel variable.
        noisy_BTC = score_BTC - torch.empty_like(score_BTC).exponential_().clamp(min=1e-20).log()
    slot_BTS = best_of_rows(noisy_BTC, S)[1]
    log_p_BTS = (noisy_BTC / config.gumbel_temperature).log_softmax(dim=-1).gather(-1, slot_BTS)
    return entry_BTC.gather(-1, slot_BTS), log_p_BTS - log_p_BTS.detach() - math.log(S)
