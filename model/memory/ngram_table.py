"""A hashed n-gram table: learned vectors of the last few tokens, gated into the stream of chosen blocks.

The last n tokens of each order n are hashed by several heads; each head has rows of its own, of which it reads one.
Two n-grams may collide in one head. A collision in all heads is unlikely.

Axes: B batch · T position · X positions: the T new ones, after up to O - 1 that a cache holds · D width of the stream
      O tokens of the longest order · K heads of all orders · W width of a row · U width of a position's rows, K * W

Source: Cheng et al. 2026, arXiv:2601.07372 (Engram); hashing as Svenstrup et al. 2017, arXiv:1709.03933. Differs: all
blocks share one table; token ids are not normalised to fewer; no convolution follows the gate.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import initialization as init

from common.flags import flag, require

from ..base_config import CoreConfig
from ..layers import INIT_STD, in_autocast, make_norm
from ..visibility import Visibility
from .text import previous, text_so_far

TABLE = "--ngram_table_rows"
MASK = (1 << 64) - 1
MIXER = 0xBF58476D1CE4E5B9 - (1 << 64)  # as int64; of splitmix64
HASH_BITS = 31  # of a key, before they are scaled to the rows: their product must fit into an int64


def splitmix(number: int) -> int:
    """The `number`-th output of the generator splitmix64 with seed 0: 64 bits that any version computes alike.

    Source: Steele et al. 2014, doi:10.1145/2660193.2660195.
    """
    x = (number + 1) * 0x9E3779B97F4A7C15 & MASK
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 & MASK
    x = (x ^ x >> 27) * 0x94D049BB133111EB & MASK
    return x ^ x >> 31


def multipliers(orders: list[int], n_heads: int) -> Tensor:
    """(K, O) int64: what each head multiplies the last tokens with, the newest token's last; 0 beyond its order."""
    longest, table = max(orders), []
    for order in orders:
        for head in range(n_heads):
            odd = [splitmix((order * 4096 + head) * 64 + place) | 1 for place in range(order)]
            table.append([0] * (longest - order) + [x - (1 << 64) if x >> 63 else x for x in odd])
    return torch.tensor(table, dtype=torch.int64)


def ngram_rows(token_BTO: Tensor, multiplier_KO: Tensor, n_rows: int) -> Tensor:
    """(B, T, K) int64: the row of each head, in [k * n_rows, (k + 1) * n_rows) for head k.

    A multiplicative-xor hash: products, one a token, are joined by xor, folded and mixed; the high bits choose the row.
    """
    key_BTK = token_BTO[..., :1] * multiplier_KO[:, 0]
    for place in range(1, multiplier_KO.shape[1]):
        key_BTK = key_BTK ^ (token_BTO[..., place, None] * multiplier_KO[:, place])
    key_BTK = (key_BTK ^ ((key_BTK >> 32) & 0xFFFFFFFF)) * MIXER
    hash_BTK = (key_BTK >> (64 - HASH_BITS)) & ((1 << HASH_BITS) - 1)
    first_K = torch.arange(len(multiplier_KO), device=token_BTO.device) * n_rows
    return ((hash_BTK * n_rows) >> HASH_BITS) + first_K


def last_tokens(text_BX: Tensor, start_BX: Tensor, n: int) -> Tensor:
    """(B, X, n): each token after the n - 1 before it in its document, PADDING where the document had not begun.

    Args:
        start_BX: bool, True at the first token of each document.
    """
    tokens = [text_BX]
    for _ in range(n - 1):
        tokens.append(previous(tokens[-1], start_BX))
    return torch.stack(tokens[::-1], dim=-1)


