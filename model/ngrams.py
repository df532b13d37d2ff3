"""Retrieval by shared words: which entries of the bank repeat what the text has just said.

Axes: B batch · T position · N bank entries · L tokens per entry · P n-grams of the bank, one for each of its tokens
      W tokens looked back upon · C entries kept
      M entries that compete at one position · X rare entries that share an n-gram ending there

An n-gram of the text that stands in few entries points to them. Each position keeps the C entries with the highest sums
of such hints, older hints counting less, and ranks them by that sum and by the rare words that they share with the last
W tokens. It is lexical retrieval over the recent context (BM25 without its length terms; n-grams find, words rank),
causal by construction, and needs no training: what it finds, the blocks learn to read.
Related: Robertson & Zaragoza 2009 (BM25); Liu et al. 2024, arXiv:2401.17377 (n-grams of any length by binary search).
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .config import ModelConfig
from .layers import FLEX_BLOCK
from .retrieval import PADDING

NO_ENTRY = -1
FEW_POSITIONS = 256  # whose words are compared with all of the text's at once: fewer launches, but W times the memory


class Matches(NamedTuple):
    """The entries that the text up to each position points to, best first.

    entry_BTC: int64, NO_ENTRY where fewer than C were found.  score_BTC: float32, 0 there.
    """

    entry_BTC: Tensor
    score_BTC: Tensor


def pack(token_XG: Tensor, bits: int) -> Tensor:
    """(X,) int64: n tokens as one number, the first one in the highest bits."""
    key_X = torch.zeros_like(token_XG[..., 0], dtype=torch.int64)
    for token_X in token_XG.unbind(dim=-1):
        key_X = (key_X << bits) | token_X.long()
    return key_X


class SortedNgrams:
    """Every place of some entries, sorted by the `length` tokens that stand there: n-grams of every length up to it.

    Attributes:
        key_P: int64, sorted; the tokens from one place on, PADDING beyond the entry's end.
        entry_P: int32, the entry of each place, and at last NO_ENTRY.
    """

    def __init__(self, token_XL: Tensor, row_X: Tensor, length: int, bits: int):
        self.length, self.bits = length, bits
        # Padding an entry lets its last words be the start of an n-gram too.
        gram_XLG = F.pad(token_XL, (0, length - 1), value=PADDING).unfold(1, length, 1)
        word_XL = token_XL != PADDING
        key_P = pack(gram_XLG, bits)[word_XL]
        self.key_P, order_P = key_P.sort(stable=True)
        self.entry_P = F.pad(row_X[:, None].expand_as(word_XL)[word_XL][order_P].int(), (0, 1), value=NO_ENTRY)

    def span(self, key_X: Tensor, n: int) -> tuple[Tensor, Tensor]:
        """The places [begin, end) of `entry_P` that start with an n-gram, for each packed n-gram."""
        shift = self.bits * (self.length - n)
        return torch.searchsorted(self.key_P, key_X << shift), torch.searchsorted(self.key_P, (key_X + 1) << shift)

    def entries(self, begin_X: Tensor, end_X: Tensor, most: int) -> Tensor:
        """(X, most) int64: the entries of each span, NO_ENTRY after its end."""
        place_XK = begin_X[..., None] + torch.arange(most, device=begin_X.device)
        entry_XK = self.entry_P[place_XK.clamp(max=len(self.entry_P) - 1)].long()
        return entry_XK.masked_fill(place_XK >= end_X[..., None], NO_ENTRY)


class NgramIndex:
    """Where the rare n-grams of the bank stand; edited rows are indexed apart, so an edit takes no time.

    Memory: 12 bytes a token of the bank.
    """

    def __init__(self, token_NL: Tensor, config: ModelConfig):
        self.config, self.token_NL = config, token_NL
        self.bits = (config.vocab_size - 1).bit_length()
        self.length = max(config.ngram_lengths)
        self.base = self._sort(token_NL, torch.arange(len(token_NL), device=token_NL.device))
        self.edited: dict[int, Tensor] = {}  # row -> the tokens that `base` has of it
        self.edits: SortedNgrams | None = None
        self.stale_N = torch.zeros(len(token_NL), dtype=torch.bool, device=token_NL.device)
        # ln(N / places), no less than 0: how much it says that an entry holds a token. It is not counted anew at an
        # edit, which would change the ranks of entries that have nothing to do with it.
        count_V = torch.bincount(token_NL.flatten().long(), minlength=config.vocab_size)
        self.rarity_V = torch.log(len(token_NL) / count_V.clamp(min=1)).clamp(min=0)
        self.rarity_V[PADDING] = 0

    def _sort(self, token_XL: Tensor, row_X: Tensor) -> SortedNgrams:
        return SortedNgrams(token_XL.long(), row_X, self.length, self.bits)

    def edit(self, row_X: Tensor, old_XL: Tensor) -> None:
        """Take notice that rows, which held `old_XL`, now hold something else. A row put back as it was is no edit."""
        for row, old_L in zip(row_X.tolist(), old_XL, strict=True):
            original_L = self.edited.setdefault(row, old_L.clone())
            self.stale_N[row] = not torch.equal(original_L, self.token_NL[row])
            if not self.stale_N[row]:
                del self.edited[row]
        rows = sorted(self.edited)
        row_X = torch.tensor(rows, device=self.token_NL.device, dtype=torch.int64)
        self.edits = self._sort(self.token_NL[row_X], row_X) if rows else None

    def hints(self, input_BT: Tensor, start_BT: Tensor) -> tuple[Tensor, Tensor]:
        """For each position, the entries that share a rare n-gram ending there, and how much each such n-gram says.

        Args:
            start_BT: bool, True at the first token of each document; n-grams stay inside a document.
        Returns:
            entry_BTX: int64, NO_ENTRY as filler.  weight_BTX: float32, ln(N / number of places), 0 for filler.
        """
        N, most, entries, weights = len(self.token_NL), self.config.ngram_max_places, [], []
        document_BT = start_BT.int().cumsum(dim=1)

        def collect(entry_BTK: Tensor, places_BT: Tensor) -> None:
            entries.append(entry_BTK)
            weights.append(torch.log(N / places_BT.clamp(min=1))[..., None] * (entry_BTK != NO_ENTRY))

        for n in self.config.ngram_lengths:
            gram_BTn = F.pad(input_BT, (n - 1, 0), value=PADDING).unfold(1, n, 1)
            first_BT = F.pad(document_BT, (n - 1, 0), value=-1)[:, : input_BT.shape[1]]
            whole_BT = (first_BT == document_BT) & (gram_BTn != PADDING).all(dim=-1)
            key_BT = pack(gram_BTn, self.bits)
            begin_BT, end_BT = self.base.span(key_BT, n)
            places_BT = end_BT - begin_BT
            rare_BT = whole_BT & (places_BT <= most)
            if self.edits is not None:
                first_BT, last_BT = self.edits.span(key_BT, n)
                # What is common in the bank as trained is so in an edited entry; other entries keep their hints.
                known_BT = rare_BT & (last_BT - first_BT <= most)
                edited_BTK = self.edits.entries(first_BT, torch.where(known_BT, last_BT, first_BT), most)
                # As many places as if it had stood there always; before the others, for it is the newer word.
                collect(edited_BTK, torch.where(places_BT > 0, places_BT, last_BT - first_BT))
            found_BTK = self.base.entries(begin_BT, torch.where(rare_BT, end_BT, begin_BT), most)
            if self.edits is not None:
                found_BTK = found_BTK.masked_fill(self.stale_N[found_BTK.clamp(min=0)], NO_ENTRY)
            collect(found_BTK, places_BT)
        return torch.cat(entries, dim=-1), torch.cat(weights, dim=-1)


def keep_best(entry_BTX: Tensor, weight_BTX: Tensor, start_BT: Tensor, before: Matches, decay: float) -> Matches:
    """Add up the hints of each document from left to right, keeping the best C entries at every position.

    An entry's score at t is `decay` times its score at t - 1, if it was kept, plus its weights at t. Equal scores keep
    their order: kept entries first, then hints in theirs.

    Args:
        start_BT: bool, True where nothing earlier counts.
        before: entry_BTC, score_BTC of the position before the first, T = 1.
    """
    best_BC, score_BC = before.entry_BTC[:, -1], before.score_BTC[:, -1]
    if entry_BTX.is_cuda:
        from .kernels.keep_best import keep_best as kernel

        return Matches(*kernel(entry_BTX, weight_BTX, start_BT, best_BC, score_BC, decay))
    return keep_best_reference(entry_BTX, weight_BTX, start_BT, best_BC, score_BC, decay)


def keep_best_reference(
    entry_BTX: Tensor, weight_BTX: Tensor, start_BT: Tensor, best_BC: Tensor, score_BC: Tensor, decay: float
) -> Matches:
    """`keep_best` in plain torch."""
    C = best_BC.shape[1]
    M = C + entry_BTX.shape[-1]
    earlier_MM = torch.ones(M, M, dtype=torch.bool, device=entry_BTX.device).tril(-1)
    entries, scores = [], []
    for entry_BX, weight_BX, start_B in zip(
        entry_BTX.unbind(dim=1), weight_BTX.unbind(dim=1), start_BT.unbind(dim=1), strict=True
    ):
        score_BC = (score_BC * decay).masked_fill(start_B[:, None], 0.0)
        best_BC = best_BC.masked_fill(start_B[:, None], NO_ENTRY)
        entry_BM, weight_BM = torch.cat([best_BC, entry_BX], dim=1), torch.cat([score_BC, weight_BX], dim=1)
        same_BMM = entry_BM[:, :, None] == entry_BM[:, None, :]
        total_BM = (same_BMM * weight_BM[:, None, :]).sum(dim=-1)
        repeated_BM = (same_BMM & earlier_MM).any(dim=-1)
        total_BM = total_BM.masked_fill(repeated_BM | (entry_BM == NO_ENTRY), 0.0)
        score_BM, place_BM = total_BM.sort(dim=-1, descending=True, stable=True)
        score_BC = score_BM[:, :C]
        best_BC = entry_BM.gather(1, place_BM[:, :C]).masked_fill(score_BC <= 0, NO_ENTRY)
        entries.append(best_BC)
        scores.append(score_BC)
    return Matches(torch.stack(entries, dim=1), torch.stack(scores, dim=1))


def shared_rarity(token_BTCL: Tensor, recent_BTW: Tensor, rarity_V: Tensor) -> Tensor:
    """(B, T, C): the summed rarity of each entry's tokens that are among the last W of the text."""
    if recent_BTW[..., 0].numel() <= FEW_POSITIONS:
        shared_BTCL = (token_BTCL[..., None] == recent_BTW[:, :, None, None]).any(dim=-1)
    else:
        shared_BTCL = torch.zeros_like(token_BTCL, dtype=torch.bool)
        for recent_BT in recent_BTW.unbind(dim=-1):
            shared_BTCL |= token_BTCL == recent_BT[:, :, None, None]
    return (rarity_V[token_BTCL.long()] * shared_BTCL).sum(dim=-1)


