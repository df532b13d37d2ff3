"""Rotary positions, attention with a key-value cache, feed-forward, norm: shared by both models.

Axes: B batch · T position · D width · H query heads · G key/value heads · E per-head width · F feed-forward
      V vocabulary · X attended keys: the past and the present; in projections: queries, keys, values joined
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask, flex_attention
from transformers import initialization as init

from .base_config import CoreConfig
from .flash import DocumentStarts, computes, flash_attention
from .ops.normed_heads import normed_heads, rotate
from .visibility import Visibility

INIT_STD = 0.02
# Uncompiled, FlexAttention writes out the whole score matrix; inside a compiled block this wrapper is inlined.
compiled_flex_attention = torch.compile(flex_attention, dynamic=False)


@dataclass
class Context:
    """What the blocks of one forward pass share."""

    cos_T1E: Tensor
    sin_T1E: Tensor
    visible: Visibility
    attention_mask: Tensor | BlockMask | None  # None: plain causal attention
    cache: object | None  # transformers.Cache
    needs_losses: bool  # else no auxiliary term of the memory is computed
    token_BT: Tensor  # the tokens of the forward pass
    embedded_BTD: Tensor | None  # their embeddings at unit scale, for `residual_scalars`
    ngram_BTU: Tensor | None  # each position's rows of the n-gram table


def rotary_table(positions_T: Tensor, head_dim: int, theta: float) -> tuple[Tensor, Tensor]:
    """cos_T1E and sin_T1E in float32, as `rotate` takes them. Source: Su et al. 2021, arXiv:2104.09864.

    Rotary attention sees only differences of positions, so counting from the start of the row, of the document or of
    the left padding gives the same logits, and no position is reset anywhere.
    """
    exponent_E = torch.arange(0, head_dim, 2, device=positions_T.device, dtype=torch.float32) / head_dim
    angle_TE = positions_T[:, None].float() * theta**-exponent_E
    angle_T1E = torch.cat([-angle_TE, angle_TE], dim=-1)[:, None]
    return angle_T1E.cos(), angle_T1E.sin()


def attend(q_BHTE: Tensor, k_BGXE: Tensor, v_BGXE: Tensor, mask, config: CoreConfig) -> Tensor:
    """softmax(q k / sqrt(E)) v under a mask of `Visibility`; grouped-query when G < H. Returns (B, H, T, E)."""
    grouped = q_BHTE.shape[1] != k_BGXE.shape[1]
    # Autocast leaves the rotated or gathered operands in different dtypes.
    q_BHTE, k_BGXE = q_BHTE.to(v_BGXE.dtype), k_BGXE.to(v_BGXE.dtype)
    if not config.use_flash_attn:
        return textbook_attention(q_BHTE, k_BGXE, v_BGXE, mask)
    if isinstance(mask, BlockMask):
        return compiled_flex_attention(
            q_BHTE, k_BGXE, v_BGXE, block_mask=mask, enable_gqa=grouped, kernel_options=flex_options(q_BHTE)
        )
    causal = mask is None and q_BHTE.shape[2] > 1
    has_package = config.flash_backend == "flash_attn" and computes(q_BHTE.dtype, q_BHTE.device)
    if isinstance(mask, DocumentStarts) or (has_package and mask is None):
        return flash_attention(q_BHTE, k_BGXE, v_BGXE, mask)
    return F.scaled_dot_product_attention(q_BHTE, k_BGXE, v_BGXE, attn_mask=mask, is_causal=causal, enable_gqa=grouped)


def flex_options(q_BHTE: Tensor) -> dict[str, int]:
    """Sizes of FlexAttention's tiles where others than its own were faster on an H100 (docs/speed.md)."""
    width = q_BHTE.shape[-1]
    if q_BHTE.dtype == torch.float32 or width > 64:
        return {}
    backward = {"bwd_BLOCK_M1": 32, "bwd_BLOCK_N1": 64, "bwd_BLOCK_M2": 64, "bwd_BLOCK_N2": 32}
    backward |= {"bwd_num_stages": 3, "bwd_num_warps": 4}
    return backward | ({"fwd_BLOCK_M": 128, "fwd_BLOCK_N": 64} if width == 64 else {})


