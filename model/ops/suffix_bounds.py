"""The places of a suffix index whose suffixes, each of a few numbers, equal a query.

Axes: X queries · P places · K numbers of a suffix, the first one counts most · M tokens that are compared
      S samples: every `STEP`-th place · N bank entries · L tokens per entry
"""

import torch
from torch import Tensor

from common.constants import PADDING

from .twin import twin

STEP = 32  # places from one sample to the next; a power of two


def suffix_number(place_X: Tensor, token_NL: Tensor, k: int, length: int, bits: int, per_key: int) -> Tensor:
    """The k-th number of the suffix that ends at each place, of any shape: `per_key` tokens, the last one highest."""
    number_X, L = torch.zeros_like(place_X, dtype=torch.int64), token_NL.shape[1]
    for m in range(k * per_key, min((k + 1) * per_key, length)):
        token_X = token_NL.view(-1)[(place_X - m).clamp(min=0).long()].long().masked_fill(place_X % L < m, PADDING)
        number_X |= token_X << bits * (per_key - 1 - m % per_key)
    return number_X


def _kernel(
    query_KX: Tensor, sample_S: Tensor, place_P: Tensor, token_NL: Tensor, length: int, bits: int, per_key: int
) -> tuple[Tensor, Tensor]:
    from .triton.suffix_bounds import suffix_bounds as kernel

    return kernel(query_KX, sample_S, place_P, token_NL, length, bits, per_key)


@twin(_kernel, deterministic=True)
def suffix_bounds(
    query_KX: Tensor, sample_S: Tensor, place_P: Tensor, token_NL: Tensor, length: int, bits: int, per_key: int
) -> tuple[Tensor, Tensor]:
    """Binary search: the first place whose suffix is not below a query, and the first above it, each (X,) int64.

    Args:
        query_KX: int64.  sample_S: int64, the first number of the suffix of every `STEP`-th place: the kernel looks at
            them first. All other numbers are read from the tokens.
        place_P: int32, entry * L + the index of a token; suffixes in ascending order.
        length: tokens of a suffix.  bits: of a token.  per_key: tokens of one of the K numbers.
    """

    P, bounds = len(place_P), []
    for equal_goes_on in (False, True):
        low_X = torch.zeros_like(query_KX[0])
        high_X = torch.full_like(low_X, P)
        for _ in range(P.bit_length()):
            middle_X = (low_X + high_X) // 2
            below_X, equal_X = torch.zeros_like(low_X, dtype=torch.bool), torch.ones_like(low_X, dtype=torch.bool)
            place_X = place_P[middle_X.clamp(max=P - 1)]
            for k, query_X in enumerate(query_KX):
                key_X = suffix_number(place_X, token_NL, k, length, bits, per_key)
                below_X |= equal_X & (key_X < query_X)
                equal_X &= key_X == query_X
            on_X = (below_X | equal_X) if equal_goes_on else below_X
            open_X = low_X < high_X
            low_X, high_X = (middle_X + 1).where(open_X & on_X, low_X), middle_X.where(open_X & ~on_X, high_X)
        bounds.append(low_X)
    return tuple(bounds)


def _levels_kernel(
    query_X: Tensor, sample_S: Tensor, place_P: Tensor, token_NL: Tensor, free_M: Tensor, length: int, bits: int,
    per_key: int,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    from .triton.suffix_bounds import suffix_levels as kernel

    return kernel(query_X, sample_S, place_P, token_NL, free_M, length, bits, per_key)


@twin(_levels_kernel, deterministic=True)
def suffix_levels(
    query_X: Tensor, sample_S: Tensor, place_P: Tensor, token_NL: Tensor, free_M: Tensor, length: int, bits: int,
    per_key: int,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The first place that shares the first 1, 2, ... tokens with a query, and the first after them, (M, X) int64 each.

    Args:
        query_X: int64, the first number of a suffix.
        free_M: int64, of each M the lowest bits of a number, all set, that hold the other tokens.
        sample_S, place_P, token_NL, length, bits, per_key: as `suffix_bounds` takes them.
    """
    places, free_M1 = (sample_S, place_P, token_NL, length, bits, per_key), free_M[:, None]
    low_MX, _ = suffix_bounds.op.reference((query_X & ~free_M1).flatten()[None], *places)
    _, high_MX = suffix_bounds.op.reference((query_X | free_M1).flatten()[None], *places)
    return low_MX.view(len(free_M), -1), high_MX.view(len(free_M), -1)
