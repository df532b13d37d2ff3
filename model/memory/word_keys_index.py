"""Product keys over words: a learned vector of each word and pair of words points to a cell of a grid of entries.

Axes: B batch · T position, X cached ones too · N bank entries · L tokens per entry · R rows and columns of the grid
      K sub-key width · D = 2K numbers of a vector · F words and pairs that have a vector · W tokens of the window
      Y places of a text · M entries that training asks for · Q positions asked in each · C entries found

The grid is sorted: entries that share their rarest first word stand side by side. Each vector starts as the mean of the
sub-keys of the cells where its word stands (a sum of integers, so that every machine gets the same), and training adds
a learned part. Neighbouring sub-keys are alike, so that the mean of a run of cells points to that run.
Related: Lample et al. 2019, arXiv:1907.05242 (product keys); Tay et al. 2022, arXiv:2202.06991 (a learned index).
"""

import math
from dataclasses import dataclass
from math import isqrt
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import initialization as init

from common.constants import IGNORED, NO_ENTRY, PADDING
from common.flags import flag

from ..layers import in_autocast
from ..losses import retrieval_loss
from ..ops import search_grid
from .bank_index import ROWS_AT_ONCE
from .bm25_index import BM25Config, BM25Index, pair_keys
from .ngram_index import Matches, rarest, rarity_ranks
from .spelling import LONGEST, words_so_far

FIRST_TOKENS, WORDS_COMPARED = 8, 4  # the words of an entry's beginning, and how many of them sort the grid
WORDS, RECENCY = 4, 0.95  # ended words that a query is made of, and the factor of each for every word after it
COLUMN_WIDTHS, ROW_WIDTH = (16.0, 3.0), 0.7  # how far away sub-keys are still alike, in columns and rows
STEPS = 256  # of the integers that codes are rounded to, in 1
KEPT = 0.95  # factor of a found entry's weight from one token to the next
LEAST = 0.25  # of ln N nats: an entry must be likelier than by chance by so much to be found
TEXT_BEFORE, ASKED = 16, 2  # tokens of the batch before an entry in training; positions asked in each


