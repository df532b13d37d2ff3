"""Fusion by attention: a position attends to states and to entries' vectors alike.

Axes: B batch · T position · D width · S entries per position · H fusion heads · E per-head width
      X = S + 1 keys of a position: its state, then its entries · P positions, cached ones included · J = P X keys
      F = 2 D: a key, then its value · Y = 3 D: a state's query, key and value
      Z = S F: a position's entries; with a past X F, its state before them
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.constants import MASKED
from common.flags import flag

from ..base_config import MemoryConfig
from ..layers import DerivedWeights, StreamLinear, in_autocast
from ..ops import attend_entries, attend_own
from ..visibility import Visibility
from .entry_vectors import Entries, VectorFusion
from .interfaces import MemoryContext


class CrossAttention(VectorFusion):
    """softmax(q k / sqrt(E) + log-weight) v over states and entries; a state's log-weight is 0.

    The last of each head's E channels is zero in queries and keys: there the bias stands where a fused attention takes
    no bias.

    Attention dropout masks whole keys, for one head each. No fused kernel with this mask drops single probabilities
    after the softmax, as nn.MultiheadAttention does. Related: DropKey, arXiv:2208.02646.
    """

    @dataclass(frozen=True)
    class Config(MemoryConfig):
        fusion_heads: int = flag(
            8, "heads of the cross-attention fusion; must divide dim", within=(1, None), divides="dim"
        )
        attention_dropout: float = flag(
            0.1, "dropout of whole keys in the cross-attention fusion", within=(0, 1), open_end=True
        )

    def __init__(self, config: Config, memory_index: int):
        super().__init__(config, memory_index)
        self.n_heads, self.head_dim = config.fusion_heads, config.dim // config.fusion_heads
        self.q_proj = nn.Linear(config.dim, self.n_heads * (self.head_dim - 1), bias=False)
        self.k_proj = nn.Linear(config.dim, self.n_heads * (self.head_dim - 1), bias=False)
        self.v_proj = nn.Linear(config.dim, config.dim, bias=False)
        self.out_proj = StreamLinear(config.dim, config.dim, bias=False)
        self.derived = DerivedWeights()

    @classmethod
    def make_mask(cls, config: Config, visible: Visibility, batch_size: int) -> object:
        if config.fusion_scope == "token":
            return None
        if attend_entries.op.uses_kernel(visible.device, config=config):
            return visible.spans(batch_size)
        return visible.mask(config.num_selected + 1, fused=config.use_flash_attn)

    def fuse(self, x_BTD: Tensor, entries: Entries, log_weight_BTS: Tensor, context: MemoryContext) -> Tensor:
        weights = self.q_proj.weight, self.k_proj.weight, self.v_proj.weight, entries.gain_D
        of_state_YD, of_entry_FD = self.derived(lambda: self.projections(entries.gain_D), *weights)
        packed_BTY = F.linear(x_BTD, of_state_YD)
        entry_BTZ = F.linear(entries.vectors(), of_entry_FD).flatten(2)
        drop = self.draw_drops(log_weight_BTS)
        if self.config.fusion_scope == "token":
            return self.out_proj(attend_own(packed_BTY, entry_BTZ, log_weight_BTS, drop, self.config))
        cache = context.cache
        if cache is not None:
            # A row for each position, as the cache counts and crops them: its state's key and value, then its entries'.
            row_B1TZ = torch.cat([packed_BTY[..., self.config.dim :], entry_BTZ], dim=-1)[:, None]
            seen = cache.update(row_B1TZ, log_weight_BTS[:, None], self.config.n_layers + self.memory_index)
            if seen[0].shape[2] > row_B1TZ.shape[2]:  # there is a past
                entry_BTZ, log_weight_BTS = (x_B1P[:, 0] for x_B1P in seen)
        return self.out_proj(attend_entries(packed_BTY, entry_BTZ, log_weight_BTS, drop, context.mask, self.config))

    def draw_drops(self, log_weight_BTS: Tensor) -> Tensor | None:
        """What is added to the logits of keys: MASKED with the probability `attention_dropout`, else 0.

        Returns:
            (B, T, H, X) in scope `token`, else (B, H, J); None without dropout.
        """
        if not (self.training and self.config.attention_dropout):
            return None
        B, T, S = log_weight_BTS.shape
        shape = (B, T, self.n_heads, S + 1) if self.config.fusion_scope == "token" else (B, self.n_heads, T * (S + 1))
        chance = torch.rand(shape, device=log_weight_BTS.device)
        return torch.where(chance < self.config.attention_dropout, MASKED, 0.0)

    def projections(self, gain_D: Tensor) -> tuple[Tensor, Tensor]:
        """The weights of a state's query, key and value, and of an entry's key and value.

        Those of queries and keys have zeros for each head's last channel.
        """
        query_DD, key_DD, value_DD = self.q_proj.weight, self.k_proj.weight, self.v_proj.weight
        shape = self.n_heads, self.head_dim - 1
        query_DD, key_DD = (F.pad(x.unflatten(0, shape), (0, 0, 0, 1)).flatten(0, 1) for x in (query_DD, key_DD))
        of_entry_FD = torch.cat([key_DD, value_DD]) * gain_D
        return in_autocast(torch.cat([query_DD, key_DD, value_DD])), in_autocast(of_entry_FD)
