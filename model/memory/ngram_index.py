"""Retrieval by shared words: which entries of the bank repeat what the text has just said.

Axes: B batch · T position · N bank entries · L tokens per entry · P n-grams of the bank, one for each of its tokens
      W tokens looked back upon · C entries kept
      M entries that compete at one position · X entries that the n-grams and pairs ending there point to
      Y keys looked up at one position

An n-gram of the text that stands in few entries points to them. With `ngram_pairs` so do two tokens that stand near
each other in the text and are among an entry's rarest, for a short common name has no rare n-gram. Each position keeps
the C entries with the highest sums of such hints, older hints counting less, and ranks them by that sum and by the rare
words that they share with the last W tokens. It is lexical retrieval over the recent context (BM25 without its length
terms; n-grams and pairs find, words rank), causal by construction, and needs no training: what it finds, the blocks
learn to read.
Related: Robertson & Zaragoza 2009 (BM25); Liu et al. 2024, arXiv:2401.17377 (n-grams of any length by binary search).
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from common.constants import NO_ENTRY, PADDING

from ..config import ModelConfig
from ..layers import FLEX_BLOCK
from ..ops import keep_best

PAIR_PLACES, PAIRS_USED = 4, 4  # a pair in more places points to nothing; so many pairs of a position do at most
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


class Places:
    """Entries sorted by keys that stand for what they hold; a key may stand in many of them.

    Attributes:
        key_P: int64, sorted.  entry_P: int32, the entry of each key, and at last NO_ENTRY.
    """

    def __init__(self, key_P: Tensor, entry_P: Tensor):
        self.key_P, order_P = key_P.sort(stable=True)
        self.entry_P = F.pad(entry_P[order_P].int(), (0, 1), value=NO_ENTRY)

    def span(self, first_X: Tensor, end_X: Tensor) -> tuple[Tensor, Tensor]:
        """The places [begin, end) whose keys lie in [first, end)."""
        return torch.searchsorted(self.key_P, first_X), torch.searchsorted(self.key_P, end_X)

    def entries(self, begin_X: Tensor, end_X: Tensor, most: int) -> Tensor:
        """(X, most) int64: the entries of each span, NO_ENTRY after its end."""
        place_XK = begin_X[..., None] + torch.arange(most, device=begin_X.device)
        entry_XK = self.entry_P[place_XK.clamp(max=len(self.entry_P) - 1)].long()
        return entry_XK.masked_fill(place_XK >= end_X[..., None], NO_ENTRY)


def rarity(count_V: Tensor, n_entries: int) -> Tensor:
    """(V,) float32: ln(N / count), no less than 0: how much it says that an entry holds a token. Padding: 0."""
    rarity_V = torch.log(n_entries / count_V.clamp(min=1)).clamp(min=0)
    rarity_V[PADDING] = 0
    return rarity_V


def rarity_ranks(count_V: Tensor) -> Tensor:
    """(V,) int64: the rarer a token, the higher its rank; no two share one. Padding has 0."""
    count_V = count_V.clone()
    count_V[PADDING] = count_V.sum() + 1
    return count_V.argsort(descending=True, stable=True).argsort()


def rarest(rank_XL: Tensor, n: int) -> Tensor:
    """(X, n): the n highest of the different ranks in each row, highest first; 0, which is no rank, fills up."""
    best = []
    for _ in range(n):
        best.append(rank_XL.amax(dim=-1))
        rank_XL = rank_XL.masked_fill(rank_XL == best[-1][:, None], 0)
    return torch.stack(best, dim=-1)


def last(value_BT: Tensor, n: int, before: int) -> Tensor:
    """(B, T, n): the values of each position and of the n - 1 before it, in their order; `before` where none is."""
    return F.pad(value_BT, (n - 1, 0), value=before).unfold(1, n, 1)


class NgramIndex:
    """Where rare n-grams and pairs of the bank stand; edited rows are indexed apart, so an edit takes no time.

    Memory: 12 bytes a token of the bank, and 12 a pair.
    """

    def __init__(self, token_NL: Tensor, config: ModelConfig):
        self.config, self.token_NL = config, token_NL
        self.bits = (config.vocab_size - 1).bit_length()
        self.length = max(config.ngram_lengths)
        # Not counted anew at an edit, which would change the ranks of entries that have nothing to do with it.
        count_V = torch.bincount(token_NL.flatten().long(), minlength=config.vocab_size)
        self.rarity_V, self.rank_V = rarity(count_V, len(token_NL)), rarity_ranks(count_V)
        self.base = self._index(token_NL, torch.arange(len(token_NL), device=token_NL.device))
        self.edited: dict[int, Tensor] = {}  # row -> the tokens that `base` has of it
        self.edits: dict[str, Places] = {}
        self.stale_N = torch.zeros(len(token_NL), dtype=torch.bool, device=token_NL.device)

    def _index(self, token_XL: Tensor, row_X: Tensor) -> dict[str, Places]:
        """Entries by what stands at each of their places, and by the pairs of their rarest tokens."""
        # Padding an entry lets its last words be the start of an n-gram too.
        gram_XLG = F.pad(token_XL.long(), (0, self.length - 1), value=PADDING).unfold(1, self.length, 1)
        index = {"ngrams": self._places(gram_XLG, token_XL != PADDING, row_X)}
        if self.config.ngram_pairs:
            rank_XR = rarest(self.rank_V[token_XL.long()], self.config.ngram_pairs)
            pair_P2 = torch.combinations(torch.arange(rank_XR.shape[1], device=row_X.device))
            pair_XP2 = rank_XR[:, pair_P2]  # the higher rank first
            index["pairs"] = self._places(pair_XP2, pair_XP2[..., 1] > 0, row_X)
        return index

    def _places(self, value_XPG: Tensor, wanted_XP: Tensor, row_X: Tensor) -> Places:
        row_XP = row_X[:, None].expand_as(wanted_XP)
        return Places(pack(value_XPG, self.bits)[wanted_XP], row_XP[wanted_XP])

    def edit(self, row_X: Tensor, old_XL: Tensor) -> None:
        """Take notice that rows, which held `old_XL`, now hold something else. A row put back as it was is no edit."""
        for row, old_L in dict(zip(row_X.tolist(), old_XL, strict=True)).items():  # a row may be named twice
            original_L = self.edited.setdefault(row, old_L.clone())
            self.stale_N[row] = not torch.equal(original_L, self.token_NL[row])
            if not self.stale_N[row]:
                del self.edited[row]
        rows = sorted(self.edited)
        row_X = torch.tensor(rows, device=self.token_NL.device, dtype=torch.int64)
        self.edits = self._index(self.token_NL[row_X], row_X) if rows else {}

    def hints(self, input_BT: Tensor, start_BT: Tensor) -> tuple[Tensor, Tensor]:
        """For each position, the entries that share a rare n-gram or pair ending there, and how much each says.

        Args:
            start_BT: bool, True at the first token of each document; n-grams and pairs stay inside a document.
        Returns:
            entry_BTX: int64, NO_ENTRY as filler.  weight_BTX: float32, ln(N / number of places), 0 for filler.
        """
        document_BT = start_BT.int().cumsum(dim=1)
        found = [hint for n in self.config.ngram_lengths for hint in self._ngram_hints(input_BT, document_BT, n)]
        if self.config.ngram_pairs:
            found += self._pair_hints(input_BT, document_BT)
        return torch.cat([entry for entry, _ in found], dim=-1), torch.cat([weight for _, weight in found], dim=-1)

    def _ngram_hints(self, input_BT: Tensor, document_BT: Tensor, n: int) -> list[tuple[Tensor, Tensor]]:
        gram_BTn = last(input_BT, n, PADDING)
        whole_BT = (last(document_BT, n, -1)[..., 0] == document_BT) & (gram_BTn != PADDING).all(dim=-1)
        key_BT1, shift = pack(gram_BTn, self.bits)[..., None], self.bits * (self.length - n)
        keys = key_BT1 << shift, (key_BT1 + 1) << shift
        return self._look_up("ngrams", *keys, whole_BT[..., None], self.config.ngram_max_places, 1)

    def _pair_hints(self, input_BT: Tensor, document_BT: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Of the pairs of the current token with one of the last W, those that stand in the fewest places."""
        W, rank_BT1 = self.config.ngram_window, self.rank_V[input_BT][..., None]
        near_BTW = last(document_BT, W, -1) == document_BT[..., None]
        rank_BTW = last(rank_BT1[..., 0], W, 0).masked_fill(~near_BTW, 0)
        pair_BTW2 = torch.stack([rank_BTW.maximum(rank_BT1), rank_BTW.minimum(rank_BT1)], dim=-1)
        key_BTW = pack(pair_BTW2, self.bits).sort(dim=-1).values
        again_BTW = F.pad(key_BTW[..., 1:] == key_BTW[..., :-1], (1, 0), value=False)
        return self._look_up("pairs", key_BTW, key_BTW + 1, ~again_BTW, PAIR_PLACES, PAIRS_USED)

    def _look_up(
        self, kind: str, first_BTY: Tensor, end_BTY: Tensor, wanted_BTY: Tensor, most: int, n_used: int
    ) -> list[tuple[Tensor, Tensor]]:
        """The hints of the `n_used` wanted key ranges [first, end) of each position with the fewest places, at least 1.

        What is in more than `most` places points to nothing. What is common in the bank as trained is so in an edited
        entry, and other entries keep their hints.
        """
        base, edits, found = self.base[kind], self.edits.get(kind), []
        span = base.span(first_BTY, end_BTY)
        places_BTY = span[1] - span[0]
        rare_BTY = wanted_BTY & (places_BTY <= most)
        if edits is not None:
            edited_span = edits.span(first_BTY, end_BTY)
            edited_BTY = edited_span[1] - edited_span[0]
            # As many places as if it had stood there always; before the others, for it is the newer word.
            counted_BTY = torch.where(places_BTY > 0, places_BTY, edited_BTY)
            found.append(self._fewest(edits, edited_span, rare_BTY & (edited_BTY <= most), counted_BTY, most, n_used))
        entry_BTX, weight_BTX = self._fewest(base, span, rare_BTY, places_BTY, most, n_used)
        if edits is not None:
            stale_BTX = self.stale_N[entry_BTX.clamp(min=0)]
            entry_BTX, weight_BTX = entry_BTX.masked_fill(stale_BTX, NO_ENTRY), weight_BTX.masked_fill(stale_BTX, 0.0)
        return [*found, (entry_BTX, weight_BTX)]

    def _fewest(
        self,
        places: Places,
        span: tuple[Tensor, Tensor],
        wanted_BTY: Tensor,
        places_BTY: Tensor,
        most: int,
        n_used: int,
    ) -> tuple[Tensor, Tensor]:
        """The entries in the `n_used` smallest spans, and what each says if its key stands in `places_BTY` places."""
        begin_BTY, count_BTY, Y = span[0], torch.where(wanted_BTY, span[1] - span[0], 0), wanted_BTY.shape[-1]
        if n_used < Y:
            order_BTY = torch.where(count_BTY > 0, count_BTY, most + 1) * Y + torch.arange(Y, device=count_BTY.device)
            slot_BTY = order_BTY.topk(n_used, dim=-1, largest=False).values % Y
            begin_BTY, count_BTY, places_BTY = (x.gather(-1, slot_BTY) for x in (begin_BTY, count_BTY, places_BTY))
        entry_BTYK = places.entries(begin_BTY, begin_BTY + count_BTY, most)
        weight_BTY1 = torch.log(len(self.token_NL) / places_BTY.clamp(min=1))[..., None]
        return entry_BTYK.flatten(-2), (weight_BTY1 * (entry_BTYK != NO_ENTRY)).flatten(-2)


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
    B = len(input_BT)
    C, window = n_kept or index.config.num_candidates, max(index.length, index.config.ngram_window, 2)
    text_BX, start_BX, kept = text_so_far(input_BT, document_BX, cache, layer, window - 1)
    cut = text_BX.shape[1] - input_BT.shape[1]
    if kept is None:
        nothing_B1C = torch.full((B, 1, C), NO_ENTRY, device=input_BT.device)
        before = Matches(nothing_B1C, torch.zeros(B, 1, C, device=input_BT.device))
    else:
        before = Matches(kept[0][..., :C], kept[1])

    hint_entry_BXY, hint_weight_BXY = index.hints(text_BX, start_BX)
    hints = hint_entry_BXY[:, cut:], hint_weight_BXY[:, cut:], start_BX[:, cut:]
    matches = Matches(*keep_best(*hints, before.entry_BTC[:, -1], before.score_BTC[:, -1], index.config.ngram_decay))
    if cache is not None:
        stored_BTX = torch.cat([matches.entry_BTC, input_BT[..., None]], dim=-1)
        cache.update(stored_BTX[:, None], matches.score_BTC[:, None], layer)
    return rank(matches, index, text_BX, start_BX, cut), previous(text_BX, start_BX)[:, cut:]


