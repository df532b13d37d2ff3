"""What the words are worth that entries share with the text.

Axes: X positions · N bank entries · C entries of a position · K words of an entry · Q words of a position
"""

from torch import Tensor

from .twin import twin


def _kernel(word_NK: Tensor, entry_XC: Tensor, word_XQ: Tensor, value_XQ: Tensor) -> Tensor:
    from .triton.shared_words import shared_words as kernel

    return kernel(word_NK, entry_XC, word_XQ, value_XQ)


@twin(_kernel, deterministic=True)
def shared_words(word_NK: Tensor, entry_XC: Tensor, word_XQ: Tensor, value_XQ: Tensor) -> Tensor:
    """(X, C) float32: the sum of the values of a position's words that each entry has.

    Args:
        word_NK: int32, the different words of each entry; 0 for none.  entry_XC: int64, rows of it.
        word_XQ: int32, different words; 0 for none.  value_XQ: float32.
    """
    word_XCK, total_XC = word_NK[entry_XC], 0.0
    for word_X, value_X in zip(word_XQ.unbind(dim=-1), value_XQ.unbind(dim=-1), strict=True):
        has_XC = (word_XCK == word_X[:, None, None]).any(dim=-1) & (word_X != 0)[:, None]
        total_XC = total_XC + value_X[:, None] * has_XC
    return total_XC
