"""Fusion of continuations: what follows the found places, one distribution for each token after them.

Axes: B batch · T position · D width · V vocabulary · S places per position, in groups · Y tokens read after a place
      R width of queries, keys and values
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import initialization as init

from common.constants import MASKED, PADDING
from common.flags import flag

from ..base_config import MemoryConfig
from ..layers import DerivedWeights, StreamLinear
from ..ops import score_words, sum_words
from .interfaces import Found, Fusion, MemoryContext


class ContinuationFusion(Fusion):
    """For each distance y, attention to the y-th token after each of the S places, or to nothing; their values add up.

    A logit is the product of a query with the token's key, and the retrieval's log-weight. Equal tokens add up: the
    first distance is an estimate of the next token. Counted tokens (`--suffix_often`) are another estimate.
    """

    prepares = frozenset({"unit_embeddings"})
    trains_one_entry = True

    @dataclass(frozen=True)
    class Config(MemoryConfig):
        continuation_dim: int = flag(64, "width of queries, keys and values of the tokens read", within=(1, None))

    def __init__(self, config: Config, memory_index: int):
        super().__init__(config, memory_index)
        R, Y = config.continuation_dim, config.retrieval_class.tokens_read(config)
        self.q_proj = nn.Linear(config.dim, R, bias=False)
        self.k_proj = nn.Linear(config.dim, R, bias=False)
        self.v_proj = nn.Linear(config.dim, R, bias=False)
        self.groups = config.retrieval_class.groups(config)
        self.nothing = nn.Linear(config.dim, len(self.groups) * Y)
        self.out_proj = StreamLinear(len(self.groups) * Y * R, config.dim, bias=False)
        self.derived = DerivedWeights()

    def init_parameters(self) -> None:
        init.zeros_(self.nothing.weight)
        init.constant_(self.nothing.bias, 2.0)

    def forward(self, x_BTD: Tensor, found: Found, context: MemoryContext) -> tuple[Tensor, Tensor]:
        unit_VD, R = context.unit_embedding_VD, self.q_proj.out_features
        key_VR, value_VR = self.derived(
            lambda: [project(unit_VD) for project in (self.k_proj, self.v_proj)],
            unit_VD, self.k_proj.weight, self.v_proj.weight,
        )  # fmt: skip
        token_BTYS = found.token_BTSL.long().transpose(-1, -2)
        query_XR = (self.q_proj(x_BTD) * R**-0.5).flatten(0, 1)
        logit_BTYS = score_words(query_XR, key_VR, token_BTYS.reshape(len(query_XR), -1)).view(token_BTYS.shape)
        logit_BTYS = logit_BTYS + found.log_weight_BTS[:, :, None]
        logit_BTYS = logit_BTYS.masked_fill(token_BTYS == PADDING, MASKED)
        read, weights = [], []
        nothing = self.nothing(x_BTD).float().split(token_BTYS.shape[2], dim=-1)
        groups = (x.split(self.groups, dim=-1) for x in (logit_BTYS, token_BTYS))
        for nothing_BTY, logit_BTYS, token_BTYS in zip(nothing, *groups, strict=True):
            attention_BTYS = torch.cat([logit_BTYS, nothing_BTY[..., None]], dim=-1).softmax(dim=-1)[..., :-1]
            read_XR = sum_words(attention_BTYS.flatten(0, 2), value_VR, token_BTYS.flatten(0, 2))
            read.append(read_XR.view(*x_BTD.shape[:2], -1))
            weights.append(attention_BTYS.detach().mean(dim=2) / len(self.groups))
        return self.out_proj(torch.cat(read, dim=-1)), torch.cat(weights, dim=-1)
