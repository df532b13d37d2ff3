"""How the tokens of entries match a position: a score of each token, and one of each entry.

The keys of tokens are rows of a projected embedding table of V rows: nothing is computed for a token of an entry. The
kernel reads those rows. In plain torch a product is looked up in `query @ table.T`.

Axes: B batch · T position · S entries per position · L tokens per entry · W = S*L tokens · R width · V vocabulary
"""

import torch
from torch import Tensor

from common.constants import PADDING

from .entry_layout import NO_TOKEN
from .triton import call
from .twin import twin


def _match_kernel(
    query_BTR: Tensor, match_query_BTR: Tensor, key_VR: Tensor, previous_key_VR: Tensor, match_key_VR: Tensor,
    token_BTW: Tensor, previous_BTW: Tensor, entry_BTS: Tensor,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    from .triton.token_match import match_tokens as kernel

    queries = (x.to(key_VR.dtype).flatten(0, 1) for x in (query_BTR, match_query_BTR))
    tokens = (x.flatten(0, 1) for x in (token_BTW, previous_BTW, entry_BTS))
    score_XW, match_XS = call(kernel, *queries, key_VR, previous_key_VR, match_key_VR, *tokens, PADDING, NO_TOKEN)
    return score_XW.view(token_BTW.shape), match_XS.view(entry_BTS.shape)


# The kernel's gradients are summed by atomics, in no fixed order.
@twin(_match_kernel, deterministic=False, excludes=(torch.float64,))
def match_tokens(
    query_BTR: Tensor, match_query_BTR: Tensor, key_VR: Tensor, previous_key_VR: Tensor, match_key_VR: Tensor,
    token_BTW: Tensor, previous_BTW: Tensor, entry_BTS: Tensor,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The products of queries with the keys of tokens; of PADDING they are 0.

    Args:
        query_BTR: for the keys of each token and of the token before it.  match_query_BTR: for those of whole entries.
        key_VR, previous_key_VR, match_key_VR: a row for each token of the vocabulary.
        token_BTW: PADDING where an entry has no token.  previous_BTW: the token before each, NO_TOKEN for padding.
        entry_BTS: int64, the entry of each slot, NO_ENTRY for none. Equal entries have equal tokens.
    Returns:
        score_BTW: float32, the query's products with both keys, summed.  match_BTS: float32, the products with the keys
        of an entry's tokens, summed.
    """
    score_BTW = _products(query_BTR, key_VR, token_BTW, PADDING)
    score_BTW = score_BTW + _products(query_BTR, previous_key_VR, previous_BTW, NO_TOKEN)
    match_BTW = _products(match_query_BTR, match_key_VR, token_BTW, PADDING)
    return score_BTW, match_BTW.unflatten(-1, (entry_BTS.shape[-1], -1)).sum(dim=-1)


def _products(query_BTR: Tensor, table_VR: Tensor, token_BTW: Tensor, skip: int) -> Tensor:
    """(B, T, W) float32."""
    score_BTW = (query_BTR @ table_VR.T).gather(-1, token_BTW.long().clamp(min=0)).float()
    return score_BTW.masked_fill(token_BTW == skip, 0.0)
