"""Vectors of entries: the mean embedding of their tokens.

Axes: B batch · T position · S entries per position · L tokens per entry · D width · V vocabulary
      X any number of entries · K common tokens
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from common.constants import PADDING

from .triton import call
from .twin import twin


class CommonTokens(NamedTuple):
    """The most frequent tokens of a bank. The kernel sums their gradients by a matrix product, not by atomics."""

    token_K: Tensor  # int64
    rank_V: Tensor  # int16, the index of each token in token_K; -1 for the others


def _read_kernel(token_XL: Tensor, embedding_VD: Tensor) -> Tensor:
    from .triton.entries import read_entries as kernel

    return call(kernel, token_XL, embedding_VD, PADDING)


@twin(_read_kernel, deterministic=False)
def read_entries(token_XL: Tensor, embedding_VD: Tensor) -> Tensor:
    """(X, D): the mean embedding of each entry's tokens, padding left out; zero for an entry of padding alone."""
    return F.embedding_bag(token_XL.long(), embedding_VD, mode="mean", padding_idx=PADDING)


def _unit_kernel(
    token_BTSL: Tensor, embedding_VD: Tensor, eps: float, x_BTD: Tensor | None = None,
    log_weight_BTS: Tensor | None = None, common: CommonTokens | None = None,
) -> Tensor:  # fmt: skip
    from .triton.entries import unit_entries as kernel

    return call(kernel, x_BTD, token_BTSL, embedding_VD, eps, log_weight_BTS, *(common or (None, None)), PADDING)[0]


@twin(_unit_kernel, deterministic=False)
def unit_entries(
    token_BTSL: Tensor, embedding_VD: Tensor, eps: float, x_BTD: Tensor | None = None,
    log_weight_BTS: Tensor | None = None, common: CommonTokens | None = None,
) -> Tensor:  # fmt: skip
    """The vectors of the entries of each position, normed to a root mean square of 1, without a gain.

    Args:
        eps: of the norm.
        x_BTD: states; None: entries alone.
        log_weight_BTS: each vector is multiplied by S times its weight. Those factors average 1, so that an entry
        enters at the scale of the state whatever S is. None: no factor.
        common: speeds up the kernel's gradient; changes no result.
    Returns:
        (B, T, S, D), contiguous, in the dtype of the embeddings; with states (B, T, S + 1, D), the state first.
    """
    vector_XD = read_entries(token_BTSL.flatten(0, 2), embedding_VD)
    unit_BTSD = F.rms_norm(vector_XD, vector_XD.shape[-1:], eps=eps).view(*token_BTSL.shape[:3], -1)
    if log_weight_BTS is not None:
        unit_BTSD = unit_BTSD * (token_BTSL.shape[2] * log_weight_BTS.exp()[..., None])
    unit_BTSD = unit_BTSD.to(embedding_VD.dtype)
    return unit_BTSD if x_BTD is None else torch.cat([x_BTD[:, :, None].to(embedding_VD.dtype), unit_BTSD], dim=2)
