"""The reference of 1.4.8: the same parameters and function in the plainest PyTorch.

It scores all pairs of the two candidate lists, builds the selected entries' vectors token by token, and attends with a
dense mask. A state dict of the fast model loads into it, so that both can be trained side by side.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from common.constants import PADDING
from model.config import MemoryHFConfig, ModelConfig
from model.layers import merge_heads, split_heads
from model.memory.bank import MemoryBank
from model.memory.cross_attention import CrossAttention
from model.memory.entry_vectors import Entries
from model.memory.interfaces import Found
from model.memory.product_keys import ProductKeys
from model.model_memory import MemoryBlock, MemoryTransformer


class ReferenceFusion(CrossAttention):
    """Every score is written out; keys and values are projected one by one; the log-weight is a bias tensor."""

    def fuse(self, x_BTD: Tensor, entries: Entries, log_weight_BTS: Tensor, context) -> Tensor:
        is_token_BTSL1 = (entries.token_BTSL != PADDING)[..., None]
        vector_BTSLD = F.embedding(entries.token_BTSL, context.embedding_VD) * is_token_BTSL1
        memory_BTSD = self.entry_norm(vector_BTSLD.sum(dim=3) / is_token_BTSL1.sum(dim=3).clamp(min=1))
        B, T, S, D = memory_BTSD.shape
        source_BXD = torch.cat([x_BTD[:, :, None], memory_BTSD.to(x_BTD.dtype)], dim=2).reshape(B, T * (S + 1), D)
        bias_BX = F.pad(log_weight_BTS, (1, 0)).reshape(B, T * (S + 1))
        q_BHTE, k_BHXE, v_BHXE = (
            split_heads(projected, self.n_heads)
            for projected in (self.q_proj(x_BTD), self.k_proj(source_BXD), self.v_proj(source_BXD))
        )
        score_BHTX = (q_BHTE @ k_BHXE.transpose(-1, -2)).float() * self.head_dim**-0.5 + bias_BX[:, None, None]
        weight_BHTX = score_BHTX.masked_fill(~context.mask, float("-inf")).softmax(dim=-1)
        return self.out_proj(merge_heads(weight_BHTX.to(v_BHXE.dtype) @ v_BHXE))


class ReferenceKeys(ProductKeys):
    """Scores all pairs of the two candidate lists."""

    def forward(self, x_BTD: Tensor, context) -> tuple[Found, dict]:
        config, (B, T, D) = self.config, x_BTD.shape
        query_BTD = self.query_proj(x_BTD)
        query_BT2K = query_BTD.view(B, T, 2, D // 2)
        score_BT2R = torch.einsum("btpk,prk->btpr", query_BT2K, self.keys_2RK) * (D // 2) ** -0.5
        half_BT2C, index_BT2C = score_BT2R.topk(config.num_candidates, dim=-1)
        pair_BTX = (half_BT2C[:, :, 0, :, None] + half_BT2C[:, :, 1, None, :]).flatten(-2)
        entry_BTX = (index_BT2C[:, :, 0, :, None] * config.grid_side + index_BT2C[:, :, 1, None, :]).flatten(-2)
        score_BTC, best_BTC = pair_BTX.topk(config.num_candidates, dim=-1)
        log_weight_BTC = score_BTC.float().log_softmax(dim=-1)
        chosen_BTS, slot_BTS = log_weight_BTC.topk(config.num_selected, dim=-1)
        entry_BTS = entry_BTX.gather(-1, best_BTC).gather(-1, slot_BTS)
        log_weight_BTS = chosen_BTS.log_softmax(dim=-1)

        aux = {}
        if config.balance_loss_coef:
            probability_2R = score_BT2R.float().softmax(dim=-1).mean(dim=(0, 1))
            share_2R = F.one_hot(index_BT2C, config.grid_side).float().mean(dim=(0, 1, 3))
            aux["balance"] = config.grid_side * (share_2R * probability_2R).sum(dim=-1).mean()
        token_BTSL = context.bank_token_NL[entry_BTS].long()
        return Found(entry_BTS, token_BTSL, log_weight_BTS, query_BTD=query_BTD.detach()), aux


class ReferenceBlock(MemoryBlock):
    """A block whose retrieval and fusion are the references in plain torch."""

    def __init__(self, config: ModelConfig, layer: int, memory_index: int):
        super().__init__(config, layer, memory_index)
        self.retrieval, self.fusion = ReferenceKeys(config), ReferenceFusion(config, memory_index)


class ReferenceTransformer(MemoryTransformer):
    """`model_memory` of 1.4.8 in plain torch; its dense mask is that of the textbook."""

    def make_block(self, layer: int) -> ReferenceBlock:
        return ReferenceBlock(self.settings, layer, self.settings.reading_layers.index(layer))


def build_reference(config: ModelConfig, bank_tokens: Tensor) -> ReferenceTransformer:
    """The reference of `build_model(config, bank_tokens)`, without attention dropout, which the two would draw apart.

    Raises:
        ValueError: the configuration is not that of 1.4.8's kind.
    """
    if (config.retrieval, config.query_norm, config.selection, config.fusion, config.fusion_scope) != (
        "product_key", False, "product_key", "cross_attention", "sequence",
    ):  # fmt: skip
        raise ValueError("the reference is that of 1.4.8: product keys, cross-attention over the sequence")
    model = ReferenceTransformer(MemoryHFConfig.wrap(config))
    assert isinstance(model.bank, MemoryBank)
    model.bank.fill(bank_tokens)
    return model
