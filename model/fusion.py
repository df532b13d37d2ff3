"""How the entries that were read join the residual stream: three fusions and the table that names them.

Axes: B batch · T position · D width · S entries per position · L tokens per entry · V vocabulary
      H fusion heads · E per-head width · X = S + 1 keys of a position: its state, then its entries
      P positions, cached ones included · J = P X keys · F = 2 D: a key, then its value · Y = X F

A fusion is a module called as `fusion(x_BTD, entries, log_weight_BTS, mask, cache)`, and returns what is added to the
stream. `x` is the normed state, `entries` what was read, `log_weight` the logarithm of each entry's weight: every
fusion uses it, so that the language-model loss trains the retrieval. Scope `token` reads the entries of the position
itself; `sequence` those of every position up to it in the same document. `mask` is `Visibility`'s.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .config import ModelConfig
from .layers import Kept, Runs, StreamLinear, attend, in_autocast, merge_heads, split_heads
from .memory_bank import CommonWords
from .retrieval import PADDING, entry_vectors
from .words import use_kernels

# Far below any logit, yet finite: a row whose keys are all dropped is attended to as if none were.
DROPPED = -1e4


class Entries(NamedTuple):
    """The entries read at each position. The vector of one is the mean embedding of its words, normed with a gain.

    common: words whose gradients are summed by a product; those of the others by atomics.
    """

    token_BTSL: Tensor
    embedding_VD: Tensor
    gain_D: Tensor
    eps: float
    common: CommonWords | None = None


def join(x_BTD: Tensor, entries: Entries, log_weight_BTS: Tensor | None = None) -> Tensor:
    """(B, T, X, D), contiguous, in the dtype of x: the state of each position, then the vectors of its entries.

    With log-weights, each vector is multiplied by S times its weight: those factors average 1, so that an entry enters
    at the scale of the state whatever S is.
    """
    if use_kernels(entries.embedding_VD):
        from .kernels import call
        from .kernels.join_entries import join_entries as kernel

        *words, common = entries
        return call(kernel, x_BTD, *words, log_weight_BTS, *(common or (None, None)), PADDING)
    return join_reference(x_BTD, entries, log_weight_BTS)


def join_reference(x_BTD: Tensor, entries: Entries, log_weight_BTS: Tensor | None = None) -> Tensor:
    """`join` in plain torch."""
    token_BTSL, embedding_VD, gain_D, eps, _ = entries
    vector_XD = entry_vectors(token_BTSL.flatten(0, 2), embedding_VD)
    unit_XD = F.rms_norm(vector_XD, vector_XD.shape[-1:], eps=eps)
    memory_BTSD = (unit_XD * gain_D).view(*token_BTSL.shape[:3], -1)
    if log_weight_BTS is not None:
        memory_BTSD = memory_BTSD * (token_BTSL.shape[2] * log_weight_BTS.exp()[..., None])
    return torch.cat([x_BTD[:, :, None], memory_BTSD.to(x_BTD.dtype)], dim=2)


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
        x_BTD = in_autocast(x_BTD)  # before it is copied beside its entries
        query_DD, key_value_FD = self.kept(self.projections, self.q_proj.weight, self.k_proj.weight, self.v_proj.weight)
        q_BTD = F.linear(x_BTD, query_DD)
        kv_BJF = F.linear(join(x_BTD, entries).flatten(1, 2), key_value_FD)
        drop_BHJ = None
        if self.training and self.config.attention_dropout:
            shape = len(x_BTD), self.n_heads, kv_BJF.shape[1]
            chance_BHJ = torch.rand(shape, device=x_BTD.device)
            drop_BHJ = torch.where(chance_BHJ < self.config.attention_dropout, DROPPED, 0.0)
        if self.config.fusion_scope == "token":
            out_BTD = attend_own(q_BTD, kv_BJF, log_weight_BTS, drop_BHJ, self.n_heads)
        else:
            if cache is not None:
                # A row for each position, as the cache counts and crops them.
                X, layer = entries.token_BTSL.shape[2] + 1, self.config.n_layers + self.layer
                kv_B1TY = kv_BJF.unflatten(1, (-1, X)).flatten(2)[:, None]
                kv_B1PY, log_weight_B1PS = cache.update(kv_B1TY, log_weight_BTS[:, None], layer)
                kv_BJF, log_weight_BTS = kv_B1PY[:, 0].unflatten(2, (X, -1)).flatten(1, 2), log_weight_B1PS[:, 0]
            out_BTD = attend_joined(q_BTD, kv_BJF, log_weight_BTS, drop_BHJ, mask, self.config)
        return self.out_proj(out_BTD)

    def projections(self) -> tuple[Tensor, Tensor]:
        """The weights of queries, and of keys and values, with zeros for each head's last channel of query and key."""
        query_DD, key_DD, value_DD = (in_autocast(x.weight) for x in (self.q_proj, self.k_proj, self.v_proj))
        shape = self.n_heads, self.head_dim - 1
        query_DD, key_DD = (F.pad(x.unflatten(0, shape), (0, 0, 0, 1)).flatten(0, 1) for x in (query_DD, key_DD))
        return query_DD, torch.cat([key_DD, value_DD])


