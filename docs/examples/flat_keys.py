"""Retrieval by one learned key for each entry: exact, and for small banks only.

Axes: B batch · T position · D width · N bank entries · K key width · S entries per position
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import initialization as init

from common.constants import MASKED
from common.flags import flag

from ..base_config import MemoryConfig
from .interfaces import Found, MemoryContext, Retrieval, read_first


class FlatKeys(Retrieval):
    """The S entries whose keys have the largest product with the query."""

    @dataclass(frozen=True)
    class Config(MemoryConfig):
        key_dim: int = flag(32, "width of queries and keys", within=(1, None))

    def __init__(self, config: Config):
        super().__init__(config)
        self.query_proj = nn.Linear(config.dim, config.key_dim, bias=False)
        self.keys_NK = nn.Parameter(torch.empty(config.knowledge_num, config.key_dim))

    def init_parameters(self) -> None:
        init.normal_(self.keys_NK)

    def forward(self, x_BTD: Tensor, context: MemoryContext) -> tuple[Found, dict[str, Tensor]]:
        query_BTK = self.query_proj(x_BTD)
        score_BTN = (query_BTK @ self.keys_NK.T).float() * self.config.key_dim**-0.5
        score_BTS, entry_BTS = score_BTN.topk(self.config.num_selected)
        if context.oracle_B is not None:  # the control "oracle" puts the right entry first
            oracle_B11 = context.oracle_B[:, None, None]
            entry_BTS, score_BTS = read_first(oracle_B11, entry_BTS, score_BTS, score=0.0, absent=MASKED)
            entry_BTS = entry_BTS.clamp(min=0)
        token_BTSL = context.bank_token_NL[entry_BTS].long()
        return Found(entry_BTS, token_BTSL, score_BTS.log_softmax(dim=-1), query_BTD=query_BTK.detach()), {}
