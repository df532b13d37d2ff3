"""Retrieval by n-grams: entries that repeat what the text has just said, found once for all blocks.

Axes: B batch · T position · S entries per position · L tokens per entry
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import initialization as init

from common.constants import NO_ENTRY, PADDING
from common.flags import flag, require

from ..ops import lay_out_entries
from .entry_tokens import EntryTokens, lay_out_tokens
from .interfaces import ForwardPass, Found, MemoryContext, Retrieval, read_first
from .ngram_index import Matches, NgramConfig, NgramIndex
from .ngram_search import find_matches, matches_of
from .text import TextSearchConfig, text_so_far


@dataclass(frozen=True)
class NoiseConfig(TextSearchConfig):
    """What retrievals have whose matches go on from one position to the next."""

    heading = "retrieval by n-grams or by words"

    retrieval_noise: float = flag(
        0.0, "share of the found entries that training replaces by random ones", within=(0, 1), open_end=True
    )
    memory_every: int | None = flag(
        None,
        "training searches, reads and copies in one of so many rows; the others learn as in a plain model (blocks of "
        "--suffix_layers read in all); None: in all",
        within=(1, None),
    )

    def check(self) -> None:
        TextSearchConfig.check(self)
        if (self.memory_every or 1) > 1 and self.fused_layers:
            require(not self.fusion_has_scope, f"--memory_every does not suit --fusion {self.fusion}; take words")
            require(self.keep_ffn, "--memory_every needs --keep_ffn: in rows that are not read it stands alone")


class Ngrams(Retrieval):
    """Each block only scales what `search` has found: its log-weights are `score_scale` * ln(1 + score)."""

    index_class = NgramIndex
    searched_together = 4  # the best matches go on from token to token, in a walk that takes as long for four batches

    @dataclass(frozen=True)
    class Config(NgramConfig, NoiseConfig):
        def check(self) -> None:
            NgramConfig.check(self)
            NoiseConfig.check(self)

    def __init__(self, config: Config):
        super().__init__(config)
        self.score_scale = nn.Parameter(torch.empty(()))

    def init_parameters(self) -> None:
        init.ones_(self.score_scale)

    @classmethod
    def search_text(cls, config: Config, bank, input_BT: Tensor, document_BT: Tensor | None) -> Matches:
        return find_matches(bank.index(cls.index_class), input_BT, document_BT)[0].best(config.num_selected)

    @classmethod
    @torch.no_grad()
    def search(cls, config: Config, bank, inputs: ForwardPass, lay_out: bool) -> Found:
        index, layer = bank.index(cls.index_class), inputs.text_layer
        if lay_out and config.compares_with_text:  # before the cache takes the new tokens
            text = text_so_far(inputs.input_BT, inputs.visible.document_BX, inputs.cache, layer, index.window - 1)[:2]
        matches, previous_BT = matches_of(index, inputs, layer)
        entry_BTS, score_BTS = matches.best(config.num_selected)
        if config.bank_control == "shuffled":
            entry_BTS = shuffled(entry_BTS, len(bank.tokens), index.shown_X)
        if inputs.oracle_B is not None:
            certain = 10 * math.log(len(bank.tokens))  # as if ten n-grams were found nowhere else
            entry_BTS, score_BTS = read_first(inputs.oracle_B[:, None, None], entry_BTS, score_BTS, certain, 0.0)
        missing_BTS, entry_BTS = entry_BTS == NO_ENTRY, entry_BTS.clamp(min=0)
        if inputs.training and config.retrieval_noise:
            noisy_BTS = torch.rand_like(score_BTS) < config.retrieval_noise
            entry_BTS = torch.where(noisy_BTS, index.random_rows(entry_BTS), entry_BTS)
        found_BTS, tokens = entry_BTS.masked_fill(missing_BTS, NO_ENTRY), None
        if lay_out and config.compares_with_text:
            *related, length_BTS, place_BTW, stands_BTW = lay_out_entries(found_BTS, bank.tokens, *text, index.window)
            tokens = EntryTokens(*related, length_BTS, found_BTS, place_BTW, stands_BTW)
            token_BTSL = tokens.token_BTW.unflatten(-1, (-1, bank.tokens.shape[1]))
        else:
            token_BTSL = bank.tokens[entry_BTS].int().masked_fill(missing_BTS[..., None], PADDING)
            if lay_out:
                tokens = lay_out_tokens(token_BTSL, found_BTS, inputs.input_BT, previous_BT)
        asks_for_edits = config.pointer and (config.pointer_edited or config.pointer_edited_unsaid)
        edited_BTS = index.stale_N[entry_BTS] & ~missing_BTS if asks_for_edits else None
        log_weight_BTS = cls.log_weight(score_BTS)
        return Found(entry_BTS, token_BTSL, log_weight_BTS, missing_BTS, tokens, None, False, edited_BTS=edited_BTS)

    @classmethod
    def log_weight(cls, score_BTS: Tensor) -> Tensor:
        return score_BTS.log1p()

    def forward(self, x_BTD: Tensor, context: MemoryContext) -> tuple[Found, dict[str, Tensor]]:
        found = context.shared
        return found._replace(log_weight_BTS=self.score_scale * found.log_weight_BTS), {}


def shuffled(entry_BTS: Tensor, n_entries: int, among_X: Tensor | None = None) -> Tensor:
    """The entries' images under one permutation of the bank, which moves neighbours far apart; NO_ENTRY stays.

    Args:
        among_X: the rows that are permuted, in ascending order; None: all.
    """
    if among_X is not None:
        at_BTS = torch.searchsorted(among_X, entry_BTS.contiguous()).clamp(max=len(among_X) - 1)
        image_BTS = shuffled(at_BTS.where(entry_BTS != NO_ENTRY, NO_ENTRY), len(among_X))
        return among_X[image_BTS.clamp(min=0)].where(entry_BTS != NO_ENTRY, NO_ENTRY)
    stride = round(0.618 * n_entries) or 1
    while math.gcd(stride, n_entries) > 1:
        stride += 1
    return ((entry_BTS * stride + n_entries // 2) % n_entries).where(entry_BTS != NO_ENTRY, NO_ENTRY)
