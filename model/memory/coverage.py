"""Fusion by coverage: how far the text has said each found entry, told to the stream; no token of an entry is read.

Where the best entry is said to its end, the text states what the bank holds. Where its end is unsaid, the text says
something else, or is about to say it. The pointer (`tokens.py`) copies the words.

Axes: B batch · T position · D width · S entries per position · L tokens per entry · P places of a token
      H hidden width
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.flags import flag, require

from ..layers import ALIGNED, StreamLinear
from ..ops.entry_layout import PLACES
from .entry_tokens import EntryTokens
from .interfaces import Found, Fusion, MemoryContext
from .tokens import BlockConfig


class CoverageFusion(Fusion):
    """A two-layer perceptron of the state and of what is said of an entry, summed over entries by their weights.

    Of an entry 64 numbers of tokens are known. A token is told by its distance from the end, by whether the recent text
    has it, and by whether the text has the token before it (`place_of_tokens`). All entries share the perceptron:
    the order of entries that match alike does not matter.
    Related: Zaheer et al. 2017, arXiv:1703.06114 (functions of sets).
    """

    prepares = frozenset({"text"})
    trains_one_entry = True

    @dataclass(frozen=True)
    class Config(BlockConfig):
        coverage_dim: int = flag(256, "hidden width of the fusion by coverage", within=(1, None))

        def check(self) -> None:
            require(self.token_places or not self.fused_layers, "--fusion coverage needs --token_places")

    def __init__(self, config: Config, memory_index: int):
        super().__init__(config, memory_index)
        self.x_proj = nn.Linear(config.dim, config.coverage_dim)
        self.in_proj = nn.Linear(PLACES + 1, config.coverage_dim, bias=False)
        self.out_proj = StreamLinear(config.coverage_dim, config.dim, bias=False)

    def forward(self, x_BTD: Tensor, found: Found, context: MemoryContext) -> tuple[Tensor, Tensor]:
        n, S = self.config.n_block_entries, self.config.num_selected
        tokens, log_weight_BTS = found.tokens.first(n), found.log_weight_BTS[..., :n].float()
        feature_BTSP = torch.cat([counts_of_places(tokens), log_weight_BTS[..., None]], dim=-1)
        feature_BTSP = F.rms_norm(feature_BTSP, (PLACES + 1,)).to(x_BTD.dtype)
        hidden_BTSH = F.relu(self.x_proj(x_BTD)[..., None, :] + self.of_entries(feature_BTSP)).square()
        is_missing_BTS = tokens.is_padding_BTW.unflatten(-1, (n, -1)).all(dim=-1)
        weight_BTS = log_weight_BTS.softmax(dim=-1).masked_fill(is_missing_BTS, 0.0)
        y_BTD = self.out_proj((weight_BTS[..., None].to(x_BTD.dtype) * hidden_BTSH).sum(dim=-2))
        return y_BTD, F.pad(weight_BTS.detach(), (0, S - n))

    def of_entries(self, feature_BTSP: Tensor) -> Tensor:
        """`in_proj`, with columns of zeros up to a number that suits a GPU."""
        zeros = 0, -feature_BTSP.shape[-1] % ALIGNED
        return F.linear(F.pad(feature_BTSP, zeros), F.pad(self.in_proj.weight, zeros))


def counts_of_places(tokens: EntryTokens) -> Tensor:
    """(B, T, S, P) float32: how many tokens of each entry have each place."""
    S = tokens.entry_BTS.shape[-1]
    place_BTSL, is_padding_BTSL = (x.unflatten(-1, (S, -1)) for x in (tokens.place_BTW, tokens.is_padding_BTW))
    count_BTSP = torch.zeros(*place_BTSL.shape[:-1], PLACES, device=place_BTSL.device)
    return count_BTSP.scatter_add_(-1, place_BTSL.long(), (~is_padding_BTSL).float())
