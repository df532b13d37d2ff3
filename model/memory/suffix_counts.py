"""What follows a frequent suffix: the next tokens after many places, counted, those about the same topic counting more.

Axes: B batch · T position · X positions of a batch, side by side · P places · L tokens per entry · M tokens of a suffix
      Y places looked at · U next tokens given, for each number of places · K width of a topic
"""

from typing import NamedTuple

import torch
from torch import Tensor

from common.constants import NO_ENTRY

from ..ops import next_tokens, spaced_places, suffix_levels
from ..ops.own_places import Own

PLACES_AT_ONCE = 1 << 22  # bounds the temporary memory of a search


class Counted(NamedTuple):
    """The most frequent next tokens, (X, U) each.

    Attributes:
        place: int64, one place that each token follows, NO_ENTRY for none.
        score: int64, as `model.ops.place_counts.pack_score` makes it.
    """

    place: Tensor
    score: Tensor


def joined(parts: list[Counted], dim: int) -> Counted:
    if len(parts) == 1:  # a copy would be two launches more in decoding
        return parts[0]
    return Counted(*(torch.cat(fields, dim=dim) for fields in zip(*parts, strict=True)))


def ranges(index, places, query_X: Tensor) -> tuple[Tensor, Tensor]:
    """(M, X) int64: the first place that shares the last 1, 2, ... tokens, and how many do. M fill one number.

    Args:
        places: of the index.  query_X: the first number of each suffix.
    """
    low_MX, high_MX = suffix_levels(query_X, *places, index.sorted_by(places), index.free_M, *index.form)
    known_MX = (query_X & index.last_M[:, None]) != 0  # no suffix reaches before its document
    return low_MX, (high_MX - low_MX) * known_MX


def count_next(
    index, query_X: Tensor, topic_XK: Tensor | None, often: list[int], n_given: int, shuffle: bool = False,
    own: Own | None = None,
) -> Counted:  # fmt: skip
    """The next tokens after n places, evenly spaced, of the longest suffix that so many share; else of the last token.

    Edited entries count as they are: the number of places, too, is that of the bank as it is.

    Args:
        index: a `SuffixIndex`.  query_X: the first number of the text's suffix.
        topic_XK: float32, the topic of the text; None: all places count the same.
        often: n, several of them, side by side in the result.  n_given: U, for each.
        shuffle: a control; the tokens after other places are counted.
        own: places that are not counted, and do not make a suffix frequent. Where it has more than 2n places, as many
            of them are looked at: if most are own ones, a shorter suffix is taken.
    """
    part = max(PLACES_AT_ONCE // max(often), 1)
    topics = [None] * len(query_X) if topic_XK is None else topic_XK.split(part)
    owns = [None] * len(topics) if own is None else own.split(part)
    parts = [
        _count_part(index, query_Z, topic_ZK, often, n_given, shuffle, own_Z)
        for query_Z, topic_ZK, own_Z in zip(query_X.split(part), topics, owns, strict=False)
    ]
    return joined(parts, 0)


def _count_part(
    index, query_X: Tensor, topic_XK: Tensor | None, often: list[int], n_given: int, shuffle: bool, own: Own | None
) -> Counted:
    """`count_next` of some positions."""
    base = ranges(index, index.base, query_X)
    total_MX, edited = base[1], None
    if index.edits is not None:
        edited = ranges(index, index.edits, query_X)
        total_MX = total_MX - ranges(index, index.replaced, query_X)[1] + edited[1]

    def places(level_1X: Tensor, n: int, fewer_1X: Tensor | None = None) -> Tensor:
        """`taken` of the bank as it is; only for the positions in `fewer_1X`, if it is given."""

        def of(some, low_MX: Tensor, count_MX: Tensor) -> Tensor:
            asked_MX = count_MX if fewer_1X is None else count_MX * fewer_1X
            return taken(index, some, low_MX, asked_MX, level_1X, n, shuffle, own)

        place_XY = of(index.base, *base)
        if edited is None:
            return place_XY
        stale_XY = index.stale_N[place_XY.clamp(min=0) // index.token_NL.shape[1]]
        return torch.cat([of(index.edits, *edited), place_XY.masked_fill(stale_XY, NO_ENTRY)], dim=-1)

    def counted(n: int) -> Counted:
        level_1X = ((total_MX >= n).sum(dim=0, keepdim=True) - 1).clamp(min=0)
        place_XY = places(level_1X, n)
        for _ in range(0 if own is None else len(total_MX) - 1):
            fewer_1X = ((place_XY != NO_ENTRY).sum(dim=-1) < n) & (level_1X > 0)
            level_1X = level_1X - fewer_1X.long()
            place_XY = places(level_1X, n, fewer_1X).where(fewer_1X[0, :, None], place_XY)
        topic_NK = None if index.topics is None else index.topics.topic_NK
        bank = index.token_NL, index.config.vocab_size
        return Counted(*next_tokens(place_XY, level_1X[0] + 1, *bank, topic_XK, topic_NK, n_given))

    return joined([counted(n) for n in often], -1)


def taken(
    index, places, low_MX: Tensor, count_MX: Tensor, level_1X: Tensor, n: int, shuffle: bool, own: Own | None
) -> Tensor:
    """(X, Y) int32: up to n of the places that share so many tokens, evenly spaced, NO_ENTRY beyond them."""
    low_X, count_X = low_MX.gather(0, level_1X)[0], count_MX.gather(0, level_1X)[0]
    given_P = index.base.place_P if shuffle else places.place_P
    return spaced_places(low_X, count_X, given_P, n, len(places.place_P), len(given_P) // 2 if shuffle else 0, own)
