"""What follows a frequent suffix: the next tokens after many places, counted, those about the same topic counting more.

Axes: B batch · T position · X positions of a batch, side by side · P places · L tokens per entry · M tokens of a suffix
      Y places looked at · U next tokens given, for each number of places · K width of a topic
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from common.constants import NO_ENTRY, PADDING

from ..ops import row_products, suffix_bounds

SHARPNESS = 12.0  # a place counts exp(SHARPNESS * cosine of its topic and the text's)
UNITS = 1 << 20  # of the largest weight; whole numbers add up the same in every order
SHARE_BITS, SHARE_STEPS = 16, 256  # of the logarithm of a share that stands in a score, and its steps for a nat
MATCHED_BITS = 8
PLACES_AT_ONCE = 1 << 22  # bounds the temporary memory of a search


class Counted(NamedTuple):
    """The most frequent next tokens, (X, U) each.

    Attributes:
        place: int64, one place that each token follows, NO_ENTRY for none.
        score: int64, as `pack_score` makes it.
    """

    place: Tensor
    score: Tensor


def pack_score(matched_X: Tensor, share_X: Tensor, plain_share_X: Tensor) -> Tensor:
    """One int64 of the tokens in common, and of two shares: of all weights of a position, and of its places."""
    score_X, shift = matched_X.long(), MATCHED_BITS
    for value_X in (share_X, plain_share_X):
        step_X = (-SHARE_STEPS * value_X.log()).round().clamp(0, (1 << SHARE_BITS) - 1).long()
        score_X, shift = score_X + (step_X << shift), shift + SHARE_BITS
    return score_X


def unpack_score(score_X: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens in common, int64, and the logarithms of both shares, float32. A score below 256 has shares of 1."""
    steps = (score_X >> MATCHED_BITS, score_X >> (MATCHED_BITS + SHARE_BITS))
    log_shares = ((step_X & ((1 << SHARE_BITS) - 1)).float() / -SHARE_STEPS for step_X in steps)
    return score_X & ((1 << MATCHED_BITS) - 1), *log_shares


def ranges(index, places, query_X: Tensor) -> tuple[Tensor, Tensor]:
    """(M, X) int64: the first place that shares the last 1, 2, ... tokens, and how many do. M fill one number.

    Args:
        places: of the index.  query_X: the first number of each suffix.
    """
    free_M1 = index.free_M[:, None]
    low_MX, _ = suffix_bounds((query_X & ~free_M1).flatten()[None], places.key_KP[:1])
    _, high_MX = suffix_bounds((query_X | free_M1).flatten()[None], places.key_KP[:1])
    low_MX, high_MX = (x.view(len(free_M1), -1) for x in (low_MX, high_MX))
    known_MX = (query_X & (((1 << index.bits) - 1) * (free_M1 + 1))) != 0  # no suffix reaches before its document
    return low_MX, (high_MX - low_MX) * known_MX


