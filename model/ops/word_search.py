"""The steps of a search by words (BM25) that are made at every position of a text.

Axes: X positions · N bank entries · C entries of a position · K words of an entry · Q words of a position
      W tokens of the window · Y keys of a position · P postings, and at a key n of them · V high halves of keys
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from common.constants import NO_ENTRY

from .twin import twin


def _rarest_kernel(
    word_BT: Tensor, value_BT: Tensor, depth_BT: Tensor, factor_W: Tensor, n: int,
    now_BT: Tensor | None = None, now_value_BT: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    from .triton.word_search import rarest_words as kernel

    return kernel(word_BT, value_BT, depth_BT, factor_W, n, now_BT, now_value_BT)


@twin(_rarest_kernel, deterministic=True)
def rarest_words(
    word_BT: Tensor, value_BT: Tensor, depth_BT: Tensor, factor_W: Tensor, n: int,
    now_BT: Tensor | None = None, now_value_BT: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """The words of the last W tokens of a document that are worth most.

    Args:
        word_BT: int64 below 2^31, the word of each token; 0 for none.  value_BT: float32, at least 0, and 0 for none.
        depth_BT: int64, tokens of the document before each.
        factor_W: float32, at least 0: of values by their place in the window, the position itself last.
        now_BT, now_value_BT: a further word of each position, at full value; None: there is none.
    Returns:
        word_BTQ: int32, Q = n of them, or all; worth most first, of equal ones the one first said. A word that has come
        before is 0.  worth_BTQ, value_BTQ: float32, the value times the factor, and the value, of all of them.
    """
    W = len(factor_W)
    back_W = torch.arange(W - 1, -1, -1, device=word_BT.device)
    is_near_BTW = back_W <= depth_BT[..., None]
    words, values = (F.pad(x, (W - 1, 0)).unfold(1, W, 1) for x in (word_BT, value_BT))
    word_BTW, value_BTW = words.where(is_near_BTW, 0), values.where(is_near_BTW, 0.0)
    if now_BT is not None:
        word_BTW = torch.cat([word_BTW, now_BT[..., None]], dim=-1)
        value_BTW = torch.cat([value_BTW, now_value_BT[..., None]], dim=-1)
        factor_W = F.pad(factor_W, (0, 1), value=1.0)
    worth_BTW, slot_BTW = (value_BTW * factor_W).sort(dim=-1, descending=True, stable=True)
    slot_BTQ = slot_BTW[..., :n]
    word_BTQ = only_first(word_BTW.gather(-1, slot_BTQ)).int()
    return word_BTQ, worth_BTW[..., :n], value_BTW.gather(-1, slot_BTQ)


def only_first(word_BTX: Tensor) -> Tensor:
    """The words, with 0 in place of those that have come before."""
    same_BTXX = word_BTX[..., :, None] == word_BTX[..., None, :]
    return word_BTX.masked_fill(same_BTXX.tril(-1).any(dim=-1), 0)


def _postings_kernel(
    key_XY: Tensor, weight_XY: Tensor, first_V: Tensor, begin_V: Tensor, second_P: Tensor, entry_P: Tensor,
    norm_N: Tensor, n: int,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    from .triton.word_search import read_postings as kernel

    return kernel(key_XY, weight_XY, first_V, begin_V, second_P, entry_P, norm_N, n)


@twin(_postings_kernel, deterministic=True)
def read_postings(
    key_XY: Tensor, weight_XY: Tensor, first_V: Tensor, begin_V: Tensor, second_P: Tensor, entry_P: Tensor,
    norm_N: Tensor, n: int,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The first n entries of each key, and the weight of the key times the norm of each.

    Args:
        key_XY: int64, both halves below 2^31; 0 for none.  weight_XY: float32.
        first_V: int32, ascending, the high halves of keys.  begin_V: int32, where the postings of each begin, then P.
        second_P: int32, the low halves, which ascend where the high ones are equal, and one more number.
        entry_P: int32, the entry of each, and one more.  norm_N: float32.
    Returns:
        (X, Y * n) int32, NO_ENTRY as filler, and float32, 0 for filler.
    """
    first_XY, second_XY, P = (key_XY >> 32).int().contiguous(), key_XY & 2**32 - 1, len(second_P) - 1
    at_XY, end_XY = (begin_V[torch.searchsorted(first_V, first_XY, right=right)].long() for right in (False, True))
    for bit in reversed(range(P.bit_length())):
        next_XY = at_XY + 2**bit
        is_less_XY = (next_XY <= end_XY) & (second_P[(next_XY - 1).clamp(max=P)] < second_XY)
        at_XY = next_XY.where(is_less_XY, at_XY)
    index_XYn = at_XY[..., None] + torch.arange(n, device=key_XY.device)
    is_there_XYn = (index_XYn < end_XY[..., None]) & (key_XY != 0)[..., None]
    index_XYn = index_XYn.clamp(max=P)
    is_there_XYn &= second_P[index_XYn] == second_XY[..., None]
    entry_XYn = entry_P[index_XYn].where(is_there_XYn, NO_ENTRY)
    weight_XYn = (weight_XY[..., None] * norm_N[entry_XYn.clamp(min=0)]).where(is_there_XYn, 0.0)
    return entry_XYn.flatten(1), weight_XYn.flatten(1)


def _rank_kernel(
    entry_XC: Tensor, word_NK: Tensor, norm_N: Tensor, word_XQ: Tensor, value_XQ: Tensor
) -> tuple[Tensor, Tensor]:
    from .triton.word_search import rank_by_words as kernel

    return kernel(entry_XC, word_NK, norm_N, word_XQ, value_XQ)


@twin(_rank_kernel, deterministic=True)
def rank_by_words(
    entry_XC: Tensor, word_NK: Tensor, norm_N: Tensor, word_XQ: Tensor, value_XQ: Tensor
) -> tuple[Tensor, Tensor]:
    """The entries of a position, best first, and their scores: the values of the words that they have, times norms.

    Args:
        entry_XC: int64, NO_ENTRY for none, whose score is 0; entries of equal scores keep their order.
        word_NK: int32, the different words of each entry; 0 for none.  norm_N: float32.
        word_XQ: int32, different words; 0 for none.  value_XQ: float32, at least 0.
    Returns:
        (X, C) int64 and float32.
    """
    row_XC, total_XC = entry_XC.clamp(min=0), 0.0
    word_XCK = word_NK[row_XC]
    for word_X, value_X in zip(word_XQ.unbind(dim=-1), value_XQ.unbind(dim=-1), strict=True):
        has_XC = (word_XCK == word_X[:, None, None]).any(dim=-1) & (word_X != 0)[:, None]
        total_XC = total_XC + value_X[:, None] * has_XC
    score_XC = (total_XC * norm_N[row_XC]).masked_fill(entry_XC == NO_ENTRY, 0.0)
    score_XC, slot_XC = score_XC.sort(dim=-1, descending=True, stable=True)
    return entry_XC.gather(-1, slot_XC), score_XC
