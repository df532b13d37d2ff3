"""The heads of joined queries, keys and values, with queries and keys normed and rotated.

Axes: B batch · T position · H query heads · G key/value heads · E per-head width · X = (H + 2 G) E, joined
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from .triton import call
from .twin import twin


def rotate(x_BTHE: Tensor, cos_T1E: Tensor, sin_T1E: Tensor) -> Tensor:
    """Turn each channel of the first half and its partner in the second by their angle, whose sign is the half's."""
    return (x_BTHE * cos_T1E + x_BTHE.roll(x_BTHE.shape[-1] // 2, dims=-1) * sin_T1E).to(x_BTHE.dtype)


def _kernel(
    qkv_BTX: Tensor, q_gain_E: Tensor, k_gain_E: Tensor, cos_T1E: Tensor, sin_T1E: Tensor, H: int, G: int, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    from .triton.normed_heads import normed_heads as kernel

    return call(kernel, qkv_BTX, q_gain_E, k_gain_E, cos_T1E, sin_T1E, H, G, eps)


@twin(_kernel, deterministic=True, excludes=(torch.float64,))
def normed_heads(
    qkv_BTX: Tensor, q_gain_E: Tensor, k_gain_E: Tensor, cos_T1E: Tensor, sin_T1E: Tensor, H: int, G: int, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Queries (B, T, H, E) and keys (B, T, G, E) at unit scale times their gains, rotated, and values (B, T, G, E).

    Args:
        cos_T1E, sin_T1E: as `rotary_table` returns them.  eps: of the norm.
    Returns:
        In the dtype of `qkv_BTX`; what is between is float32 in the kernel.
    """
    qk_BTHE, v_BTGE = qkv_BTX.unflatten(-1, (H + 2 * G, -1)).split([H + G, G], dim=2)
    gain_HE = torch.cat([q_gain_E.expand(H, -1), k_gain_E.expand(G, -1)])
    qk_BTHE = F.rms_norm(qk_BTHE, qk_BTHE.shape[-1:], eps=eps) * gain_HE
    q_BTHE, k_BTGE = rotate(qk_BTHE, cos_T1E, sin_T1E).to(v_BTGE.dtype).split([H, G], dim=2)
    return q_BTHE, k_BTGE, v_BTGE
