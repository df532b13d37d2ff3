"""Attention to single words of many places: as `token_attention`, where neighbours share no entry.

Axes: X positions · W words of a position · R width · V vocabulary · N rows of a large table
"""

import torch
from torch import Tensor

from common.constants import PADDING

from .token_attention import sum_by_token
from .triton import call
from .twin import twin


def _score_kernel(query_XR: Tensor, table_VR: Tensor, token_XW: Tensor) -> Tensor:
    from .triton.words import score_words as kernel

    return call(kernel, query_XR.to(table_VR.dtype), table_VR, token_XW, PADDING)


# The kernels' gradients are summed by atomics, in no fixed order.
@twin(_score_kernel, deterministic=False)
def score_words(query_XR: Tensor, table_VR: Tensor, token_XW: Tensor) -> Tensor:
    """(X, W) float32: the product of a position's query with the table's row of each word, 0 where it is PADDING."""
    score_XW = (query_XR @ table_VR.T).gather(-1, token_XW).float()
    return score_XW.masked_fill(token_XW == PADDING, 0.0)


def _sum_kernel(weight_XW: Tensor, table_VR: Tensor, token_XW: Tensor) -> Tensor:
    from .triton.words import sum_words as kernel

    return call(kernel, weight_XW, table_VR, token_XW, PADDING)


@twin(_sum_kernel, deterministic=False)
def sum_words(weight_XW: Tensor, table_VR: Tensor, token_XW: Tensor) -> Tensor:
    """(X, R) in the table's dtype: the sum of the words' rows, each times its weight, without PADDING."""
    return sum_by_token(weight_XW.masked_fill(token_XW == PADDING, 0.0), token_XW, table_VR) @ table_VR


NUMBERS_AT_ONCE = 1 << 26


def _row_kernel(query_XR: Tensor, table_NR: Tensor, row_XW: Tensor) -> Tensor:
    from .triton.words import row_products as kernel

    return kernel(query_XR, table_NR, row_XW)


@twin(_row_kernel, deterministic=True)
def row_products(query_XR: Tensor, table_NR: Tensor, row_XW: Tensor) -> Tensor:
    """(X, W) float32, without gradient: the product of a position's query with rows of a table of any length.

    The query is rounded to the table's dtype.
    """

    def one_part(query_YR: Tensor, row_YW: Tensor) -> Tensor:
        return (table_NR[row_YW].float() * query_YR[:, None].to(table_NR.dtype).float()).sum(dim=-1)

    part = max(NUMBERS_AT_ONCE // (row_XW.shape[1] * table_NR.shape[1]), 1)
    pairs = zip(query_XR.split(part), row_XW.split(part), strict=True)
    return torch.cat([one_part(*pair) for pair in pairs])
