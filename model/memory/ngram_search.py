"""The search of a text in an n-gram index, from left to right.

Axes: B batch · T position · L tokens per entry · W tokens of the window · C entries that go on to the next position
      X cached tokens, then new ones · Y matches of one position

Each position carries the C entries with the highest sums of match weights on to the next; older matches count less.
They are ranked by that sum and by the rare tokens that they share with the last W tokens. This is lexical retrieval
over the recent context (BM25 without its length terms): causal by construction and without parameters.
"""

import torch
from torch import Tensor

from common.constants import NO_ENTRY

from ..ops import keep_best
from .bank_index import BankIndex
from .ngram_index import Matches
from .text import previous, starts, text_so_far


def find_matches(
    index: BankIndex,
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
    C, window = n_kept or index.config.num_candidates, index.window
    text_BX, start_BX, stored = text_so_far(input_BT, document_BX, cache, layer, window - 1)
    cut = text_BX.shape[1] - input_BT.shape[1]
    if stored is None:
        nothing_B1C = torch.full((B, 1, C), NO_ENTRY, device=input_BT.device)
        before = Matches(nothing_B1C, torch.zeros(B, 1, C, device=input_BT.device))
    else:
        before = Matches(stored[0][..., :C], stored[1])

    seen = index.read(text_BX, start_BX)
    entry_BXY, weight_BXY = index.matches(*seen)
    new = entry_BXY[:, cut:], weight_BXY[:, cut:], start_BX[:, cut:]
    matches = Matches(*keep_best(*new, before.entry_BTC[:, -1], before.score_BTC[:, -1], index.decay))
    if cache is not None:
        stored_BTX = torch.cat([matches.entry_BTC, input_BT[..., None]], dim=-1)
        cache.update(stored_BTX[:, None], matches.score_BTC[:, None], layer)
    return index.rank(matches, *seen, cut), previous(text_BX, start_BX)[:, cut:]


def matches_of(index: BankIndex, inputs, layer: int = 0, n_kept: int | None = None):
    """As `find_matches`, for a `ForwardPass`, which may hold the matches already."""
    document_BX = inputs.visible.document_BX
    if inputs.matches is None:
        return find_matches(index, inputs.input_BT, document_BX, inputs.cache, layer, n_kept)
    return inputs.matches, previous(inputs.input_BT, starts(inputs.input_BT, document_BX))