@dataclass(frozen=True)
class WordKeysConfig(BM25Config):
    """Flags of the product keys over words."""

    heading = "product keys over words: of --retrieval word_keys"

    finder_rows: int = flag(
        524288, "words, and pairs of adjacent words, of the bank that have a learned vector; the most frequent ones",
        within=(2, None),
    )  # fmt: skip
    finder_dim: int = flag(64, "width of a sub-key; a vector has twice as many numbers", within=(4, None))
    finder_found: int = flag(32, "entries that the keys find at a position, at most", within=(1, None))
    finder_entries: int = flag(
        4096, "entries that training asks the keys for, in each micro-batch, after words of its text", within=(1, None)
    )
    finder_loss_coef: float = flag(
        0.1, "weight of that loss: cross-entropy on row and column of the entry; it trains the keys alone",
        within=(0, None),
    )  # fmt: skip

    @property
    def finder_side(self) -> int:
        """R: rows and columns of the grid, a multiple of 16 for the kernels; empty cells find nothing."""
        return -(-(isqrt(self.knowledge_num - 1) + 1) // 16) * 16


class TextWords(NamedTuple):
    """What the keys need of a text. Rows are those of the table of vectors, 0 for none.

    Attributes:
        ended_BX2: int64, the word that ended before each token, and its pair with the word before it.
        current_BX2: the same of the word that the token is in, as far as it is written.
        document_BX: int64.
    """

    ended_BX2: Tensor
    current_BX2: Tensor
    document_BX: Tensor


class KeyFinder(nn.Module):
    """The learned part of the keys. The language-model loss does not reach it, and its loss reaches nothing else."""

    def __init__(self, config: WordKeysConfig):
        super().__init__()
        self.vectors = nn.Embedding(config.finder_rows, 2 * config.finder_dim)
        self.keys_2RK = nn.Parameter(torch.empty(2, config.finder_side, config.finder_dim))

    def init_parameters(self) -> None:
        init.zeros_(self.vectors.weight)
        init.copy_(self.keys_2RK, grid_codes(*self.keys_2RK.shape[1:]))

    def scores(self, query_BTD: Tensor) -> Tensor:
        """(B, T, 2, R): each half of a query times the sub-keys of that half; multiply by `scale`."""
        query_2MK = in_autocast(query_BTD).flatten(0, 1).unflatten(-1, (2, -1)).transpose(0, 1)
        # A view of its own: autocast would keep a copy made without gradient, and train nothing.
        keys_2KR = self.keys_2RK.to(query_2MK.dtype).transpose(1, 2)
        return torch.bmm(query_2MK, keys_2KR).transpose(0, 1).unflatten(0, query_BTD.shape[:2])

    @property
    def scale(self) -> float:
        return self.keys_2RK.shape[-1] ** -0.5


def grid_codes(side: int, width: int) -> Tensor:
    """(2, R, K) float32 sub-keys to start from: cosines and sines of random frequencies, alike where indices are near.

    Source: Rahimi & Recht 2007 (random features of a Gaussian kernel).
    """
    generator = torch.Generator().manual_seed(0)
    frequency_2K = torch.randn(2, (width + 1) // 2, generator=generator)
    frequency_2K[0] /= ROW_WIDTH
    for first, column_width in enumerate(COLUMN_WIDTHS):
        frequency_2K[1, first :: len(COLUMN_WIDTHS)] /= column_width
    angle_2RK = torch.arange(side)[:, None] * frequency_2K[:, None]
    return 2**0.5 * torch.cat([angle_2RK.cos(), angle_2RK.sin()], dim=-1)[..., :width]


class WordKeysIndex(BM25Index):
    """The grid, the vectors that words start from, and BM25's words of each entry, which rank what is found.

    An entry that was edited stays in its cell, and is found by its words too.
    Memory: 2 bytes a number of the vectors, and 16 for each entry, beside what BM25 ranks by.
    """

    finder: KeyFinder | None = None  # the bank names it
    decay = KEPT

    def prepare(self, token_NL: Tensor) -> None:
        super().prepare(token_NL)
        self.window = self.config.bm25_window + 2 * LONGEST + 2  # a pair's first word lies before the window
        self.cell_N = self._cells(token_NL)
        R = self.config.finder_side
        empty_N = (token_NL == PADDING).all(dim=1)
        row_N = torch.arange(len(token_NL), device=token_NL.device).masked_fill(empty_N, NO_ENTRY)
        self.entry_RR = row_N.new_full((R * R,), NO_ENTRY).index_copy(0, self.cell_N, row_N)
        self.key_F = self._keys(token_NL)
        self.vector_FD = self._vectors(token_NL)

    def index(self, token_XL: Tensor, row_X: Tensor) -> dict:
        """Of edited rows those of BM25; the entries as trained are found by their keys."""
        return super().index(token_XL, row_X) if hasattr(self, "base") else {}

    def _cells(self, token_NL: Tensor) -> Tensor:
        """(N,) int64: the place of each entry in the grid, row by row: sorted by its rarest first words."""
        count_V = torch.bincount(
            torch.searchsorted(self.word_V, self.word_NK).where(self.word_NK > 0, len(self.word_V)).flatten(),
            minlength=len(self.word_V) + 1,
        )
        rank_V = rarity_ranks(F.pad(count_V[:-1], (1, 0)))  # the rarer, the higher; 0 for no word
        parts = []
        for part_XL in token_NL[:, :FIRST_TOKENS].split(ROWS_AT_ONCE):
            word_XL = self._words_in_order(part_XL)[0]
            at_XL = torch.searchsorted(self.word_V, word_XL.int()).clamp(max=len(self.word_V) - 1)
            known_XL = (self.word_V[at_XL] == word_XL) & (word_XL > 0)
            parts.append(rarest(rank_V[(at_XL + 1).where(known_XL, 0)], WORDS_COMPARED))
        rank_NJ = torch.cat(parts)
        order_N = torch.arange(len(token_NL), device=token_NL.device)
        for rank_N in rank_NJ.unbind(dim=-1)[::-1]:
            order_N = order_N[rank_N[order_N].argsort(stable=True)]
        return torch.empty_like(order_N).index_copy_(0, order_N, torch.arange(len(order_N), device=order_N.device))

    def _words_in_order(self, token_XL: Tensor) -> tuple[Tensor, Tensor]:
        """Of entries, each word after its last token, and its pair with the word before: (X, L + 1) int64, 0 for none.

        The last word of entries that were cut counts as whole.
        """
        padded_XL = F.pad(token_XL.long(), (0, 1), value=PADDING)
        start_XL = torch.zeros_like(padded_XL, dtype=torch.bool)
        start_XL[:, 0] = True
        return self._ended(padded_XL, start_XL)[:2]

    def _ended(self, text_BX: Tensor, start_BX: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The words that ended before each token and the current ones, each with its pair: int64, 0 for none."""
        word_BX, ended_BX = words_so_far(self.spelling_V, text_BX, start_BX)
        word_BX = word_BX.masked_fill(torch.isin(word_BX, self.stop_X), 0)
        whole_BX = F.pad(word_BX[:, :-1], (1, 0)).where(ended_BX, 0)
        place_X = torch.arange(text_BX.shape[1], device=text_BX.device)
        first_BX = torch.where(start_BX, place_X, 0).cummax(dim=1).values
        last_BX = torch.where(whole_BX > 0, place_X, -1).cummax(dim=1).values
        before_BX = F.pad(last_BX[:, :-1], (1, 0), value=-1)

        def at(place_BX: Tensor) -> Tensor:
            near_BX = (place_BX >= first_BX) & (place_BX >= place_X - LONGEST)
            return whole_BX.gather(1, place_BX.clamp(min=0)).where(near_BX, 0)

        return whole_BX, pair_keys(at(before_BX), whole_BX), word_BX, pair_keys(at(last_BX), word_BX)

    def _keys(self, token_NL: Tensor) -> Tensor:
        """(F,) int64, ascending: words, then pairs, that have a vector; the frequent ones first."""
        parts = []
        for part_XL in token_NL.split(ROWS_AT_ONCE):
            pair_XL = self._words_in_order(part_XL)[1]
            parts.append(pair_XL[pair_XL > 0].unique())
        pair_P = torch.cat(parts).unique()
        # A pair says more than its words, the more entries have the rarer of the two.
        idf_P = torch.maximum(self.idf((pair_P >> 32).int()), self.idf((pair_P & (2**32 - 1)).int()))
        key_P = torch.cat([self.word_V.long(), pair_P])
        worth_P = torch.cat([2 * self.unknown_idf - self.idf_V, -idf_P])
        kept_P = worth_P.sort(descending=True, stable=True).indices[: self.config.finder_rows - 1]
        return key_P[kept_P].sort().values

    def rows(self, key_X: Tensor) -> Tensor:
        """int64, rows of the table: 0 for a word or pair without a vector."""
        at_X = torch.searchsorted(self.key_F, key_X.contiguous()).clamp(max=len(self.key_F) - 1)
        return (at_X + 1).where((self.key_F[at_X] == key_X) & (key_X > 0), 0)

    def _vectors(self, token_NL: Tensor) -> Tensor:
        """(1 + F, D) float16: the mean of the codes of the cells where a word stands, the less the more cells."""
        R = self.config.finder_side
        code_2RK = (grid_codes(R, self.config.finder_dim) * STEPS).round().int().to(token_NL.device)
        sum_FD = torch.zeros(len(self.key_F) + 1, 2 * code_2RK.shape[-1], dtype=torch.int32, device=token_NL.device)
        count_F = torch.zeros(len(sum_FD), dtype=torch.int32, device=token_NL.device)
        cells = self.cell_N.split(ROWS_AT_ONCE)
        for part_XL, cell_X in zip(token_NL.split(ROWS_AT_ONCE), cells, strict=True):
            code_XD = torch.cat([code_2RK[0, cell_X // R], code_2RK[1, cell_X % R]], dim=-1)
            for key_XL in self._words_in_order(part_XL):
                at_Y, slot_Y = key_XL.nonzero(as_tuple=True)
                row_Y = self.rows(key_XL[at_Y, slot_Y])
                sum_FD.index_add_(0, row_Y, code_XD[at_Y])
                count_F.index_add_(0, row_Y, torch.ones_like(row_Y, dtype=torch.int32))
        # Without a vector: what is looked up as row 0.
        rarity_F = (torch.log(len(token_NL) / count_F.clamp(min=1)) / self.unknown_idf).clamp(min=0)
        rarity_F[0] = 0.0
        parts = zip(*(x.split(ROWS_AT_ONCE) for x in (sum_FD, count_F, rarity_F)), strict=True)
        # Autocast joins no tensors of half precision.
        return torch.cat([s / c.clamp(min=1)[:, None] * (r / STEPS)[:, None] for s, c, r in parts]).half()

    def read(self, text_BT: Tensor, start_BT: Tensor) -> tuple:
        return *super().read(text_BT, start_BT), self.words_of(text_BT, start_BT)

    def words_of(self, text_BX: Tensor, start_BX: Tensor) -> TextWords:
        key_BX4 = torch.stack(self._ended(text_BX, start_BX), dim=-1)
        row_BX4 = self.rows(key_BX4)
        return TextWords(row_BX4[..., :2], row_BX4[..., 2:], start_BX.long().cumsum(dim=1))

    def query(self, words: TextWords, at_BY: Tensor | None = None) -> Tensor:
        """(B, X or Y, D): the vectors of the current word and of the last ended ones, summed.

        Args:
            at_BY: int64, the positions that are wanted; None: all.
        """
        ended_BX, document_BX = words.ended_BX2[..., 0] > 0, words.document_BX
        count_BX, place_BX = ended_BX.cumsum(dim=1), torch.arange(ended_BX.shape[1], device=ended_BX.device)
        current_BY2, count_BY, there_BY = words.current_BX2, count_BX, document_BX
        if at_BY is None:
            at_BY = place_BX.expand_as(count_BX)
        else:
            count_BY, there_BY = count_BX.gather(1, at_BY), document_BX.gather(1, at_BY)
            current_BY2 = current_BY2.gather(1, at_BY[..., None].expand(-1, -1, 2))
        back_BYX = count_BY[..., None] - count_BX[:, None]
        distance_BYX = at_BY[..., None] - place_BX
        seen_BYX = (distance_BYX >= 0) & (distance_BYX < self.config.bm25_window) & (back_BYX < WORDS)
        seen_BYX &= (there_BY[..., None] == document_BX[:, None]) & ended_BX[:, None]
        weight_BYX = torch.where(seen_BYX, (back_BYX.clamp(0, WORDS) * math.log(RECENCY)).exp(), 0.0)
        return weight_BYX @ self._look_up_vectors(words.ended_BX2) + self._look_up_vectors(current_BY2)

    def _look_up_vectors(self, row_BX2: Tensor) -> Tensor:
        """(B, X, D) float32: a word's vector and that of its pair, summed; a row of 0 counts as zero."""
        learned_BX2D = self.finder.vectors(row_BX2) * (row_BX2 > 0)[..., None]
        return (learned_BX2D + self.vector_FD[row_BX2].float()).sum(dim=-2)

    def matches(self, *read) -> tuple[Tensor, Tensor]:
        """What the keys find: weights are the nats by which an entry is likelier than by chance, less a part."""
        finder, (*by_word, words) = self.finder, read
        score_BT2R = finder.scores(self.query(words))
        n_found = min(self.config.finder_found, score_BT2R.shape[-1])
        best_BTC, cell_BTC, _ = search_grid(score_BT2R, n_found, False, finder.scale)
        total_BT = (score_BT2R.float() * finder.scale).logsumexp(dim=-1).sum(dim=-1)
        entry_BTC = self.entry_RR[cell_BTC]
        weight_BTC = best_BTC - total_BT[..., None] + (1 - LEAST) * math.log(len(self.entry_RR))
        weight_BTC = weight_BTC.clamp(min=0).masked_fill(entry_BTC == NO_ENTRY, 0.0)
        entry_BTC = entry_BTC.masked_fill(weight_BTC <= 0, NO_ENTRY)
        if self.edits is None:
            return entry_BTC, weight_BTC
        edited = super().matches(*by_word)
        return torch.cat([edited[0], entry_BTC], dim=-1), torch.cat([edited[1], weight_BTC], dim=-1)

    def rank(self, matches: Matches, *read) -> Matches:
        *by_word, _, cut = read
        return super().rank(matches, *by_word, cut)

    def loss(self, input_BT: Tensor) -> Tensor:
        """Cross-entropy in nats on row and column of random entries, asked by their words after words of the text."""
        n, text_X, device = self.config.finder_entries, input_BT.flatten(), input_BT.device
        entry_M, before = torch.randint(len(self.token_NL), (n,), device=device), min(TEXT_BEFORE, len(text_X))
        token_ML = self.token_NL[entry_M].long()
        first_M1 = torch.randint(len(text_X) - before + 1, (n, 1), device=device)
        text_MX = text_X[first_M1 + torch.arange(before, device=device)]
        row_MX = F.pad(torch.cat([text_MX, token_ML], dim=1), (0, 1), value=PADDING)
        start_MX = torch.zeros_like(row_MX, dtype=torch.bool)
        start_MX[:, 0] = True
        length_M1 = (token_ML != PADDING).sum(dim=1, keepdim=True)
        at_MQ = before + 1 + (torch.rand(n, ASKED, device=device) * length_M1).long().clamp(max=token_ML.shape[1] - 1)
        query_MQD = self.query(self.words_of(row_MX, start_MX), at_MQ)
        cell_M1 = self.cell_N[entry_M][:, None]
        right_MQ2 = torch.stack([cell_M1 // self.config.finder_side, cell_M1 % self.config.finder_side], dim=-1)
        right_MQ2 = right_MQ2.expand(-1, ASKED, -1).masked_fill(length_M1[..., None] == 0, IGNORED)
        return retrieval_loss(self.finder.scores(query_MQD) * self.finder.scale, right_MQ2)
