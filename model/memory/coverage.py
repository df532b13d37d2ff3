"""Fusion by coverage: how far the text has said each found entry, told to the stream; no token of an entry is read.

Where the best entry is said to its end, the text states what the bank holds; where its end is unsaid, the text says
something else, or is about to say it. The pointer (`tokens.py`) copies the words.

Axes: B batch · T position · D width · S entries per position · L tokens per entry · P places of a token
      F features of a position
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.flags import flag, require

from ..layers import StreamLinear
from ..ops.entry_layout import PLACES
from .entry_tokens import EntryTokens
from .interfaces import Found, Fusion, MemoryContext
from .tokens import BlockConfig


class CoverageFusion(Fusion):
    """A two-layer perceptron of the state, of what is said of each entry, and of the retrieval's log-weights.

    What is said of an entry are 64 counts: of its tokens by their distance from its end, by whether they stand in the
    recent text, and by whether the token before them does (`place_of_tokens`).
    """

    prepares = frozenset({"text"})
    trains_one_entry = True

    @dataclass(frozen=True)
    class Config(BlockConfig):
        coverage_dim: int = flag(256, "hidden width of the fusion by coverage", within=(1, None))

        def check(self) -> None:
            require(self.token_places or not self.reading_layers, "--fusion coverage needs --token_places")

    def __init__(self, config: Config, memory_index: int):
        super().__init__(config, memory_index)
        self.x_proj = nn.Linear(config.dim, config.coverage_dim)
        self.in_proj = nn.Linear(config.n_block_entries * (PLACES + 1), config.coverage_dim, bias=False)
        self.out_proj = StreamLinear(config.coverage_dim, config.dim, bias=False)

    def forward(self, x_BTD: Tensor, found: Found, context: MemoryContext) -> tuple[Tensor, Tensor]:
        n, S = self.config.n_block_entries, self.config.num_selected
        tokens, log_weight_BTS = found.tokens.first(n), found.log_weight_BTS[..., :n].float()
        feature_BTSX = torch.cat([counts_of_places(tokens).float(), log_weight_BTS[..., None]], dim=-1)
        feature_BTF = F.rms_norm(feature_BTSX.flatten(-2), (self.in_proj.in_features,)).to(x_BTD.dtype)
        y_BTD = self.out_proj(F.relu(self.x_proj(x_BTD) + self.in_proj(feature_BTF)).square())
        is_missing_BTS = tokens.is_padding_BTW.unflatten(-1, (n, -1)).all(dim=-1)
        weight_BTS = log_weight_BTS.detach().softmax(dim=-1).masked_fill(is_missing_BTS, 0.0)
        return y_BTD, F.pad(weight_BTS, (0, S - n))


def counts_of_places(tokens: EntryTokens) -> Tensor:
    """(B, T, S, P) int64: how many tokens of each entry have each place."""
    S = tokens.entry_BTS.shape[-1]
    place_BTSL, is_padding_BTSL = (x.unflatten(-1, (S, -1)) for x in (tokens.place_BTW, tokens.is_padding_BTW))
    place_P = torch.arange(PLACES, device=place_BTSL.device, dtype=torch.uint8)
    return ((place_BTSL[..., None] == place_P) & ~is_padding_BTSL[..., None]).sum(dim=-2)