def previous(text_BX: Tensor, start_BX: Tensor) -> Tensor:
    """The token before each, PADDING at the start of a document."""
    return F.pad(text_BX[:, :-1], (1, 0), value=PADDING).masked_fill(start_BX, PADDING)


def previous_tokens(input_BT: Tensor, document_BX: Tensor | None, cache, layer: int) -> Tensor:
    """(B, T) int64: the token before each new one, PADDING at the start of a document; the cache keeps the new ones."""
    text_BX, start_BX, _ = text_so_far(input_BT, document_BX, cache, layer, 1)
    if cache is not None:
        key_B1T1 = input_BT[:, None, :, None]
        cache.update(key_B1T1, torch.zeros_like(key_B1T1, dtype=torch.float32), layer)
    return previous(text_BX, start_BX)[:, -input_BT.shape[1] :]


def text_so_far(
    input_BT: Tensor, document_BX: Tensor | None, cache, layer: int, n: int
) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor] | None]:
    """The new tokens after the last n that a cache holds, each the last number of its position's key in that layer.

    Returns:
        text_BX: (B, n + T), or (B, T) where nothing is cached.  start_BX: where a document begins.
        kept: key (B, 1, X) and value of the last cached position, None where nothing is cached.
    """
    past = cache.get_seq_length() if cache is not None else 0
    if not past:
        return input_BT, starts(input_BT, document_BX), None
    # Of text that begins less than n tokens before, its first token fills up, each time as a text of its own.
    place_T = getattr(cache, "place_T", None)
    first = past if place_T is None else place_T[:1]
    position_X = first + torch.arange(-n, input_BT.shape[1], device=input_BT.device)
    within_X = position_X.clamp(min=0)
    key_BPX, value_BPX = cache.layers[layer].keys[:, 0], cache.layers[layer].values[:, 0]
    key_BnX = key_BPX[:, within_X[:n]]
    text_BX = torch.cat([key_BnX[..., -1], input_BT], dim=1)
    start_BX = starts(text_BX, None if document_BX is None else document_BX[:, within_X]) | (position_X <= 0)
    return text_BX, start_BX, (key_BnX[:, -1:], value_BPX[:, within_X[n - 1 : n]])