def attend_joined(
    q_BTD: Tensor, kv_BJF: Tensor, log_weight_BPS: Tensor, drop_BHJ: Tensor | None, mask, config: ModelConfig
) -> Tensor:
    """softmax(q k / sqrt(E) + log-weight) v, by the heads of the fusion, over the keys that `fusion_mask` shows."""
    if isinstance(mask, Runs):
        from .kernels import call
        from .kernels.attend_entries import attend_entries as kernel

        return call(kernel, q_BTD, kv_BJF, log_weight_BPS, drop_BHJ, *mask, config.fusion_heads)[0]
    # The free channel holds sqrt(E), which the softmax scale turns into 1, and the bias.
    q_BHTE, k_BHJE, v_BHJE = (split_heads(x, config.fusion_heads) for x in (q_BTD, *kv_BJF.chunk(2, dim=-1)))
    E = q_BHTE.shape[-1]
    free_E = F.pad(q_BHTE.new_zeros(E - 1), (0, 1), value=1.0)
    k_BHJE = k_BHJE + (bias_of_keys(log_weight_BPS, drop_BHJ)[..., None] * free_E).to(k_BHJE.dtype)
    return merge_heads(attend(q_BHTE + E**0.5 * free_E, k_BHJE, v_BHJE, mask, config))


def bias_of_keys(log_weight_BPS: Tensor, drop_BHJ: Tensor | None) -> Tensor:
    """(B, 1 or H, J): what is added to the logits of each key, 0 for a state that is not dropped."""
    bias_B1J = F.pad(log_weight_BPS, (1, 0)).flatten(1)[:, None]
    return bias_B1J if drop_BHJ is None else bias_B1J + drop_BHJ


def attend_own(q_BTD: Tensor, kv_BJF: Tensor, log_weight_BTS: Tensor, drop_BHJ: Tensor | None, n_heads: int) -> Tensor:
    """The same, over the X keys of each position itself."""
    T, bias_BHJ = q_BTD.shape[1], bias_of_keys(log_weight_BTS, drop_BHJ)
    q_BTHE = q_BTD.unflatten(-1, (n_heads, -1))
    kv_BTXHE = kv_BJF.unflatten(1, (T, -1)).unflatten(-1, (2 * n_heads, -1))
    k_BTXHE, v_BTXHE = kv_BTXHE.chunk(2, dim=-2)
    score_BHTX = torch.einsum("bthe,btxhe->bhtx", q_BTHE, k_BTXHE).float() * q_BTHE.shape[-1] ** -0.5
    weight_BHTX = (score_BHTX + bias_BHJ.unflatten(-1, (T, -1))).softmax(dim=-1).to(kv_BJF.dtype)
    return torch.einsum("bhtx,btxhe->bthe", weight_BHTX, v_BTXHE).flatten(-2)


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
            # The cache keeps pairs of keys and values, and takes a layer without keys for an empty one.
            key_B1TX = weighted_BTX[:, None]
            no_value = key_B1TX[..., :0]
            weighted_BTX = cache.update(key_B1TX, no_value, self.config.n_layers + self.layer)[0][:, 0]
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


def fusion_mask(visible, config: ModelConfig, batch_size: int) -> Tensor | Runs | None:
    """What the configured fusion may see, made once per forward pass; None for scope `token`."""
    if config.fusion_scope == "token" or config.fusion == "words" or not config.reading_layers:
        return None
    if config.fusion != "cross_attention":
        return visible.mask(1, fused=False)
    if config.use_flash_attn and visible.device.type == "cuda":
        return visible.runs(batch_size)
    return visible.mask(config.num_selected + 1, fused=config.use_flash_attn)
