"""The k largest values of each row."""

from torch import Tensor

from .triton import call
from .twin import twin


def _kernel(score: Tensor, k: int) -> tuple[Tensor, Tensor]:
    from .triton.best_of_rows import best_of_rows as kernel

    return call(kernel, score, k)


@twin(_kernel, deterministic=True)
def best_of_rows(score: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest of the last axis, best first, and their indices; among equal scores any may be taken."""
    return score.topk(k, dim=-1)
