"""How the entries that were read join the residual stream: three fusions and the table that names them.

Axes: B batch · T position · D width · S entries per position · H fusion heads · E per-head width · X keys
      Y = D channels of a key's source and a log-weight for each head

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
from .layers import StreamLinear, attend, in_autocast, merge_heads, split_heads

# Far below any logit, yet finite: a row whose keys are all dropped becomes a plain mean instead of NaN.
DROPPED = -1e4
ALIGNED = 8  # bfloat16 rows of whole 16 bytes are multiplied faster


class CrossAttention(nn.Module):
    """A position attends to states and entries alike; an entry's log-weight is added to its logit.

    The last of each head's E channels carries that log-weight (queries hold sqrt(E) there, which the softmax scale
    turns into 1), so that any fused attention kernel applies it without a bias tensor. The projections write it there.

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
        _, T, S, D = memory_BTSD.shape
        x_BTD = in_autocast(x_BTD)  # before it is copied beside its entries
        # The keys of a position stand together: its state, then its S entries; behind each its log-weight by head.
        source_BTXD = torch.cat([x_BTD[:, :, None], memory_BTSD.to(x_BTD.dtype)], dim=2)
        bias_BTXH = F.pad(log_weight_BTS, (1, 0))[..., None].expand(*source_BTXD.shape[:3], self.n_heads)
        if self.training and self.config.attention_dropout:
            drop_BTXH = torch.rand_like(bias_BTXH) < self.config.attention_dropout
            bias_BTXH = bias_BTXH.masked_fill(drop_BTXH, DROPPED)
        bias_BTXH = F.pad(bias_BTXH, (0, -self.n_heads % ALIGNED)).to(x_BTD.dtype)
        source_BXY = torch.cat([source_BTXD, bias_BTXH], dim=-1).flatten(1, 2)

        q_BHTE = split_heads(self.queries(x_BTD), self.n_heads)
        k_BHXE = split_heads(self.keys(source_BXY), self.n_heads)
        v_BHXE = split_heads(self.v_proj(source_BXY[..., :D]), self.n_heads)

        if self.config.fusion_scope == "token":
            out_BHTE = attend_own(q_BHTE, k_BHXE.unflatten(2, (T, S + 1)), v_BHXE.unflatten(2, (T, S + 1)))
        else:
            if cache is not None:
                k_BHXE, v_BHXE = cache.update(k_BHXE, v_BHXE, self.config.n_layers + self.layer)
            out_BHTE = attend(q_BHTE, k_BHXE, v_BHXE, mask, self.config)
        return self.out_proj(merge_heads(out_BHTE))

    def queries(self, x_BTD: Tensor) -> Tensor:
        """(B, T, H E): E - 1 projected channels of each head, then sqrt(E)."""
        weight_HED = F.pad(self.q_proj.weight.unflatten(0, (self.n_heads, -1)), (0, 0, 0, 1))
        last_HE = F.pad(x_BTD.new_zeros(self.n_heads, self.head_dim - 1), (0, 1), value=self.head_dim**0.5)
        return F.linear(x_BTD, weight_HED.flatten(0, 1), last_HE.flatten())

    def keys(self, source_BXY: Tensor) -> Tensor:
        """(B, X, H E): E - 1 projected channels of each head, then its log-weight, taken from behind the D channels."""
        H, n_biases = self.n_heads, source_BXY.shape[-1] - self.k_proj.in_features
        weight_HED = F.pad(self.k_proj.weight.unflatten(0, (H, -1)), (0, 0, 0, 1))
        eye_HX = torch.eye(H, n_biases, dtype=weight_HED.dtype, device=weight_HED.device)
        pass_HEX = F.pad(eye_HX[:, None], (0, 0, self.head_dim - 1, 0))
        return F.linear(source_BXY, torch.cat([weight_HED, pass_HEX], dim=-1).flatten(0, 1))


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
        S, x_BTD = memory_BTSD.shape[2], in_autocast(x_BTD)
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
        self.gate_up_proj = nn.Linear(self.wide, 2 * config.dim, bias=False)
        self.out_proj = StreamLinear(config.dim, config.dim, bias=False)

    def forward(self, x_BTD: Tensor, memory_BTSD: Tensor, log_weight_BTS: Tensor, mask, cache) -> Tensor:
        joined_BTX = self.concatenate(x_BTD, memory_BTSD, log_weight_BTS, mask, cache)
        gate_BTD, up_BTD = self.gate_up_proj(joined_BTX).chunk(2, dim=-1)
        return self.out_proj(F.silu(gate_BTD) * up_BTD)


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
