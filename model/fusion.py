"""How the entries that were read join the residual stream: three fusions and the table that names them.

Axes: B batch · T position · D width · S entries per position · L tokens per entry · V vocabulary
      H fusion heads · E per-head width · X keys, S + 1 of each position: its state, then its entries
      Y = D channels of a key's source and a log-weight for each head

A fusion is a module called as `fusion(x_BTD, entries, log_weight_BTS, mask, cache)`, and returns what is added to the
stream. `x` is the normed state, `entries` what was read, `log_weight` the logarithm of each entry's weight: every
fusion uses it, so that the language-model loss trains the retrieval. Scope `token` reads the entries of the position
itself; `sequence` those of every position up to it in the same document. `mask` is `Visibility`'s.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask

from .config import ModelConfig
from .layers import Kept, StreamLinear, attend, in_autocast, merge_heads, split_heads
from .retrieval import PADDING, entry_vectors
from .words import use_kernels

# Far below any logit, yet finite: a row whose keys are all dropped becomes a plain mean instead of NaN.
DROPPED = -1e4
ALIGNED = 8  # bfloat16 rows of whole 16 bytes are multiplied faster


class Entries(NamedTuple):
    """The entries read at each position. The vector of one is the mean embedding of its words, normed with a gain."""

    token_BTSL: Tensor
    embedding_VD: Tensor
    gain_D: Tensor
    eps: float


def columns_behind(n_heads: int) -> int:
    """How many columns stand behind the channels of a key's source: a log-weight for each head, then zeros."""
    return n_heads + -n_heads % ALIGNED


def join(
    x_BTD: Tensor, entries: Entries, log_weight_BTS: Tensor, drop_BTXH: Tensor | None = None, n_heads: int = 0
) -> Tensor:
    """(B, T, X, Y), contiguous, in the dtype of x: the state of each position, then the vectors of its entries.

    With heads, each key's log-weight stands behind its channels once a head, 0 for the state and DROPPED where `drop`
    says so, then zeros up to a multiple of ALIGNED. Without, each vector is multiplied by S times its weight: those
    factors average 1, so that an entry enters at the scale of the state whatever S is.
    """
    n_behind = columns_behind(n_heads)
    if use_kernels(entries.embedding_VD):
        from .kernels import call
        from .kernels.join_entries import join_entries as kernel

        return call(kernel, x_BTD, *entries, log_weight_BTS, drop_BTXH, n_heads, n_behind, PADDING, DROPPED)
    return join_reference(x_BTD, entries, log_weight_BTS, drop_BTXH, n_heads, n_behind)


def join_reference(
    x_BTD: Tensor, entries: Entries, log_weight_BTS: Tensor, drop_BTXH: Tensor | None, n_heads: int, n_behind: int
) -> Tensor:
    """`join` in plain torch, with `n_behind` columns behind the channels."""
    token_BTSL, embedding_VD, gain_D, eps = entries
    vector_XD = entry_vectors(token_BTSL.flatten(0, 2), embedding_VD)
    unit_XD = F.rms_norm(vector_XD, vector_XD.shape[-1:], eps=eps)
    memory_BTSD = (unit_XD * gain_D).view(*log_weight_BTS.shape, -1)
    if not n_heads:
        memory_BTSD = memory_BTSD * (log_weight_BTS.shape[-1] * log_weight_BTS.exp()[..., None])
    joined_BTXD = torch.cat([x_BTD[:, :, None], memory_BTSD.to(x_BTD.dtype)], dim=2)
    if not n_heads:
        return joined_BTXD
    bias_BTXH = F.pad(log_weight_BTS, (1, 0))[..., None].expand(*joined_BTXD.shape[:3], n_heads)
    if drop_BTXH is not None:
        bias_BTXH = bias_BTXH.masked_fill(drop_BTXH, DROPPED)
    bias_BTXH = F.pad(bias_BTXH, (0, n_behind - n_heads)).to(x_BTD.dtype)
    return torch.cat([joined_BTXD, bias_BTXH], dim=-1)


