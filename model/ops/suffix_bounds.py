"""The places of a sorted list of texts, each of a few numbers, that equal a query.

Axes: X queries · P places · K numbers of a text, the first one counts most
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
