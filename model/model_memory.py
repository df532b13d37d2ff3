"""The memory model: blocks that look up short texts in a bank and read them, at every position.

Axes: B batch · T position · D width · N bank entries = R*R · R sub-keys per half · K sub-key width D/2
      L tokens per entry · C candidates · S selected entries
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from transformers import initialization as init

from .clustering import cached_content_order, content_keys
from .config import MemoryHFConfig, ModelConfig
from .fusion import FUSIONS, fusion_mask
from .layers import Context, Visibility, make_norm
from .losses import balance_loss, diversity_loss, similarity_loss
from .memory_bank import ROWS_AT_ONCE, MemoryBank
from .model_original import Block, Transformer
from .retrieval import cosine_to_entries, entry_vectors, mixed_entries, product_key_topk, select


class Reading(NamedTuple):
    """What one block read at every position: entry_BTS int64, weight_BTS (sum 1), and query_BTD that chose them."""

    entry_BTS: Tensor
    weight_BTS: Tensor
    query_BTD: Tensor


@dataclass
class MemoryContext(Context):
    """The bank as the blocks see it, and the mask of the fusion."""

    token_NL: Tensor
    norm_N: Tensor | None  # lengths of the entries' vectors, where a cosine is asked for
    embedding_VD: Tensor
    fusion_mask: object


class MemoryBlock(Block):
    """Attention, then the memory in the place of the feed-forward, or beside it with `keep_ffn`."""

    def __init__(self, config: ModelConfig, layer: int, memory_index: int):
        super().__init__(config, layer, has_ffn=config.keep_ffn)
        self.config = config
        self.memory_norm = make_norm(config)
        self.query_proj = nn.Linear(config.dim, config.dim, bias=False)
        self.keys_2RK = nn.Parameter(torch.empty(2, config.grid_side, config.dim // 2))
        # Mean embeddings start near 0.007; the epsilon of the other norms would shrink them.
        self.entry_norm = nn.RMSNorm(config.dim, eps=1e-8)
        self.fusion = FUSIONS[config.fusion](config, memory_index)
        self.fusion_dropout = nn.Dropout(config.fusion_dropout)

    def forward(self, x_BTD: Tensor, context: MemoryContext) -> tuple[Tensor, dict[str, Tensor], Reading]:
        h_BTD = x_BTD + self.attention(self.attention_norm(x_BTD), context)
        memory_BTD, aux, reading = self.read_memory(self.memory_norm(h_BTD), context)
        out_BTD = h_BTD + memory_BTD
        if self.config.keep_ffn:
            ffn_BTD, ffn_aux = self.feed_forward(self.ffn_norm(h_BTD))
            out_BTD, aux = out_BTD + ffn_BTD, aux | ffn_aux
        return out_BTD, aux, reading

    def read_memory(self, x_BTD: Tensor, context: MemoryContext) -> tuple[Tensor, dict[str, Tensor], Reading]:
        """Query, retrieve, select, read, fuse: in that order."""
        query_BTD = self.query_proj(x_BTD)
        query_BT2K = query_BTD.unflatten(-1, (2, -1))
        score_BT2R = torch.einsum("btpk,prk->btpr", query_BT2K, self.keys_2RK) * query_BT2K.shape[-1] ** -0.5
        score_BTC, entry_BTC, index_BT2C = product_key_topk(score_BT2R, self.config.num_candidates)
        log_weight_BTC = score_BTC.float().log_softmax(dim=-1)
        aux = {"balance": balance_loss(score_BT2R, index_BT2C)} if self.config.balance_loss_coef else {}

        if self.config.uses_cosine:
            log_weight_BTC, cosine_aux = self.rescore(query_BTD, entry_BTC, log_weight_BTC, context)
            aux |= cosine_aux
        slot_BTS, log_weight_BTS = select(log_weight_BTC, self.config, self.training)
        entry_BTS = entry_BTC.gather(-1, slot_BTS)

        token_XL = context.token_NL[entry_BTS.flatten()].long()
        memory_XD = self.entry_norm(entry_vectors(token_XL, context.embedding_VD))
        memory_BTSD = memory_XD.view(*entry_BTS.shape, -1)

        fused_BTD = self.fusion(x_BTD, memory_BTSD, log_weight_BTS, context.fusion_mask, context.cache)
        reading = Reading(entry_BTS, log_weight_BTS.detach().exp(), query_BTD.detach())
        return self.fusion_dropout(fused_BTD), aux, reading

    def rescore(self, query_BTD: Tensor, entry_BTC: Tensor, log_weight_BTC: Tensor, context: MemoryContext):
        """The candidates' weights after their texts were compared with the query, and the losses of that comparison.

        The product-key score stays in the sum, as a prior: without it the language-model loss could not train the keys.
        """
        config = self.config
        token_BTCL, norm_BTC = context.token_NL[entry_BTC].long(), context.norm_N[entry_BTC]
        cosine_BTC = cosine_to_entries(query_BTD, token_BTCL, norm_BTC, context.embedding_VD)
        if config.selection != "product_key":
            log_weight_BTC = (log_weight_BTC + cosine_BTC / config.cosine_temperature).log_softmax(dim=-1)

        aux = {}
        if config.similarity_loss_coef:
            aux["similarity"] = similarity_loss(cosine_BTC, log_weight_BTC)
        if config.diversity_loss_coef:
            unit_BTC = log_weight_BTC.exp() / norm_BTC.clamp(min=1e-6)
            mixture_BTD = mixed_entries(token_BTCL, unit_BTC, context.embedding_VD.detach())
            aux["diversity"] = diversity_loss(mixture_BTD, log_weight_BTC)
        return log_weight_BTC, aux


class MemoryTransformer(Transformer):
    """`model_memory`: the baseline with a MemoryBlock in each of `memory_layers`; with none it is the baseline."""

    config_class = MemoryHFConfig

    def __init__(self, config: MemoryHFConfig):
        super().__init__(config)
        self.bank = MemoryBank(self.settings)

    def make_block(self, layer: int) -> nn.Module:
        if layer not in self.settings.reading_layers:
            return super().make_block(layer)
        return MemoryBlock(self.settings, layer, self.settings.reading_layers.index(layer))

    def make_context(self, visible: Visibility, **shared) -> Context:
        """The bank and the words as the blocks of one forward pass see them."""
        embedding_VD = self.embedding.weight
        norm_N = self.bank.norms(embedding_VD) if self.settings.uses_cosine else None
        if torch.is_autocast_enabled(embedding_VD.device.type):
            embedding_VD = embedding_VD.to(torch.get_autocast_dtype(embedding_VD.device.type))
        return MemoryContext(
            visible=visible, token_NL=self.bank.tokens, norm_N=norm_N, embedding_VD=embedding_VD,
            fusion_mask=fusion_mask(visible, self.settings), **shared,
        )  # fmt: skip

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, MemoryBlock):
            init.normal_(module.keys_2RK)

    @torch.no_grad()
    def order_by_content(self, cache_path: str) -> Tensor:
        """Order the bank so that rows and columns of the grid are clusters, and start every block's sub-keys from them.

        Returns:
            (N,) int64: which of the given entries now stands in each place.
        """
        rows = torch.arange(len(self.bank.tokens), device=self.device).split(ROWS_AT_ONCE)
        vector_ND = torch.cat([self.bank.vectors(row_X, self.embedding.weight) for row_X in rows])
        order_N = cached_content_order(cache_path, self.bank.tokens, vector_ND, self.settings.grid_side).to(self.device)
        self.bank.tokens.copy_(self.bank.tokens[order_N])
        keys_2RK = content_keys(vector_ND[order_N], self.settings.grid_side)
        for layer in self.settings.reading_layers:
            self.blocks[layer].keys_2RK.copy_(keys_2RK)
        return order_N.cpu()

    @torch.no_grad()
    def rewrite_bank(self, readings: list[Reading | None]) -> int:
        """Rewrite unfrozen entries toward the queries that read them; returns how many rows changed."""
        read = [reading for reading in readings if reading is not None]
        entry_X = torch.cat([reading.entry_BTS.flatten() for reading in read])
        query_XD = torch.cat(
            [reading.query_BTD.repeat_interleave(self.settings.num_selected, dim=1).flatten(0, 1) for reading in read]
        )
        return self.bank.rewrite(entry_X, query_XD, self.embedding.weight)
