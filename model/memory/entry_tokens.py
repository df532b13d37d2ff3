"""The tokens of found entries, laid out side by side.

Axes: B batch · T position · S entries per position · L tokens per entry · W = S*L tokens
"""

from typing import NamedTuple

import torch
from torch import Tensor

from ..ops.entry_layout import relate_to_text

COPIES = 64  # of the tokens' weights, on a GPU


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


def unsaid_before(weight_V: Tensor, tokens: EntryTokens) -> Tensor:
    """(B, T, W) float32: the weights of the tokens before each in its entry that the recent text has not said, summed.

    Args:
        weight_V: float32, of each token of the vocabulary.
    """
    is_unsaid_BTW = ~(tokens.stands_BTW | tokens.is_padding_BTW)
    # Tokens that do not count take a weight each of its own: a single one would gather the gradients of all of them.
    spread_W = torch.arange(is_unsaid_BTW.shape[-1], device=weight_V.device) % len(weight_V)
    index_BTW = torch.where(is_unsaid_BTW, tokens.token_BTW, spread_W).int()  # the backward pass keeps it
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
        copy_T1 = torch.arange(index_BTW.shape[1], device=weight_V.device, dtype=torch.int32)[:, None] % n_copies
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
    return EntryTokens(*relate_to_text(token_BTSL, input_BT, previous_BT, before_BTS2), entry_BTS)


def weight_of_entries(attention_BTW: Tensor, n_entries: int) -> Tensor:
    """(B, T, S), without gradient: the attention to all tokens of each entry."""
    return attention_BTW.detach().unflatten(-1, (n_entries, -1)).sum(dim=-1)
