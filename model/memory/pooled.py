"""Fusion by a linear map of a position's state and its entries' vectors side by side: gated MLP and concatenation.

Axes: B batch · T position · D width · S entries per position · W = S D, or (S + 1) D with the state
      P positions, cached ones included · F = 2 D
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..base_config import MemoryConfig
from ..layers import DerivedWeights, StreamLinear, in_autocast
from ..visibility import Visibility
from .entry_vectors import Entries, VectorFusion
from .interfaces import MemoryContext


class PooledFusion(VectorFusion):
    """The part that both share. Each vector is multiplied by S times its weight.

    In scope `sequence` each of the S slots is the mean of that slot over all visible positions.
    """

    def __init__(self, config: MemoryConfig, memory_index: int):
        super().__init__(config, memory_index)
        self.wide = (config.num_selected + 1) * config.dim
        self.derived = DerivedWeights()

    @classmethod
    def make_mask(cls, config: MemoryConfig, visible: Visibility, batch_size: int) -> object:
        return None if config.fusion_scope == "token" else visible.mask(1, fused=False)

    def project(
        self, linear: nn.Linear, x_BTD: Tensor, entries: Entries, log_weight_BTS: Tensor, context: MemoryContext
    ) -> Tensor:
        """`linear` of each state and its entries side by side."""
        if self.config.fusion_scope == "token":
            joined_BTW = entries.vectors(x_BTD, log_weight_BTS).flatten(2)
        else:
            entry_BTW = entries.vectors(None, log_weight_BTS).flatten(2)
            joined_BTW = torch.cat([x_BTD, self.mean_over_visible(entry_BTW, context.mask, context.cache)], dim=-1)
        gain_D = entries.gain_D

        def with_gain() -> Tensor:
            gain_W = torch.cat([torch.ones_like(gain_D), gain_D.repeat(self.config.num_selected)])
            return in_autocast(linear.weight * gain_W)

        return F.linear(joined_BTW, self.derived(with_gain, linear.weight, gain_D))

    def mean_over_visible(self, weighted_BTW: Tensor, visible_B1TP: Tensor, cache) -> Tensor:
        if cache is not None:
            # The cache keeps pairs of keys and values, and takes a layer without keys for an empty one.
            key_B1TW = weighted_BTW[:, None]
            no_value = key_B1TW[..., :0]
            weighted_BTW = cache.update(key_B1TW, no_value, self.config.n_layers + self.memory_index)[0][:, 0]
        weight_BTP = visible_B1TP[:, 0].float()
        weight_BTP = weight_BTP / weight_BTP.sum(dim=-1, keepdim=True)
        return weight_BTP.to(weighted_BTW.dtype) @ weighted_BTW


class GatedMLP(PooledFusion):
    """A SwiGLU over the state and its entries (experiment 1.4.7)."""

    def __init__(self, config: MemoryConfig, memory_index: int):
        super().__init__(config, memory_index)
        self.gate_up_proj = nn.Linear(self.wide, 2 * config.dim, bias=False)
        self.out_proj = StreamLinear(config.dim, config.dim, bias=False)

    def fuse(self, x_BTD: Tensor, entries: Entries, log_weight_BTS: Tensor, context: MemoryContext) -> Tensor:
        both_BTF = self.project(self.gate_up_proj, x_BTD, entries, log_weight_BTS, context)
        gate_BTD, up_BTD = both_BTF.chunk(2, dim=-1)
        return self.out_proj(F.silu(gate_BTD) * up_BTD)


class Concat(PooledFusion):
    """One linear map of the state and its entries."""

    def __init__(self, config: MemoryConfig, memory_index: int):
        super().__init__(config, memory_index)
        self.out_proj = StreamLinear(self.wide, config.dim, bias=False)

    def fuse(self, x_BTD: Tensor, entries: Entries, log_weight_BTS: Tensor, context: MemoryContext) -> Tensor:
        return self.project(self.out_proj, x_BTD, entries, log_weight_BTS, context)
