"""Attention by the flash-attn package, for rows of one document and for packed rows.

Axes: B batch · T position · H query heads · G key/value heads · E per-head width · X = B*T positions of all rows
      Y documents of all rows
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class DocumentStarts(NamedTuple):
    """Where the documents of a batch begin, its rows laid end to end: the mask of variable-length attention.

    start_Y: int32, Y + 1 of them; the last is X.  longest: no document has more positions.
    """

    start_Y: Tensor
    longest: int


def document_starts(document_BT: Tensor) -> DocumentStarts:
    """The starts of the documents that the numbers of positions change at; the host waits for the device."""
    B, T = document_BT.shape
    begins_BT = F.pad(document_BT[:, 1:] != document_BT[:, :-1], (1, 0), value=True)
    start_Y = begins_BT.flatten().nonzero().flatten().int()
    return DocumentStarts(F.pad(start_Y, (0, 1), value=B * T), T)


def computes(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether the package does: in 16 bits on a GPU."""
    return dtype in (torch.float16, torch.bfloat16) and device.type == "cuda"


def takes_documents(visible, dtype: torch.dtype) -> bool:
    """Whether the package attends to a Visibility of whole rows in which documents follow one another."""
    return visible.document_BX is not None and visible.past == 0 and computes(dtype, visible.device)


def flash_attention(q_BHTE: Tensor, k_BGTE: Tensor, v_BGTE: Tensor, mask: DocumentStarts | None) -> Tensor:
    """softmax(q k / sqrt(E)) v, causal and inside documents; float16 or bfloat16. Returns (B, H, T, E).

    Source: Dao 2023, arXiv:2307.08691.
    """
    from flash_attn import flash_attn_func, flash_attn_varlen_func

    q_BTHE, k_BTGE, v_BTGE = (x.transpose(1, 2) for x in (q_BHTE, k_BGTE, v_BGTE))
    if mask is None:
        return flash_attn_func(q_BTHE, k_BTGE, v_BTGE, causal=q_BTHE.shape[1] > 1).transpose(1, 2)
    out_XHE = flash_attn_varlen_func(
        *(x.flatten(0, 1) for x in (q_BTHE, k_BTGE, v_BTGE)),
        cu_seqlens_q=mask.start_Y, cu_seqlens_k=mask.start_Y, max_seqlen_q=mask.longest, max_seqlen_k=mask.longest,
        causal=True,
    )  # fmt: skip
    return out_XHE.unflatten(0, q_BTHE.shape[:2]).transpose(1, 2)
