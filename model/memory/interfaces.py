"""The contract of a memory: a retrieval finds entries, a fusion adds them to the residual stream.

Axes: B batch · T position · D width · V vocabulary · N bank entries · S entries per position · L tokens per entry

A retrieval or a fusion is one class in one file, with its flags in a nested `Config`, and one line of a table in
`model/memory/__init__.py`. `model_memory.MemoryBlock` calls them in turn.
"""

from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor, nn

from common.constants import NO_ENTRY

from ..base_config import MemoryConfig
from ..layers import Context
from ..ops.entries import CommonTokens
from ..visibility import Visibility
from .entry_tokens import EntryTokens
from .ngram_index import Matches


class Found(NamedTuple):
    """The entries that a retrieval hands to the fusion, S at each position.

    Attributes:
        entry_BTS: int64, rows of the bank; any row where nothing was found.
        token_BTSL: integer, the entries' tokens; PADDING where nothing was found.
        log_weight_BTS: float32, logarithms of the entries' weights.
        missing_BTS: bool, where nothing was found. None: nowhere.
        is_normalised: whether the weights of a position sum to 1.
        log_share_BTS: float32, with counted tokens: the logarithm of each one's share of the places. None: none are.
        tokens: the tokens as `lay_out_tokens` gives them, if the retrieval has them; None: the fusion lays them out.
        query_BTD: what selected the entries, without gradient; None: no query did.
        edited_BTS: bool, entries whose text was edited since the training; None: nobody asks.
        loss: scalar in nats, of the retrieval's own training, where it learns; None: it does not.
        order_2Z: the tokens of all positions sorted (`ops.order_of_words`), for gradients of `ContinuationFusion`.
    """

    entry_BTS: Tensor
    token_BTSL: Tensor
    log_weight_BTS: Tensor
    missing_BTS: Tensor | None = None
    tokens: EntryTokens | None = None
    query_BTD: Tensor | None = None
    is_normalised: bool = True
    log_share_BTS: Tensor | None = None
    edited_BTS: Tensor | None = None
    loss: Tensor | None = None
    order_2Z: tuple[Tensor, Tensor] | None = None


class Reading(NamedTuple):
    """What one block, or the pointer, read at every position.

    Attributes:
        entry_BTS: int64; any row where the weight is 0.
        weight_BTS: at most 1 in sum; of the pointer: the probability that the next token is copied from the entry.
        query_BTD: what selected the entries; None: no query did.
    """

    entry_BTS: Tensor
    weight_BTS: Tensor
    query_BTD: Tensor | None

    def last_weights(self) -> dict[int, float]:
        """Entry -> weight at the last position of the first row; several places of an entry count together."""
        weights: dict[int, float] = {}
        for entry, weight in zip(self.entry_BTS[0, -1].tolist(), self.weight_BTS[0, -1].tolist(), strict=True):
            weights[entry] = weights.get(entry, 0.0) + weight
        return weights


class ForwardPass(NamedTuple):
    """What a retrieval may use in `search`: the arguments of the model's forward pass.

    Attributes:
        input_BT, labels_BT: token ids; labels None without a loss.
        visible: documents and positions.  cache: a transformers cache or None.
        oracle_B: int64, an entry that every position of a row must read; NO_ENTRY: no change. None: no oracle.
        embedding_VD: the embedding parameter.
        training: whether the model is in training mode.  needs_losses: whether auxiliary losses are wanted.
        matches: the result of `search_text`, where the training loop has it already.
        text_layer: the layer of the cache that keeps the text.
    """

    input_BT: Tensor
    labels_BT: Tensor | None
    visible: Visibility
    cache: object | None
    oracle_B: Tensor | None
    embedding_VD: Tensor
    training: bool
    needs_losses: bool
    matches: Matches | None = None
    text_layer: int = 0

    def every(self, n: int) -> "ForwardPass":
        """Every n-th row, the first one on; not for a cache."""

        def some(x: Tensor | None) -> Tensor | None:
            return x if x is None else x[::n]

        return self._replace(
            input_BT=some(self.input_BT), labels_BT=some(self.labels_BT), oracle_B=some(self.oracle_B),
            visible=replace(self.visible, document_BX=some(self.visible.document_BX)),
            matches=self.matches and Matches(*map(some, self.matches)),
        )  # fmt: skip


@dataclass
class MemoryContext(Context):
    """What the memory blocks of one forward pass share. A field is None unless something in use `prepares` it."""

    bank_token_NL: Tensor
    embedding_VD: Tensor  # in the precision of autocast
    shared: object  # the result of the retrieval's `search`
    places: Found | None  # that of the search for suffixes, where it is made beside another one
    searched: torch.cuda.Event | None  # what reads `shared` or `places` waits for it; None: they are there
    found_later: torch.cuda.Event | None  # of a training step: the blocks that read `shared` are begun after it
    oracle_B: Tensor | None
    mask: object  # "mask": the result of the fusion's `make_mask`
    common: CommonTokens | None  # "common": frequent tokens of the bank, while a kernel's gradient needs them
    unit_embedding_VD: Tensor | None  # "unit_embeddings": each row of the embeddings at unit scale
    text: tuple[Tensor, Tensor] | None  # "text": (B, T) each token and the one before it, unless `search` has read it