def count_next(
    index, query_X: Tensor, topic_XK: Tensor | None, often: list[int], n_given: int, shuffle: bool = False
) -> Counted:
    """The next tokens after n places, evenly spaced, of the longest suffix that so many share; else of the last token.

    Edited entries count as they are: the number of places, too, is that of the bank as it is.

    Args:
        index: a `SuffixIndex`.  query_X: the first number of the text's suffix.
        topic_XK: float32, the topic of the text; None: all places count the same.
        often: n, several of them, side by side in the result.  n_given: U, for each.
        shuffle: a control; the tokens after other places are counted.
    """
    part = max(PLACES_AT_ONCE // max(often), 1)
    topics = [None] * len(query_X) if topic_XK is None else topic_XK.split(part)
    parts = [
        _count_part(index, query_Z, topic_ZK, often, n_given, shuffle)
        for query_Z, topic_ZK in zip(query_X.split(part), topics, strict=False)
    ]
    return Counted(*(torch.cat(fields) for fields in zip(*parts, strict=True)))


def _count_part(
    index, query_X: Tensor, topic_XK: Tensor | None, often: list[int], n_given: int, shuffle: bool
) -> Counted:  # fmt: skip
    """`count_next` of some positions."""
    low_MX, count_MX = ranges(index, index.base, query_X)
    total_MX, edited = count_MX, None
    if index.edits is not None:
        edited = ranges(index, index.edits, query_X)
        total_MX = count_MX - ranges(index, index.replaced, query_X)[1] + edited[1]

    def counted(n: int) -> Counted:
        level_1X = ((total_MX >= n).sum(dim=0, keepdim=True) - 1).clamp(min=0)
        place_XY = taken(index, index.base, low_MX, count_MX, level_1X, n, shuffle)
        if edited is not None:
            stale_XY = index.stale_N[place_XY.clamp(min=0) // index.token_NL.shape[1]]
            newer_XY = taken(index, index.edits, *edited, level_1X, n, shuffle)
            place_XY = torch.cat([newer_XY, place_XY.masked_fill(stale_XY, NO_ENTRY)], dim=-1)
        return merged(index, place_XY, topic_XK, level_1X[0, :, None] + 1, n_given)

    return Counted(*(torch.cat(parts, dim=-1) for parts in zip(*map(counted, often), strict=True)))


def taken(
    index, places, low_MX: Tensor, count_MX: Tensor, level_1X: Tensor, n: int, shuffle: bool
) -> Tensor:  # fmt: skip
    """(X, Y): up to n of the places that share so many tokens, evenly spaced, NO_ENTRY beyond them."""
    low_X1, count_X1 = low_MX.gather(0, level_1X)[0, :, None], count_MX.gather(0, level_1X)[0, :, None]
    slot_Y = torch.arange(n, device=low_MX.device)
    at_XY = low_X1 + torch.where(count_X1 > n, slot_Y * count_X1 // n, slot_Y)
    at_XY = at_XY.clamp(max=len(places.place_P) - 1)
    if shuffle:
        places, at_XY = index.base, (at_XY + len(index.base.place_P) // 2) % len(index.base.place_P)
    return places.place_P[at_XY].long().masked_fill(slot_Y >= count_X1, NO_ENTRY)


def merged(index, place_XY: Tensor, topic_XK: Tensor | None, matched_X1: Tensor, n_given: int) -> Counted:
    """Places that the same token follows become one."""
    L, is_place_XY, Y = index.token_NL.shape[1], place_XY != NO_ENTRY, place_XY.shape[-1]
    at_XY = place_XY.clamp(min=0)
    next_XY = index.token_NL.view(-1)[(at_XY + 1).clamp(max=index.token_NL.numel() - 1)].long()
    is_place_XY = is_place_XY & (next_XY != PADDING)  # a bank whose texts were swapped since
    weight_XY = is_place_XY.long() * UNITS
    if topic_XK is not None:
        near_XY = row_products(topic_XK, index.topics.topic_NK, at_XY // L).masked_fill(~is_place_XY, -1.0)
        near_XY = near_XY - near_XY.amax(dim=-1, keepdim=True)
        weight_XY = ((SHARPNESS * near_XY).exp() * UNITS).round().long() * is_place_XY
    # Sorted by token, then by slot; what is no place comes last.
    key_XY = torch.where(is_place_XY, next_XY, index.config.vocab_size) * Y + torch.arange(Y, device=place_XY.device)
    key_XY = key_XY.sort(dim=-1).values
    token_XY, slot_XY = key_XY // Y, key_XY % Y
    weight_XY = weight_XY.gather(-1, slot_XY)
    sum_XY, here_Y = weight_XY.cumsum(dim=-1), torch.arange(Y, device=place_XY.device)
    first_XY = torch.searchsorted(token_XY, token_XY)
    is_last_XY = torch.ones_like(is_place_XY)
    is_last_XY[:, :-1] = token_XY[:, 1:] != token_XY[:, :-1]
    own_XY = sum_XY - sum_XY.gather(-1, first_XY) + weight_XY.gather(-1, first_XY)
    own_XY = own_XY.masked_fill(~is_last_XY | (token_XY == index.config.vocab_size), 0)
    U = min(n_given, Y)
    rank_XU = (own_XY * Y + (Y - 1 - here_Y)).topk(U, dim=-1).values  # of equal ones the first
    own_XU, last_XU = rank_XU // Y, Y - 1 - rank_XU % Y
    first_XU = first_XY.gather(-1, last_XU)
    found_XU = own_XU > 0
    share_XU = own_XU / sum_XY[:, -1:].clamp(min=1)
    plain_share_XU = (last_XU - first_XU + 1) / is_place_XY.sum(dim=-1, keepdim=True).clamp(min=1)
    place_XU = place_XY.gather(-1, slot_XY.gather(-1, first_XU)).masked_fill(~found_XU, NO_ENTRY)
    score_XU = pack_score(matched_X1.expand(-1, U), share_XU, plain_share_XU).masked_fill(~found_XU, 0)
    beyond = (0, n_given - U)  # fewer places than tokens asked for
    return Counted(F.pad(place_XU, beyond, value=NO_ENTRY), F.pad(score_XU, beyond))