class Projections(NamedTuple):
    """The weights of cross-attention as they are multiplied with; see `CrossAttention.projections`."""

    query_DD: Tensor
    query_bias_D: Tensor
    key_DY: Tensor
    value_DY: Tensor


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
        self.kept = Kept()

    def forward(self, x_BTD: Tensor, entries: Entries, log_weight_BTS: Tensor, mask, cache) -> Tensor:
        B, T, S = log_weight_BTS.shape
        x_BTD = in_autocast(x_BTD)  # before it is copied beside its entries
        drop_BTXH = None
        if self.training and self.config.attention_dropout:
            chance_BTXH = torch.rand(B, T, S + 1, self.n_heads, device=x_BTD.device)
            drop_BTXH = chance_BTXH < self.config.attention_dropout
        # The keys of a position stand together: its state, then its S entries; behind each its log-weight by head.
        source_BXY = join(x_BTD, entries, log_weight_BTS, drop_BTXH, self.n_heads).flatten(1, 2)

        weights = self.kept(self.projections, self.q_proj.weight, self.k_proj.weight, self.v_proj.weight)
        q_BHTE = split_heads(F.linear(x_BTD, weights.query_DD, weights.query_bias_D), self.n_heads)
        k_BHXE = split_heads(F.linear(source_BXY, weights.key_DY), self.n_heads)
        v_BHXE = split_heads(F.linear(source_BXY, weights.value_DY), self.n_heads)

        if self.config.fusion_scope == "token":
            out_BHTE = attend_own(q_BHTE, k_BHXE.unflatten(2, (T, S + 1)), v_BHXE.unflatten(2, (T, S + 1)))
        else:
            if cache is not None:
                k_BHXE, v_BHXE = cache.update(k_BHXE, v_BHXE, self.config.n_layers + self.layer)
            out_BHTE = attend(q_BHTE, k_BHXE, v_BHXE, mask, self.config)
        return self.out_proj(merge_heads(out_BHTE))

    def projections(self) -> Projections:
        """Queries: E - 1 projected channels of each head, then sqrt(E). Keys: E - 1 projected channels of each head,
        then its log-weight, taken from behind the D channels. Values: what stands there is multiplied by zero.
        """
        H, E, n_behind = self.n_heads, self.head_dim, columns_behind(self.n_heads)
        query_DD, key_DD, value_DD = (in_autocast(x.weight) for x in (self.q_proj, self.k_proj, self.v_proj))
        query_HED, key_HED = (F.pad(x.unflatten(0, (H, E - 1)), (0, 0, 0, 1)) for x in (query_DD, key_DD))
        query_bias_HE = F.pad(query_DD.new_zeros(H, E - 1), (0, 1), value=E**0.5)
        eye_HY = torch.eye(H, n_behind, dtype=key_DD.dtype, device=key_DD.device)
        behind_HEY = F.pad(eye_HY[:, None], (0, 0, E - 1, 0))
        key_HEY = torch.cat([key_HED, behind_HEY], dim=-1)
        value_DY = F.pad(value_DD, (0, n_behind))
        return Projections(query_HED.flatten(0, 1), query_bias_HE.flatten(), key_HEY.flatten(0, 1), value_DY)


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

    def concatenate(self, x_BTD: Tensor, entries: Entries, log_weight_BTS: Tensor, mask, cache) -> Tensor:
        x_BTD = in_autocast(x_BTD)
        joined_BTXD = join(x_BTD, entries, log_weight_BTS)
        if self.config.fusion_scope == "token":
            return joined_BTXD.flatten(2)
        return torch.cat([x_BTD, self.mean_over_visible(joined_BTXD[:, :, 1:].flatten(2), mask, cache)], dim=-1)

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

    def forward(self, x_BTD: Tensor, entries: Entries, log_weight_BTS: Tensor, mask, cache) -> Tensor:
        joined_BTX = self.concatenate(x_BTD, entries, log_weight_BTS, mask, cache)
        gate_BTD, up_BTD = self.gate_up_proj(joined_BTX).chunk(2, dim=-1)
        return self.out_proj(F.silu(gate_BTD) * up_BTD)


class Concat(PooledFusion):
    """One linear map of the state and its entries."""

    def __init__(self, config: ModelConfig, layer: int):
        super().__init__(config, layer)
        self.out_proj = StreamLinear(self.wide, config.dim, bias=False)

    def forward(self, x_BTD: Tensor, entries: Entries, log_weight_BTS: Tensor, mask, cache) -> Tensor:
        return self.out_proj(self.concatenate(x_BTD, entries, log_weight_BTS, mask, cache))


FUSIONS = {"gated_mlp": GatedMLP, "cross_attention": CrossAttention, "concat": Concat}


def fusion_mask(visible, config: ModelConfig) -> Tensor | BlockMask | None:
    """The mask that the configured fusion needs, once per forward pass; None for scope `token`."""
    if config.fusion_scope == "token" or config.fusion == "words" or not config.reading_layers:
        return None
    if config.fusion == "cross_attention":
        return visible.mask(config.num_selected + 1, fused=config.use_flash_attn)
    return visible.mask(1, fused=False)
