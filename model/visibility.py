"""Who may see whom: causal order, and the documents of a packed row.

Axes: B batch · T position · X keys: past and present positions · P positions, cached ones included
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask

FLEX_BLOCK = 128  # FlexAttention's block of queries
compiled_create_block_mask = torch.compile(create_block_mask, dynamic=False)


class DocumentSpans(NamedTuple):
    """The position of each query, and the first and last position of its document: int32 positions of the row."""

    position_T: Tensor
    first_BT: Tensor
    last_BT: Tensor


@dataclass
class Visibility:
    """A key is visible to queries at its own position and later, inside its own document.

    Attributes:
        past: positions in the cache before the T queries.  length: T.
        document_BX: the document number of every position, cached ones included; a document is a span of positions.
            None: one document without padding.
        step_position_T: int64 on the device, the positions of the queries in a captured step, which cannot know the
            past. The cache then has `past + length` positions, and those behind the queries are empty.
    """

    past: int
    length: int
    document_BX: Tensor | None
    device: torch.device
    step_position_T: Tensor | None = None

    def __post_init__(self):
        end = self.past + self.length
        self.position_T = (
            torch.arange(self.past, end, device=self.device) if self.step_position_T is None else self.step_position_T
        )

    def mask(self, keys_per_position: int = 1, fused: bool = True) -> Tensor | BlockMask | None:
        """The mask for keys laid out position by position, `keys_per_position` of them each.

        Returns:
            None where plain causal attention needs no mask, and where a single query sees every key; a BlockMask for
            FlexAttention on CUDA, for rows of whole blocks with one key a position; else a bool tensor
            (B or 1, 1, T, X), True where visible.
        """
        is_plain = self.step_position_T is None and (self.length == 1 or (self.past == 0 and keys_per_position == 1))
        if fused and is_plain and self.document_BX is None:
            return None
        # Each row length is a compilation of its own: worth it for training rows, not for questions and prompts.
        whole_blocks = self.past == 0 and self.length % FLEX_BLOCK == 0 and self.device.type == "cuda"
        if fused and keys_per_position == 1 and whole_blocks:
            return self._block_mask()
        position_X = torch.arange(self.past + self.length, device=self.device)
        visible_BTX = (position_X[None, :] <= self.position_T[:, None])[None]
        if self.document_BX is not None:
            document_BT = self.document_BX[:, self.position_T]
            visible_BTX = visible_BTX & (document_BT[:, :, None] == self.document_BX[:, None, :])
        return visible_BTX.repeat_interleave(keys_per_position, dim=-1)[:, None]

    def _block_mask(self) -> BlockMask:
        document = self.document_BX

        def causal_in_document(b, h, q, k):
            return (k <= q) & (document[b, k] == document[b, q])

        T = self.length
        return compiled_create_block_mask(causal_in_document, len(document), None, T, T, device=self.device)

    def spans(self, batch_size: int) -> DocumentSpans:
        P, own_T = self.past + self.length, self.position_T.int()
        if self.document_BX is None:
            like = {"dtype": torch.int32, "device": self.device}
            shape = batch_size, self.length
            return DocumentSpans(own_T, torch.zeros(shape, **like), torch.full(shape, P - 1, **like))
        position_P = torch.arange(P, device=self.device, dtype=torch.int32)
        changes_BP = self.document_BX[:, 1:] != self.document_BX[:, :-1]
        begins_BP, ends_BP = (F.pad(changes_BP, side, value=True) for side in ((1, 0), (0, 1)))
        first_BP = position_P.where(begins_BP, 0).cummax(dim=-1).values
        last_BP = position_P.where(ends_BP, P).flip(-1).cummin(dim=-1).values.flip(-1)
        return DocumentSpans(own_T, *(x_BP[:, self.position_T] for x_BP in (first_BP, last_BP)))
