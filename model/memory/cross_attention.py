"""How the entries that were read join the residual stream: three fusions and the table that names them.

Axes: B batch · T position · D width · S entries per position · L tokens per entry · V vocabulary
      H fusion heads · E per-head width · X = S + 1 keys of a position: its state, then its entries
      W = S D or X D: the vectors of a position side by side
      P positions, cached ones included · J = P X keys · F = 2 D: a key, then its value
      Y = 3 D: a state's query, key and value · Z = S F: a position's entries; with a past X F, its state before them

A fusion is a module called as `fusion(x_BTD, entries, log_weight_BTS, mask, cache)`, and returns what is added to the
stream. `x` is the normed state, `entries` what was read, `log_weight` the logarithm of each entry's weight: every
fusion uses it, so that the language-model loss trains the retrieval. Scope `token` reads the entries of the position
itself; `sequence` those of every position up to it in the same document. `mask` is `Visibility`'s.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..config import ModelConfig
from ..layers import Kept, Runs, StreamLinear, in_autocast
from ..ops import attend_entries, attend_own, unit_entries
from ..ops.entries import CommonTokens

# Far below any logit, yet finite: a row whose keys are all dropped is attended to as if none were.
DROPPED = -1e4


class Entries(NamedTuple):
    """The entries read at each position. The vector of one is the mean embedding of its words, normed with a gain.

    The gain is left to the weights that are applied to the vectors: they are multiplied by it, channel by channel.
    common: words whose gradients are summed by a product; those of the others by atomics.
    """

    token_BTSL: Tensor
    embedding_VD: Tensor
    gain_D: Tensor
    eps: float
    common: CommonTokens | None = None

    def vectors(self, x_BTD: Tensor | None = None, log_weight_BTS: Tensor | None = None) -> Tensor:
        """`ops.unit_entries` of these entries."""
        return unit_entries(self.token_BTSL, self.embedding_VD, self.eps, x_BTD, log_weight_BTS, self.common)


class CrossAttention(nn.Module):
    """A position attends to states and entries alike; an entry's log-weight is added to its logit.

    The last of each head's E channels is zero in queries and keys: room for the bias where attention takes none.

    Attention dropout hides whole keys, for one head each: dropping single probabilities after the softmax, as
    nn.MultiheadAttention does, is offered by no fused kernel with this mask. Related: DropKey, arXiv:2208.02646.
    """

    def __init__(self, config: ModelConfig, layer: int):
        super().__init__()
        self.config, self.layer = config, layer
        self.n_heads, self.head_dim = config.fusion_heads, config.dim // config.fusion_heads
        self.q_proj = nn.Linear(config.dim, self.n_heads * (self.head_dim - 1), bias=False)
        self.k_proj = nn.Linear(config.dim, self.n_heads * (self.head_dim - 1), bias=False)
        self.v_proj = nn.Linear(config.dim, config.dim, bias=False)
        self.out_proj = StreamLinear(config.dim, config.dim, bias=False)
        self.kept = Kept()

    def forward(self, x_BTD: Tensor, entries: Entries, log_weight_BTS: Tensor, mask, cache) -> Tensor:
        weights = self.q_proj.weight, self.k_proj.weight, self.v_proj.weight, entries.gain_D
        of_state_YD, of_entry_FD = self.kept(lambda: self.projections(entries.gain_D), *weights)
        packed_BTY = F.linear(x_BTD, of_state_YD)
        entry_BTZ = F.linear(entries.vectors(), of_entry_FD).flatten(2)
        drop = self.draw_drops(log_weight_BTS)
        if self.config.fusion_scope == "token":
            return self.out_proj(attend_own(packed_BTY, entry_BTZ, log_weight_BTS, drop, self.config))
        if cache is not None:
            # A row for each position, as the cache counts and crops them: its state's key and value, then its entries'.
            row_B1TZ = torch.cat([packed_BTY[..., self.config.dim :], entry_BTZ], dim=-1)[:, None]
            seen = cache.update(row_B1TZ, log_weight_BTS[:, None], self.config.n_layers + self.layer)
            if seen[0].shape[2] > row_B1TZ.shape[2]:  # there is a past
                entry_BTZ, log_weight_BTS = (x_B1P[:, 0] for x_B1P in seen)
        return self.out_proj(attend_entries(packed_BTY, entry_BTZ, log_weight_BTS, drop, mask, self.config))

    def draw_drops(self, log_weight_BTS: Tensor) -> Tensor | None:
        """What is added to the logits of keys: DROPPED with the chance of attention dropout, else 0.

        Returns:
            (B, T, H, X) in scope `token`, else (B, H, J); None where nothing is dropped.
        """
        if not (self.training and self.config.attention_dropout):
            return None
        B, T, S = log_weight_BTS.shape
        shape = (B, T, self.n_heads, S + 1) if self.config.fusion_scope == "token" else (B, self.n_heads, T * (S + 1))
        chance = torch.rand(shape, device=log_weight_BTS.device)
        return torch.where(chance < self.config.attention_dropout, DROPPED, 0.0)

    def projections(self, gain_D: Tensor) -> tuple[Tensor, Tensor]:
        """The weights of a state's query, key and value, and of an entry's key and value.

        Those of queries and keys have zeros for each head's last channel.
        """
        query_DD, key_DD, value_DD = self.q_proj.weight, self.k_proj.weight, self.v_proj.weight
        shape = self.n_heads, self.head_dim - 1
        query_DD, key_DD = (F.pad(x.unflatten(0, shape), (0, 0, 0, 1)).flatten(0, 1) for x in (query_DD, key_DD))
        of_entry_FD = torch.cat([key_DD, value_DD]) * gain_D
        return in_autocast(torch.cat([query_DD, key_DD, value_DD])), in_autocast(of_entry_FD)


class PooledFusion(nn.Module):
    """The part that gated MLP and concatenation share: a linear map of the state and its weighted entries.

    In scope `sequence` each of the S slots is the mean of that slot over every visible
    position instead of the position's own.
    """

    def __init__(self, config: ModelConfig, layer: int):
        super().__init__()
        self.config, self.layer = config, layer
        self.wide = (config.num_selected + 1) * config.dim
        self.kept = Kept()

    def project(
        self, linear: nn.Linear, x_BTD: Tensor, entries: Entries, log_weight_BTS: Tensor, mask, cache
    ) -> Tensor:
        """`linear` of each state and its entries side by side."""
        if self.config.fusion_scope == "token":
            joined_BTW = entries.vectors(x_BTD, log_weight_BTS).flatten(2)
        else:
            entry_BTW = entries.vectors(None, log_weight_BTS).flatten(2)
            joined_BTW = torch.cat([x_BTD, self.mean_over_visible(entry_BTW, mask, cache)], dim=-1)
        gain_D = entries.gain_D

        def with_gain() -> Tensor:
            gain_W = torch.cat([torch.ones_like(gain_D), gain_D.repeat(self.config.num_selected)])
            return in_autocast(linear.weight * gain_W)

        return F.linear(joined_BTW, self.kept(with_gain, linear.weight, gain_D))

    def mean_over_visible(self, weighted_BTW: Tensor, visible_B1TP: Tensor, cache) -> Tensor:
        if cache is not None:
            # The cache keeps pairs of keys and values, and takes a layer without keys for an empty one.
            key_B1TW = weighted_BTW[:, None]
            no_value = key_B1TW[..., :0]
            weighted_BTW = cache.update(key_B1TW, no_value, self.config.n_layers + self.layer)[0][:, 0]
        weight_BTP = visible_B1TP[:, 0].float()
        weight_BTP = weight_BTP / weight_BTP.sum(dim=-1, keepdim=True)
        return weight_BTP.to(weighted_BTW.dtype) @ weighted_BTW


class GatedMLP(PooledFusion):
    """A SwiGLU over the state and its entries (experiment 1.4.7)."""

    def __init__(self, config: ModelConfig, layer: int):
        super().__init__(config, layer)
        self.gate_up_proj = nn.Linear(self.wide, 2 * config.dim, bias=False)
        self.out_proj = StreamLinear(config.dim, config.dim, bias=False)

    def forward(self, x_BTD: Tensor, entries: Entries, log_weight_BTS: Tensor, mask, cache) -> Tensor:
        both_BTF = self.project(self.gate_up_proj, x_BTD, entries, log_weight_BTS, mask, cache)
        gate_BTD, up_BTD = both_BTF.chunk(2, dim=-1)
        return self.out_proj(F.silu(gate_BTD) * up_BTD)


class Concat(PooledFusion):
    """One linear map of the state and its entries."""

    def __init__(self, config: ModelConfig, layer: int):
        super().__init__(config, layer)
        self.out_proj = StreamLinear(self.wide, config.dim, bias=False)

    def forward(self, x_BTD: Tensor, entries: Entries, log_weight_BTS: Tensor, mask, cache) -> Tensor:
        return self.project(self.out_proj, x_BTD, entries, log_weight_BTS, mask, cache)


FUSIONS = {"gated_mlp": GatedMLP, "cross_attention": CrossAttention, "concat": Concat}


def fusion_mask(visible, config: ModelConfig, batch_size: int) -> Tensor | Runs | None:
    """What the configured fusion may see, made once per forward pass; None for scope `token`."""
    if config.fusion_scope == "token" or config.fusion == "words" or not config.reading_layers:
        return None
    if config.fusion != "cross_attention":
        return visible.mask(1, fused=False)
    if attend_entries.op.uses_kernel(visible.device, config=config):
        return visible.runs(batch_size)
    return visible.mask(config.num_selected + 1, fused=config.use_flash_attn)
