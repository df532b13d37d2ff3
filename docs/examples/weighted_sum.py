"""Fusion by the weighted sum of the entries' vectors, through a gate.

Axes: B batch · T position · D width · S entries per position
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from common.flags import flag

from ..base_config import MemoryConfig
from ..layers import StreamLinear
from .entry_vectors import Entries, VectorFusion
from .interfaces import MemoryContext


class WeightedSum(VectorFusion):
    """A gate of the state decides how much of the sum is added."""

    prepares = frozenset({"common"})  # no mask: a position reads its own entries only

    @dataclass(frozen=True)
    class Config(MemoryConfig):
        sum_scale: float = flag(1.0, "factor of what is added to the stream", within=(0, None))

    def __init__(self, config: Config, memory_index: int):
        super().__init__(config, memory_index)
        self.gate = nn.Linear(config.dim, 1)
        self.out_proj = StreamLinear(config.dim, config.dim, bias=False)

    def fuse(self, x_BTD: Tensor, entries: Entries, log_weight_BTS: Tensor, context: MemoryContext) -> Tensor:
        vector_BTSD = entries.vectors() * entries.gain_D
        weight_BTS = log_weight_BTS.exp().to(vector_BTSD.dtype)
        sum_BTD = torch.einsum("bts,btsd->btd", weight_BTS, vector_BTSD)
        return self.config.sum_scale * torch.sigmoid(self.gate(x_BTD)) * self.out_proj(sum_BTD)
