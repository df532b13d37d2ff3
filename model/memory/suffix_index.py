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
from common.flags import flag, require

from ..base_config import MemoryConfig
from ..ops import suffix_bounds, suffix_neighbours, suffix_queries
from .bank_index import BankIndex
from .suffix_counts import Counted, count_next
from .topics import Topics

BITS = 62  # of a number that tokens are packed into
SUFFIX = "--retrieval suffix"
MOST_COUNTED = 4096  # places of a position


@dataclass(frozen=True)
class SuffixConfig(MemoryConfig):
    """Flags of the suffix index."""

    suffix_length: int = flag(8, "last tokens of the text that are compared with the bank, at most", within=(1, 64))
    suffix_tokens: int = flag(4, "tokens of an entry that are read after a place", within=(1, "knowledge_length"))
    suffix_often: list[int] | None = flag(
        None,
        "the next tokens after so many places of the longest suffix that has them are counted, too; several numbers: "
        "once for each",
    )
    suffix_often_tokens: int = flag(
        8, "of the --num_selected places, how many are given to the most frequent of these tokens, for each number",
        within=(1, None),
        only_with="--suffix_often",
    )  # fmt: skip
    suffix_topic_dim: int = flag(
        0,
        "width of the vectors of topics; a token counts more after places whose entries are about what the text is "
        "about; 0: all count the same",
        within=(0, 1024), needs="--suffix_often",
    )  # fmt: skip
    suffix_topic_window: int = flag(
        128, "last tokens of the text that say what it is about", within=(1, None), only_with="--suffix_topic_dim"
    )

    @property
    def n_counted(self) -> int:
        """How many of the S places are of counted next tokens; they come last."""
        return self.suffix_often_tokens * len(self.suffix_often or [])

    @property
    def text_compared(self) -> int:
        """Last tokens of a text that a search reads."""
        return max(self.suffix_length, self.suffix_topic_window if self.suffix_often and self.suffix_topic_dim else 0)

    def check(self) -> None:
        n = self.num_selected - self.n_counted
        places = "--num_selected" + " less counted tokens" * bool(self.n_counted)
        require(
            all(1 <= often <= MOST_COUNTED for often in self.suffix_often or []),
            f"--suffix_often {self.suffix_often} must lie in [1, {MOST_COUNTED}]",
        )
        require(
            n > 0,
            f"--suffix_often_tokens {self.suffix_often_tokens}, for each number of --suffix_often, must be less than "
            f"--num_selected {self.num_selected}",
        )
        require(
            self.num_candidates >= 2 * n,  # all that match may stand on one side
            f"--num_candidates {self.num_candidates} must be at least twice {places} {n} with --retrieval suffix",
        )
        require(
            not self.suffix_often or self.suffix_tokens == 1,
            f"--suffix_often counts single tokens: it needs --suffix_tokens 1, not {self.suffix_tokens}",
        )


class Places(NamedTuple):
    """Sorted places: key_KP int64, the suffixes; place_P int32, entry * L + the index of the suffix's last token."""

    key_KP: Tensor
    place_P: Tensor


