"""What fusions share that read an entry as one vector, the normed mean embedding of its tokens.

Axes: B batch · T position · D width · S entries per position · L tokens per entry · V vocabulary
"""

from typing import NamedTuple

from torch import Tensor, nn

from ..base_config import MemoryConfig
from ..ops import unit_entries
from ..ops.entries import CommonTokens
from .interfaces import Found, Fusion, MemoryContext


class Entries(NamedTuple):
    """The entries at each position. The vector of one is the mean embedding of its tokens, normed with a gain.

    `vectors` leaves the gain out: the weights that are applied to them are multiplied by it, channel by channel.
    """

    token_BTSL: Tensor
    embedding_VD: Tensor
    gain_D: Tensor
    eps: float
    common: CommonTokens | None = None

    def vectors(self, x_BTD: Tensor | None = None, log_weight_BTS: Tensor | None = None) -> Tensor:
        """`ops.unit_entries` of these entries."""
        return unit_entries(self.token_BTSL, self.embedding_VD, self.eps, x_BTD, log_weight_BTS, self.common)


class VectorFusion(Fusion):
    """A subclass has `fuse`.

    Every fusion uses the entries' log-weights, so that the language-model loss trains the retrieval. Scope `token`
    reads the entries of the position itself; `sequence` those of every position up to it in the same document.
    """

    prepares = frozenset({"mask", "common"})

    def __init__(self, config: MemoryConfig, memory_index: int):
        super().__init__(config, memory_index)
        # Mean embeddings start near 0.007; the epsilon of the other norms would shrink them.
        self.entry_norm = nn.RMSNorm(config.dim, eps=1e-8)

    def forward(self, x_BTD: Tensor, found: Found, context: MemoryContext) -> tuple[Tensor, Tensor]:
        norm, log_weight_BTS = self.entry_norm, found.log_weight_BTS
        if not found.is_normalised:
            log_weight_BTS = log_weight_BTS.log_softmax(dim=-1)
        entries = Entries(found.token_BTSL, context.embedding_VD, norm.weight, norm.eps, context.common)
        y_BTD = self.fuse(x_BTD, entries, log_weight_BTS, context)
        weight_BTS = log_weight_BTS.detach().exp()
        return y_BTD, weight_BTS if found.missing_BTS is None else weight_BTS * ~found.missing_BTS

    def fuse(self, x_BTD: Tensor, entries: Entries, log_weight_BTS: Tensor, context: MemoryContext) -> Tensor:
        """What is added to the stream. The weights of a position sum to 1."""
        raise NotImplementedError
