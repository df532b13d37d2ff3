"""Reading the words of entries one by one: attention over them in a block, and a pointer that copies them.

Axes: B batch · T position · D width · V vocabulary · S entries per position · L tokens per entry · W = S*L words
      R width of the word queries, keys and values

The words that the matched entries hold are known by their tokens, so their keys and values are rows of a projected
embedding table of V rows: nothing of width D is ever computed for a word. On CUDA a kernel reads those rows; in plain
torch a score is looked up in `query @ table.T`, and a read is `(attention summed by token) @ table`.
Related: See et al. 2017, arXiv:1704.04368 (pointer-generator); Merity et al. 2016, arXiv:1609.07843 (pointer sentinel
mixture); Olsson et al. 2022 (induction: what followed the matching word).
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.constants import PADDING

from ..config import ModelConfig
from ..layers import Kept, StreamLinear
from ..losses import NEVER
from ..ops import score_tokens, sum_tokens

NO_WORD = -1
HIDDEN = -1e4  # far below any logit, yet finite: a row of hidden words alone stays free of NaN


class Words(NamedTuple):
    """The words that stand in the entries of each position.

    Attributes:
        token_BTW: int64, S*L tokens, entry after entry; PADDING is not read.
        previous_BTW: the token before each word inside its entry, PADDING before the first, NO_WORD for a padding.
        follows_BTW: whether that previous token is the text's current one: the word would continue the text.
        follows2_BTW: whether the two tokens before it are the text's last two.
        is_padding_BTW: whether no word stands there.
        length_BTS: int64, how many words each entry has, at least 1.
        entry_BTS: int64, which entry that is, NO_ENTRY for none.
    """

    token_BTW: Tensor
    previous_BTW: Tensor
    follows_BTW: Tensor
    follows2_BTW: Tensor
    is_padding_BTW: Tensor
    length_BTS: Tensor
    entry_BTS: Tensor


def read_words(token_BTSL: Tensor, entry_BTS: Tensor, input_BT: Tensor, previous_BT: Tensor) -> Words:
    """Lay out the tokens of the entries read at each position, PADDING for those that are none."""
    back_BTSL = F.pad(token_BTSL[..., :-1], (1, 0), value=PADDING)
    back2_BTSL = F.pad(token_BTSL[..., :-2], (2, 0), value=PADDING)
    follows_BTSL = (back_BTSL == input_BT[..., None, None]) & (back_BTSL != PADDING)
    follows2_BTSL = follows_BTSL & (back2_BTSL == previous_BT[..., None, None]) & (back2_BTSL != PADDING)
    is_padding_BTSL = token_BTSL == PADDING
    back_BTSL = back_BTSL.masked_fill(is_padding_BTSL, NO_WORD)
    length_BTS = (~is_padding_BTSL).sum(dim=-1).clamp(min=1)
    by_word = token_BTSL, back_BTSL, follows_BTSL, follows2_BTSL, is_padding_BTSL
    return Words(*(x.flatten(-2) for x in by_word), length_BTS, entry_BTS)


class WordAttention(nn.Module):
    """Attention of a position to the words of its entries, or to nothing.

    The logit of a word is a product of a query with its own key and with that of the word before it, plus a learned
    amount if it would continue the text, plus what speaks for its entry: the retrieval's log-weight, and the mean match
    of its words with a second query. That second query starts near zero, so that the ranking starts as the retrieval's.
    """

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.entries = config.num_selected
        self.q_proj = nn.Linear(config.dim, config.word_key_dim, bias=False)
        self.k_proj = nn.Linear(config.dim, config.word_key_dim, bias=False)
        self.previous_k_proj = nn.Linear(config.dim, config.word_key_dim, bias=False)
        self.entry_q_proj = nn.Linear(config.dim, config.word_key_dim, bias=False)
        self.entry_k_proj = nn.Linear(config.dim, config.word_key_dim, bias=False)
        self.follows_bias = nn.Parameter(torch.empty(2))
        self.nothing = nn.Linear(config.dim, 1)
        self.kept = Kept()

    def forward(self, x_BTD: Tensor, words: Words, log_weight_BTS: Tensor, table_VD: Tensor) -> Tensor:
        """(B, T, W) float32, the attention to each word; a row sums to 1 less the attention to nothing."""
        query_BTR = self.q_proj(x_BTD) * self.q_proj.out_features**-0.5
        entry_query_BTR = self.entry_q_proj(x_BTD) * (4 * self.q_proj.out_features**-0.5)
        projections = self.k_proj, self.previous_k_proj, self.entry_k_proj
        key_VR, previous_key_VR, entry_key_VR = self.kept(
            lambda: [project(table_VD) for project in projections], table_VD, *(p.weight for p in projections)
        )
        logit_BTW = score_tokens(query_BTR, key_VR, words.token_BTW, words.entry_BTS, PADDING)
        logit_BTW = logit_BTW + score_tokens(query_BTR, previous_key_VR, words.previous_BTW, words.entry_BTS, NO_WORD)
        logit_BTW = logit_BTW + self.follows_bias[0] * words.follows_BTW + self.follows_bias[1] * words.follows2_BTW

        match_BTW = score_tokens(entry_query_BTR, entry_key_VR, words.token_BTW, words.entry_BTS, PADDING)
        match_BTS = match_BTW.unflatten(-1, (self.entries, -1)).sum(dim=-1)
        entry_BTS = match_BTS / words.length_BTS + log_weight_BTS
        logit_BTW = (logit_BTW.unflatten(-1, (self.entries, -1)) + entry_BTS[..., None]).flatten(-2)
        logit_BTW = logit_BTW.masked_fill(words.is_padding_BTW, HIDDEN)
        nothing_BT1 = self.nothing(x_BTD).float()
        return torch.cat([logit_BTW, nothing_BT1], dim=-1).softmax(dim=-1)[..., :-1]


class WordFusion(nn.Module):
    """Adds to the stream the words that a position attends to; how many of them continue the text comes with them."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.attention = WordAttention(config)
        self.v_proj = nn.Linear(config.dim, config.word_value_dim, bias=False)
        self.follows_proj = nn.Linear(2, config.word_value_dim, bias=False)
        self.out_proj = StreamLinear(config.word_value_dim, config.dim, bias=False)
        self.kept = Kept()

    def forward(self, x_BTD: Tensor, words: Words, log_weight_BTS: Tensor, table_VD: Tensor) -> tuple[Tensor, Tensor]:
        """What is added to the stream, and the attention (B, T, W) that it came from."""
        attention_BTW = self.attention(x_BTD, words, log_weight_BTS, table_VD)
        value_VR = self.kept(lambda: self.v_proj(table_VD), table_VD, self.v_proj.weight)
        read_BTR = sum_tokens(attention_BTW, value_VR, words.token_BTW, words.entry_BTS)
        continuing_BT2 = torch.stack(
            [(attention_BTW * follows).sum(dim=-1) for follows in (words.follows_BTW, words.follows2_BTW)], dim=-1
        )
        return self.out_proj(read_BTR + self.follows_proj(continuing_BT2.to(read_BTR.dtype))), attention_BTW


class Pointer(nn.Module):
    """The last word: the next token is copied from an entry with some probability, else drawn from the vocabulary."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.attention = WordAttention(config)
        self.gate = nn.Linear(config.dim, 1)

    def forward(self, x_BTD: Tensor, words: Words, log_weight_BTS: Tensor, table_VD: Tensor) -> Tensor:
        """(B, T, W) float32, the probability that each word is copied; what is missing to 1 is drawn."""
        return self.gate(x_BTD).float().sigmoid() * self.attention(x_BTD, words, log_weight_BTS, table_VD)


def mixed_log_probabilities(logits_BTV: Tensor, copy_BTW: Tensor, token_BTW: Tensor) -> Tensor:
    """(B, T, V) float32: ln p of every next token, drawn from the vocabulary or copied."""
    drawn_BT1 = (1 - copy_BTW.sum(dim=-1, keepdim=True)).clamp(min=NEVER)
    log_p_BTV = logits_BTV.float().log_softmax(dim=-1) + drawn_BT1.log()
    copied_BTV = torch.zeros_like(log_p_BTV).scatter_add(-1, token_BTW, copy_BTW)
    return torch.logaddexp(log_p_BTV, copied_BTV.clamp(min=NEVER).log())