class SuffixIndex(BankIndex):
    """Memory: 4 bytes for each token of the bank, and 8 for each K: 20 with a vocabulary of 6,400 and suffixes of 8."""

    def prepare(self, token_NL: Tensor) -> None:
        self.per_key = BITS // self.bits
        self.n_keys = -(-self.config.suffix_length // self.per_key)
        config, self.replaced, self.topics = self.config, None, None
        levels = range(1, min(self.per_key, config.suffix_length) + 1)
        # Of the first number of a suffix, the bits that a shorter one leaves open.
        free = [(1 << self.bits * (self.per_key - m)) - 1 for m in levels]
        self.free_M = torch.tensor(free, device=token_NL.device)
        self.last_M = ((1 << self.bits) - 1) * (self.free_M + 1)  # the bits of the last of these tokens
        if config.suffix_often and config.suffix_topic_dim:
            self.topics = Topics(token_NL, config.vocab_size, config.suffix_topic_dim)

    def edit(self, row_X: Tensor, old_XL: Tensor) -> None:
        super().edit(row_X, old_XL)
        if self.topics is not None:
            self.topics.update(self.token_NL, row_X)
        if self.config.suffix_often:  # the places of `base` that are no more
            rows = sorted(self.edited)
            row_X = torch.tensor(rows, device=self.token_NL.device, dtype=torch.int64)
            trained = torch.stack([self.edited[row] for row in rows]) if rows else None
            self.replaced = self.index(trained, row_X) if rows else None

    def index(self, token_XL: Tensor, row_X: Tensor) -> Places:
        L = token_XL.shape[1]
        is_place_XL = (token_XL != PADDING) & (F.pad(token_XL[:, 1:], (0, 1), value=PADDING) != PADDING)
        if not is_place_XL.any():  # an empty bank: nothing matches its padding
            is_place_XL[:1, 0] = True

        def packed(distances: list[int | None]) -> Tensor:
            """(P,) int64: of each place the tokens at these distances from it, PADDING for None."""
            key_P = torch.zeros(int(is_place_XL.sum()), dtype=torch.int64, device=token_XL.device)
            for distance in distances:
                key_P <<= self.bits
                if distance is not None and abs(distance) < L:
                    key_P |= F.pad(token_XL, (-distance, distance), value=PADDING)[is_place_XL]
            return key_P

        # By what follows, then by the suffix from its last number to its first, each time stably.
        order_P = packed(list(range(1, self.per_key + 1))).argsort(stable=True)
        distances = [-m if m < self.config.suffix_length else None for m in range(self.n_keys * self.per_key)]
        keys = [packed(distances[k : k + self.per_key]) for k in range(0, len(distances), self.per_key)]
        for key_P in reversed(keys):
            order_P = order_P[key_P[order_P].argsort(stable=True)]
        place_P = (row_X[:, None] * L + torch.arange(L, device=row_X.device)).int()[is_place_XL]
        return Places(torch.stack([key_P[order_P] for key_P in keys]), place_P[order_P])

    def find(
        self, text_BX: Tensor, start_BX: Tensor, T: int, n: int, n_ranked: int, shuffle: bool = False
    ) -> tuple[Tensor, Tensor]:
        """The places with the longest suffixes in common with the text up to each of the last T positions.

        Args:
            start_BX: bool, True at the first token of each document; suffixes stay inside a document.
            n: S.  n_ranked: how many places around the text's own are looked at, at least 2n.
            shuffle: a control; other places are given, always the same in place of the same.
        Returns:
            place_BTS: int64, NO_ENTRY where fewer share a token.  matched_BTS: int64, the common tokens, 0 there.
        """
        query_KX = self.queries(text_BX, start_BX)[..., -T:].flatten(1)
        if self.edits is None:
            found = self._neighbours(self.base, query_KX, n, n_ranked, n, shuffle)
            return tuple(x.view(len(text_BX), T, n) for x in found)
        search = query_KX, n, n_ranked, n_ranked, shuffle
        place_XY, matched_XY = self._neighbours(self.base, *search)
        stale_XY = self.stale_N[place_XY.clamp(min=0) // self.token_NL.shape[1]]
        found = place_XY.masked_fill(stale_XY, NO_ENTRY), matched_XY.masked_fill(stale_XY, 0)
        edited = self._neighbours(self.edits, *search)  # they come first, as the newer text
        place_XY, matched_XY = (torch.cat(pair, dim=-1) for pair in zip(edited, found, strict=True))
        matched_XY, slot_XY = matched_XY.sort(dim=-1, descending=True, stable=True)
        found = place_XY.gather(-1, slot_XY[:, :n]), matched_XY[:, :n]
        return tuple(x.view(len(text_BX), T, n) for x in found)

    def queries(self, text_BX: Tensor, start_BX: Tensor) -> Tensor:
        """(K, B, X) int64: the suffix of the text up to each position, inside its document."""
        return suffix_queries(text_BX, start_BX, self.config.suffix_length, self.bits, self.per_key)

    def count_next(self, text_BX: Tensor, start_BX: Tensor, T: int, shuffle: bool, own=None) -> Counted:
        """What follows a frequent suffix (`suffix_counts.count_next`), of the last T positions."""
        config, topic_XK = self.config, None
        if self.topics is not None:
            document_BX = start_BX.cumsum(dim=1)
            topic_XK = self.topics.of_text(text_BX, document_BX, config.suffix_topic_window)[:, -T:].flatten(0, 1)
        query_X = self.queries(text_BX, start_BX)[0, :, -T:].flatten()
        counted = count_next(self, query_X, topic_XK, config.suffix_often, config.suffix_often_tokens, shuffle, own)
        return Counted(*(x.view(len(text_BX), T, -1) for x in counted))

    def _neighbours(
        self, places: Places, query_KX: Tensor, n: int, n_ranked: int, n_given: int, shuffle: bool
    ) -> tuple[Tensor, Tensor]:
        """(X, n_given): the places around each query, or n of those that equal it, the best first.

        The places of an equal suffix stand in the order of what follows: the taken ones go on in as many ways as all.
        """
        low_X, high_X = suffix_bounds(query_KX, places.key_KP)
        given_P = self.base.place_P if shuffle else places.place_P
        given = given_P, len(given_P) // 2 if shuffle else 0
        form = self.config.suffix_length, self.bits, self.per_key
        return suffix_neighbours(query_KX, places.key_KP, low_X, high_X, *given, n, n_ranked, n_given, *form)
