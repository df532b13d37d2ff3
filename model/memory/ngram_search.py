"""The search of a text in an n-gram index, from left to right.

Axes: B batch · T position · L tokens per entry · W tokens of the window · C entries that go on to the next position
      X cached tokens, then new ones · Y matches of one position

Each position carries the C entries with the highest sums of match weights on to the next; older matches count less.
They are ranked by that sum and by the rare tokens that they share with the last W tokens. This is lexical retrieval
over the recent context (BM25 without its length terms): causal by construction and without parameters.
"""

import torch
from torch import Tensor

from common.constants import NO_ENTRY, PADDING

from ..ops import keep_best
from ..visibility import FLEX_BLOCK
from .bank_index import last
from .ngram_index import Matches, NgramIndex
from .text import previous, starts, text_so_far

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
    text_BX, start_BX, stored = text_so_far(input_BT, document_BX, cache, layer, window - 1)
    cut = text_BX.shape[1] - input_BT.shape[1]
    if stored is None:
        nothing_B1C = torch.full((B, 1, C), NO_ENTRY, device=input_BT.device)
        before = Matches(nothing_B1C, torch.zeros(B, 1, C, device=input_BT.device))
    else:
        before = Matches(stored[0][..., :C], stored[1])

    entry_BXY, weight_BXY = index.matches(text_BX, start_BX)
    new = entry_BXY[:, cut:], weight_BXY[:, cut:], start_BX[:, cut:]
    matches = Matches(*keep_best(*new, before.entry_BTC[:, -1], before.score_BTC[:, -1], index.config.ngram_decay))
    if cache is not None:
        stored_BTX = torch.cat([matches.entry_BTC, input_BT[..., None]], dim=-1)
        cache.update(stored_BTX[:, None], matches.score_BTC[:, None], layer)
    return rank(matches, index, text_BX, start_BX, cut), previous(text_BX, start_BX)[:, cut:]


def matches_of(index: NgramIndex, inputs, layer: int = 0, n_kept: int | None = None):
    """As `find_matches`, for a `ForwardPass`, which may hold the matches already."""
    document_BX = inputs.visible.document_BX
    if inputs.matches is None:
        return find_matches(index, inputs.input_BT, document_BX, inputs.cache, layer, n_kept)
    return inputs.matches, previous(inputs.input_BT, starts(inputs.input_BT, document_BX))


def rank(matches: Matches, index: NgramIndex, text_BX: Tensor, start_BX: Tensor, cut: int) -> Matches:
    """Add to each score the rarity of the tokens that the entry shares with the last W tokens, and sort anew.

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
    score_BTC, slot_BTC = score_BTC.sort(dim=-1, descending=True, stable=True)
    return Matches(matches.entry_BTC.gather(-1, slot_BTC), score_BTC)
