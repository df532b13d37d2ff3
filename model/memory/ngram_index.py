"""The n-gram index of a bank: which entries contain what the text has just said.

Axes: B batch · T position · N bank entries · L tokens per entry · P n-grams of the bank, one for each of its tokens
      W tokens of the window · X entries that the n-grams and pairs ending at a position point to
      Y keys looked up at one position · G tokens of an n-gram

An n-gram of the text that is found in few entries points to them. With `ngram_pairs`, so do two tokens that are near
each other in the text and among an entry's rarest: a short common name has no rare n-gram.
Related: Robertson & Zaragoza 2009 (BM25); Liu et al. 2024, arXiv:2401.17377 (n-grams of any length by binary search).
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from common.constants import NO_ENTRY, PADDING
from common.flags import flag, require

from ..base_config import MemoryConfig
from ..visibility import FLEX_BLOCK
from .bank_index import BankIndex, last, pack

INDEXED = "--retrieval ngram or --retrieval_loss_coef"
PAIR_POSTINGS, PAIRS_USED = 4, 4  # pairs with more postings are ignored; so many pairs are used per position at most


@dataclass(frozen=True)
class NgramConfig(MemoryConfig):
    """Flags of the n-gram index."""

    heading = "n-gram index: of --retrieval ngram, and of --retrieval_loss_coef"

    ngram_lengths: list[int] = flag(
        [3, 4], "lengths n of the n-grams that point to entries, in tokens", only_with=INDEXED
    )
    ngram_max_places: int = flag(
        32, "an n-gram found in more places of the bank than this points to nothing", within=(1, None),
        only_with=INDEXED,
    )  # fmt: skip
    ngram_max_matches: int = flag(
        0, "places that one position reads from the index at most, those of the longest n-grams first; 0: all",
        within=(0, None), only_with=INDEXED,
    )  # fmt: skip
    ngram_pairs: int = flag(0, "also index all pairs of each entry's K rarest tokens; 0: none", only_with=INDEXED)
    ngram_decay: float = flag(
        0.98, "factor of a found entry's score from one token to the next", within=(0, 1), only_with=INDEXED
    )
    ngram_window: int = flag(
        32, "last tokens of the text that rank the found entries, and that pairs are made of", within=(1, None),
        only_with=INDEXED,
    )  # fmt: skip

    def check(self) -> None:
        longest = 62 // max((self.vocab_size - 1).bit_length(), 1)  # an n-gram is packed into 63 bits
        require(
            bool(self.ngram_lengths) and all(1 <= n <= longest for n in self.ngram_lengths),
            f"--ngram_lengths {self.ngram_lengths} must lie in [1, {longest}] with --vocab_size {self.vocab_size}",
        )
        require(
            self.ngram_pairs == 0 or 2 <= self.ngram_pairs <= self.knowledge_length,
            f"--ngram_pairs {self.ngram_pairs} must be 0 or lie in [2, {self.knowledge_length}], --knowledge_length",
        )


class Matches(NamedTuple):
    """The entries that the text up to each position points to, best first.

    entry_BTC: int64, NO_ENTRY where fewer than C were found.  score_BTC: float32, 0 there.
    """

    entry_BTC: Tensor
    score_BTC: Tensor

    def best(self, n: int) -> "Matches":
        return Matches(self.entry_BTC[..., :n], self.score_BTC[..., :n])


class PostingList:
    """An inverted index: sorted keys, each with the entry that contains it. A key may have many postings.

    Attributes:
        key_P: int64, sorted.  entry_P: int32, the entry of each key; the last one is NO_ENTRY.
    """

    def __init__(self, key_P: Tensor, entry_P: Tensor):
        self.key_P, order_P = key_P.sort(stable=True)
        self.entry_P = F.pad(entry_P[order_P].int(), (0, 1), value=NO_ENTRY)

    def span(self, first_X: Tensor, end_X: Tensor) -> tuple[Tensor, Tensor]:
        """The range [begin, end) of postings whose keys are in [first, end)."""
        return tuple(torch.searchsorted(self.key_P, x.contiguous()) for x in (first_X, end_X))

    def entries(self, begin_X: Tensor, count_X: Tensor, taken_X: Tensor, most: int) -> Tensor:
        """(X, most) int64: of the `count` entries from `begin` on, `taken` evenly spaced ones, then NO_ENTRY.

        An n-gram's entries stand in the order of what follows it there: the taken ones go on in as many ways as all.
        """
        slot_K = torch.arange(most, device=begin_X.device)
        index_XK = begin_X[..., None] + slot_K * count_X[..., None] // taken_X[..., None].clamp(min=1)
        entry_XK = self.entry_P[index_XK.clamp(max=len(self.entry_P) - 1)].long()
        return entry_XK.masked_fill(slot_K >= taken_X[..., None], NO_ENTRY)


def rarity(count_V: Tensor, n_entries: int) -> Tensor:
    """(V,) float32: information of a token in nats: ln(N / its count in the bank), at least 0; padding 0."""
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


def close_up(entry_BTX: Tensor, weight_BTX: Tensor, unused: int) -> tuple[Tensor, Tensor]:
    """The matches of each position without gaps, in their order; each has at least `unused` gaps, which are cut off."""
    n = entry_BTX.shape[-1] - unused
    is_match_BTX = entry_BTX != NO_ENTRY
    slot_BTX = (is_match_BTX.cumsum(dim=-1) - 1).where(is_match_BTX, n)  # gaps go to a slot that is cut off
    closed_BTX = entry_BTX.new_full((*entry_BTX.shape[:-1], n + 1), NO_ENTRY).scatter(-1, slot_BTX, entry_BTX)
    weighed_BTX = weight_BTX.new_zeros(closed_BTX.shape).scatter(-1, slot_BTX, weight_BTX)
    return closed_BTX[..., :n], weighed_BTX[..., :n]


FEW_POSITIONS = 256  # are compared with all tokens of the window at once: fewer launches, but W times the memory


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


class NgramIndex(BankIndex):
    """Posting lists of the n-grams and pairs of a bank. Edited rows have lists of their own, so an edit is fast.

    Memory: 12 bytes for each token of the bank, and 12 for each pair.
    """

    keeps_matches = True

    def prepare(self, token_NL: Tensor) -> None:
        self.length, self.decay = max(self.config.ngram_lengths), self.config.ngram_decay
        self.window = max(self.length, self.config.ngram_window, 2)
        # Not counted again at an edit, which would change the ranks of other entries.
        count_V = torch.bincount(token_NL.flatten().long(), minlength=self.config.vocab_size)
        self.rarity_V, self.rank_V = rarity(count_V, self.n_shown), rarity_ranks(count_V)

    def index(self, token_XL: Tensor, row_X: Tensor) -> dict[str, PostingList]:
        """Postings of the n-gram that begins at each token, and of the pairs of each entry's rarest tokens."""
        # With padding, an n-gram can begin at an entry's last tokens too.
        gram_XLG = F.pad(token_XL.long(), (0, self.length - 1), value=PADDING).unfold(1, self.length, 1)
        index = {"ngrams": self._postings(gram_XLG, token_XL != PADDING, row_X)}
        if self.config.ngram_pairs:
            rank_XR = rarest(self.rank_V[token_XL.long()], self.config.ngram_pairs)
            pair_P2 = torch.combinations(torch.arange(rank_XR.shape[1], device=row_X.device))
            pair_XP2 = rank_XR[:, pair_P2]  # the higher rank first
            index["pairs"] = self._postings(pair_XP2, pair_XP2[..., 1] > 0, row_X)
        return index

    def _postings(self, value_XPG: Tensor, wanted_XP: Tensor, row_X: Tensor) -> PostingList:
        row_XP = row_X[:, None].expand_as(wanted_XP)
        return PostingList(pack(value_XPG, self.bits)[wanted_XP], row_XP[wanted_XP])

    def read(self, text_BT: Tensor, start_BT: Tensor) -> tuple[Tensor, Tensor]:
        """What `matches` and `rank` need of a text."""
        return text_BT, start_BT

    def matches(self, input_BT: Tensor, start_BT: Tensor) -> tuple[Tensor, Tensor]:
        """For each position, the entries that contain a rare n-gram or pair ending there, and the weight of each.

        Args:
            start_BT: bool, True at the first token of each document; n-grams and pairs stay inside a document.
        Returns:
            entry_BTX: int64, NO_ENTRY as filler.  weight_BTX: float32, ln(N / number of postings), 0 for filler.
        """
        document_BT = start_BT.int().cumsum(dim=1)
        lengths, limit, left_BT1 = self.config.ngram_lengths, self.config.ngram_max_matches, None
        if limit:
            lengths, left_BT1 = sorted(lengths, reverse=True), torch.full_like(input_BT, limit)[..., None]
        found = []
        for n in lengths:
            parts, left_BT1 = self._ngram_matches(input_BT, document_BT, n, left_BT1)
            found += parts
        if self.config.ngram_pairs:
            found += self._pair_matches(input_BT, document_BT)
        entry_BTX, weight_BTX = (torch.cat(parts, dim=-1) for parts in zip(*found, strict=True))
        unused = len(lengths) * min(self.config.ngram_max_places, limit) - limit
        return close_up(entry_BTX, weight_BTX, unused) if limit and unused > 0 else (entry_BTX, weight_BTX)

    def _ngram_matches(
        self, input_BT: Tensor, document_BT: Tensor, n: int, left_BT1: Tensor | None
    ) -> tuple[list[tuple[Tensor, Tensor]], Tensor | None]:
        """The matches of n-grams, and how many places are left for shorter ones; None: no limit."""
        gram_BTn = last(input_BT, n, PADDING)
        whole_BT = (last(document_BT, n, -1)[..., 0] == document_BT) & (gram_BTn != PADDING).all(dim=-1)
        key_BT1, shift = pack(gram_BTn, self.bits)[..., None], self.bits * (self.length - n)
        keys = key_BT1 << shift, (key_BT1 + 1) << shift
        return self._look_up("ngrams", *keys, whole_BT[..., None], self.config.ngram_max_places, 1, left_BT1)

    def _pair_matches(self, input_BT: Tensor, document_BT: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Of the pairs of the current token with one of the last W, those with the fewest postings."""
        W, rank_BT1 = self.config.ngram_window, self.rank_V[input_BT][..., None]
        near_BTW = last(document_BT, W, -1) == document_BT[..., None]
        rank_BTW = last(rank_BT1[..., 0], W, 0).masked_fill(~near_BTW, 0)
        pair_BTW2 = torch.stack([rank_BTW.maximum(rank_BT1), rank_BTW.minimum(rank_BT1)], dim=-1)
        key_BTW = pack(pair_BTW2, self.bits).sort(dim=-1).values
        again_BTW = F.pad(key_BTW[..., 1:] == key_BTW[..., :-1], (1, 0), value=False)
        return self._look_up("pairs", key_BTW, key_BTW + 1, ~again_BTW, PAIR_POSTINGS, PAIRS_USED)[0]

    def _look_up(
        self, kind: str, first_BTY: Tensor, end_BTY: Tensor, wanted_BTY: Tensor, most: int, n_used: int,
        left_BTY: Tensor | None = None,
    ) -> tuple[list[tuple[Tensor, Tensor]], Tensor | None]:  # fmt: skip
        """The matches of the `n_used` wanted key ranges [first, end) with the fewest postings, at least 1.

        Keys with more than `most` postings are ignored. Postings are counted in the bank as trained, so an edit never
        changes the matches of other entries. Edited entries are not counted against `left_BTY`: as many come on top.
        """
        base, edits, found = self.base[kind], (self.edits or {}).get(kind), []
        span = base.span(first_BTY, end_BTY)
        count_BTY = span[1] - span[0]
        rare_BTY = wanted_BTY & (count_BTY <= most)
        if edits is not None:
            edited_span = edits.span(first_BTY, end_BTY)
            edited_BTY = edited_span[1] - edited_span[0]
            # A key that is new to the bank counts the edits; edited entries come first, as the newer text.
            counted_BTY = torch.where(count_BTY > 0, count_BTY, edited_BTY)
            on_top_BTY = None if left_BTY is None else torch.full_like(left_BTY, self.config.ngram_max_matches)
            few_BTY = rare_BTY & (edited_BTY <= most)
            found.append(self._fewest(edits, edited_span, few_BTY, counted_BTY, most, n_used, on_top_BTY))
        entry_BTX, weight_BTX = self._fewest(base, span, rare_BTY, count_BTY, most, n_used, left_BTY)
        if left_BTY is not None:
            left_BTY = (left_BTY - count_BTY.where(rare_BTY, 0)).clamp(min=0)
        if edits is not None:
            stale_BTX = self.stale_N[entry_BTX.clamp(min=0)]
            entry_BTX, weight_BTX = entry_BTX.masked_fill(stale_BTX, NO_ENTRY), weight_BTX.masked_fill(stale_BTX, 0.0)
        return [*found, (entry_BTX, weight_BTX)], left_BTY

    def _fewest(
        self, postings: PostingList, span: tuple[Tensor, Tensor], wanted_BTY: Tensor, total_BTY: Tensor, most: int,
        n_used: int, left_BTY: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """Entries in the `n_used` smallest spans, `left_BTY` of each; weights where a key has `total_BTY` postings."""
        begin_BTY, count_BTY, Y = span[0], torch.where(wanted_BTY, span[1] - span[0], 0), wanted_BTY.shape[-1]
        if n_used < Y:
            order_BTY = torch.where(count_BTY > 0, count_BTY, most + 1) * Y + torch.arange(Y, device=count_BTY.device)
            slot_BTY = order_BTY.topk(n_used, dim=-1, largest=False).values % Y
            begin_BTY, count_BTY, total_BTY = (x.gather(-1, slot_BTY) for x in (begin_BTY, count_BTY, total_BTY))
        taken_BTY = count_BTY if left_BTY is None else count_BTY.minimum(left_BTY)
        width = min(most, self.config.ngram_max_matches) if left_BTY is not None else most
        entry_BTYK = postings.entries(begin_BTY, count_BTY, taken_BTY, width)
        weight_BTY1 = torch.log(max(self.n_shown, 1) / total_BTY.clamp(min=1))[..., None]
        return entry_BTYK.flatten(-2), (weight_BTY1 * (entry_BTYK != NO_ENTRY)).flatten(-2)

    def rank(self, matches: Matches, text_BX: Tensor, start_BX: Tensor, cut: int) -> Matches:
        """Add to each score the rarity of the tokens that the entry shares with the last W tokens, and sort anew.

        Args:
            text_BX, start_BX: the new tokens and up to W - 1 before them, `cut` in number.
        """
        W, document_BX = self.config.ngram_window, start_BX.int().cumsum(dim=1)
        same_BXW = last(document_BX, W, -1) == document_BX[..., None]
        recent_BTW = last(text_BX, W, PADDING).masked_fill(~same_BXW, PADDING)[:, cut:]
        token_BTCL = self.token_NL[matches.entry_BTC.clamp(min=0)]
        recent_BTW = recent_BTW.to(token_BTCL.dtype)
        # Each row length is a compilation of its own: worth it for training rows, not for questions and prompts.
        is_training_row = token_BTCL.is_cuda and token_BTCL.shape[1] % FLEX_BLOCK == 0
        sum_up = compiled_shared_rarity if is_training_row else shared_rarity
        score_BTC = matches.score_BTC + sum_up(token_BTCL, recent_BTW, self.rarity_V)
        score_BTC = score_BTC.masked_fill(matches.entry_BTC == NO_ENTRY, 0.0)
        score_BTC, slot_BTC = score_BTC.sort(dim=-1, descending=True, stable=True)
        return Matches(matches.entry_BTC.gather(-1, slot_BTC), score_BTC)
