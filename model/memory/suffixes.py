"""Retrieval by suffixes: the places of the bank that repeat most of what the text has just said.

Axes: B batch · T position · X cached tokens, then new ones · S places per position · L tokens per entry
      Y tokens read after a place
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import initialization as init

from common.constants import NO_ENTRY, PADDING

from ..ops import read_places
from ..ops.own_places import Own
from .entry_tokens import lay_out_tokens
from .interfaces import ForwardPass, Found, MemoryContext, Retrieval, read_first
from .ngram_index import Matches
from .suffix_index import SuffixConfig, SuffixIndex
from .text import TextSearchConfig, previous, remember, starts, text_so_far, tokens_in_common


class Suffixes(Retrieval):
    """`search` finds the places for all blocks, which read the tokens after each.

    The log-weight of a place is `score_scale` times the number of tokens that it has in common with the text. With
    `suffix_often` the last places stand for counted tokens: the logarithms of their shares are added.
    """

    index_class = SuffixIndex
    leaves_out_own = True

    @dataclass(frozen=True)
    class Config(SuffixConfig, TextSearchConfig):
        def check(self) -> None:
            SuffixConfig.check(self)
            TextSearchConfig.check(self)

    def __init__(self, config: Config):
        super().__init__(config)
        self.score_scale = nn.Parameter(torch.empty(()))
        if config.n_counted:
            self.share_scale = nn.Parameter(torch.empty(()))

    def init_parameters(self) -> None:
        init.constant_(self.score_scale, 2.0)  # a token more in common outweighs all other places
        if self.config.n_counted:
            init.zeros_(self.share_scale)

    @classmethod
    def tokens_read(cls, config: Config) -> int:
        return config.suffix_tokens

    @classmethod
    def groups(cls, config: Config) -> list[int]:
        counted = [config.suffix_often_tokens] * len(config.suffix_often or [])
        return [config.num_selected - config.n_counted, *counted]

    @classmethod
    def search_text(cls, config: Config, bank, input_BT: Tensor, document_BT: Tensor | None) -> Matches:
        """Places and the tokens that match, as the entries and scores of `Matches`."""
        own_BT = None if bank.document is None else document_BT
        return Matches(*find_places(config, bank, input_BT, starts(input_BT, document_BT), input_BT.shape[1], own_BT))

    @classmethod
    @torch.no_grad()
    def search(cls, config: Config, bank, inputs: ForwardPass, lay_out: bool) -> Found:
        input_BT, cache, layer, T = inputs.input_BT, inputs.cache, inputs.text_layer, inputs.input_BT.shape[1]
        text_BX, start_BX, _ = text_so_far(input_BT, inputs.visible.document_BX, cache, layer, config.text_compared)
        remember(input_BT, cache, layer)
        if inputs.matches is None:
            place_BTS, score_BTS = find_places(config, bank, text_BX, start_BX, T)
        else:
            place_BTS, score_BTS = inputs.matches
        L = config.knowledge_length
        if inputs.oracle_B is not None:
            oracle_BX, _ = place_in_entry(bank.tokens, inputs.oracle_B, text_BX, start_BX, config.suffix_length)
            certain = config.suffix_length  # as if it repeated all that is compared
            sizes = [config.num_selected - config.n_counted, config.n_counted]
            (place_BTS, *places), (score_BTS, *scores) = place_BTS.split(sizes, -1), score_BTS.split(sizes, -1)
            place_BTS, score_BTS = read_first(oracle_BX[:, -T:, None], place_BTS, score_BTS, certain, 0)
            place_BTS, score_BTS = (torch.cat(x, dim=-1) for x in ([place_BTS, *places], [score_BTS, *scores]))
        entry_BTS, token_BTS, missing_BTS, log_weight_BTS, log_share_BTS = read_places(
            place_BTS, score_BTS, bank.tokens
        )
        token_BTSY, tokens = token_BTS[..., None], None
        if lay_out or config.suffix_tokens > 1:
            begin_BTS, Y = place_BTS.clamp(min=0) % L - 1, config.suffix_tokens
            index_BTSX = begin_BTS[..., None] + torch.arange(Y + 2, device=begin_BTS.device)  # two tokens before, and Y
            token_BTSX = bank.tokens[entry_BTS[..., None], index_BTSX.clamp(min=0, max=L - 1)].long()
            outside_BTSX = (index_BTSX < 0) | (index_BTSX >= L) | missing_BTS[..., None]
            before_BTS2, token_BTSY = token_BTSX.masked_fill(outside_BTSX, PADDING).split([2, Y], dim=-1)
            if lay_out:
                text = input_BT, previous(text_BX, start_BX)[:, -T:]
                tokens = lay_out_tokens(token_BTSY, place_BTS, *text, before_BTS2)
        if not config.n_counted:
            log_share_BTS = None
        return Found(entry_BTS, token_BTSY, log_weight_BTS, missing_BTS, tokens, None, False, log_share_BTS)

    def forward(self, x_BTD: Tensor, context: MemoryContext) -> tuple[Found, dict[str, Tensor]]:
        found = context.shared if context.places is None else context.places
        log_weight_BTS = self.score_scale * found.log_weight_BTS
        if found.log_share_BTS is not None:
            log_weight_BTS = log_weight_BTS + self.share_scale * found.log_share_BTS
        return found._replace(log_weight_BTS=log_weight_BTS), {}


def find_places(
    config: Suffixes.Config, bank, text_BX: Tensor, start_BX: Tensor, T: int, own_BT: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Places and scores (B, T, S) at the last T positions: `SuffixIndex.find`, then `count_next` as the flags say.

    Args:
        own_BT: the document of each position; instead of places in entries that were cut from it others are given.
    """
    index, shuffle = bank.index(SuffixIndex), config.bank_control == "shuffled"
    past = min(text_BX.shape[1], T + config.suffix_length)  # what the longest suffix may reach
    text = text_BX[:, -past:], start_BX[:, -past:]
    own = None if own_BT is None else Own(bank.document, bank.tokens.shape[1], own_BT.flatten())
    sizes = config.num_selected - config.n_counted, config.num_candidates
    place_BTS, score_BTS = index.find(*text, T, *sizes, shuffle, own)
    if not config.n_counted:
        return place_BTS, score_BTS
    counted = index.count_next(text_BX, start_BX, T, shuffle, own)
    return torch.cat([place_BTS, counted.place], dim=-1), torch.cat([score_BTS, counted.score], dim=-1)


def place_in_entry(
    token_NL: Tensor, entry_B: Tensor, text_BX: Tensor, start_BX: Tensor, most: int
) -> tuple[Tensor, Tensor]:
    """Of one entry, the place that repeats most of the text; that of its first token where none does.

    Returns:
        place_BX: int64, NO_ENTRY without an entry.  matched_BX: int64.
    """
    L, token_BL = token_NL.shape[1], token_NL[entry_B.clamp(min=0)].long()
    document_BX = start_BX.int().cumsum(dim=1)
    matched_BXL = tokens_in_common(token_BL[:, None, None], text_BX, document_BX, most)[:, :, 0]
    has_next_BL = F.pad(token_BL[:, 1:], (0, 1), value=PADDING) != PADDING
    matched_BX, place_BX = matched_BXL.masked_fill(~has_next_BL[:, None], 0).max(dim=-1)
    return (entry_B[:, None] * L + place_BX).where(entry_B[:, None] >= 0, NO_ENTRY), matched_BX
