"""The text before a position, across what a key-value cache holds.

Axes: B batch · T new positions · X cached tokens, then new ones; or entries · P cached positions
      L tokens per entry
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from common.constants import PADDING
from common.flags import flag, require

from ..base_config import MemoryConfig
from ..ops.entry_layout import previous


@dataclass(frozen=True)
class TextSearchConfig(MemoryConfig):
    """Flags of every retrieval that searches the bank by the text."""

    heading = "retrieval by the text"

    bank_control: str | None = flag(
        None,
        "control, for training and evaluation; shuffled: what is found is replaced by another entry or place, always "
        "the same",
        choices=["shuffled"], needs="--retrieval ngram|bm25|word_keys|suffix",
    )  # fmt: skip

    def check(self) -> None:
        require(
            self.num_selected > 1 or self.fusion_class.trains_one_entry or not self.fused_layers,
            f"--num_selected 1 cannot be trained with --fusion {self.fusion}; take 2 or more, or words",
        )


def previous_tokens(input_BT: Tensor, document_BX: Tensor | None, cache, layer: int) -> Tensor:
    """(B, T) int64: the token before each new one, PADDING at the start of a document; the cache keeps the new ones."""
    text_BX, start_BX, _ = text_so_far(input_BT, document_BX, cache, layer, 1)
    remember(input_BT, cache, layer)
    return previous(text_BX, start_BX)[:, -input_BT.shape[1] :]


def remember(input_BT: Tensor, cache, layer: int) -> None:
    """Let a cache keep the new tokens, each as the only number of its position's key in that layer."""
    if cache is not None:
        key_B1T1 = input_BT[:, None, :, None]
        cache.update(key_B1T1, torch.zeros_like(key_B1T1, dtype=torch.float32), layer)


def tokens_in_common(token_BTXL: Tensor, text_BT: Tensor, document_BT: Tensor, most: int) -> Tensor:
    """(B, T, X, L) int64: how many of the text's last tokens stand in an entry too, up to each of its places.

    Args:
        token_BTXL: X entries at each position; T may be 1, for the same ones everywhere.
        document_BT: what is counted stays inside a document.  most: tokens that are counted at most.
    """
    going_BTXL, common_BTXL, T = token_BTXL != PADDING, 0, text_BT.shape[1]
    for n in range(most):
        # Each is the n-th token back: of the text, and of the entry before each place.
        back_BT = F.pad(text_BT, (n, 0), value=-1)[:, :T]
        same_BT = F.pad(document_BT, (n, 0), value=-1)[:, :T] == document_BT
        back_BTXL = F.pad(token_BTXL, (n, 0), value=PADDING)[..., : token_BTXL.shape[-1]]
        going_BTXL = going_BTXL & (back_BTXL == back_BT[..., None, None]) & (back_BTXL != PADDING)
        going_BTXL = going_BTXL & same_BT[..., None, None]
        common_BTXL = common_BTXL + going_BTXL.long()
    return common_BTXL


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
