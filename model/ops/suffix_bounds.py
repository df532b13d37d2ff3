"""The places of a sorted list of texts, each of a few numbers, that equal a query.

Axes: X queries · P places · K numbers of a text, the first one counts most · M tokens that are compared
"""

import torch
from torch import Tensor

from .twin import twin


def _kernel(query_KX: Tensor, key_KP: Tensor) -> tuple[Tensor, Tensor]:
    from .triton.suffix_bounds import suffix_bounds as kernel

    return kernel(query_KX, key_KP)


@twin(_kernel, deterministic=True)
def suffix_bounds(query_KX: Tensor, key_KP: Tensor) -> tuple[Tensor, Tensor]:
    """Binary search: the first place that is not below a query, and the first above it, each (X,) int64.

    Args:
        query_KX: int64.  key_KP: int64, its columns in ascending order.
    """
    P = key_KP.shape[1]
    bounds = []
    for equal_goes_on in (False, True):
        low_X = torch.zeros_like(query_KX[0])
        high_X = torch.full_like(low_X, P)
        for _ in range(P.bit_length()):
            middle_X = (low_X + high_X) // 2
            key_KX = key_KP[:, middle_X.clamp(max=max(P - 1, 0))]
            below_X, equal_X = torch.zeros_like(low_X, dtype=torch.bool), torch.ones_like(low_X, dtype=torch.bool)
            for key_X, query_X in zip(key_KX, query_KX, strict=True):
                below_X |= equal_X & (key_X < query_X)
                equal_X &= key_X == query_X
            on_X = (below_X | equal_X) if equal_goes_on else below_X
            open_X = low_X < high_X
            low_X, high_X = (middle_X + 1).where(open_X & on_X, low_X), middle_X.where(open_X & ~on_X, high_X)
        bounds.append(low_X)
    return tuple(bounds)


def _levels_kernel(query_X: Tensor, key_P: Tensor, free_M: Tensor) -> tuple[Tensor, Tensor]:
    from .triton.suffix_bounds import suffix_levels as kernel

    return kernel(query_X, key_P, free_M)


@twin(_levels_kernel, deterministic=True)
def suffix_levels(query_X: Tensor, key_P: Tensor, free_M: Tensor) -> tuple[Tensor, Tensor]:
    """The first place that shares the first 1, 2, ... tokens with a query, and the first after them, (M, X) int64 each.

    Args:
        query_X, key_P: int64, one number of a text; `key_P` ascends.
        free_M: int64, of each M the lowest bits of a number, all set, that hold the other tokens.
    """
    free_M1 = free_M[:, None]
    low_MX, _ = suffix_bounds((query_X & ~free_M1).flatten()[None], key_P[None])
    _, high_MX = suffix_bounds((query_X | free_M1).flatten()[None], key_P[None])
    return low_MX.view(len(free_M), -1), high_MX.view(len(free_M), -1)
