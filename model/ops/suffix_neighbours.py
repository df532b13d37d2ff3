"""The places of a suffix index that share most tokens with a query, around where it would stand.

Axes: B batch · T position · X queries · P places · K numbers of a suffix · Y places looked at · S places given
      N bank entries · L tokens per entry · M tokens of a suffix · W places among which the own ones are left out
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from common.constants import NO_ENTRY, PADDING

from .own_places import LOOKED_AT, Own
from .suffix_bounds import suffix_number
from .twin import twin


def _kernel(
    query_KX: Tensor, place_P: Tensor, token_NL: Tensor, low_X: Tensor, high_X: Tensor, given_P: Tensor, shift: int,
    n: int, n_ranked: int, n_given: int, length: int, bits: int, per_key: int, own: Own | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    from .triton.suffix_neighbours import suffix_neighbours as kernel

    places = place_P, token_NL, low_X, high_X, given_P, shift
    return kernel(query_KX, *places, n, n_ranked, n_given, length, bits, per_key, own)


def _looked_at(low_X1: Tensor, count_X1: Tensor, P: int | Tensor, n: int, n_ranked: int) -> tuple[Tensor, Tensor]:
    """(X, Y), and whether it is one: of P places those around `count` equal ones, or n of these, evenly spaced."""
    slot_Y, is_many_X1 = torch.arange(n_ranked, device=low_X1.device), count_X1 >= n
    around_X1 = (low_X1 - (n_ranked - count_X1).clamp(min=0) // 2).clamp(max=P - n_ranked).clamp(min=0)
    index_XY = torch.where(is_many_X1, low_X1 + slot_Y * count_X1 // n, around_X1 + slot_Y)
    return index_XY, (index_XY < P) & (~is_many_X1 | (slot_Y < n))


def _others_looked_at(
    low_X1: Tensor, count_X1: Tensor, given_P: Tensor, shift: int, P: int, n: int, n_ranked: int, own: Own
) -> tuple[Tensor, Tensor]:
    """`_looked_at` among the places that are no own ones, if W places around hold enough of these."""
    W = LOOKED_AT * n_ranked
    index_XW, is_other_XW = _looked_at(low_X1, count_X1, P, W, W)
    index_XW = index_XW.clamp(max=P - 1)
    is_other_XW = is_other_XW & ~own.places(given_P[(index_XW + shift) % len(given_P)])
    before_XW, after_XW = index_XW < low_X1, index_XW >= low_X1 + count_X1
    before_X1, equal_X1, others_X1 = (
        (is_other_XW & x_XW).sum(dim=-1, keepdim=True) for x_XW in (before_XW, ~before_XW & ~after_XW, is_other_XW)
    )
    index_XW = index_XW.gather(-1, (~is_other_XW).int().argsort(dim=-1, stable=True))  # the others, in their order
    slot_XY, is_one_XY = _looked_at(before_X1, equal_X1, others_X1, n, n_ranked)
    return index_XW.gather(-1, slot_XY.clamp(max=W - 1)), is_one_XY


@twin(_kernel, deterministic=True)
def suffix_neighbours(
    query_KX: Tensor, place_P: Tensor, token_NL: Tensor, low_X: Tensor, high_X: Tensor, given_P: Tensor, shift: int,
    n: int, n_ranked: int, n_given: int, length: int, bits: int, per_key: int, own: Own | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The places around each query, or n evenly spaced ones of those that equal it, if there are as many.

    Args:
        place_P, token_NL, low_X, high_X: as `suffix_bounds` takes and gives them.
        given_P: int32, what is given of a place.
        shift: other places are given, as many places further.  n_ranked: Y.  n_given: S, at most Y.
        length: tokens of a suffix.  bits: of a token.  per_key: tokens of one of the K numbers.
        own: places that do not count, as if the bank did not hold them, if there are few among W = 2Y around the query.
            Of W or more that equal it, W evenly spaced ones are looked at.
    Returns:
        place_XS: int64, those with most tokens in common first, NO_ENTRY without any.  matched_XS: int64, how many.
    """
    P, form, equal = len(place_P), (length, bits, per_key), (low_X[:, None], (high_X - low_X)[:, None])
    if own is None:
        index_XY, going_XY = _looked_at(*equal, P, n, n_ranked)
    else:
        index_XY, going_XY = _others_looked_at(*equal, given_P, shift, P, n, n_ranked, own)
    index_XY = index_XY.clamp(max=P - 1)
    query_KX1, here_XY = query_KX[..., None], place_P[index_XY]
    key_KXY = [suffix_number(here_XY, token_NL, k, *form) for k in range(len(query_KX))]
    matched_XY = torch.zeros_like(index_XY)
    for m in range(length):
        k, free = m // per_key, bits * (per_key - 1 - m % per_key)
        token_X1 = (query_KX1[k] >> free) & ((1 << bits) - 1)
        going_XY = going_XY & (key_KXY[k] >> free == query_KX1[k] >> free) & (token_X1 != PADDING)
        matched_XY = matched_XY + going_XY
    place_XY = given_P[(index_XY + shift) % len(given_P)].long().masked_fill(matched_XY == 0, NO_ENTRY)
    matched_XY, slot_XY = matched_XY.sort(dim=-1, descending=True, stable=True)
    return place_XY.gather(-1, slot_XY[:, :n_given]), matched_XY[:, :n_given]


def _queries_kernel(text_BT: Tensor, start_BT: Tensor, length: int, bits: int, per_key: int) -> Tensor:
    from .triton.suffix_neighbours import suffix_queries as kernel

    return kernel(text_BT, start_BT, length, bits, per_key)


@twin(_queries_kernel, deterministic=True)
def suffix_queries(text_BT: Tensor, start_BT: Tensor, length: int, bits: int, per_key: int) -> Tensor:
    """(K, B, T) int64: the last M tokens up to each position, the last one in the highest bits, inside its document.

    Args:
        text_BT: integer.  start_BT: bool, True at the first token of each document.
        length: M.  bits: of a token.  per_key: tokens of one of the K numbers.
    """
    T, document_BT = text_BT.shape[1], start_BT.int().cumsum(dim=1)
    text_BT = text_BT.long()
    query_KBT = text_BT.new_zeros(-(-length // per_key), *text_BT.shape)
    for m in range(length):
        same_BT = F.pad(document_BT, (m, 0), value=-1)[:, :T] == document_BT
        token_BT = F.pad(text_BT, (m, 0), value=PADDING)[:, :T].masked_fill(~same_BT, PADDING)
        query_KBT[m // per_key] |= token_BT << bits * (per_key - 1 - m % per_key)
    return query_KBT
