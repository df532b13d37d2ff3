"""How the entries that were read join the residual stream: three fusions and the table that names them.

Axes: B batch · T position · D width · S entries per position · H fusion heads · E per-head width · X keys

A fusion is a module called as `fusion(x_BTD, memory_BTSD, log_weight_BTS, mask, cache)`, and returns what is added to
the stream. `x` is the normed state, `memory` the vectors of the entries, `log_weight` the logarithm of each one's
weight: every fusion uses it, so that the language-model loss trains the retrieval. Scope `token` reads the entries of
the position itself; `sequence` those of every position up to it in the same document. `mask` is `Visibility`'s.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask

from .config import ModelConfig
from .layers import StreamLinear, attend, merge_heads, split_heads

# Far below any logit, yet finite: a row whose keys are all dropped becomes a plain mean instead of NaN.
DROPPED = -1e4


class CrossAttention(nn.Module):
    """A position attends to states and entries alike; an entry's log-weight is added to its logit.

    The last of each head's E channels carries that log-weight (queries hold sqrt(E) there, which the softmax scale
    turns into 1), so that any fused attention kernel applies it without a bias tensor.

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

    def forward(self, x_BTD: Tensor, memory_BTSD: Tensor, log_weight_BTS: Tensor, mask, cache) -> Tensor:
        B, T, S, D = memory_BTSD.shape
        # The keys of a position stand together: its state, then its S entries.
        source_BXD = torch.cat([x_BTD[:, :, None], memory_BTSD.to(x_BTD.dtype)], dim=2).flatten(1, 2)
        bias_BX = F.pad(log_weight_BTS, (1, 0)).flatten(1)
        bias_BHX = bias_BX[:, None].expand(B, self.n_heads, -1)
        if self.training and self.config.attention_dropout:
            drop_BHX = torch.rand_like(bias_BHX) < self.config.attention_dropout
            bias_BHX = bias_BHX.masked_fill(drop_BHX, DROPPED)

        q_BHTE = F.pad(split_heads(self.q_proj(x_BTD), self.n_heads), (0, 1), value=self.head_dim**0.5)
        k_BHXE = split_heads(self.k_proj(source_BXD), self.n_heads)
        k_BHXE = torch.cat([k_BHXE, bias_BHX[..., None].to(k_BHXE.dtype)], dim=-1)
        v_BHXE = split_heads(self.v_proj(source_BXD), self.n_heads)

        if self.config.fusion_scope == "token":
            out_BHTE = attend_own(q_BHTE, k_BHXE.unflatten(2, (T, S + 1)), v_BHXE.unflatten(2, (T, S + 1)))
        else:
            if cache is not None:
                k_BHXE, v_BHXE = cache.update(k_BHXE, v_BHXE, self.config.n_layers + self.layer)
            out_BHTE = attend(q_BHTE, k_BHXE, v_BHXE, mask, self.config)
        return self.out_proj(merge_heads(out_BHTE))


def attend_own(q_BHTE: Tensor, k_BHTXE: Tensor, v_BHTXE: Tensor) -> Tensor:
    """Attention of each position to its own X keys."""
    score_BHTX = torch.einsum("bhte,bhtxe->bhtx", q_BHTE, k_BHTXE).float() * q_BHTE.shape[-1] ** -0.5
    return torch.einsum("bhtx,bhtxe->bhte", score_BHTX.softmax(dim=-1).to(v_BHTXE.dtype), v_BHTXE)


class PooledFusion(nn.Module):
    """The part that gated MLP and concatenation share: weighted entries, side by side with the state.

    Returns (B, T, (S + 1) D). In scope `sequence` each of the S slots is the mean of that slot over every visible
    position instead of the position's own.
    """

    def __init__(self, config: ModelConfig, layer: int):
        super().__init__()
        self.config, self.layer = config, layer
        self.wide = (config.num_selected + 1) * config.dim

    def concatenate(self, x_BTD: Tensor, memory_BTSD: Tensor, log_weight_BTS: Tensor, mask, cache) -> Tensor:
        S = memory_BTSD.shape[2]
        # The weights average 1, so that an entry enters at the scale of the state whatever S is.
        weighted_BTX = (memory_BTSD * (S * log_weight_BTS.exp()[..., None])).to(x_BTD.dtype).flatten(2)
        if self.config.fusion_scope == "sequence":
            weighted_BTX = self.mean_over_visible(weighted_BTX, mask, cache)
        return torch.cat([x_BTD, weighted_BTX], dim=-1)

    def mean_over_visible(self, weighted_BTX: Tensor, visible_B1TX: Tensor, cache) -> Tensor:
        if cache is not None:
            # The cache keeps pairs of keys and values; there are no keys here.
            value_B1TX = weighted_BTX[:, None]
            no_key = value_B1TX[..., :0]
            weighted_BTX = cache.update(no_key, value_B1TX, self.config.n_layers + self.layer)[1][:, 0]
        weight_BTT = visible_B1TX[:, 0].float()
        weight_BTT = weight_BTT / weight_BTT.sum(dim=-1, keepdim=True)
        return weight_BTT.to(weighted_BTX.dtype) @ weighted_BTX


class GatedMLP(PooledFusion):
    """A SwiGLU over the state and its entries (experiment 1.4.7)."""

    def __init__(self, config: ModelConfig, layer: int):
        super().__init__(config, layer)
        self.gate_proj = nn.Linear(self.wide, config.dim, bias=False)
        self.up_proj = nn.Linear(self.wide, config.dim, bias=False)
        self.out_proj = StreamLinear(config.dim, config.dim, bias=False)

    def forward(self, x_BTD: Tensor, memory_BTSD: Tensor, log_weight_BTS: Tensor, mask, cache) -> Tensor:
        joined_BTX = self.concatenate(x_BTD, memory_BTSD, log_weight_BTS, mask, cache)
        return self.out_proj(F.silu(self.gate_proj(joined_BTX)) * self.up_proj(joined_BTX))


class Concat(PooledFusion):
    """One linear map of the state and its entries."""

    def __init__(self, config: ModelConfig, layer: int):
        super().__init__(config, layer)
        self.out_proj = StreamLinear(self.wide, config.dim, bias=False)

    def forward(self, x_BTD: Tensor, memory_BTSD: Tensor, log_weight_BTS: Tensor, mask, cache) -> Tensor:
        return self.out_proj(self.concatenate(x_BTD, memory_BTSD, log_weight_BTS, mask, cache))


FUSIONS = {"gated_mlp": GatedMLP, "cross_attention": CrossAttention, "concat": Concat}


def fusion_mask(visible, config: ModelConfig) -> Tensor | BlockMask | None:
    """The mask that the configured fusion needs, once per forward pass; None for scope `token`."""
    if config.fusion_scope == "token" or config.fusion == "words" or not config.reading_layers:
        return None
    if config.fusion == "cross_attention":
        return visible.mask(config.num_selected + 1, fused=config.use_flash_attn)
    return visible.mask(1, fused=False)