def starts(text_BX: Tensor, document_BX: Tensor | None) -> Tensor:
    """Where a document begins: bool, True at the first token too."""
    start_BX = torch.zeros_like(text_BX, dtype=torch.bool)
    start_BX[:, 0] = True
    if document_BX is not None:
        start_BX[:, 1:] = document_BX[:, 1:] != document_BX[:, :-1]
    return start_BX


def rank(matches: Matches, index: NgramIndex, text_BX: Tensor, start_BX: Tensor, cut: int) -> Matches:
    """Add to each score the rarity of the words that the entry shares with the last W tokens, and sort anew.

    Args:
        text_BX, start_BX: the new tokens and up to W - 1 before them, `cut` in number.
    """
    W, document_BX = index.config.ngram_window, start_BX.int().cumsum(dim=1)
    same_BXW = last(document_BX, W, -1) == document_BX[..., None]
    recent_BTW = last(text_BX, W, PADDING).masked_fill(~same_BXW, PADDING)[:, cut:]
    token_BTCL = index.token_NL[matches.entry_BTC.clamp(min=0)]
    recent_BTW = recent_BTW.to(token_BTCL.dtype)
    # Each row length is a compilation of its own: worth it for training rows, not for questions and prompts.
    is_training_row = token_BTCL.is_cuda and token_BTCL.shape[1] % FLEX_BLOCK == 0
    sum_up = compiled_shared_rarity if is_training_row else shared_rarity
    score_BTC = matches.score_BTC + sum_up(token_BTCL, recent_BTW, index.rarity_V)
    score_BTC = score_BTC.masked_fill(matches.entry_BTC == NO_ENTRY, 0.0)
    score_BTC, place_BTC = score_BTC.sort(dim=-1, descending=True, stable=True)
    return Matches(matches.entry_BTC.gather(-1, place_BTC), score_BTC)
