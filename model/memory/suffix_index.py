"""The suffix index of a bank: the places whose text repeats the longest suffix of the text so far.

Axes: B batch · T position · N bank entries · L tokens per entry · P places: tokens of the bank that another one follows
      M tokens of a suffix · K numbers that a suffix is packed into · S places read at a position

The places are sorted by the tokens that end there, the last one first: those that share the longest suffix with a text
stand next to where that text would stand. One binary search finds them, however long the suffix is. Places with the
same suffix stand in the order of what follows.
Related: Manber & Myers 1993 (suffix arrays); Liu et al. 2024, arXiv:2401.17377 (infini-gram: unbounded n-grams).
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from common.constants import NO_ENTRY, PADDING
from common.flags import flag

from ..base_config import MemoryConfig
from ..ops import suffix_bounds
from .bank_index import BankIndex, last, pack

BITS = 62  # of a number that tokens are packed into
SUFFIX = "--retrieval suffix"


@dataclass(frozen=True)
class SuffixConfig(MemoryConfig):
    """Flags of the suffix index."""

    suffix_length: int = flag(8, "last tokens of the text that are compared with the bank, at most", within=(1, 64))
    suffix_tokens: int = flag(4, "tokens of an entry that are read after a place", within=(1, "knowledge_length"))


class Places(NamedTuple):
    """Sorted places: key_KP int64, the suffixes; place_P int32, entry * L + the index of the suffix's last token."""

    key_KP: Tensor
    place_P: Tensor


class SuffixIndex(BankIndex):
    """Memory: 4 bytes for each token of the bank, and 8 for each K: 20 with a vocabulary of 6,400 and suffixes of 8."""

    def prepare(self, token_NL: Tensor) -> None:
        self.per_key = BITS // self.bits
        self.n_keys = -(-self.config.suffix_length // self.per_key)

    def pack_suffixes(self, suffix_XM: Tensor) -> Tensor:
        """(K, X) int64: the suffixes, given with their last token first."""
        suffix_XM = F.pad(suffix_XM, (0, self.n_keys * self.per_key - suffix_XM.shape[-1]), value=PADDING)
        return torch.stack([pack(part, self.bits) for part in suffix_XM.split(self.per_key, dim=-1)])

    def index(self, token_XL: Tensor, row_X: Tensor) -> Places:
        L = token_XL.shape[1]
        following_XLG = F.pad(token_XL, (0, self.per_key), value=PADDING)[:, 1:].unfold(1, self.per_key, 1)
        is_place_XL = (token_XL != PADDING) & (following_XLG[..., 0] != PADDING)
        place_XL = row_X[:, None] * L + torch.arange(L, device=row_X.device)
        if not is_place_XL.any():  # nothing matches the padding of an empty bank
            is_place_XL[:1, 0] = True
        place_P, following_P = place_XL[is_place_XL].int(), pack(following_XLG, self.bits)[is_place_XL]
        suffix_XLM = last(token_XL, self.config.suffix_length, PADDING).flip(-1)
        key_KP = torch.stack([key_XL[is_place_XL] for key_XL in self.pack_suffixes(suffix_XLM)])
        order_P = following_P.argsort(stable=True)
        for key_P in key_KP.flip(0):  # by the last number first, each time stably
            order_P = order_P[key_P[order_P].argsort(stable=True)]
        return Places(key_KP[:, order_P].contiguous(), place_P[order_P])

    def find(self, text_BX: Tensor, start_BX: Tensor, n: int, shuffle: bool = False) -> tuple[Tensor, Tensor]:
        """The places with the longest suffixes in common with the text up to each position.

        Args:
            start_BX: bool, True at the first token of each document; suffixes stay inside a document.
            n: S.
            shuffle: a control; other places are given, always the same in place of the same.
        Returns:
            place_BXS: int64, NO_ENTRY where fewer share a token.  matched_BXS: int64, the common tokens, 0 there.
        """
        document_BX = start_BX.int().cumsum(dim=1)
        M = self.config.suffix_length
        same_BXM = last(document_BX, M, -1) == document_BX[..., None]
        suffix_BXM = last(text_BX, M, PADDING).masked_fill(~same_BXM, PADDING).flip(-1)
        query_KBX = self.pack_suffixes(suffix_BXM)
        found = self._neighbours(self.base, query_KBX, n, shuffle)
        if self.edits is not None:
            stale_BXS = self.stale_N[found[0].clamp(min=0) // self.token_NL.shape[1]]
            found = found[0].masked_fill(stale_BXS, NO_ENTRY), found[1].masked_fill(stale_BXS, 0)
            edited = self._neighbours(self.edits, query_KBX, n, shuffle)  # they come first, as the newer text
            found = (torch.cat(pair, dim=-1) for pair in zip(edited, found, strict=True))
        place_BXY, matched_BXY = found
        matched_BXY, slot_BXY = matched_BXY.sort(dim=-1, descending=True, stable=True)
        # Contiguous, as copies are: other strides would compile a training step anew while it is captured.
        return place_BXY.gather(-1, slot_BXY[..., :n]), matched_BXY[..., :n].contiguous()

    def _neighbours(self, places: Places, query_KBX: Tensor, n: int, shuffle: bool) -> tuple[Tensor, Tensor]:
        """2n places around each query, the n best among them; n evenly spaced ones of those that equal it, if so many.

        The places of an equal suffix stand in the order of what follows: the taken ones go on in as many ways as all.
        """
        P, slot_Y = len(places.place_P), torch.arange(2 * n, device=query_KBX.device)
        low_BX, high_BX = (x.view(query_KBX.shape[1:]) for x in suffix_bounds(query_KBX.flatten(1), places.key_KP))
        count_BX = high_BX - low_BX
        many_BX = count_BX >= n
        around_BX = (low_BX - (2 * n - count_BX).clamp(min=0) // 2).clamp(max=P - 2 * n).clamp(min=0)
        spaced_BXY = low_BX[..., None] + slot_Y * count_BX[..., None] // n
        index_BXY = torch.where(many_BX[..., None], spaced_BXY, around_BX[..., None] + slot_Y)
        beyond_BXY = (index_BXY >= P) | many_BX[..., None] & (slot_Y >= n)
        index_BXY = index_BXY.clamp(max=max(P - 1, 0))
        matched_BXY = self._matched(places.key_KP[:, index_BXY], query_KBX[..., None]).masked_fill(beyond_BXY, 0)
        if shuffle:
            index_BXY = (index_BXY + P // 2) % P
        return places.place_P[index_BXY].long().masked_fill(matched_BXY == 0, NO_ENTRY), matched_BXY

    def _matched(self, key_KX: Tensor, query_KX: Tensor) -> Tensor:
        """(X,) int64: how many tokens two suffixes have in common."""
        matched_X = torch.zeros_like(key_KX[0])
        going_X = torch.ones_like(key_KX[0], dtype=torch.bool)
        for m in range(self.config.suffix_length):
            k, shift = m // self.per_key, self.bits * (self.per_key - 1 - m % self.per_key)
            token_X = (query_KX[k] >> shift) & ((1 << self.bits) - 1)
            going_X = going_X & (key_KX[k] >> shift == query_KX[k] >> shift) & (token_X != PADDING)
            matched_X = matched_X + going_X
        return matched_X