compiled_shared_rarity = torch.compile(shared_rarity, dynamic=False)


def find_matches(
    index: NgramIndex,
    input_BT: Tensor,
    document_BX: Tensor | None,
    cache=None,
    layer: int = 0,
    n_kept: int | None = None,
):
    """The matches at T new tokens that follow what a cache holds, and the token before each of them.

    Args:
        document_BX: which document each cached and each new position belongs to; None: one document.
        cache: a transformers cache or None; its layer number `layer` keeps the tokens and matches of every position.
        n_kept: C; None: the configured `num_candidates`.
    Returns:
        Matches of (B, T, C), and previous_BT: int64, PADDING at the start of a document.
    """
    B, T = input_BT.shape
    C, W = n_kept or index.config.num_candidates, index.config.ngram_window
    past = cache.get_seq_length() if cache is not None else 0
    if not past:
        text_BX, cut = input_BT, 0
        before = Matches(
            torch.full((B, 1, C), NO_ENTRY, device=input_BT.device), torch.zeros(B, 1, C, device=input_BT.device)
        )
    else:
        cut = min(max(index.length, W) - 1, past)
        stored_BPX, score_BPC = cache.layers[layer].keys[:, 0], cache.layers[layer].values[:, 0]
        before = Matches(stored_BPX[:, -1:, :C], score_BPC[:, -1:])
        text_BX = torch.cat([stored_BPX[:, -cut:, C], input_BT], dim=1)
    start_BX = torch.zeros_like(text_BX, dtype=torch.bool)
    start_BX[:, 0] = past == cut
    if document_BX is not None:
        document_BX = document_BX[:, past - cut :]
        start_BX[:, 1:] |= document_BX[:, 1:] != document_BX[:, :-1]

    hint_entry_BXY, hint_weight_BXY = index.hints(text_BX, start_BX)
    matches = keep_best(
        hint_entry_BXY[:, cut:], hint_weight_BXY[:, cut:], start_BX[:, cut:], before, index.config.ngram_decay
    )
    if cache is not None:
        stored_BTX = torch.cat([matches.entry_BTC, input_BT[..., None]], dim=-1)
        cache.update(stored_BTX[:, None], matches.score_BTC[:, None], layer)
    previous_BX = F.pad(text_BX[:, :-1], (1, 0), value=PADDING).masked_fill(start_BX, PADDING)
    return rank(matches, index, text_BX, start_BX, cut), previous_BX[:, cut:]


