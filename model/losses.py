"""The language-model loss and every auxiliary term, as pure functions.

Axes: B batch · T position · V vocabulary · R sub-keys per half · C candidates
      W tokens that can be copied · H halves of a query · X what they choose from · Y = B*T*H choices
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from common.constants import IGNORED

NEVER = 1e-9  # a probability of zero has no logarithm
LARGEST_SUMMED = 64.0  # exponentials of logits up to this add up within float32, however many they are


def softcapped(logits_BTV: Tensor, cap: float) -> Tensor:
    """Logits within -cap to cap, in float32; as they are where the cap is 0. Source: Gemma 2, arXiv:2408.00118."""
    return cap * (logits_BTV.float() / cap).tanh() if cap else logits_BTV


def capped_losses(logits_BTV: Tensor, next_BT: Tensor, cap: float) -> Tensor:
    """(B, T) float32: negative log-likelihoods in nats of the next tokens under `softcapped` logits; 0 where IGNORED.

    For compilation into one pass over the vocabulary: logits that stay small need no search for the largest before
    their exponentials are summed. tanh(x) is 2 sigmoid(2 x) - 1 here, which a GPU computes faster.
    """
    capped_BTV = 2 * cap * (logits_BTV.float() * (2 / cap)).sigmoid() - cap
    is_next_BTV = torch.arange(logits_BTV.shape[-1], device=next_BT.device) == next_BT[..., None]
    loss_BT = capped_BTV.exp().sum(dim=-1).log() - (capped_BTV * is_next_BTV).sum(dim=-1)
    return loss_BT.masked_fill(next_BT == IGNORED, 0.0)


def next_token_losses(logits_BTV: Tensor, next_BT: Tensor, softcap: float, reduction: str) -> Tensor:
    """Negative log-likelihoods in nats, float32: their "sum", or with "none" (B, T), 0 where a token is IGNORED."""
    if 0 < softcap <= LARGEST_SUMMED and torch.compiler.is_compiling():
        loss_BT = capped_losses(logits_BTV, next_BT, softcap)
        return loss_BT if reduction == "none" else loss_BT.sum()
    logits_NV = softcapped(logits_BTV, softcap).flatten(0, 1).float()
    loss = F.cross_entropy(logits_NV, next_BT.flatten(), ignore_index=IGNORED, reduction=reduction)
    return loss.view_as(next_BT) if reduction == "none" else loss


def next_labels(labels_BT: Tensor) -> Tensor:
    """The label of the token after each; IGNORED after the last."""
    return F.pad(labels_BT[:, 1:], (0, 1), value=IGNORED)


def language_model_loss(logits_BTV: Tensor, labels_BT: Tensor, softcap: float = 0.0) -> Tensor:
    """Mean negative log-likelihood in nats over the positions whose next token has a label.

    `labels_BT` is beside the input, not shifted (the convention of transformers): the logits at t predict the label at
    t + 1. A batch without any label gives 0.
    """
    next_BT = next_labels(labels_BT)
    return next_token_losses(logits_BTV, next_BT, softcap, "sum") / (next_BT != IGNORED).sum().clamp(min=1)


def drawing_losses(logits_BTV: Tensor, labels_BT: Tensor, softcap: float = 0.0) -> Tensor:
    """(B, T) float32: negative log-likelihoods in nats of the next tokens, 0 where none has a label."""
    return next_token_losses(logits_BTV, next_labels(labels_BT), softcap, "none")


def copying_loss(loss_BT: Tensor, copy_BTW: Tensor, token_BTW: Tensor, labels_BT: Tensor) -> Tensor:
    """`language_model_loss` of a model that draws the next token from its logits or copies one of W tokens.

    Equal to that loss over `mixed_log_probabilities` of memory/tokens.py, without a second tensor of B*T*V.

    Args:
        loss_BT: what `drawing_losses` returns. Compiled apart, its gradient is as simple as that of a model that copies
            nothing.
        copy_BTW: float32, the probability that each token is copied; the rest of 1 is drawn. Of every row, or of every
            n-th, the first one on; in the other rows nothing is copied.
    Source: See et al. 2017, arXiv:1704.04368, equation 9.
    """
    next_BT, drawn_BT = next_labels(labels_BT), -loss_BT
    every = len(next_BT) // len(copy_BTW)
    mixed_BT = drawn_BT[::every] + (1 - copy_BTW.sum(dim=-1)).clamp(min=NEVER).log()
    copied_BT = (copy_BTW * (token_BTW == next_BT[::every, :, None])).sum(dim=-1).clamp(min=NEVER).log()
    log_p_BT = torch.logaddexp(mixed_BT, copied_BT).masked_fill(next_BT[::every] == IGNORED, 0.0)
    total = log_p_BT.sum() + drawn_BT.unflatten(0, (-1, every))[:, 1:].sum()
    return -total / (next_BT != IGNORED).sum().clamp(min=1)


def balance_loss(count_2R: Tensor, probability_2R: Tensor) -> Tensor:
    """Use of the two sub-key sets: R * sum(share chosen * mean probability), averaged over the sets; 1 is even use.

    Args:
        count_2R: how often each sub-key was chosen.  probability_2R: mean of the softmax over the sub-keys.
    Source: Fedus et al. 2021, arXiv:2101.03961, equation 4, with sub-keys for experts.
    """
    share_2R = count_2R / count_2R.sum(dim=-1, keepdim=True)
    return count_2R.shape[-1] * (share_2R * probability_2R).sum(dim=-1).mean()


def retrieval_loss(score_BTHX: Tensor, right_BTH: Tensor) -> Tensor:
    """Mean negative log-likelihood in nats of the right choices among X, chosen by softmax; ln X for a guess.

    Args:
        right_BTH: int64, IGNORED where nothing is known to be right; 0 is returned if that is so everywhere.
    """
    score_YX, right_Y = score_BTHX.flatten(0, -2).float(), right_BTH.flatten()
    total = F.cross_entropy(score_YX, right_Y, ignore_index=IGNORED, reduction="sum")
    return total / (right_BTH != IGNORED).sum().clamp(min=1)


def similarity_loss(cosine_BTC: Tensor, log_weight_BTC: Tensor) -> Tensor:
    """One minus the expected cosine between a query and the entry drawn for it; 0 when they point the same way."""
    return 1 - (log_weight_BTC.float().exp() * cosine_BTC.float()).sum(dim=-1).mean()


def diversity_loss(mixture_BTD: Tensor, log_weight_BTC: Tensor) -> Tensor:
    """Expected cosine between two different entries drawn for one position; 0 when candidates are orthogonal.

    With p the weights and u the unit vectors of the C candidates, ||sum p u||^2 = sum p_c p_d cos(c, d); taking away
    the pairs c = d leaves the sum over different ones. No tensor of C vectors a position is needed, only the mixture.

    Args:
        mixture_BTD: sum of p_c u_c.
    """
    same_BT = log_weight_BTC.float().exp().square().sum(dim=-1)
    return (mixture_BTD.float().square().sum(dim=-1) - same_BT).mean()


def count_targets(labels_BT: Tensor) -> Tensor:
    """How many positions of a batch `language_model_loss` averages over."""
    return (labels_BT[:, 1:] != IGNORED).sum()
