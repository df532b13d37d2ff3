"""Retrieval by product keys: each block learns which entries its positions need.

Axes: B batch · T position · D width · V vocabulary · N bank entries = R*R · R sub-keys per half · K sub-key width D/2
      L tokens per entry · C candidates · S selected entries · H the two halves of a query

The search is `ops.search_grid`. Training may supervise it: where a text is given and not to be predicted, the entry of
the best n-gram match is the right one (`RetrievalTargets`).
"""

import math
from dataclasses import dataclass
from math import isqrt
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import initialization as init

from common.constants import IGNORED, MASKED, NO_ENTRY, PADDING
from common.flags import flag, require

from ..layers import in_autocast
from ..losses import balance_loss, diversity_loss, retrieval_loss, similarity_loss
from ..ops import best_of_rows, search_grid
from ..ops.token_attention import sum_by_token
from .interfaces import ForwardPass, Found, MemoryContext, Retrieval, read_first
from .ngram_index import Matches, NgramConfig
from .ngram_search import find_matches, matches_of

TEACHER_CANDIDATES = 16  # entries that the n-gram search ranks where it only supervises


class RetrievalTargets(NamedTuple):
    """What training tells the product keys.

    Attributes:
        index_BTH: int64, row and column of the right entry in the grid, IGNORED where it is not known.
        entry_BT1: int64, an entry that is read whatever the keys propose (teacher forcing), NO_ENTRY for none.
            None: nowhere.
    """

    index_BTH: Tensor
    entry_BT1: Tensor | None


class Shared(NamedTuple):
    """The result of `ProductKeys.search`."""

    norm_N: Tensor | None  # lengths of the entries' vectors, where a cosine is needed
    targets: RetrievalTargets | None


