"""Fusion of continuations: what follows the found places, one distribution for each token after them.

Axes: B batch · T position · D width · V vocabulary · S places per position, in groups · Y tokens read after a place
      R width of queries, keys and values
"""

from dataclasses import dataclass

from torch import Tensor, nn
from transformers import initialization as init

from common.flags import flag

from ..base_config import MemoryConfig
from ..layers import DerivedWeights, StreamLinear, project_together
from ..ops import attend_continuations
from .interfaces import Found, Fusion, MemoryContext


class ContinuationFusion(Fusion):
    """For each distance y, attention to the y-th token after each of the S places, or to nothing; their values add up.

    A logit is the product of a query with the token's key, and the retrieval's log-weight. Equal tokens add up: the
    first distance is an estimate of the next token. Counted tokens (`--suffix_often`) are another estimate.
    """

    prepares = frozenset({"unit_embeddings"})
    trains_one_entry = True
    folds_gain = True

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
        self.derived, self.asking = DerivedWeights(), DerivedWeights()

    def init_parameters(self) -> None:
        init.zeros_(self.nothing.weight)
        init.constant_(self.nothing.bias, 2.0)

    def forward(
        self, x_BTD: Tensor, found: Found, context: MemoryContext, gain_D: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        unit_VD = context.unit_embedding_VD
        key_VR, value_VR = self.derived(
            lambda: [x_VR.contiguous() for x_VR in project_together([self.k_proj, self.v_proj], unit_VD)],
            unit_VD, self.k_proj.weight, self.v_proj.weight,
        )  # fmt: skip
        query_XR, nothing_XGY = self.ask(x_BTD, gain_D)
        read_XGYR, weight_XS = attend_continuations(
            query_XR, key_VR, value_VR, words_of(found), found.log_weight_BTS.flatten(0, 1), nothing_XGY, self.groups,
            found.order_2Z,
        )  # fmt: skip
        return self.out_proj(read_XGYR.flatten(1)).view_as(x_BTD), weight_XS.view(found.log_weight_BTS.shape)

    def ask(self, x_BTD: Tensor, gain_D: Tensor | None) -> tuple[Tensor, Tensor]:
        """Queries (X, R), and the logits of nothing (X, G, Y)."""
        query_XR, nothing_XN = project_together(
            [self.q_proj, self.nothing], x_BTD.flatten(0, 1), self.asking, gain_D
        )  # fmt: skip
        return query_XR, nothing_XN.unflatten(-1, (len(self.groups), -1))


def words_of(found: Found) -> Tensor:
    """(X, Y, S) int64: the tokens after each place, PADDING for none."""
    return found.token_BTSL.long().transpose(-1, -2).flatten(0, 1)
