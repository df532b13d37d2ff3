"""Fusion token by token: attention to the tokens of entries in a block, and a pointer that copies them.

Axes: B batch · T position · D width · V vocabulary · S entries per position · L tokens per entry · W = S*L tokens
      R width of the queries, keys and values

The keys and values of tokens are rows of a projected embedding table of V rows (`ops/token_match.py`).
Related: See et al. 2017, arXiv:1704.04368 (pointer-generator); Merity et al. 2016, arXiv:1609.07843 (pointer sentinel
mixture); Olsson et al. 2022 (induction: copy what followed the matching token).
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import initialization as init

from common.constants import MASKED
from common.flags import flag

from ..base_config import MemoryConfig
from ..layers import INIT_STD, DerivedWeights, StreamLinear, project_together
from ..losses import NEVER
from ..ops import match_tokens, sum_tokens
from ..ops.entry_layout import PLACES
from .entry_tokens import EntryTokens, lay_out_tokens, unsaid_before, weight_of_entries
from .interfaces import Found, Fusion, MemoryContext

MOST_SCALE = 4  # of what the state makes of the scores of found entries


@dataclass(frozen=True)
class PlaceConfig(MemoryConfig):
    """The flag for places of tokens."""

    token_places: bool = flag(
        False,
        "queries also compare the place of a token: its distance from the entry's end, and whether it and the token "
        "before it stand in the recent text (fusion coverage counts them)",
        needs="--retrieval ngram|bm25|word_keys",
    )  # fmt: skip


@dataclass(frozen=True)
class BlockConfig(PlaceConfig):
    """Flags of the fusions of entries that the text has found."""

    block_selected: int | None = flag(
        None, "entries that a block reads: the first of the --num_selected that the pointer reads; None: all",
        within=(1, "num_selected"),
        needs=["--fusion words|coverage", "--pointer: without it, a smaller --num_selected does the same"],
    )  # fmt: skip

    @property
    def n_block_entries(self) -> int:
        return self.block_selected or self.num_selected


@dataclass(frozen=True)
class TokenConfig(PlaceConfig):
    """Flags of attention to tokens: in the fusion, and in the pointer."""

    word_key_dim: int = flag(
        64, "width of the queries and keys that compare a position with the tokens of its entries", within=(1, 256)
    )
    unsaid_tokens: bool = flag(
        False,
        "a token counts less, the more its entry says before it that the recent text has not said; each token of the "
        "vocabulary has a learned weight",
        needs="--retrieval ngram|bm25|word_keys",
    )  # fmt: skip

    @property
    def compares_with_text(self) -> bool:
        """Whether a reader asks which tokens of an entry stand in the recent text."""
        return self.token_places or self.unsaid_tokens


class TokenAttention(nn.Module):
    """Attention of a position to the tokens of its entries, or to nothing.

    The logit of a token is the sum of: the product of a query with its key and with that of the token before it; a
    learned bias if it would continue the text; the retrieval's log-weight of its entry; the mean product of a second
    query with the keys of its entry's tokens; with `token_places` the product of the query with the key of its place;
    with `unsaid_tokens`, less what its entry says before it and the text has not said: another subject, most often.
    The second query and the keys of places start near zero: the ranking starts as the retrieval's, less what is unsaid.
    """

    def __init__(self, config: TokenConfig):
        super().__init__()
        self.q_proj = nn.Linear(config.dim, config.word_key_dim, bias=False)
        self.k_proj = nn.Linear(config.dim, config.word_key_dim, bias=False)
        self.previous_k_proj = nn.Linear(config.dim, config.word_key_dim, bias=False)
        self.entry_q_proj = nn.Linear(config.dim, config.word_key_dim, bias=False)
        self.entry_k_proj = nn.Linear(config.dim, config.word_key_dim, bias=False)
        self.follows_bias = nn.Parameter(torch.empty(2))
        self.nothing = nn.Linear(config.dim, 1)
        if config.token_places:
            self.place_key_PR = nn.Parameter(torch.empty(PLACES, config.word_key_dim))
            self.place_bias_P = nn.Parameter(torch.empty(PLACES))
        if config.unsaid_tokens:
            self.unsaid = nn.Linear(config.dim, 1)
        self.has_places, self.has_unsaid = config.token_places, config.unsaid_tokens
        self.derived, self.asking = DerivedWeights(), DerivedWeights()

    def ask(self, x_BTD: Tensor, *more: nn.Linear) -> tuple[Tensor, ...]:
        """What `forward` takes of the states: both queries and the logit of nothing; then what more layers make."""
        return project_together([self.q_proj, self.entry_q_proj, self.nothing, *more], x_BTD, self.asking)

    def forward(
        self, asked: tuple[Tensor, ...], tokens: EntryTokens, log_weight_BTS: Tensor, unit_embedding_VD: Tensor,
        once_said_BTS: Tensor | None = None, is_seen_BT1: Tensor | None = None, opened_BT1: Tensor | None = None,
        unsaid_scale_BTS: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """(B, T, W) float32, the attention to each token; a row sums to 1 less the attention to nothing.

        Args:
            asked: the first three results of `ask`.
            once_said_BTS: nats for the tokens of an entry where all before them is said, fewer where some is unsaid.
            is_seen_BT1: 0 where the products with the keys of tokens do not count, 1 elsewhere.
            opened_BT1: nats that are taken from the logit of nothing.
            unsaid_scale_BTS: what multiplies the nats that an entry's tokens lose for what is unsaid.
        """
        S = tokens.entry_BTS.shape[-1]
        query_BTR, entry_query_BTR, nothing_BT1 = asked
        query_BTR = place_query_BTR = query_BTR * self.q_proj.out_features**-0.5
        entry_query_BTR = entry_query_BTR * (4 * self.q_proj.out_features**-0.5)
        if is_seen_BT1 is not None:
            query_BTR, entry_query_BTR = (x * is_seen_BT1.to(x.dtype) for x in (query_BTR, entry_query_BTR))
        projections = [
            self.k_proj,
            self.previous_k_proj,
            self.entry_k_proj,
            *([self.unsaid] if self.has_unsaid else []),
        ]
        parameters = unit_embedding_VD, *(p for project in projections for p in project.parameters())
        key_VR, previous_key_VR, entry_key_VR, *unsaid_V1 = self.derived(
            lambda: [x_VR.contiguous() for x_VR in project_together(projections, unit_embedding_VD)], *parameters
        )
        words = tokens.token_BTW, tokens.previous_BTW, tokens.entry_BTS
        logit_BTW, match_BTS = match_tokens(query_BTR, entry_query_BTR, key_VR, previous_key_VR, entry_key_VR, *words)
        logit_BTW = logit_BTW + self.follows_bias[0] * tokens.follows_BTW + self.follows_bias[1] * tokens.follows2_BTW
        if self.has_places:
            place_BTP = nn.functional.linear(place_query_BTR, self.place_key_PR.to(query_BTR.dtype)).float()
            logit_BTW = logit_BTW + (place_BTP + self.place_bias_P).gather(-1, tokens.place_BTW.long())
        if self.has_unsaid:
            weight_V = nn.functional.softplus(unsaid_V1[0][:, 0].float())
            unsaid_BTW = unsaid_before(weight_V, tokens)
            if unsaid_scale_BTS is not None:
                unsaid_BTW = (unsaid_BTW.unflatten(-1, (S, -1)) * unsaid_scale_BTS[..., None]).flatten(-2)
            logit_BTW = logit_BTW - unsaid_BTW
            if once_said_BTS is not None:
                more_BTSL = once_said_BTS[..., None] * (-unsaid_BTW).exp().unflatten(-1, (S, -1))
                logit_BTW = logit_BTW + more_BTSL.flatten(-2)

        entry_BTS = match_BTS / tokens.length_BTS + log_weight_BTS
        logit_BTW = (logit_BTW.unflatten(-1, (S, -1)) + entry_BTS[..., None]).flatten(-2)
        logit_BTW = logit_BTW.masked_fill(tokens.is_padding_BTW, MASKED)
        nothing_BT1 = nothing_BT1.float()
        if opened_BT1 is not None:
            nothing_BT1 = nothing_BT1 - opened_BT1
        return torch.cat([logit_BTW, nothing_BT1], dim=-1).softmax(dim=-1)[..., :-1]

    def init_parameters(self) -> None:
        init.normal_(self.entry_q_proj.weight, std=0.1 * INIT_STD)
        init.zeros_(self.nothing.weight)
        # A token that follows the text's last two beats nothing, if n-grams found its entry.
        init.constant_(self.nothing.bias, 3.0)
        init.copy_(self.follows_bias, torch.tensor([3.0, 2.0]))
        if self.has_places:
            init.normal_(self.place_key_PR, std=INIT_STD)
            init.zeros_(self.place_bias_P)
        if self.has_unsaid:
            init.zeros_(self.unsaid.weight)
            init.constant_(self.unsaid.bias, -1.0)


class TokenFusion(Fusion):
    """Adds the values of the tokens that a position attends to, and how much of that attention continues the text."""

    prepares = frozenset({"unit_embeddings", "text"})
    trains_one_entry = True

    @dataclass(frozen=True)
    class Config(TokenConfig, BlockConfig):
        word_value_dim: int = flag(
            128, "width of the values that are read from the tokens of entries (fusion words)", within=(1, None)
        )

    def __init__(self, config: Config, memory_index: int):
        super().__init__(config, memory_index)
        self.attention = TokenAttention(config)
        self.v_proj = nn.Linear(config.dim, config.word_value_dim, bias=False)
        self.follows_proj = nn.Linear(2, config.word_value_dim, bias=False)
        self.out_proj = StreamLinear(config.word_value_dim, config.dim, bias=False)
        self.derived = DerivedWeights()

    def forward(self, x_BTD: Tensor, found: Found, context: MemoryContext) -> tuple[Tensor, Tensor]:
        tokens, unit_embedding_VD = found.tokens, context.unit_embedding_VD
        if tokens is None:
            tokens = lay_out_tokens(found.token_BTSL.int(), found.entry_BTS, *context.text)
        n, S = self.config.n_block_entries, self.config.num_selected
        tokens = tokens.first(n)
        asked = self.attention.ask(x_BTD)
        attention_BTW = self.attention(asked, tokens, found.log_weight_BTS[..., :n], unit_embedding_VD)
        value_VR = self.derived(lambda: self.v_proj(unit_embedding_VD), unit_embedding_VD, self.v_proj.weight)
        read_BTR = sum_tokens(attention_BTW, value_VR, tokens.token_BTW, tokens.entry_BTS)
        continuing_BT2 = torch.stack(
            [(attention_BTW * follows).sum(dim=-1) for follows in (tokens.follows_BTW, tokens.follows2_BTW)], dim=-1
        )
        y_BTD = self.out_proj(read_BTR + self.follows_proj(continuing_BT2.to(read_BTR.dtype)))
        return y_BTD, nn.functional.pad(weight_of_entries(attention_BTW, n), (0, S - n))


class Pointer(nn.Module):
    """After the last block: the next token is copied from an entry with some probability, else drawn as always.

    It reads what the search of the text found.
    """

    prepares = frozenset({"unit_embeddings", "text"})

    @dataclass(frozen=True)
    class Config(TokenConfig):
        pointer: bool = flag(
            False, "a pointer at the end may copy the next token from an entry",
            needs="--retrieval ngram|bm25|word_keys|suffix: the pointer reads what the text has found",
        )  # fmt: skip
        pointer_scale: float = flag(
            1.0,
            "what the pointer multiplies the scores of found entries by, beside a learned scale; python -m "
            "evaluation.calibrate chooses it for a trained run",
            within=(0, None), only_with="--pointer",
        )  # fmt: skip
        pointer_edited: float = flag(
            0.0,
            "nats that the pointer adds to entries edited since the training: of entries that match alike, it copies "
            "the newer text",
            within=(0, None), only_with="--pointer", needs="--retrieval ngram|bm25|word_keys",
        )  # fmt: skip
        pointer_edited_said: bool = flag(
            False,
            "--pointer_edited counts for a token as far as the text has said what its entry says before it: not for "
            "entries about another subject",
            only_with="--pointer_edited", needs="--unsaid_tokens",
        )  # fmt: skip
        pointer_edited_unsaid: float = flag(
            0.0,
            "what is unsaid counts (1 + this) times in edited entries, also for --pointer_edited_said: an edit says "
            "little about other subjects",
            within=(0, None), only_with="--pointer", needs="--unsaid_tokens",
        )  # fmt: skip
        pointer_state_scale: bool = flag(
            False,
            f"the learned scale of the scores depends on the state, up to {MOST_SCALE} times as large: a question can "
            "trust the search more than running text does",
            only_with="--pointer",
        )  # fmt: skip
        pointer_asked: float = flag(
            0.0,
            "nats by which the pointer copies more readily where the state's scale is e, in proportion to its "
            "logarithm, not below a scale of 1: a question in unknown words seems to have no entry; python -m "
            "evaluation.calibrate chooses it for a trained run",
            within=(0, None), only_with="--pointer_state_scale",
        )  # fmt: skip
        pointer_word_dropout: float = flag(
            0.0,
            "share of positions at which training hides from the pointer which tokens entries have, but not whether "
            "one continues the text: it learns to go by the scores, by places, and by what is unsaid",
            within=(0, 1), open_end=True, only_with="--pointer",
        )  # fmt: skip

    def __init__(self, config: Config):
        super().__init__()
        self.attention = TokenAttention(config)
        self.gate = nn.Linear(config.dim, 1)
        self.score_scale = nn.Parameter(torch.empty(()))
        self.state_scale = nn.Linear(config.dim, 1) if config.pointer_state_scale else None
        self.word_dropout = config.pointer_word_dropout
        self.scale, self.asked, self.edited = config.pointer_scale, config.pointer_asked, config.pointer_edited
        self.edited_said, self.edited_unsaid = config.pointer_edited_said, config.pointer_edited_unsaid

    def init_parameters(self) -> None:
        init.zeros_(self.gate.weight)
        init.zeros_(self.gate.bias)
        init.ones_(self.score_scale)
        if self.state_scale is not None:  # 1 at the start
            init.zeros_(self.state_scale.weight)
            init.constant_(self.state_scale.bias, -math.log(MOST_SCALE - 1))

    def forward(self, x_BTD: Tensor, found: Found, unit_embedding_VD: Tensor) -> tuple[Tensor, Tensor]:
        """(B, T, W) float32, the probability that each token is copied; what is missing to 1 is drawn.

        Then (B, T, S), without gradient: the probability that a token of each entry is.
        """
        log_weight_BTS = self.scale * self.score_scale * found.log_weight_BTS
        more = [self.gate] if self.state_scale is None else [self.gate, self.state_scale]
        query_BTR, entry_query_BTR, nothing_BT1, gate_BT1, *state = self.attention.ask(x_BTD, *more)
        gate_BT1, once_said_BTS, is_seen_BT1, opened_BT1 = gate_BT1.float(), None, None, None
        unsaid_scale_BTS = 1 + self.edited_unsaid * found.edited_BTS if self.edited_unsaid else None
        if self.state_scale is not None:
            scale_BT1 = MOST_SCALE * state[0].float().sigmoid()
            log_weight_BTS = scale_BT1 * log_weight_BTS
            if self.asked:
                opened_BT1 = self.asked * scale_BT1.clamp(min=1).log()
                gate_BT1 = gate_BT1 + opened_BT1
        if self.edited and self.edited_said:
            once_said_BTS = self.edited * found.edited_BTS
        elif self.edited:
            log_weight_BTS = log_weight_BTS + self.edited * found.edited_BTS
        if self.training and self.word_dropout:
            is_seen_BT1 = torch.rand_like(x_BTD[..., :1], dtype=torch.float32) >= self.word_dropout
        attention_BTW = self.attention(
            (query_BTR, entry_query_BTR, nothing_BT1), found.tokens, log_weight_BTS, unit_embedding_VD, once_said_BTS,
            is_seen_BT1, opened_BT1, unsaid_scale_BTS,
        )  # fmt: skip
        copy_BTW = gate_BT1.sigmoid() * attention_BTW
        return copy_BTW, weight_of_entries(copy_BTW, found.entry_BTS.shape[-1])


def mixed_log_probabilities(logits_BTV: Tensor, copy_BTW: Tensor, token_BTW: Tensor) -> Tensor:
    """(B, T, V) float32: ln p of every next token, drawn from the vocabulary or copied."""
    drawn_BT1 = (1 - copy_BTW.sum(dim=-1, keepdim=True)).clamp(min=NEVER)
    log_p_BTV = logits_BTV.float().log_softmax(dim=-1) + drawn_BT1.log()
    copied_BTV = torch.zeros_like(log_p_BTV).scatter_add(-1, token_BTW.long(), copy_BTW)
    return torch.logaddexp(log_p_BTV, copied_BTV.clamp(min=NEVER).log())
