"""Attention to the tokens that follow places of the bank, for each distance and group of places, or to nothing.

Axes: X positions · Y tokens read after a place · S places per position, in groups · G groups · R width · V vocabulary
"""

import torch
from torch import Tensor

from common.constants import MASKED, PADDING

from .triton import call
from .twin import twin
from .words import score_words, sum_words

MOST_PLACES, MOST_WIDTH = 128, 128  # of a position; of a vector


def _kernel(
    query_XR: Tensor, key_VR: Tensor, value_VR: Tensor, token_XYS: Tensor, log_weight_XS: Tensor, nothing_XGY: Tensor,
    groups: list[int], order_2Z: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    from .triton.continuations import attend_continuations as kernel

    inputs = query_XR, key_VR, value_VR, token_XYS, log_weight_XS, nothing_XGY, groups
    if token_XYS.shape[-1] > MOST_PLACES or query_XR.shape[-1] > MOST_WIDTH or len(set(groups[1:])) > 1:
        return attend_continuations.op.reference(*inputs)
    read_XGYR, weight_XS = call(kernel, *inputs, *(order_2Z or (None, None)))
    return read_XGYR, weight_XS.detach()


# The tables' gradients are summed by atomics, in no fixed order.
@twin(_kernel, deterministic=False)
def attend_continuations(
    query_XR: Tensor, key_VR: Tensor, value_VR: Tensor, token_XYS: Tensor, log_weight_XS: Tensor, nothing_XGY: Tensor,
    groups: list[int], order_2Z: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """In each group, for each distance, the tokens after its places compete with each other and with nothing.

    Args:
        query_XR: float.  key_VR, value_VR: of every token.
        token_XYS: int64, PADDING for none.  log_weight_XS: float32.
        nothing_XGY: the logit of nothing.
        groups: how many of the S places are in each. The kernel takes any first number and, after it, equal ones, up to
            `MOST_PLACES`.
        order_2Z: what `order_of_words` gives for these tokens, which a kernel's gradients need; None: they sort them.
    Returns:
        read_XGYR: in the table's dtype.  weight_XS: float32, means over distances and groups, without gradient.
    """
    logit_XYS = score_words(query_XR * query_XR.shape[1] ** -0.5, key_VR, token_XYS.flatten(1)).view(token_XYS.shape)
    logit_XYS = logit_XYS + log_weight_XS[:, None]
    logit_XYS = logit_XYS.masked_fill(token_XYS == PADDING, MASKED)
    read, weights = [], []
    parts = (x.split(groups, dim=-1) for x in (logit_XYS, token_XYS))
    for nothing_XY, logit_XYS, token_XYS in zip(nothing_XGY.float().unbind(dim=1), *parts, strict=True):
        attention_XYS = torch.cat([logit_XYS, nothing_XY[..., None]], dim=-1).softmax(dim=-1)[..., :-1]
        read.append(sum_words(attention_XYS.flatten(0, 1), value_VR, token_XYS.flatten(0, 1)))
        weights.append(attention_XYS.detach().mean(dim=1) / len(groups))
    read_XGYR = torch.stack([x.view(len(query_XR), -1, x.shape[-1]) for x in read], dim=1)
    return read_XGYR, torch.cat(weights, dim=-1)


def order_of_words(token_XYS: Tensor, vocab_size: int) -> tuple[Tensor, Tensor]:
    """(Z,) each: all tokens in ascending order, and where each of them stands; for gradients of the vocabulary."""
    kind = torch.int16 if vocab_size <= torch.iinfo(torch.int16).max + 1 else torch.int32  # few bits are sorted faster
    token_Z, word_Z = token_XYS.flatten().to(kind).sort()
    return token_Z, word_Z
