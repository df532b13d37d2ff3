"""Places that a position may not read: they were cut from its own document of the training text.

Axes: X positions · Y places · N bank entries · L tokens per entry
"""

from typing import NamedTuple

from torch import Tensor

from common.constants import NO_ENTRY

LOOKED_AT = 2  # times as many places are looked at where some of them may be own ones


class Own(NamedTuple):
    """What each position may not read.

    Attributes:
        document_N: int32, of each entry.  L: tokens per entry.  document_X: of each position.
    """

    document_N: Tensor
    L: int
    document_X: Tensor

    def places(self, place_XY: Tensor) -> Tensor:
        """(X, Y) bool: the places that stand in their position's own document."""
        is_own_XY = self.document_N[place_XY.clamp(min=0) // self.L] == self.document_X[:, None]
        return is_own_XY & (place_XY != NO_ENTRY)

    def split(self, n: int) -> list["Own"]:
        return [self._replace(document_X=document_Z) for document_Z in self.document_X.split(n)]