class ProductKeys(Retrieval):
    """Query, search, compare, select: in that order."""

    has_grid = True

    @dataclass(frozen=True)
    class Config(NgramConfig):
        query_norm: bool = flag(
            False, "bring each half of a query to unit scale before it meets the sub-keys",
            needs="--retrieval product_key: n-grams have no queries",
        )  # fmt: skip
        selection: str = flag(
            "product_key",
            "how S of C candidates are selected: by product-key score, with the cosine added, or by straight-through "
            "Gumbel",
            choices=["product_key", "cosine", "gumbel"],
        )
        cosine_temperature: float = flag(
            0.1, "the cosine is divided by this before it joins the product-key score",
            only_with="--selection cosine|gumbel",
        )  # fmt: skip
        gumbel_temperature: float = flag(
            1.0, "temperature of the Gumbel softmax (selection gumbel)", only_with="--selection gumbel"
        )
        balance_loss_coef: float = flag(0.1, "weight of the sub-keys' balance loss", within=(0, None))
        similarity_loss_coef: float = flag(
            0.0, "weight of the loss that draws queries to the entries they select", within=(0, None)
        )
        diversity_loss_coef: float = flag(
            0.0, "weight of the loss that pushes a position's candidates apart", within=(0, None)
        )
        retrieval_loss_coef: float = flag(
            0.0, "weight of the retrieval supervision: cross-entropy on the sub-keys of the entry that n-grams find",
            within=(0, None), needs=["--retrieval product_key", "--ema_interval 0: n-grams do not follow the update"],
        )  # fmt: skip
        teacher_forcing: float = flag(
            0.0,
            "share of the positions with an n-gram match at which training reads that entry, whatever the keys propose",
            within=(0, 1), needs="--retrieval_loss_coef",
        )  # fmt: skip

        def check(self) -> None:
            R = isqrt(self.knowledge_num)
            require(
                R * R == self.knowledge_num,
                f"--knowledge_num {self.knowledge_num} is not a square (product keys span a square grid); "
                f"the nearest are {R * R} and {(R + 1) ** 2}, and auto takes all sentences of the knowledge file",
            )
            require(self.dim % 2 == 0, f"--dim {self.dim} must be even: a query has two halves")
            require(
                self.num_candidates <= R,
                f"--num_candidates {self.num_candidates} must lie in [1, {R}], the side of the grid of entries",
            )
            # A softmax over a single entry is the constant 1: the language-model loss could not train the retrieval.
            require(
                self.num_selected > 1 or self.selection == "gumbel",
                f"--num_selected 1 cannot be trained with --selection {self.selection}; take 2 or more, or gumbel",
            )
            if self.retrieval_loss_coef:
                NgramConfig.check(self)

        @property
        def grid_side(self) -> int:
            """R: sub-keys in each of the two sets."""
            return isqrt(self.knowledge_num)

        @property
        def teaches_retrieval(self) -> bool:
            """Whether training tells the product keys which entry is right."""
            return self.reads_bank and self.retrieval_loss_coef > 0

        def needs_cosine(self, with_losses: bool = True) -> bool:
            """Whether a candidate's cosine with the query is needed: to select by it, or for a loss."""
            has_losses = self.similarity_loss_coef > 0 or self.diversity_loss_coef > 0
            return self.selection != "product_key" or (with_losses and has_losses)

    def __init__(self, config: Config):
        super().__init__(config)
        self.query_proj = nn.Linear(config.dim, config.dim, bias=False)
        self.keys_2RK = nn.Parameter(torch.empty(2, config.grid_side, config.dim // 2))

    def init_parameters(self) -> None:
        init.normal_(self.keys_2RK)

    @classmethod
    def refresh(cls, config: Config, bank, embedding_VD: Tensor) -> None:
        if config.needs_cosine():
            bank.norms(embedding_VD)

    @classmethod
    def searches_text(cls, config: Config) -> bool:
        return config.teaches_retrieval

    @classmethod
    def search_text(cls, config: Config, bank, input_BT: Tensor, document_BT: Tensor | None) -> Matches | None:
        if not config.teaches_retrieval:
            return None
        return find_matches(bank.ngrams(), input_BT, document_BT, n_kept=TEACHER_CANDIDATES)[0].best(1)

    @classmethod
    def search(cls, config: Config, bank, inputs: ForwardPass, lay_out: bool) -> Shared:
        norm_N = bank.norms(inputs.embedding_VD) if config.needs_cosine(inputs.needs_losses) else None
        supervised = inputs.training and config.teaches_retrieval and inputs.labels_BT is not None
        return Shared(norm_N, retrieval_targets(config, bank, inputs) if supervised else None)

    def forward(self, x_BTD: Tensor, context: MemoryContext) -> tuple[Found, dict[str, Tensor]]:
        config, (norm_N, targets) = self.config, context.shared
        query_BTD = self.make_query(x_BTD)
        score_BT2R = self.score_sub_keys(query_BTD)
        balanced = context.needs_losses and config.balance_loss_coef > 0
        scale = self.keys_2RK.shape[-1] ** -0.5
        score_BTC, entry_BTC, usage = search_grid(score_BT2R, config.num_candidates, balanced, scale)
        aux = {"balance": balance_loss(*usage)} if usage else {}
        if targets:
            aux["retrieval"] = retrieval_loss(score_BT2R * scale, targets.index_BTH)
        if norm_N is not None:
            score_BTC, cosine_aux = self.compare(query_BTD, entry_BTC, score_BTC, context)
            aux |= cosine_aux
            if targets and config.selection != "product_key":
                slot_BT1 = self.slot_of_target(entry_BTC, targets.index_BTH)
                aux["retrieval"] = aux["retrieval"] + retrieval_loss(score_BTC[:, :, None], slot_BT1)
        entry_BTS, log_weight_BTS = select(entry_BTC, score_BTC, config, self.training)
        forced_BT1 = targets.entry_BT1 if targets else None
        if context.oracle_B is not None:
            forced_BT1 = context.oracle_B[:, None, None]
        if forced_BT1 is not None:
            entry_BTS, score_BTS = read_first(forced_BT1, entry_BTS, log_weight_BTS, 0.0, MASKED)
            entry_BTS = entry_BTS.clamp(min=0)
            log_weight_BTS = torch.where(forced_BT1 == NO_ENTRY, log_weight_BTS, score_BTS.log_softmax(dim=-1))
        token_BTSL = context.bank_token_NL[entry_BTS.flatten()].view(*entry_BTS.shape, -1)
        return Found(entry_BTS, token_BTSL, log_weight_BTS, query_BTD=query_BTD.detach()), aux

    def score_sub_keys(self, query_BTD: Tensor) -> Tensor:
        """(B, T, 2, R): the product of each half of a query with the sub-keys of that half."""
        query_2MK = query_BTD.flatten(0, 1).unflatten(-1, (2, -1)).transpose(0, 1)
        return torch.bmm(query_2MK, self.keys_2RK.transpose(1, 2)).transpose(0, 1).unflatten(0, query_BTD.shape[:2])

    def candidates(self, query_BTD: Tensor, n: int) -> Tensor:
        """(B, T, n) int64: the n best entries by product key, best first; R where R is fewer."""
        score_BT2R = self.score_sub_keys(query_BTD.to(self.keys_2RK.dtype))
        return search_grid(score_BT2R, min(n, score_BT2R.shape[-1]))[1]

    def slot_of_target(self, entry_BTC: Tensor, index_BTH: Tensor) -> Tensor:
        """(B, T, 1) int64: the right entry's slot among the candidates, IGNORED where it is not one of them."""
        right_BT1 = index_BTH[..., :1] * self.config.grid_side + index_BTH[..., 1:]
        is_right_BTC = entry_BTC == right_BT1
        return is_right_BTC.int().argmax(dim=-1, keepdim=True).masked_fill(~is_right_BTC.any(-1, keepdim=True), IGNORED)

    def make_query(self, x_BTD: Tensor) -> Tensor:
        """The query; with `query_norm` each half of it at unit scale.

        Source: Lample et al. 2019, arXiv:1907.05242, who norm queries over the batch. Differs: over a half's own
        channels, so that no position's entries depend on other positions; without a gain, which the sub-keys have.
        """
        query_BTD = self.query_proj(x_BTD)
        if not self.config.query_norm:
            return query_BTD
        query_BT2K = query_BTD.unflatten(-1, (2, -1))
        return in_autocast(F.rms_norm(query_BT2K, query_BT2K.shape[-1:], eps=self.config.norm_eps).flatten(-2))

    def compare(self, query_BTD: Tensor, entry_BTC: Tensor, score_BTC: Tensor, context: MemoryContext):
        """The candidates' scores with the cosine of query and entry, and the losses of that comparison.

        The product-key score stays in the sum, as a prior: without it the language-model loss could not train the keys.
        """
        config = self.config
        token_BTCL, norm_BTC = context.bank_token_NL[entry_BTC].long(), context.shared.norm_N[entry_BTC]
        cosine_BTC = cosine_to_entries(query_BTD, token_BTCL, norm_BTC, context.embedding_VD)
        if config.selection != "product_key":
            score_BTC = score_BTC + cosine_BTC / config.cosine_temperature
        if not context.needs_losses:
            return score_BTC, {}

        log_weight_BTC, aux = score_BTC.log_softmax(dim=-1), {}
        if config.similarity_loss_coef:
            aux["similarity"] = similarity_loss(cosine_BTC, log_weight_BTC)
        if config.diversity_loss_coef:
            unit_BTC = log_weight_BTC.exp() / norm_BTC.clamp(min=1e-6)
            mixture_BTD = mixed_entries(token_BTCL, unit_BTC, context.embedding_VD.detach())
            aux["diversity"] = diversity_loss(mixture_BTD, log_weight_BTC)
        return score_BTC, aux


@torch.no_grad()
def retrieval_targets(config: ProductKeys.Config, bank, inputs: ForwardPass) -> RetrievalTargets:
    """The entry with the highest n-gram score at each position, as a target for the keys.

    The retrieval loss applies only at positions without a label, because n-gram matches of running text are mostly
    unrelated to it. Teacher forcing may apply anywhere.
    Related: Tay et al. 2022, arXiv:2202.06991 (a search index that is learned from its documents, under ids that mean
    something).
    """
    input_BT, labels_BT = inputs.input_BT, inputs.labels_BT
    matches, _ = matches_of(bank.ngrams(), inputs._replace(cache=None), n_kept=TEACHER_CANDIDATES)
    entry_BT1, R = matches.entry_BTC[..., :1], config.grid_side
    predicted_BT1 = ((labels_BT != IGNORED) | (input_BT == PADDING))[..., None]
    unknown_BT1 = (entry_BT1 == NO_ENTRY) | predicted_BT1
    index_BTH = torch.cat([entry_BT1 // R, entry_BT1 % R], dim=-1).masked_fill(unknown_BT1, IGNORED)
    if not config.teacher_forcing:
        return RetrievalTargets(index_BTH, None)
    free_BT1 = torch.rand(entry_BT1.shape, device=entry_BT1.device) >= config.teacher_forcing
    return RetrievalTargets(index_BTH, entry_BT1.masked_fill(free_BT1, NO_ENTRY))


def cosine_to_entries(query_BTD: Tensor, token_BTCL: Tensor, norm_BTC: Tensor, embedding_VD: Tensor):
    """(B, T, C): cosine of each query and the mean embedding of each candidate's tokens.

    Worked out in logit space: <q, mean E[tok]> is the mean of (q @ E.T)[tok], so the C vectors of a position are never
    written out; `norm_BTC` holds their lengths and is a constant for the gradient.
    """
    logit_BTV = query_BTD @ embedding_VD.T
    score_BTCL = logit_BTV.gather(-1, token_BTCL.flatten(-2)).view(token_BTCL.shape).float()
    score_BTCL = score_BTCL.masked_fill(token_BTCL == PADDING, 0.0)
    length_BTC = (token_BTCL != PADDING).sum(dim=-1).clamp(min=1)
    query_norm_BT1 = query_BTD.float().norm(dim=-1, keepdim=True).clamp(min=1e-6)
    return score_BTCL.sum(dim=-1) / length_BTC / norm_BTC.clamp(min=1e-6) / query_norm_BT1


def mixed_entries(token_BTCL: Tensor, weight_BTC: Tensor, embedding_VD: Tensor) -> Tensor:
    """(B, T, D): the weighted sum of the C entries' vectors of each position, without writing the C vectors out."""
    share_BTCL = (token_BTCL != PADDING).to(weight_BTC.dtype)
    share_BTCL = share_BTCL * (weight_BTC / share_BTCL.sum(dim=-1).clamp(min=1))[..., None]
    return sum_by_token(share_BTCL.flatten(2), token_BTCL.flatten(2), embedding_VD) @ embedding_VD


def select(entry_BTC: Tensor, score_BTC: Tensor, config: ProductKeys.Config, training: bool) -> tuple[Tensor, Tensor]:
    """S of the C candidates, with the logarithm of the weight that each has in the fusion.

    product_key: the first S, for the candidates come best first; cosine: the S highest. Weights are their softmax.
    gumbel: the S largest after adding Gumbel noise (in training only). The forward weight of each is 1/S; its gradient
    is that of its log-probability among all C, so the losers learn through the normaliser (straight-through).

    Args:
        score_BTC: float32, logarithms of weights up to a constant of each position.
    Returns:
        entry_BTS: int64.  log_weight_BTS: float32.
    Source: Jang et al. 2016, arXiv:1611.01144. Differs: only the winners' values enter the backward pass, which spares
    the tensor of all C candidates' vectors.
    """
    S = config.num_selected
    if config.selection == "product_key":
        return entry_BTC[..., :S], score_BTC[..., :S].log_softmax(dim=-1)
    if config.selection != "gumbel":
        selected_BTS, slot_BTS = best_of_rows(score_BTC, S)
        return entry_BTC.gather(-1, slot_BTS), selected_BTS.log_softmax(dim=-1)
    noisy_BTC = score_BTC
    if training:
        # Minus the logarithm of an exponential variable is a Gumbel variable.
        noisy_BTC = score_BTC - torch.empty_like(score_BTC).exponential_().clamp(min=1e-20).log()
    slot_BTS = best_of_rows(noisy_BTC, S)[1]
    log_p_BTS = (noisy_BTC / config.gumbel_temperature).log_softmax(dim=-1).gather(-1, slot_BTS)
    return entry_BTC.gather(-1, slot_BTS), log_p_BTS - log_p_BTS.detach() - math.log(S)
