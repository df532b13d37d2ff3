"""The tokens of found entries, laid out side by side.

Axes: B batch · T position · S entries per position · L tokens per entry · W = S*L tokens
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from common.constants import PADDING

NO_TOKEN = -1
COPIES = 64  # of the tokens' weights, on a GPU
PLACES = 64  # 16 distances from the end of an entry, each for four kinds of tokens


class EntryTokens(NamedTuple):
    """The tokens of the entries at each position, and how they relate to the text.

    Attributes:
        token_BTW: int32 or int64, S*L tokens, entry after entry; PADDING is not read.
        previous_BTW: the token before each token inside its entry; PADDING before the first, NO_TOKEN for padding.
        follows_BTW: whether that previous token is the text's current one: the token would continue the text.
        follows2_BTW: whether the two tokens before it are the text's last two.
        is_padding_BTW: bool.
        length_BTS: int64, how many tokens each entry has, at least 1.
        entry_BTS: int64, the entries, NO_ENTRY for none.
        place_BTW: uint8 below `PLACES`, the place of a token (`place_of_tokens`); None: nothing asks for it.
        stands_BTW: bool, whether a token stands in the recent text; None: nothing asks for it.
    """

    token_BTW: Tensor
    previous_BTW: Tensor
    follows_BTW: Tensor
    follows2_BTW: Tensor
    is_padding_BTW: Tensor
    length_BTS: Tensor
    entry_BTS: Tensor
    place_BTW: Tensor | None = None
    stands_BTW: Tensor | None = None

    def first(self, n: int) -> "EntryTokens":
        """The tokens of the first n entries of each position."""
        S = self.entry_BTS.shape[-1]
        if n == S:
            return self
        return EntryTokens(*(None if x is None else x[..., : x.shape[-1] * n // S].contiguous() for x in self))


def place_of_tokens(tokens: EntryTokens, stands_BTW: Tensor) -> Tensor:
    """(B, T, W) uint8: each token's distance to the entry's end, and whether it and the one before are in the text.

    Args:
        stands_BTW: bool, whether each token stands in the recent text.
    """
    S = tokens.length_BTS.shape[-1]
    stands_BTSL = stands_BTW.unflatten(-1, (S, -1)).to(torch.uint8)
    L = stands_BTSL.shape[-1]
    before_BTSL = F.pad(stands_BTSL[..., :-1], (1, 0), value=0)
    place_L = torch.arange(L, device=stands_BTW.device, dtype=torch.int32)
    from_end_BTSL = tokens.length_BTS.int()[..., None] - 1 - place_L
    from_end_BTSL = from_end_BTSL.clamp(0, PLACES // 4 - 1).to(torch.uint8)
    return (from_end_BTSL * 4 + stands_BTSL * 2 + before_BTSL).flatten(-2)


def unsaid_before(weight_V: Tensor, tokens: EntryTokens) -> Tensor:
    """(B, T, W) float32: the weights of the tokens before each in its entry that the recent text has not said, summed.

    Args:
        weight_V: float32, of each token of the vocabulary.
    """
    is_unsaid_BTW = ~(tokens.stands_BTW | tokens.is_padding_BTW)
    # Tokens that do not count take a weight each of its own: a single one would gather the gradients of all of them.
    spread_W = torch.arange(is_unsaid_BTW.shape[-1], device=weight_V.device) % len(weight_V)
    index_BTW = torch.where(is_unsaid_BTW, tokens.token_BTW, spread_W)
    weight_BTW = looked_up(weight_V, index_BTW, COPIES if weight_V.is_cuda else 1) * is_unsaid_BTW
    weight_BTSL = weight_BTW.unflatten(-1, (tokens.length_BTS.shape[-1], -1))
    if torch.are_deterministic_algorithms_enabled():  # CUDA's cumulative sum is not
        L = weight_BTSL.shape[-1]
        is_before_LL = torch.arange(L, device=weight_V.device)[:, None] < torch.arange(L, device=weight_V.device)
        with torch.autocast(weight_V.device.type, enabled=False):
            return (weight_BTSL @ is_before_LL.to(weight_BTSL.dtype)).flatten(-2)
    return (weight_BTSL.cumsum(dim=-1) - weight_BTSL).flatten(-2)


def looked_up(weight_V: Tensor, index_BTW: Tensor, n_copies: int) -> Tensor:
    """`weight_V[index_BTW]`; neighbouring positions read copies, to which a GPU adds their gradients side by side.

    Common tokens stand at most positions: a single weight of each would gather all those gradients one after another.
    """
    if n_copies > 1:
        copy_T1 = torch.arange(index_BTW.shape[1], device=weight_V.device)[:, None] % n_copies
        weight_V, index_BTW = weight_V.expand(n_copies, -1).flatten(), index_BTW + len(weight_V) * copy_T1
    return weight_V[index_BTW]


def lay_out_tokens(
    token_BTSL: Tensor, entry_BTS: Tensor, input_BT: Tensor, previous_BT: Tensor, before_BTS2: Tensor | None = None
) -> EntryTokens:
    """The tokens of the entries found at each position, beside each other.

    Args:
        token_BTSL: int32 or int64, PADDING for no entry.
        input_BT, previous_BT: the text's tokens, and the token before each, PADDING at the start of a document.
        before_BTS2: the two tokens of the entry before those that are read; None: there are none.
    """
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
    return EntryTokens(*(x.flatten(-2) for x in by_token), length_BTS, entry_BTS)


def weight_of_entries(attention_BTW: Tensor, n_entries: int) -> Tensor:
    """(B, T, S), without gradient: the attention to all tokens of each entry."""
    return attention_BTW.detach().unflatten(-1, (n_entries, -1)).sum(dim=-1)
