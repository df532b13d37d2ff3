"""Attention of positions to states and to vectors of entries: the inner part of the cross-attention fusion.

Axes: B batch · T position · D width · S entries per position · H fusion heads · E per-head width
      X = S + 1 keys of a position: its state, then its entries · P positions, cached ones included · J = P X keys
      F = 2 D: a key, then its value · Y = 3 D: a state's query, key and value
      Z = S F: a position's entries; with a past X F, its state before them
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from ..base_config import MemoryConfig
from ..visibility import DocumentSpans
from .triton import call
from .twin import twin


def _entries_kernel(
    packed_BTY: Tensor, entry_BPZ: Tensor, log_weight_BPS: Tensor, drop_BHJ: Tensor | None, mask, config: MemoryConfig
) -> Tensor:
    from .triton.entry_attention import attend_entries as kernel

    assert isinstance(mask, DocumentSpans), "the kernel takes Visibility.spans"
    return call(kernel, packed_BTY, entry_BPZ, log_weight_BPS, drop_BHJ, *mask, config.fusion_heads)[0]


# A float64 model on CUDA is refused by the kernel, not given to the reference: the mask is for the kernel already.
@twin(_entries_kernel, deterministic=True, flag="use_flash_attn")
def attend_entries(
    packed_BTY: Tensor, entry_BPZ: Tensor, log_weight_BPS: Tensor, drop_BHJ: Tensor | None, mask, config: MemoryConfig
) -> Tensor:
    """(B, T, D): softmax(q k / sqrt(E) + log-weight) v, by the heads of the fusion, over the keys that `mask` shows.

    Args:
        packed_BTY: of the queries' states.
        entry_BPZ: Z = S F where P = T, else X F.
        drop_BHJ: float32, added to the logits; None: nothing.
        mask: `Visibility.spans` where `attend_entries.op.uses_kernel`, else `Visibility.mask` of X keys a position.
    """
    from ..layers import attend, merge_heads, split_heads  # the layers import an operation of this folder themselves

    S, D = log_weight_BPS.shape[2], packed_BTY.shape[2] // 3
    q_BTD, state_BTF = packed_BTY.split([D, 2 * D], dim=-1)
    row_BPZ = torch.cat([state_BTF, entry_BPZ], dim=-1) if entry_BPZ.shape[2] == S * 2 * D else entry_BPZ
    kv_BJF = row_BPZ.unflatten(-1, (S + 1, -1)).flatten(1, 2)
    # The free channel holds sqrt(E), which the softmax scale turns into 1, and the bias.
    q_BHTE, k_BHJE, v_BHJE = (split_heads(x, config.fusion_heads) for x in (q_BTD, *kv_BJF.chunk(2, dim=-1)))
    E = q_BHTE.shape[-1]
    free_E = F.pad(q_BHTE.new_zeros(E - 1), (0, 1), value=1.0)
    bias_B1J = F.pad(log_weight_BPS, (1, 0)).flatten(1)[:, None]
    bias_BHJ = bias_B1J if drop_BHJ is None else bias_B1J + drop_BHJ
    k_BHJE = k_BHJE + (bias_BHJ[..., None] * free_E).to(k_BHJE.dtype)
    return merge_heads(attend(q_BHTE + E**0.5 * free_E, k_BHJE, v_BHJE, mask, config))


def _own_kernel(
    packed_BTY: Tensor, entry_BTZ: Tensor, log_weight_BTS: Tensor, drop_BTHX: Tensor | None, config: MemoryConfig
) -> Tensor:
    from .triton.entry_attention import attend_own as kernel

    return call(kernel, packed_BTY, entry_BTZ, log_weight_BTS, drop_BTHX, config.fusion_heads)[0]


@twin(_own_kernel, deterministic=True, excludes=(torch.float64,), flag="use_flash_attn")
def attend_own(
    packed_BTY: Tensor, entry_BTZ: Tensor, log_weight_BTS: Tensor, drop_BTHX: Tensor | None, config: MemoryConfig
) -> Tensor:
    """(B, T, D): `attend_entries` over the X keys of each position itself.

    Args:
        drop_BTHX: float32, added to the logits; None: nothing.
    """
    S, D, H = log_weight_BTS.shape[2], packed_BTY.shape[2] // 3, config.fusion_heads
    q_BTD, state_BTF = packed_BTY.split([D, 2 * D], dim=-1)
    kv_BTXF = torch.cat([state_BTF, entry_BTZ], dim=-1).unflatten(-1, (S + 1, -1))
    q_BTHE = q_BTD.unflatten(-1, (H, -1))
    k_BTXHE, v_BTXHE = kv_BTXF.unflatten(-1, (2 * H, -1)).chunk(2, dim=-2)
    score_BTHX = torch.einsum("bthe,btxhe->bthx", q_BTHE, k_BTXHE).float() * q_BTHE.shape[-1] ** -0.5
    score_BTHX = score_BTHX + F.pad(log_weight_BTS, (1, 0))[:, :, None]
    if drop_BTHX is not None:
        score_BTHX = score_BTHX + drop_BTHX
    weight_BTHX = score_BTHX.softmax(dim=-1).to(v_BTXHE.dtype)
    return torch.einsum("bthx,btxhe->bthe", weight_BTHX, v_BTXHE).flatten(-2)