def textbook_attention(q_BHTE: Tensor, k_BGXE: Tensor, v_BGXE: Tensor, mask_BTX: Tensor) -> Tensor:
    """The reference that the fused attentions are tested against: every score is written out, in float32."""
    groups = q_BHTE.shape[1] // k_BGXE.shape[1]
    k_BHXE, v_BHXE = k_BGXE.repeat_interleave(groups, dim=1), v_BGXE.repeat_interleave(groups, dim=1)
    score_BHTX = (q_BHTE @ k_BHXE.transpose(-1, -2)).float() * q_BHTE.shape[-1] ** -0.5
    return score_BHTX.masked_fill(~mask_BTX, float("-inf")).softmax(dim=-1).to(v_BHXE.dtype) @ v_BHXE


def autocast_dtype(x: Tensor) -> torch.dtype:
    """The precision of autocast where that is on, else that of the tensor."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype


def in_autocast(x: Tensor) -> Tensor:
    """The tensor in the precision of autocast, where that is on."""
    return x.to(autocast_dtype(x))


def at_unit_scale(embedded_BTD: Tensor) -> Tensor:
    """Embeddings start near 0.02, which the epsilon of the other norms would shrink."""
    return F.rms_norm(embedded_BTD, embedded_BTD.shape[-1:], eps=1e-8).to(embedded_BTD.dtype)


def split_heads(x_BTD: Tensor, n_heads: int) -> Tensor:
    return x_BTD.unflatten(-1, (n_heads, -1)).transpose(1, 2)


def merge_heads(x_BHTE: Tensor) -> Tensor:
    return x_BHTE.transpose(1, 2).flatten(-2)


class DerivedWeights:
    """Tensors computed from parameters, stored until a parameter changes; only where no gradient is recorded.

    Changes are detected by the parameters' version counter. Edits through `.data` and fused optimizer steps do not
    raise it: call `torch.autograd.graph.increment_version` after them, as training does.
    """

    def __init__(self):
        self.stored = None, None, None  # key, parameters, tensors

    def __call__(self, make: Callable, *parameters: Tensor):
        """`make()`, or its earlier result if the parameters and the precision of autocast are the same."""
        if torch.is_grad_enabled() or torch.compiler.is_compiling() or any(p.is_inference() for p in parameters):
            return make()
        kind = parameters[0].device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
        key = dtype, *((parameter._version, parameter.data_ptr()) for parameter in parameters)
        stored_key, _, derived = self.stored
        if key != stored_key:
            derived = make()
            # Holds the parameters: freed memory could be given to new parameters of the same version.
            self.stored = key, [parameter.detach() for parameter in parameters], derived
        return derived

    def __reduce__(self):
        """A copy of a module starts without stored tensors."""
        return DerivedWeights, ()


def normed(norm: nn.RMSNorm, x_BTD: Tensor, fold: bool) -> tuple[Tensor, Tensor | None]:
    """The normed states, and a gain that the weights that read them are still to be multiplied by; None: 1.

    Args:
        fold: leave out the norm's gain. Its gradient is then a sum over the rows of a matrix, not over all tokens.
    """
    if not fold:
        return norm(x_BTD), None
    return in_autocast(F.rms_norm(x_BTD, norm.normalized_shape, eps=norm.eps)), norm.weight


def scaled(x_BTD: Tensor, gain_D: Tensor | None) -> Tensor:
    """`gain * x`; a gain of None is 1."""
    return x_BTD if gain_D is None else (x_BTD * gain_D).to(x_BTD.dtype)


def project(linear: nn.Linear, x_BTD: Tensor, gain_D: Tensor | None) -> Tensor:
    """`linear(gain * x)`; a gain of None is 1."""
    return linear(x_BTD) if gain_D is None else F.linear(x_BTD, linear.weight * gain_D, linear.bias)


ALIGNED = 8  # columns: rows of 16 bytes in bfloat16


def project_together(
    linears: Sequence[nn.Linear], x_BTD: Tensor, derived: DerivedWeights | None = None, gain_D: Tensor | None = None
) -> tuple[Tensor, ...]:
    """`linear(gain * x)` of each, by one product: one of few columns takes as long, and so do its gradients.

    Args:
        derived: keeps the joined weights; None: they are joined in each call.
    """
    parameters = [p for linear in linears for p in (linear.weight, linear.bias, gain_D) if p is not None]
    weight_KD, bias_K = (derived or DerivedWeights())(lambda: joined(linears, gain_D), *parameters)
    widths = [linear.out_features for linear in linears]
    return F.linear(x_BTD, weight_KD, bias_K)[..., : sum(widths)].split(widths, dim=-1)


def joined(linears: Sequence[nn.Linear], gain_D: Tensor | None) -> tuple[Tensor, Tensor]:
    """Weight and bias of projections of `gain * x`, with rows of zeros up to a number that suits a GPU."""
    biases = [
        linear.weight.new_zeros(linear.out_features) if linear.bias is None else linear.bias for linear in linears
    ]
    weight_KD, bias_K = torch.cat([linear.weight for linear in linears]), torch.cat(biases)
    n_zeros = -len(bias_K) % ALIGNED
    return in_autocast(scaled(F.pad(weight_KD, (0, 0, 0, n_zeros)), gain_D)), in_autocast(F.pad(bias_K, (0, n_zeros)))


class StreamLinear(nn.Linear):
    """A projection that writes to the residual stream; the only difference is a smaller start."""


class Attention(nn.Module):
    """Causal self-attention with rotary positions and grouped keys and values."""

    def __init__(self, config: CoreConfig, layer: int):
        super().__init__()
        self.config, self.layer = config, layer
        self.qkv_proj = nn.Linear(config.dim, config.dim + 2 * config.kv_heads * config.head_dim, bias=False)
        self.out_proj = StreamLinear(config.dim, config.dim, bias=False)
        self.dropout = nn.Dropout(config.dropout)
        if config.qk_norm:
            self.q_gain_E, self.k_gain_E = (nn.Parameter(torch.empty(config.head_dim)) for _ in range(2))
        self.value_embedding = None
        if layer in (config.value_embeddings or []):
            self.value_embedding = nn.Embedding(config.vocab_size, config.kv_heads * config.head_dim)

    def init_parameters(self) -> None:
        if self.config.qk_norm:
            init.ones_(self.q_gain_E)
            init.ones_(self.k_gain_E)

    def forward(self, x_BTD: Tensor, context: Context, gain_D: Tensor | None = None) -> Tensor:
        H, G = self.config.n_heads, self.config.kv_heads
        qkv_BTX = project(self.qkv_proj, in_autocast(x_BTD), gain_D)
        turn = context.cos_T1E, context.sin_T1E
        if self.config.qk_norm:
            gains = self.q_gain_E, self.k_gain_E
            q_BTHE, k_BTGE, v_BTGE = normed_heads(qkv_BTX, *gains, *turn, H, G, self.config.norm_eps)
        else:
            qk_BTHE, v_BTGE = qkv_BTX.unflatten(-1, (H + 2 * G, -1)).split([H + G, G], dim=2)
            q_BTHE, k_BTGE = rotate(qk_BTHE, *turn).to(v_BTGE.dtype).split([H, G], dim=2)
        if self.value_embedding is not None:
            v_BTGE = v_BTGE + self.value_embedding(context.token_BT).view_as(v_BTGE).to(v_BTGE.dtype)
        q_BHTE, k_BGTE, v_BGTE = (x_BTHE.transpose(1, 2) for x_BTHE in (q_BTHE, k_BTGE, v_BTGE))
        if context.cache is not None:
            k_BGTE, v_BGTE = context.cache.update(k_BGTE, v_BGTE, self.layer)
        out_BHTE = attend(q_BHTE, k_BGTE, v_BGTE, context.attention_mask, self.config)
        return self.dropout(self.out_proj(merge_heads(out_BHTE)))


class FeedForward(nn.Module):
    """SwiGLU. Source: Shazeer 2020, arXiv:2002.05202."""

    def __init__(self, config: CoreConfig):
        super().__init__()
        self.gate_up_proj = nn.Linear(config.dim, 2 * config.hidden_dim, bias=False)
        self.out_proj = StreamLinear(config.hidden_dim, config.dim, bias=False)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x_BTD: Tensor, gain_D: Tensor | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        gate_BTF, up_BTF = project(self.gate_up_proj, x_BTD, gain_D).chunk(2, dim=-1)
        return self.dropout(self.out_proj(F.silu(gate_BTF) * up_BTF)), {}


class SquaredReLU(nn.Module):
    """A feed-forward without a gate. Source: So et al. 2021, arXiv:2109.08668."""

    def __init__(self, config: CoreConfig):
        super().__init__()
        self.up_proj = nn.Linear(config.dim, config.hidden_dim, bias=False)
        self.out_proj = StreamLinear(config.hidden_dim, config.dim, bias=False)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x_BTD: Tensor, gain_D: Tensor | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        return self.dropout(self.out_proj(F.relu(project(self.up_proj, x_BTD, gain_D)).square())), {}


FEED_FORWARDS = {"swiglu": FeedForward, "relu2": SquaredReLU}


class MixtureOfExperts(nn.Module):
    """Each token is served by its best routed experts, weighted by a softmax over them, and by the shared experts.

    Source: Fedus et al. 2021, arXiv:2101.03961 (balance loss); Dai et al. 2024, arXiv:2401.06066 (shared experts).
    Differs: no capacity limit, so no token is ever dropped and the future cannot crowd out the past.
    """

    def __init__(self, config: CoreConfig):
        super().__init__()
        self.n_chosen = config.n_experts_per_tok
        self.router = nn.Linear(config.dim, config.n_experts, bias=False)
        make = FEED_FORWARDS[config.ffn_activation]
        self.experts = nn.ModuleList(make(config) for _ in range(config.n_experts))
        self.shared_experts = nn.ModuleList(make(config) for _ in range(config.n_shared_experts))

    def forward(self, x_BTD: Tensor, gain_D: Tensor | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        flat_ND = scaled(x_BTD, gain_D).flatten(0, 1)
        probability_NM = self.router(flat_ND).float().softmax(dim=-1)
        weight_NK, expert_NK = probability_NM.topk(self.n_chosen, dim=-1)
        weight_NK = weight_NK / weight_NK.sum(dim=-1, keepdim=True)
        out_ND = sum((expert(flat_ND)[0] for expert in self.shared_experts), torch.zeros_like(flat_ND))
        for index, expert in enumerate(self.experts):
            token, slot = torch.where(expert_NK == index)
            served = expert(flat_ND[token])[0] * weight_NK[token, slot, None]
            out_ND = out_ND.index_add(0, token, served.to(out_ND.dtype))
        share_M = F.one_hot(expert_NK, len(self.experts)).float().mean(dim=(0, 1))
        balance = len(self.experts) * (share_M * probability_NM.mean(dim=0)).sum()
        return out_ND.view_as(x_BTD), {"moe": balance}


def make_feed_forward(config: CoreConfig) -> nn.Module:
    return MixtureOfExperts(config) if config.use_moe else FEED_FORWARDS[config.ffn_activation](config)


def make_norm(config: CoreConfig) -> nn.RMSNorm:
    return nn.RMSNorm(config.dim, eps=config.norm_eps)
