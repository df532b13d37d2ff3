"""The word index of a bank: which entries share rare words with the text so far, in whatever order.

Axes: B batch · T position · N bank entries · L tokens per entry · K words per entry · W tokens of the window
      X any number of rows; or entries that a position points to · P postings · R partners of a word
      Q words of the text · A words added to an entry · Y keys of a position · Z = Y times the postings of a key
      V different words; or different high halves of keys

A word of the text points to the entries in which it weighs most, and so does each pair with a word shortly before it:
a common name has too many entries, a pair of words few. What is found is ranked by BM25 over the words of the window.
Related: Robertson & Zaragoza 2009 (BM25); Carmel et al. 2001 (postings cut to those of the highest impact).
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from common.constants import NO_ENTRY, PADDING
from common.flags import flag, require

from ..base_config import MemoryConfig
from ..ops import rank_by_words, rarest_words, read_postings
from .also_words import AlsoWords, closed_up, read_also
from .bank_index import ROWS_AT_ONCE, BankIndex
from .ngram_index import Matches
from .spelling import LONGEST, numbers_of, words_so_far

LENGTH_SHARE = 0.4  # b of BM25: how much a longer entry is marked down
RECENCY = 0.975  # factor of a word's weight for each token that it lies back
KEPT = 0.98  # factor of a found entry's weight from one token to the next
COMMON = 1.0  # nats that a common word weighs at most
FREQUENT = 1000  # entries; a key with more of them says little about what a text asks for
MOST_CANDIDATES = 1024  # of a position: every two of them are compared
WIDTH = 32  # words kept of an entry, if it does not have more of its own
ADDED_WITH = 3  # rarest words of an entry that words added to it make pairs with
PARTNERS, QUERY_WORDS = 7, 16  # rarest words of the window: that pairs are made with; that entries are ranked by


@dataclass(frozen=True)
class BM25Config(MemoryConfig):
    """Flags of the word index."""

    heading = "word index: of --retrieval bm25"

    bm25_postings: int = flag(8, "entries that a word, or a pair of words, points to at most", within=(1, 64))
    bm25_pairs: int = flag(8, "rarest words of an entry, all pairs of which are indexed", within=(2, 32))
    bm25_pair_recency: float = flag(
        1.0,
        "factor of a word's weight for each token that it lies back, where partners of pairs are chosen; 1: the rarest "
        "words of the window are, though they may stand in an earlier sentence",
        within=(0.5, 1),
    )  # fmt: skip
    bm25_window: int = flag(32, "last tokens of the text whose words find and rank entries", within=(2, 256))
    bm25_stop_words: list[str] = flag(
        ["question", "answer", "subject", "object", "relation", "true"],
        "words of the text that find nothing: those of the forms in which questions are asked",
    )
    bm25_common_words: list[str] | None = flag(
        None,
        "words that weigh little (1 nat at most), though few entries have them: those that questions have and "
        "statements seldom",
    )
    bm25_also_words: list[str] | None = flag(
        None,
        "words that entries also count as having, as in occupation=job,trade: an entry with the first is found by the "
        "others too (python -m dataset.also_words)",
    )

    bm25_current_word: bool = flag(
        False,
        "a word finds entries where it stands, as far as it is written; False: when the next token has ended it",
    )

    def check(self) -> None:
        read_also(self.bm25_also_words)
        n, most = self.num_candidates, MOST_CANDIDATES
        require(n <= most, f"--num_candidates {n} are too many to be ranked by words; at most {most}")


class CutPostings:
    """The first postings of each key. Keys share their high halves, as rows of a sparse matrix (CSR).

    Args:
        key_P: int64, ascending: a word, or two words, the smaller one in the high half.
        frequent_P: int64, the keys that more than FREQUENT entries have.
    Attributes:
        first_V: int32, ascending, the high halves.  begin_V: int32, where the postings of each begin, then P.
        second_P, entry_P: int32, low half and entry of each posting; one more at the end has NO_ENTRY.
    """

    def __init__(self, key_P: Tensor, entry_P: Tensor, frequent_P: Tensor):
        first_P, self.frequent_P = (key_P >> 32).int(), frequent_P
        begin_V = begins(first_P).nonzero()[:, 0]
        self.first_V, self.begin_V = first_P[begin_V], F.pad(begin_V.int(), (0, 1), value=len(key_P))
        self.second_P = F.pad((key_P & 2**32 - 1).int(), (0, 1))
        self.entry_P = F.pad(entry_P.int(), (0, 1), value=NO_ENTRY)

    @property
    def key_P(self) -> Tensor:
        """Worked out: of a short list."""
        n = len(self.second_P) - 1
        first_P = self.first_V.long().repeat_interleave(self.begin_V.diff(), output_size=n)
        return first_P << 32 | self.second_P[:-1]

    def read(self, key_XY: Tensor, weight_XY: Tensor, norm_N: Tensor, n: int) -> tuple[Tensor, Tensor]:
        """What `read_postings` returns."""
        return read_postings(key_XY, weight_XY, self.first_V, self.begin_V, self.second_P, self.entry_P, norm_N, n)


def begins(key_P: Tensor) -> Tensor:
    """(P,) bool: where another key begins."""
    return F.pad(key_P[1:] != key_P[:-1], (1, 0), value=True)[: len(key_P)]


def ranks(key_P: Tensor) -> Tensor:
    """(P,) int64: postings of the same key before each; the keys are sorted."""
    place_P = torch.arange(len(key_P), device=key_P.device)
    return place_P - torch.where(begins(key_P), place_P, 0).cummax(dim=0).values


class BM25Index(BankIndex):
    """Posting lists of words and pairs, and the words of each entry.

    Memory: 4 bytes for each word of an entry, up to the longest one's, and 8 for each posting.
    """

    needs_spelling = keeps_matches = True
    decay = KEPT

    def prepare(self, token_NL: Tensor) -> None:
        self.window = self.config.bm25_window + LONGEST + 1
        self.stop_X = numbers_of(self.config.bm25_stop_words).to(token_NL.device)
        self.common_X = numbers_of(self.config.bm25_common_words or []).int().sort().values.to(token_NL.device)
        self.also = AlsoWords(self.config.bm25_also_words, token_NL.device)
        word_NL = self.words(token_NL)
        every_NL = torch.cat([word_NL, self.added(word_NL)], dim=1)
        word_V, count_V = every_NL[every_NL > 0].unique(return_counts=True)
        self.word_V = word_V.clone()  # on a GPU it holds the memory of all that are not unique, too
        if not len(self.word_V):  # an empty bank
            self.word_V, count_V = word_NL.new_ones(1), torch.ones(1, device=word_NL.device)
        self.idf_V = torch.log(self.n_shown / count_V).clamp(min=0.01).float()
        self.unknown_idf = math.log(max(self.n_shown, 2))
        n_words_N = (word_NL > 0).sum(dim=1)
        self.mean_words = float(n_words_N.sum() / (n_words_N > 0).sum().clamp(min=1))
        self.n_own = max(int(n_words_N.max()), 1)
        self.word_NK = self._kept(word_NL).contiguous()
        self.norm_N = self._norms(n_words_N)

    def words(self, token_XL: Tensor) -> Tensor:
        """(X, L) int32: the different words of each row in ascending order, after zeros."""
        parts = []
        for part_XL in token_XL.split(ROWS_AT_ONCE):
            # With padding, the last word of a full row ends too.
            padded_XL = F.pad(part_XL.long(), (0, 1), value=PADDING)
            word_XL, ended_XL = words_so_far(self.spelling_V, padded_XL, torch.zeros_like(padded_XL, dtype=torch.bool))
            word_XL = word_XL[:, :-1].where(ended_XL[:, 1:], 0).int().sort(dim=1).values
            again_XL = F.pad(word_XL[:, 1:] == word_XL[:, :-1], (1, 0), value=False)
            parts.append(word_XL.masked_fill(again_XL, 0).sort(dim=1).values)
        return torch.cat(parts) if parts else token_XL.int()

    def added(self, word_XL: Tensor) -> Tensor:
        """(X, A) int32: the words that entries with these words also count as having; 0 fills up."""
        parts = [self.also.added_to(part_XL) for part_XL in word_XL.split(ROWS_AT_ONCE)]
        return torch.cat(parts) if parts else word_XL[:, :0]

    def _kept(self, word_XL: Tensor) -> Tensor:
        """(X, K) int32: the words of each entry that rank it: its own, rarest first, then those added to it."""
        own_XK, added_XA = self._rarest_first(word_XL)[0][:, : self.n_own], self.added(word_XL)
        if not added_XA.shape[1]:
            return own_XK
        n = min(self.n_own + added_XA.shape[1], max(self.n_own, WIDTH))
        return closed_up(torch.cat([own_XK, added_XA], dim=1), n)

    def idf(self, word_X: Tensor) -> Tensor:
        """float32, ln(N / entries with the word) in the bank as trained; 0 for no word, ln N for an unknown one.

        A common word has `COMMON` at most.
        """
        at_X = torch.searchsorted(self.word_V, word_X).clamp(max=len(self.word_V) - 1)
        idf_X = self.idf_V[at_X].where(self.word_V[at_X] == word_X, self.unknown_idf).masked_fill(word_X == 0, 0.0)
        if len(self.common_X):
            # Not torch.isin, which waits for the device: steps of one token are captured.
            near_X = torch.searchsorted(self.common_X, word_X).clamp(max=len(self.common_X) - 1)
            idf_X = idf_X.clamp(max=COMMON).where(self.common_X[near_X] == word_X, idf_X)
        return idf_X

    def _rarest_first(self, word_XL: Tensor) -> tuple[Tensor, Tensor]:
        """(X, L) words of each row, rarest first, and their idf."""
        parts = []
        for part_XL in word_XL.split(ROWS_AT_ONCE):
            idf_XL, slot_XL = self.idf(part_XL).sort(dim=1, descending=True, stable=True)
            parts.append((part_XL.gather(1, slot_XL), idf_XL))
        return tuple(torch.cat(part) for part in zip(*parts, strict=True)) if parts else (word_XL, word_XL.float())

    def _norms(self, n_words_X: Tensor) -> Tensor:
        """(X,) float32: the factor of BM25 for entries of so many words."""
        return 1 / (1 - LENGTH_SHARE + LENGTH_SHARE * n_words_X / self.mean_words)

    def index(self, token_XL: Tensor, row_X: Tensor) -> dict[str, CutPostings | Tensor]:
        """The list of words and pairs, and each row's `mass` in nats: a word weighs most where little else stands."""
        word_XL = self.words(token_XL)
        added_XA, (word_XL, idf_XL) = self.added(word_XL), self._rarest_first(word_XL)
        mass_X, n_pairs = idf_XL.sum(dim=1), min(self.config.bm25_pairs, word_XL.shape[1])
        order_X = mass_X.argsort(stable=True)
        word_XL, added_XA, row_X = word_XL[order_X].long(), added_XA[order_X].long(), row_X[order_X]
        first_P, second_P = torch.combinations(torch.arange(n_pairs, device=row_X.device)).unbind(dim=1)
        pair_XP = pair_keys(word_XL[:, first_P], word_XL[:, second_P])
        if added_XA.shape[1]:
            more_XP = pair_keys(word_XL[:, :ADDED_WITH, None], added_XA[:, None]).flatten(1)
            pair_XP = torch.cat([pair_XP, more_XP], dim=1)
        return {"keys": self._postings(torch.cat([word_XL, pair_XP], dim=1), row_X), "mass": mass_X}

    def _postings(self, key_XP: Tensor, row_X: Tensor) -> CutPostings:
        """The first postings of each key; the rows are in the order of their worth."""
        wanted_XP = key_XP != 0
        key_P, slot_P = key_XP[wanted_XP].sort(stable=True)
        entry_P = row_X[:, None].expand_as(wanted_XP)[wanted_XP][slot_P]
        rank_P = ranks(key_P)
        kept_P = rank_P < self.config.bm25_postings
        return CutPostings(key_P[kept_P], entry_P[kept_P], key_P[rank_P == FREQUENT])

    def edit(self, row_X: Tensor, old_XL: Tensor) -> None:
        super().edit(row_X, old_XL)
        if self.edits and self.base:
            self.edits["keys"] = self._without_frequent(self.edits["keys"], self.base["keys"])
        word_XL = self.words(self.read_rows(row_X))
        self.norm_N[row_X] = self._norms((word_XL > 0).sum(dim=1))
        word_XK = self._kept(word_XL)
        self.word_NK[row_X] = F.pad(word_XK, (0, self.word_NK.shape[1] - word_XK.shape[1]))

    def _without_frequent(self, edits: CutPostings, base: CutPostings) -> CutPostings:
        """Without the postings of edited entries that an index of the whole bank would not have, of frequent keys.

        Few entries are edited: else any frequent word would find some of them, whatever the text is about. Entries that
        were better in training count, though they may be edited too: others would take their places.
        """
        key_P, entry_P = edits.key_P, edits.entry_P[:-1].long()
        is_frequent_P, n = torch.isin(key_P, base.frequent_P), self.config.bm25_postings
        key_Y1, own_Y1 = key_P[is_frequent_P][:, None], entry_P[is_frequent_P][:, None]
        row_X = torch.tensor(sorted(self.edited), device=key_P.device)
        mass_Y1 = self.edits["mass"][torch.searchsorted(row_X, own_Y1)]
        other_YK, _ = base.read(key_Y1, torch.zeros_like(mass_Y1), self.norm_N, n)
        is_better_YK = (other_YK != NO_ENTRY) & (other_YK != own_Y1)
        is_better_YK &= self.base["mass"][other_YK.clamp(min=0)] <= mass_Y1
        kept_P = ~is_frequent_P
        kept_P[is_frequent_P] = ranks(key_P)[is_frequent_P] + is_better_YK.sum(dim=1) < n
        return CutPostings(key_P[kept_P], entry_P[kept_P], edits.frequent_P)

    def matches(
        self, whole_BT: Tensor, whole_idf_BT: Tensor, word_BT: Tensor, idf_BT: Tensor, depth_BT: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The entries that a word points to, alone and with partners, and weights in nats.

        It is the word that has just ended, or the current one, where it is another one than at the token before.

        Args: what `read` returns.
        Returns:
            entry_BTX: int32, NO_ENTRY as filler.  weight_BTX: float32, 0 for filler.
        """
        W, n = self.config.bm25_window, self.config.bm25_postings
        others = whole_BT, whole_idf_BT, depth_BT
        if self.config.bm25_current_word:
            is_new_BT = (whole_BT != 0) | (F.pad(word_BT[:, 1:] != word_BT[:, :-1], (1, 0), value=True))
            # Until a word of this document has ended, the token before may be another document's.
            place_T = torch.arange(whole_BT.shape[1], device=whole_BT.device)
            last_BT = torch.where(whole_BT != 0, place_T, -W).cummax(dim=1).values
            is_new_BT |= place_T - last_BT > depth_BT.clamp(max=W - 1)
            own_BT, own_idf_BT = word_BT.where(is_new_BT, 0), idf_BT.where(is_new_BT, 0.0)
        else:
            own_BT, own_idf_BT, W = whole_BT, whole_idf_BT, W - 1
            others = *(F.pad(x[:, :-1], (1, 0)) for x in others[:2]), depth_BT - 1
        partner_BTR, _, partner_idf_BTR = rarest_words(
            *others, self._factors(self.config.bm25_pair_recency, W), PARTNERS
        )
        pair_BTR = pair_keys(own_BT[..., None], partner_BTR.long())
        key_BTY = torch.cat([own_BT[..., None], pair_BTR], dim=-1)
        weight_BTY = torch.cat([own_idf_BT[..., None], own_idf_BT[..., None] + partner_idf_BTR], dim=-1)
        found = []
        for lists in (self.edits, self.base):  # edited entries come first, as the newer text
            if lists:
                key_XY, weight_XY = key_BTY.flatten(0, 1), weight_BTY.flatten(0, 1)
                entry_XZ, weight_XZ = lists["keys"].read(key_XY, weight_XY, self.norm_N, n)
                if lists is self.base and self.edits is not None:
                    is_stale_XZ = self.stale_N[entry_XZ.clamp(min=0)]
                    entry_XZ = entry_XZ.masked_fill(is_stale_XZ, NO_ENTRY)
                    weight_XZ = weight_XZ.masked_fill(entry_XZ == NO_ENTRY, 0.0)
                found.append((entry_XZ, weight_XZ))
        parts = found[0] if len(found) == 1 else (torch.cat(x, dim=-1) for x in zip(*found, strict=True))
        return tuple(x.view(*whole_BT.shape, -1) for x in parts)

    def _factors(self, recency: float, n: int) -> Tensor:
        """(n,) float32: of the weights of the words of the last n tokens, the last one of 1."""
        back_W = torch.arange(n - 1, -1, -1, device=self.idf_V.device)
        return (recency**back_W).float()

    def read(self, text_BT: Tensor, start_BT: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """The words of a text.

        Args:
            start_BT: bool, True at the first token of each document; words and pairs stay inside a document.
        Returns:
            whole_BT: int64, the word that ended before each token, 0 for none.  word_BT: int64, the current word, as
            far as it is written.  After each its idf, float32.  depth_BT: int64, tokens of the document before each.
        """
        word_BT, ended_BT = words_so_far(self.spelling_V, text_BT, start_BT)
        word_BT = word_BT.masked_fill(torch.isin(word_BT, self.stop_X), 0)
        whole_BT = F.pad(word_BT[:, :-1], (1, 0)).where(ended_BT, 0)
        place_T = torch.arange(text_BT.shape[1], device=text_BT.device)
        depth_BT = place_T - torch.where(start_BT, place_T, 0).cummax(dim=1).values
        return whole_BT, self.idf(whole_BT.int()), word_BT, self.idf(word_BT.int()), depth_BT

    def rank(
        self, matches: Matches, whole_BX: Tensor, whole_idf_BX: Tensor, word_BX: Tensor, idf_BX: Tensor,
        depth_BX: Tensor, cut: int,
    ) -> Matches:  # fmt: skip
        """The matches with their BM25 scores over the words of the window and the current word, best first.

        Args: what `read` returns of the new tokens and the `cut` ones before them.
        """
        factor_W = self._factors(RECENCY, self.config.bm25_window)
        query = rarest_words(whole_BX, whole_idf_BX, depth_BX, factor_W, QUERY_WORDS, word_BX, idf_BX)[:2]
        positions = (x.flatten(0, 1) for x in (matches.entry_BTC, *(x[:, cut:] for x in query)))
        entry_XC, *query = positions
        ranked = rank_by_words(entry_XC, self.word_NK, self.norm_N, *query)
        return Matches(*(x.view(matches.entry_BTC.shape) for x in ranked))


def pair_keys(first_X: Tensor, second_X: Tensor) -> Tensor:
    """int64: a number for two different words, in whatever order; 0 where one is missing."""
    key_X = (first_X.minimum(second_X) << 32) | first_X.maximum(second_X)
    return key_X.masked_fill((first_X == 0) | (second_X == 0) | (first_X == second_X), 0)
