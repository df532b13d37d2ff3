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
from ..ops.own_places import Own
from ..ops.suffix_bounds import STEP, suffix_number
from .bank_index import ROWS_AT_ONCE, BankIndex
from .suffix_counts import Counted, count_next
from .topics import Topics

BITS = 62  # of a number that tokens are packed into
SUFFIX = "--retrieval suffix"
MOST_COUNTED = 4096  # places of a position
PLACES_AT_ONCE = 1 << 22  # that are sorted together, and those of one more token


@dataclass(frozen=True)
class SuffixConfig(MemoryConfig):
    """Flags of the suffix index."""

    suffix_layers: list[int] | None = flag(
        None,
        "blocks that read what follows the longest suffix of the text (as by --retrieval suffix --fusion "
        "continuations), beside what --retrieval finds, and not in blocks of --memory_layers; passages of the training "
        "text in the bank are then found by suffixes alone, until they are edited",
        needs="--retrieval ngram|bm25: suffixes are searched beside a search by n-grams or words",
    )  # fmt: skip
    suffix_selected: int = flag(
        16, "places that blocks of --suffix_layers read", within=(1, None), only_with="--suffix_layers"
    )
    suffix_candidates: int = flag(32, "places that are ranked for them", within=(1, None), only_with="--suffix_layers")
    suffix_length: int = flag(8, "last tokens of the text that are compared with the bank, at most", within=(1, 64))
    suffix_tokens: int = flag(4, "tokens of an entry that are read after a place", within=(1, "knowledge_length"))
    suffix_often: list[int] | None = flag(
        None,
        "the next tokens after so many places of the longest suffix that has them are counted, too; several numbers: "
        "once for each",
    )
    suffix_often_tokens: int = flag(
        8,
        "of the --num_selected (or --suffix_selected) places, how many are given to the most frequent of these tokens, "
        "for each number",
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
    """Places in the order of their suffixes.

    Attributes:
        sample_S: int64, the first number of every `STEP`-th suffix; all others are read from the tokens of the entries.
        place_P: int32, entry * L + the index of the suffix's last token.
    """

    sample_S: Tensor
    place_P: Tensor


class SuffixIndex(BankIndex):
    """Memory: 4.25 bytes for each token of the bank; once entries have been edited, the tokens as trained, too."""

    def prepare(self, token_NL: Tensor) -> None:
        self.per_key = BITS // self.bits
        self.n_keys = -(-self.config.suffix_length // self.per_key)
        self.form = self.config.suffix_length, self.bits, self.per_key
        config, self.replaced, self.topics = self.config, None, None
        self.trained_NL, self.newest_NL = token_NL, self.token_NL  # the tokens that `base` and `edits` have sorted
        levels = range(1, min(self.per_key, config.suffix_length) + 1)
        # Of the first number of a suffix, the bits that a shorter one leaves open.
        free = [(1 << self.bits * (self.per_key - m)) - 1 for m in levels]
        self.free_M = torch.tensor(free, device=token_NL.device)
        self.last_M = ((1 << self.bits) - 1) * (self.free_M + 1)  # the bits of the last of these tokens
        if config.suffix_often and config.suffix_topic_dim:
            self.topics = Topics(token_NL, config.vocab_size, config.suffix_topic_dim)

    def edit(self, row_X: Tensor, old_XL: Tensor) -> None:
        if self.trained_NL is self.token_NL:
            self.trained_NL = self.token_NL.index_copy(0, row_X, old_XL)
        self.newest_NL = self.token_NL
        super().edit(row_X, old_XL)
        if not self.edited:
            self.trained_NL = self.token_NL
        if self.topics is not None:
            self.topics.update(self.token_NL, row_X)
        if self.config.suffix_often:  # the places of `base` that are no more
            row_X = torch.tensor(sorted(self.edited), device=self.token_NL.device, dtype=torch.int64)
            self.replaced = self.index(self.trained_NL[row_X], row_X) if self.edited else None

    def before_swap(self) -> None:
        shared = self.token_NL.clone()
        self.trained_NL, self.newest_NL = (
            shared if x_NL is self.token_NL else x_NL for x_NL in (self.trained_NL, self.newest_NL)
        )

    def index(self, token_XL: Tensor, row_X: Tensor) -> Places:
        """Sorted part by part, by the tokens of the places: the temporary memory is that of the largest part."""
        L, flat_Y = token_XL.shape[1], token_XL.reshape(-1)
        place_P = self._places(token_XL)
        last_P = torch.cat([flat_Y[part_P.long()] for part_P in place_P.split(PLACES_AT_ONCE)])
        n_of_V = torch.zeros(self.config.vocab_size, dtype=torch.int64, device=row_X.device)
        for part_P in last_P.split(PLACES_AT_ONCE):
            n_of_V += torch.bincount(part_P.long(), minlength=len(n_of_V))
        part_V = (n_of_V.cumsum(dim=0) - n_of_V) // PLACES_AT_ONCE
        end, sorted_P = 0, torch.empty_like(place_P)
        for part in part_V.unique().tolist():
            token_V = (part_V == part) & (n_of_V > 0)
            chosen_P = torch.cat([token_V[x.long()] for x in last_P.split(PLACES_AT_ONCE)])
            begin, place_Y = end, place_P[chosen_P]
            end = begin + len(place_Y)
            sorted_P[begin:end] = self._sorted(token_XL, place_Y)
        sample_S = suffix_number(sorted_P[::STEP], token_XL, 0, *self.form)
        for part_P in sorted_P.split(PLACES_AT_ONCE):
            part_P.copy_(row_X[part_P.long() // L] * L + part_P % L)
        return Places(sample_S, sorted_P)

    def _places(self, token_XL: Tensor) -> Tensor:
        """(P,) int32: the tokens that another one follows."""
        parts, L = [], token_XL.shape[1]
        for begin in range(0, len(token_XL), ROWS_AT_ONCE):
            part_XL = token_XL[begin : begin + ROWS_AT_ONCE]
            is_place_XL = (part_XL != PADDING) & (F.pad(part_XL[:, 1:], (0, 1), value=PADDING) != PADDING)
            parts.append((is_place_XL.flatten().nonzero()[:, 0] + begin * L).int())
        place_P = torch.cat(parts) if parts else torch.zeros(0, dtype=torch.int32, device=token_XL.device)
        return place_P if len(place_P) else place_P.new_zeros(1)  # an empty bank: nothing matches its padding

    def _sorted(self, token_XL: Tensor, place_Y: Tensor) -> Tensor:
        """By what follows, then by the suffix from its last number to its first, each time stably."""
        L, follows_Y = token_XL.shape[1], 0
        for m in range(1, self.per_key + 1):
            token_Y = token_XL.view(-1)[(place_Y + m).clamp(max=token_XL.numel() - 1)].long()
            follows_Y = follows_Y << self.bits | token_Y.masked_fill(place_Y % L + m >= L, PADDING)
        place_Y = place_Y[follows_Y.argsort(stable=True)]
        for k in reversed(range(self.n_keys)):
            place_Y = place_Y[suffix_number(place_Y, token_XL, k, *self.form).argsort(stable=True)]
        return place_Y

    def find(
        self, text_BX: Tensor, start_BX: Tensor, T: int, n: int, n_ranked: int, shuffle: bool = False,
        own: Own | None = None,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """The places with the longest suffixes in common with the text up to each of the last T positions.

        Args:
            start_BX: bool, True at the first token of each document; suffixes stay inside a document.
            n: S.  n_ranked: how many places around the text's own are looked at, at least 2n.
            shuffle: a control; other places are given, always the same in place of the same.
            own: of the B * T positions, places that are left out; others take their slots (`suffix_neighbours`).
        Returns:
            place_BTS: int64, NO_ENTRY where fewer share a token.  matched_BTS: int64, the common tokens, 0 there.
        """
        query_KX = self.queries(text_BX, start_BX)[..., -T:].flatten(1)
        if self.edits is None:
            found = self._neighbours(self.base, query_KX, n, n_ranked, n, shuffle, own)
            return tuple(x.view(len(text_BX), T, n) for x in found)
        search = query_KX, n, n_ranked, n_ranked, shuffle, own
        place_XY, matched_XY = self._neighbours(self.base, *search)
        stale_XY = self.stale_N[place_XY.clamp(min=0) // self.token_NL.shape[1]]
        found = place_XY.masked_fill(stale_XY, NO_ENTRY), matched_XY.masked_fill(stale_XY, 0)
        # They come last: where many places match as much, few of those that an index of all would give are edited.
        edited = self._neighbours(self.edits, *search)
        place_XY, matched_XY = (torch.cat(pair, dim=-1) for pair in zip(found, edited, strict=True))
        matched_XY, slot_XY = matched_XY.sort(dim=-1, descending=True, stable=True)
        found = place_XY.gather(-1, slot_XY[:, :n]), matched_XY[:, :n]
        return tuple(x.view(len(text_BX), T, n) for x in found)

    def queries(self, text_BX: Tensor, start_BX: Tensor) -> Tensor:
        """(K, B, X) int64: the suffix of the text up to each position, inside its document."""
        return suffix_queries(text_BX, start_BX, *self.form)

    def count_next(self, text_BX: Tensor, start_BX: Tensor, T: int, shuffle: bool, own: Own | None = None) -> Counted:
        """What follows a frequent suffix (`suffix_counts.count_next`), of the last T positions."""
        config, topic_XK = self.config, None
        if self.topics is not None:
            document_BX = start_BX.cumsum(dim=1)
            topic_XK = self.topics.of_text(text_BX, document_BX, config.suffix_topic_window)[:, -T:].flatten(0, 1)
        query_X = self.queries(text_BX, start_BX)[0, :, -T:].flatten()
        counted = count_next(self, query_X, topic_XK, config.suffix_often, config.suffix_often_tokens, shuffle, own)
        return Counted(*(x.view(len(text_BX), T, -1) for x in counted))

    def _neighbours(
        self, places: Places, query_KX: Tensor, n: int, n_ranked: int, n_given: int, shuffle: bool, own: Own | None
    ) -> tuple[Tensor, Tensor]:
        """(X, n_given): the places around each query, or n of those that equal it, the best first.

        The places of an equal suffix stand in the order of what follows: the taken ones go on in as many ways as all.
        """
        texts = places.place_P, self.sorted_by(places)
        low_X, high_X = suffix_bounds(query_KX, places.sample_S, *texts, *self.form)
        given_P = self.base.place_P if shuffle else places.place_P
        given = given_P, len(given_P) // 2 if shuffle else 0
        return suffix_neighbours(query_KX, *texts, low_X, high_X, *given, n, n_ranked, n_given, *self.form, own)

    def sorted_by(self, places: Places) -> Tensor:
        """(N, L): the tokens by which places are sorted: those of `base`, `replaced` or `edits`."""
        return self.newest_NL if places is self.edits else self.trained_NL