class Retrieval(nn.Module):
    """Finds S entries for every position; one module in each memory block.

    A subclass has `forward`, and may have the other methods.
    """

    Config: type = MemoryConfig
    index_class = None  # the index of the bank that `search` looks the text up in; the text then is in the cache
    searched_together = 1  # batches that training hands to `search_text` as one, on a GPU
    leaves_out_own = False  # `search_text` gives no entry that was cut from the document of its position
    has_grid = False  # an entry is found by its place in a grid of rows and columns, so the order of the bank matters

    def __init__(self, config: MemoryConfig):
        super().__init__()
        self.config = config

    @classmethod
    def tokens_read(cls, config: MemoryConfig) -> int:
        """How many tokens of an entry are handed to the fusion."""
        return config.knowledge_length

    @classmethod
    def groups(cls, config: MemoryConfig) -> list[int]:
        """How many of the S places of a position, in their order, compete with each other; they sum to S."""
        return [config.num_selected]

    @classmethod
    def make_finder(cls, config: MemoryConfig) -> nn.Module | None:
        """What the search of the whole model learns; None: its parameters, if any, are those of each block."""

    @classmethod
    def refresh(cls, config: MemoryConfig, bank, embedding_VD: Tensor) -> None:
        """Update what depends on parameters alone. A replayed training step calls this outside of its graph."""

    @classmethod
    def searches_text(cls, config: MemoryConfig) -> bool:
        """Whether `search_text` finds anything; False spares the training loop from preparing batches."""
        return cls.index_class is not None

    @classmethod
    def search_text(cls, config: MemoryConfig, bank, input_BT: Tensor, document_BT: Tensor | None) -> Matches | None:
        """The part of `search` in training that reads the text and the bank alone; None: there is none.

        The training loop calls it for the next micro-batches, while earlier ones are learned from.
        """

    @classmethod
    def search(cls, config: MemoryConfig, bank, inputs: ForwardPass, lay_out: bool) -> object:
        """Work out once, before the blocks, what they share: `context.shared`.

        In a captured step of decoding it runs beside the first blocks (`static_cache.beside`): it may write to the
        bank's layer of the cache alone.

        Args:
            lay_out: whether something needs the tokens of the entries as `lay_out_tokens` gives them.
        """

    def forward(self, x_BTD: Tensor, context: MemoryContext) -> tuple[Found, dict[str, Tensor]]:
        """The entries for the normed states, and named loss terms, each with a flag `--<name>_loss_coef`."""
        raise NotImplementedError

    def init_parameters(self) -> None:
        """Initialise own parameters by `transformers.initialization`; submodules are initialised already."""


class Fusion(nn.Module):
    """Adds the found entries to the residual stream; one module in each memory block.

    Args:
        memory_index: the number of this block among those that read the memory. A fusion that stores something in the
            cache uses the cache's layer `config.n_layers + memory_index`.
    """

    Config: type = MemoryConfig
    prepares: frozenset[str] = frozenset()  # fields of MemoryContext: mask, common, unit_embeddings, text
    trains_one_entry = False  # whether a single entry (--num_selected 1) has a weight that the loss can train
    folds_gain = False  # whether `forward` takes a fourth argument `gain_D`, that the states are still to be scaled by

    def __init__(self, config: MemoryConfig, memory_index: int):
        super().__init__()
        self.config, self.memory_index = config, memory_index

    @classmethod
    def make_mask(cls, config: MemoryConfig, visible: Visibility, batch_size: int) -> object:
        """What the fusion may see, once for all blocks: `context.mask`."""

    def forward(self, x_BTD: Tensor, found: Found, context: MemoryContext) -> tuple[Tensor, Tensor]:
        """What is added to the stream (B, T, D), and the weight of each entry in it (B, T, S), without gradient."""
        raise NotImplementedError

    def init_parameters(self) -> None:
        """Initialise own parameters by `transformers.initialization`; submodules are initialised already."""


def read_first(entry_BT1: Tensor, entry_BTS: Tensor, score_BTS: Tensor, score: float, absent: float):
    """Oracle retrieval: put one entry before those found; the last of those gives way.

    Args:
        entry_BT1: int64, NO_ENTRY leaves a position as it is; T may be 1, for all of a row.
        score: of the entry.  absent: the score of no entry.
    Returns:
        entry_BTS, NO_ENTRY in the slot where the same entry had been found, and score_BTS.
    """
    again_BTS = entry_BTS == entry_BT1
    others_BTS = entry_BTS.masked_fill(again_BTS, NO_ENTRY)[..., :-1]
    scores_BTS = score_BTS.masked_fill(again_BTS, absent)[..., :-1]
    first_BTS = torch.cat([entry_BT1.expand(*entry_BTS.shape[:2], 1), others_BTS], dim=-1)
    first_score_BTS = nn.functional.pad(scores_BTS, (1, 0), value=score)
    has_oracle_BT1 = entry_BT1 != NO_ENTRY
    return torch.where(has_oracle_BT1, first_BTS, entry_BTS), torch.where(has_oracle_BT1, first_score_BTS, score_BTS)
