"""Weighted sums of the tokens of entries.

The values of tokens are rows of a projected embedding table of V rows: nothing of width D is computed for a token. The
kernel reads those rows. In plain torch a sum is `(weights summed by token) @ table`.

Axes: B batch · T position · S entries per position · L tokens per entry · W = S*L tokens · R width · V vocabulary
"""

from torch import Tensor

from common.constants import PADDING

from .triton import call
from .twin import twin


def _sum_kernel(weight_BTW: Tensor, table_VR: Tensor, token_BTW: Tensor, entry_BTS: Tensor) -> Tensor:
    from .triton.token_attention import sum_tokens as kernel

    tokens = token_BTW.flatten(0, 1), entry_BTS.flatten(0, 1)
    return call(kernel, weight_BTW.flatten(0, 1), table_VR, *tokens, PADDING).view(*token_BTW.shape[:-1], -1)


# The kernel's gradients are summed by atomics, in no fixed order.
@twin(_sum_kernel, deterministic=False)
def sum_tokens(weight_BTW: Tensor, table_VR: Tensor, token_BTW: Tensor, entry_BTS: Tensor) -> Tensor:
    """(B, T, R) in the table's dtype: the sum of the tokens' rows, each times its weight, without PADDING.

    Args:
        entry_BTS: int64, the entry of each slot, NO_ENTRY for none. Equal entries have equal tokens.
    """
    weight_BTW = weight_BTW.masked_fill(token_BTW == PADDING, 0.0)
    return sum_by_token(weight_BTW, token_BTW, table_VR) @ table_VR


def sum_by_token(weight_BTW: Tensor, token_BTW: Tensor, table_VX: Tensor) -> Tensor:
    """(B, T, V) in the table's dtype: the weight of each token of the vocabulary."""
    mass_BTV = table_VX.new_zeros(*token_BTW.shape[:-1], len(table_VX))
    return mass_BTV.scatter_add(-1, token_BTW.long(), weight_BTW.to(mass_BTV.dtype))
