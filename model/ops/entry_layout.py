"""The tokens of found entries beside each other, and how each of them relates to the text.

Axes: B batch · T position · X cached tokens, then new ones · S entries per position · L tokens per entry · W = S*L
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from common.constants import NO_ENTRY, PADDING

from .triton import call
from .twin import twin

NO_TOKEN = -1
PLACES = 64  # 16 distances from the end of an entry, each for four kinds of tokens
TOKENS = 1 << 24  # more than any vocabulary has
NEVER = -(1 << 62)  # the place of what does not stand in the text


def _kernel(entry_BTS: Tensor, token_NL: Tensor, text_BX: Tensor, start_BX: Tensor, window: int) -> tuple[Tensor, ...]:
    from .triton.entry_layout import lay_out_entries as kernel

    return call(kernel, entry_BTS, token_NL, text_BX, start_BX, window)


@twin(_kernel, deterministic=True)
def lay_out_entries(
    entry_BTS: Tensor, token_NL: Tensor, text_BX: Tensor, start_BX: Tensor, window: int
) -> tuple[Tensor, ...]:
    """The fields of `EntryTokens` for entries found at the last T positions of a text, without `entry_BTS`.

    Args:
        entry_BTS: int64, NO_ENTRY for none.  token_NL: the bank.
        text_BX: int64.  start_BX: bool, where a document begins.
        window: last tokens of a document that are the recent text.
    """
    T, is_none_BTS1 = entry_BTS.shape[1], (entry_BTS == NO_ENTRY)[..., None]
    token_BTSL = token_NL[entry_BTS.clamp(min=0)].int().masked_fill(is_none_BTS1, PADDING)
    *related, length_BTS = relate_to_text(token_BTSL, text_BX[:, -T:], previous(text_BX, start_BX)[:, -T:])
    stands_BTW = stands_in_text(token_BTSL.flatten(-2), text_BX, start_BX, window)
    place_BTW = place_of_tokens(length_BTS, stands_BTW)
    return *(x.contiguous() for x in related), length_BTS, place_BTW, stands_BTW


def previous(text_BX: Tensor, start_BX: Tensor) -> Tensor:
    """The token before each, PADDING at the start of a document."""
    return F.pad(text_BX[:, :-1], (1, 0), value=PADDING).masked_fill(start_BX, PADDING)


def relate_to_text(
    token_BTSL: Tensor, input_BT: Tensor, previous_BT: Tensor, before_BTS2: Tensor | None = None
) -> tuple[Tensor, ...]:
    """The first fields of `EntryTokens`, up to `length_BTS`; arguments as in `lay_out_tokens`."""
    L = token_BTSL.shape[-1]
    if before_BTS2 is None:
        whole_BTSX = F.pad(token_BTSL, (2, 0), value=PADDING)
    else:
        whole_BTSX = torch.cat([before_BTS2, token_BTSL], dim=-1)
    back_BTSL, back2_BTSL = whole_BTSX[..., 1 : L + 1], whole_BTSX[..., :L]
    follows_BTSL = (back_BTSL == input_BT[..., None, None]) & (back_BTSL != PADDING)
    follows2_BTSL = follows_BTSL & (back2_BTSL == previous_BT[..., None, None]) & (back2_BTSL != PADDING)
    is_padding_BTSL = token_BTSL == PADDING
    back_BTSL = back_BTSL.masked_fill(is_padding_BTSL, NO_TOKEN)
    length_BTS = (~is_padding_BTSL).sum(dim=-1).clamp(min=1)
    by_token = token_BTSL, back_BTSL, follows_BTSL, follows2_BTSL, is_padding_BTSL
    return *(x.flatten(-2) for x in by_token), length_BTS


def stands_in_text(token_BTX: Tensor, text_BX: Tensor, start_BX: Tensor, window: int) -> Tensor:
    """(B, T, X) bool: whether each token is one of the last `window` tokens of its position's document.

    Args:
        token_BTX: tokens at each of the last T positions of the text.
    """
    B, n = text_BX.shape
    T, place_X = token_BTX.shape[1], torch.arange(n, device=text_BX.device)
    document_BX = start_BX.long().cumsum(dim=1)
    # One number for document, token and place: the last occurrence up to a position is the number below.
    key_BX = ((document_BX * TOKENS + text_BX) * n + place_X).sort(dim=1).values
    here_BT1 = place_X[-T:].expand(B, T)[..., None]
    asked_BTX = torch.add(document_BX[:, -T:, None] * (TOKENS * n) + here_BT1, token_BTX, alpha=n)
    # Before all keys stands one that is far below whatever is asked for.
    found_BTX = torch.searchsorted(key_BX, asked_BTX.flatten(1), right=True)
    found_BTX = F.pad(key_BX, (1, 0), value=NEVER).gather(1, found_BTX).view_as(asked_BTX)
    return asked_BTX - found_BTX <= here_BT1.clamp(max=window - 1)


def place_of_tokens(length_BTS: Tensor, stands_BTW: Tensor) -> Tensor:
    """(B, T, W) uint8: each token's distance to the entry's end, and whether it and the one before are in the text.

    Args:
        length_BTS: tokens of each entry.  stands_BTW: bool, whether each token stands in the recent text.
    """
    stands_BTSL = stands_BTW.unflatten(-1, (length_BTS.shape[-1], -1)).to(torch.uint8)
    L = stands_BTSL.shape[-1]
    before_BTSL = F.pad(stands_BTSL[..., :-1], (1, 0), value=0)
    place_L = torch.arange(L, device=stands_BTW.device, dtype=torch.int32)
    from_end_BTSL = length_BTS.int()[..., None] - 1 - place_L
    from_end_BTSL = from_end_BTSL.clamp(0, PLACES // 4 - 1).to(torch.uint8)
    return (from_end_BTSL * 4 + stands_BTSL * 2 + before_BTSL).flatten(-2)
