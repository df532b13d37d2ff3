"""Places of the bank that share a suffix with the text, and how often which token follows them.

Axes: X positions · P sorted places · Y places looked at · U next tokens given · N bank entries · L tokens per entry
      K width of a topic
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from common.constants import NO_ENTRY, PADDING

from .own_places import LOOKED_AT, Own
from .twin import twin
from .words import row_products

SHARPNESS = 12.0  # a place counts exp(SHARPNESS * cosine of its topic and the text's)
UNITS = 1 << 20  # of the largest weight; whole numbers add up the same in every order
SHARE_BITS, SHARE_STEPS = 16, 256  # of the logarithm of a share that stands in a score, and its steps for a nat
MATCHED_BITS = 8
MOST_PLACES, MOST_TOKENS = 1024, 1 << 20  # of a row that the kernel sorts, and of the vocabulary: its sums have 32 bits


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


def _spaced_kernel(
    low_X: Tensor, count_X: Tensor, place_P: Tensor, n: int, n_places: int, shift: int, own: Own | None = None
) -> Tensor:
    from .triton.place_counts import spaced_places as kernel

    return kernel(low_X, count_X, place_P, n, n_places, shift, own)


def _spaced(count_X1: Tensor, n: int) -> Tensor:
    """(X, n) int64: n of so many, evenly spaced; if these are fewer, all, and numbers beyond them."""
    slot_Y = torch.arange(n, device=count_X1.device)
    return torch.where(count_X1 > n, slot_Y * count_X1 // n, slot_Y)


@twin(_spaced_kernel, deterministic=True)
def spaced_places(
    low_X: Tensor, count_X: Tensor, place_P: Tensor, n: int, n_places: int, shift: int, own: Own | None = None
) -> Tensor:
    """(X, n) int32: n of `count_X` places from `low_X` on, evenly spaced, NO_ENTRY beyond them.

    Args:
        low_X, count_X: int64.  place_P: int32, what is given of a place.
        n_places: how many there are where `low_X` counts.  shift: other places are given, as many places further.
        own: places that are left out: of 2n places, evenly spaced, n of the others are given.
    """
    count_X1, n_looked = count_X[:, None], n if own is None else LOOKED_AT * n
    at_XY = (low_X[:, None] + _spaced(count_X1, n_looked)).clamp(max=n_places - 1)
    beyond_XY = torch.arange(n_looked, device=low_X.device) >= count_X1
    place_XY = place_P[(at_XY + shift) % len(place_P)].masked_fill(beyond_XY, NO_ENTRY)
    if own is None:
        return place_XY
    left_out_XY = own.places(place_XY) | beyond_XY
    place_XY = place_XY.masked_fill(left_out_XY, NO_ENTRY).gather(-1, left_out_XY.int().argsort(dim=-1, stable=True))
    return place_XY.gather(-1, _spaced((~left_out_XY).sum(dim=-1, keepdim=True), n))


def _counts_kernel(
    place_XY: Tensor, matched_X: Tensor, token_NL: Tensor, vocab_size: int, topic_XK: Tensor | None,
    topic_NK: Tensor | None, n_given: int,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    from .triton.place_counts import next_tokens as kernel

    fits = place_XY.shape[1] <= MOST_PLACES and vocab_size < MOST_TOKENS
    run = kernel if fits else next_tokens.op.reference
    return run(place_XY, matched_X, token_NL, vocab_size, topic_XK, topic_NK, n_given)


@twin(_counts_kernel, deterministic=True)
def next_tokens(
    place_XY: Tensor, matched_X: Tensor, token_NL: Tensor, vocab_size: int, topic_XK: Tensor | None,
    topic_NK: Tensor | None, n_given: int,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The most frequent tokens after some places; places that the same token follows become one.

    More than `MOST_PLACES` at a position have no kernel, nor has a vocabulary of `MOST_TOKENS`.

    Args:
        place_XY: int32, entry * L + the index of a token; NO_ENTRY for none.  matched_X: int64, tokens in common.
        topic_XK, topic_NK: of text and entries; None: all places count the same.  n_given: U.
    Returns:
        place_XU: int64, one place that each token follows, NO_ENTRY for none.  score_XU: int64, of `pack_score`.
    """
    place_XY = place_XY.long()
    L, is_place_XY, Y = token_NL.shape[1], place_XY != NO_ENTRY, place_XY.shape[-1]
    at_XY = place_XY.clamp(min=0)
    next_XY = token_NL.view(-1)[(at_XY + 1).clamp(max=token_NL.numel() - 1)].long()
    is_place_XY = is_place_XY & (next_XY != PADDING)  # a bank whose texts were swapped since
    weight_XY = is_place_XY.long() * UNITS
    if topic_XK is not None:
        near_XY = row_products(topic_XK, topic_NK, at_XY // L).masked_fill(~is_place_XY, -1.0)
        near_XY = near_XY - near_XY.amax(dim=-1, keepdim=True)
        weight_XY = ((SHARPNESS * near_XY).exp() * UNITS).round().long() * is_place_XY
    # Sorted by token, then by slot; what is no place comes last.
    key_XY = torch.where(is_place_XY, next_XY, vocab_size) * Y + torch.arange(Y, device=place_XY.device)
    key_XY = key_XY.sort(dim=-1).values
    token_XY, slot_XY = key_XY // Y, key_XY % Y
    weight_XY = weight_XY.gather(-1, slot_XY)
    sum_XY, here_Y = weight_XY.cumsum(dim=-1), torch.arange(Y, device=place_XY.device)
    first_XY = torch.searchsorted(token_XY, token_XY)
    is_last_XY = torch.ones_like(is_place_XY)
    is_last_XY[:, :-1] = token_XY[:, 1:] != token_XY[:, :-1]
    own_XY = sum_XY - sum_XY.gather(-1, first_XY) + weight_XY.gather(-1, first_XY)
    own_XY = own_XY.masked_fill(~is_last_XY | (token_XY == vocab_size), 0)
    U = min(n_given, Y)
    rank_XU = (own_XY * Y + (Y - 1 - here_Y)).topk(U, dim=-1).values  # of equal ones the first
    own_XU, last_XU = rank_XU // Y, Y - 1 - rank_XU % Y
    first_XU = first_XY.gather(-1, last_XU)
    found_XU = own_XU > 0
    share_XU = own_XU / sum_XY[:, -1:].clamp(min=1)
    plain_share_XU = (last_XU - first_XU + 1) / is_place_XY.sum(dim=-1, keepdim=True).clamp(min=1)
    place_XU = place_XY.gather(-1, slot_XY.gather(-1, first_XU)).masked_fill(~found_XU, NO_ENTRY)
    score_XU = pack_score(matched_X[:, None].expand(-1, U), share_XU, plain_share_XU).masked_fill(~found_XU, 0)
    beyond = (0, n_given - U)  # fewer places than tokens asked for
    return F.pad(place_XU, beyond, value=NO_ENTRY), F.pad(score_XU, beyond)


def _read_kernel(place_X: Tensor, score_X: Tensor, token_NL: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    from .triton.place_counts import read_places as kernel

    return kernel(place_X, score_X, token_NL)


@twin(_read_kernel, deterministic=True)
def read_places(place_X: Tensor, score_X: Tensor, token_NL: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """What stands after places of the bank, and what their scores say.

    Args:
        place_X: int64, entry * L + the index of a token; NO_ENTRY for none.  score_X: int64, of `pack_score`.
    Returns:
        entry_X: int64, 0 for none.  token_X: int64, PADDING for none and at the end of an entry.  missing_X: bool.
        log_weight_X: float32, tokens in common, plus the logarithm of the share.  log_plain_share_X: float32.
    """
    L, missing_X = token_NL.shape[1], place_X == NO_ENTRY
    entry_X, index_X = place_X.clamp(min=0) // L, place_X.clamp(min=0) % L + 1
    token_X = token_NL[entry_X, index_X.clamp(max=L - 1)].long().masked_fill(missing_X | (index_X >= L), PADDING)
    matched_X, log_share_X, log_plain_share_X = unpack_score(score_X)
    return entry_X, token_X, missing_X, matched_X + log_share_X, log_plain_share_X