@dataclass(frozen=True)
class NgramTableConfig(CoreConfig):
    """Flags of the hashed n-gram table."""

    heading = "hashed n-gram table, of both models"

    ngram_table_rows: int = flag(
        0, "rows M of each head of a table of learned vectors for the last tokens of the text; 0: no table",
        within=(0, None),
    )  # fmt: skip
    ngram_table_heads: int = flag(
        4, "heads of the table for each order, each with a hash and rows of its own", within=(1, None),
        only_with=TABLE,
    )  # fmt: skip
    ngram_table_dim: int = flag(64, "width W of a row of the table", within=(1, None), only_with=TABLE)
    ngram_table_orders: list[int] = flag(
        [2, 3], "orders of the table: how many last tokens a row stands for", only_with=TABLE
    )
    ngram_table_layers: list[int] = flag([1, 4], "blocks that the table is gated into, counted from 0", only_with=TABLE)
    ngram_table_dropout: float = flag(
        0.0, "dropout of whole rows of the table", within=(0, 1), open_end=True, only_with=TABLE
    )

    def check(self) -> None:
        orders = self.ngram_table_orders
        require(
            bool(orders) and min(orders) >= 1 and len(set(orders)) == len(orders),
            f"--ngram_table_orders must be different numbers of at least 1, got {orders}",
        )
        require(bool(self.ngram_table_layers), "--ngram_table_layers must name a block that reads the table")
        for layer in self.ngram_table_layers:
            require(0 <= layer < self.n_layers, f"--ngram_table_layers {layer} must lie in [0, {self.n_layers - 1}]")

    @property
    def ngram_table_width(self) -> int:
        """U: numbers that a position reads from the table, one row of each head of each order."""
        return len(self.ngram_table_orders) * self.ngram_table_heads * self.ngram_table_dim


class NgramTable(nn.Module):
    """The rows of all heads, and the rows that each position reads, side by side and normed.

    A row is `ngram_table_dim` float32 numbers. Memory with AdamW: 16 bytes a number.
    """

    def __init__(self, config: NgramTableConfig):
        super().__init__()
        self.config = config
        n_heads = len(config.ngram_table_orders) * config.ngram_table_heads
        self.rows = nn.Embedding(n_heads * config.ngram_table_rows, config.ngram_table_dim)
        self.norm = nn.RMSNorm(config.ngram_table_width, eps=1e-8)  # rows start small
        # Saved with the weights: rows trained with other multipliers are useless.
        self.register_buffer("multiplier_KO", multipliers(config.ngram_table_orders, config.ngram_table_heads))

    def forward(self, input_BT: Tensor, visible: Visibility, cache=None) -> Tensor:
        """(B, T, U) in the precision of autocast.

        Args:
            cache: a transformers cache or None; its last layer keeps the tokens, here where nothing else does.
        """
        row_BTK = self.look_up(input_BT, visible.document_BX, cache)
        vector_BTKW = self.rows(row_BTK)
        if self.training and self.config.ngram_table_dropout:  # of whole rows
            kept_BTK1 = torch.ones_like(vector_BTKW[..., :1])
            vector_BTKW = vector_BTKW * F.dropout(kept_BTK1, self.config.ngram_table_dropout)
        return in_autocast(self.norm(vector_BTKW.flatten(-2)))

    @torch.no_grad()
    def look_up(self, input_BT: Tensor, document_BX: Tensor | None = None, cache=None) -> Tensor:
        """(B, T, K) int64: the rows that each new position reads."""
        layer, T = self.config.cache_layers - 1, input_BT.shape[1]
        text_BX, start_BX, _ = text_so_far(input_BT, document_BX, cache, layer, max(self.multiplier_KO.shape[1] - 1, 1))
        if cache is not None and not self.config.reads_text:
            key_B1T1 = input_BT[:, None, :, None]
            cache.update(key_B1T1, torch.zeros_like(key_B1T1, dtype=torch.float32), layer)
        token_BTO = last_tokens(text_BX, start_BX, self.multiplier_KO.shape[1])[:, -T:]
        return ngram_rows(token_BTO, self.multiplier_KO, self.config.ngram_table_rows)


class NgramGate(nn.Module):
    """Adds the position's rows to the stream, times a gate: the sigmoid of their similarity to the stream."""

    def __init__(self, config: NgramTableConfig):
        super().__init__()
        self.n_layers = config.n_layers
        self.stream_norm, self.key_norm = make_norm(config), make_norm(config)
        self.key_proj = nn.Linear(config.ngram_table_width, config.dim, bias=False)
        self.value_proj = nn.Linear(config.ngram_table_width, config.dim, bias=False)

    def init_parameters(self) -> None:
        """Nearly nothing is added at the start."""
        init.normal_(self.value_proj.weight, std=0.1 * INIT_STD / (2 * self.n_layers) ** 0.5)

    def forward(self, x_BTD: Tensor, vector_BTU: Tensor) -> Tensor:
        value_BTD, key_BTD = self.value_proj(vector_BTU), self.key_norm(self.key_proj(vector_BTU).float())
        score_BT1 = (self.stream_norm(x_BTD.float()) * key_BTD).sum(dim=-1, keepdim=True)
        gate_BT1 = (score_BT1 * x_BTD.shape[-1] ** -0.5).sigmoid()
        return x_BTD + gate_BT1.to(value_BTD.dtype) * value_BTD