def rank(matches: Matches, index: NgramIndex, text_BX: Tensor, start_BX: Tensor, cut: int) -> Matches:
    """Add to each score the rarity of the words that the entry shares with the last W tokens, and sort anew.

    Args:
        text_BX, start_BX: the new tokens and up to W - 1 before them, `cut` in number.
    """
    W, document_BX = index.config.ngram_window, start_BX.int().cumsum(dim=1)
    recent_BXW = F.pad(text_BX, (W - 1, 0), value=PADDING).unfold(1, W, 1)
    same_BXW = F.pad(document_BX, (W - 1, 0), value=-1).unfold(1, W, 1) == document_BX[..., None]
    recent_BTW = recent_BXW.masked_fill(~same_BXW, PADDING)[:, cut:]
    token_BTCL = index.token_NL[matches.entry_BTC.clamp(min=0)]
    recent_BTW = recent_BTW.to(token_BTCL.dtype)
    # Each row length is a compilation of its own: worth it for training rows, not for questions and prompts.
    is_training_row = token_BTCL.is_cuda and token_BTCL.shape[1] % FLEX_BLOCK == 0
    sum_up = compiled_shared_rarity if is_training_row else shared_rarity
    score_BTC = matches.score_BTC + sum_up(token_BTCL, recent_BTW, index.rarity_V)
    score_BTC = score_BTC.masked_fill(matches.entry_BTC == NO_ENTRY, 0.0)
    score_BTC, place_BTC = score_BTC.sort(dim=-1, descending=True, stable=True)
    return Matches(matches.entry_BTC.gather(-1, place_BTC), score_BTC)
