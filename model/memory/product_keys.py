"""Comparison of candidates with the query, and selection. The search itself is `ops.search_grid`.

Axes: B batch · T position · D width · V vocabulary · L tokens per entry · C candidates · S selected entries
"""

import math

import torch
from torch import Tensor

from common.constants import PADDING

from ..config import ModelConfig
from ..ops import best_of_rows
from ..ops.token_attention import sum_by_token


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
