"""The text before a position, across what a key-value cache holds.

Axes: B batch · T new positions · X cached tokens, then new ones · P cached positions
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from common.constants import PADDING


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
        stored: key (B, 1, X) and value of the last cached position, None where nothing is cached.
    """
    past = cache.get_seq_length() if cache is not None else 0
    if not past:
        return input_BT, starts(input_BT, document_BX), None
    # Positions before the text are filled with its first token; each counts as a separate document.
    step_position_T = getattr(cache, "step_position_T", None)
    first = past if step_position_T is None else step_position_T[:1]
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
