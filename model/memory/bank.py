"""MemoryBank: the table of token ids that is the memory, its frozen rows and its access counts.

Axes: N bank entries · L tokens per entry · D width · V vocabulary · K common tokens
      M readers: blocks and pointer
      X any number of rows or reads
"""

import torch
from torch import Tensor, nn

from common.constants import PADDING

from ..base_config import MemoryConfig
from ..ops import read_entries
from ..ops.entries import CommonTokens
from .bank_index import ROWS_AT_ONCE, BankIndex
from .ngram_index import NgramIndex
from .spelling import spell, tokens_as_words

COMMON_TOKENS = 256  # two thirds of the tokens of real entries (docs/speed.md)


class MemoryBank(nn.Module):
    """N short texts as token ids. Every memory block of a model reads the same bank.

    Attributes:
        tokens: (N, L) int16 where the vocabulary allows it, else int32; row n is entry n, padded with PADDING.
        frozen: (N,) bool; training never changes these rows.
        spelling: (V,) int64, only with retrieval by words: how each token is spelled (`spelling.py`).
        document: (N,) int32, the document of the training text that each entry was cut from; None: none was. It is
            no part of the weights.
        passage: (N,) bool, only with `suffix_layers`: entries cut from the training text, which suffixes alone find.
        average: (N_unfrozen, D) float16 moving averages, only with `ema_interval`; in the order of `unfrozen_rows()`.
    """

    def __init__(self, config: MemoryConfig):
        super().__init__()
        self.config = config
        N, L = config.knowledge_num, config.knowledge_length
        dtype = torch.int16 if config.vocab_size <= torch.iinfo(torch.int16).max else torch.int32
        self.register_buffer("tokens", torch.zeros(N, L, dtype=dtype))
        self.register_buffer("frozen", torch.zeros(N, dtype=torch.bool))
        self.register_buffer("document", None, persistent=False)
        if config.suffix_part is not None:
            self.register_buffer("passage", torch.zeros(N, dtype=torch.bool))
        if config.index_class is not None and config.index_class.needs_spelling:
            self.register_buffer("spelling", tokens_as_words(config.vocab_size))
        if config.ema_interval:
            n_unfrozen = N - round(config.freeze_ratio * N)
            self.register_buffer("average", torch.zeros(n_unfrozen, config.dim, dtype=torch.float16))
        self._norm_N, self._norm_of = None, None
        self._indexes: dict[type, BankIndex] = {}
        self._common: CommonTokens | None = None
        self._count_MN = None
        self.add_reads = add_reads
        self.finder = ()  # the module that the index searches by, if any; a tuple, for it is no part of the bank

    def fill(self, token_NL: Tensor, seed: int = 0) -> None:
        """Put the entries in and freeze a random `freeze_ratio` of them.

        Raises:
            ValueError: the table has another shape, or a token that is not in the vocabulary.
        """
        if token_NL.shape != self.tokens.shape:
            raise ValueError(f"the bank holds {tuple(self.tokens.shape)} tokens, got {tuple(token_NL.shape)}")
        if token_NL.numel() and not 0 <= int(token_NL.min()) <= int(token_NL.max()) < self.config.vocab_size:
            raise ValueError(f"a bank token lies outside the vocabulary of {self.config.vocab_size}")
        self.tokens.copy_(token_NL)
        self._indexes = {}
        n_frozen = round(self.config.freeze_ratio * len(token_NL))
        order_N = torch.randperm(len(token_NL), generator=torch.Generator().manual_seed(seed))
        self.frozen.zero_()[order_N[:n_frozen]] = True

    def tell_passages(self, is_passage_N: Tensor | None) -> None:
        """(N,) bool: entries that a search by words leaves to that by suffixes, if there are both. None: none."""
        if hasattr(self, "passage"):
            self.passage.zero_() if is_passage_N is None else self.passage.copy_(is_passage_N)
            self._indexes = {}

    def spell(self, tokenizer) -> None:
        """Let a retrieval by words know how tokens are spelled. Until then each token is a word."""
        if hasattr(self, "spelling"):
            self.spelling.copy_(spell(tokenizer, len(self.spelling)))
            self._indexes = {}

    def fill_random(self, seed: int = 0) -> None:
        """Random tokens: for tests and benchmarks, where no knowledge file is given."""
        generator = torch.Generator().manual_seed(seed)
        self.fill(torch.randint(1, self.config.vocab_size, self.tokens.shape, generator=generator), seed)

    def _load_from_state_dict(self, *args, **options) -> None:
        """Other entries: their index is built anew."""
        self._indexes = {}
        super()._load_from_state_dict(*args, **options)

    def unfrozen_rows(self) -> Tensor:
        return torch.where(~self.frozen)[0]

    def vectors(self, row_X: Tensor, embedding_VD: Tensor) -> Tensor:
        """(X, D): the mean embedding of the tokens of each row."""
        return read_entries(self.tokens[row_X], embedding_VD)

    @torch.no_grad()
    def norms(self, embedding_VD: Tensor) -> Tensor:
        """(N,) float32: the length of every entry's vector, computed again after a change of embeddings or rows."""
        version = (embedding_VD._version, self.tokens._version, embedding_VD.data_ptr())
        if self._norm_of != version:
            if self._norm_N is None or self._norm_N.device != self.tokens.device:
                self._norm_N = torch.empty(len(self.tokens), device=self.tokens.device)
            # In place: a captured graph goes on reading the same tensor.
            rows = torch.arange(len(self.tokens), device=self.tokens.device).split(ROWS_AT_ONCE)
            for row_X in rows:
                self._norm_N[row_X] = self.vectors(row_X, embedding_VD).float().norm(dim=-1)
            self._norm_of = version
        return self._norm_N

    @torch.no_grad()
    def index(self, kind: type) -> BankIndex:
        """The index of the entries as trained, with the edits since; built on the first call, then updated by `write`.

        Where the bank has moved to another device, the index is built there from the same trained entries.

        Args:
            kind: `NgramIndex`, `SuffixIndex`, `BM25Index`.
        """
        index = self._indexes.get(kind)
        if index is None or index.stale_N.device != self.tokens.device:
            edited = index.edited if index else None
            hidden_N = getattr(self, "passage", None) if kind is self.config.index_class else None
            self._indexes[kind] = kind(self.tokens, self.config, edited, getattr(self, "spelling", None), hidden_N)
            if self.tokens.is_cuda:  # it is built on the stream of a search, whose free memory no other stream gets
                torch.cuda.empty_cache()
            if self.finder:
                self._indexes[kind].finder = self.finder[0]
        return self._indexes[kind]

    def ngrams(self) -> NgramIndex:
        return self.index(NgramIndex)

    def count_tokens(self) -> Tensor:
        """(V,) int64: how often each token occurs in the bank."""
        count_V = torch.zeros(self.config.vocab_size, dtype=torch.int64, device=self.tokens.device)
        for token_XL in self.tokens.split(ROWS_AT_ONCE):
            count_V += torch.bincount(token_XL.flatten().long(), minlength=len(count_V))
        return count_V

    @torch.no_grad()
    def common_tokens(self) -> CommonTokens:
        """Counted on the first call alone: nothing but speed depends on it."""
        if self._common is None or self._common.token_K.device != self.tokens.device:
            count_V = self.count_tokens()
            count_V[PADDING] = -1
            token_K = count_V.topk(min(COMMON_TOKENS, len(count_V) - 1)).indices
            rank_V = torch.full_like(count_V, -1, dtype=torch.int16)
            rank_V[token_K] = torch.arange(len(token_K), dtype=torch.int16, device=token_K.device)
            self._common = CommonTokens(token_K, rank_V)
        return self._common

    @torch.no_grad()
    def write(self, row_X: Tensor, token_XL: Tensor) -> Tensor:
        """Edit entries, frozen or not: a person asks for it.

        The first write builds the index of a model that retrieves by one: edits are indexed as changes to the entries
        as trained.

        Returns:
            (X, L): the tokens before. To undo, write them back.
        """
        self._build_index()
        old_XL = self.tokens[row_X].clone()
        self.tokens[row_X] = token_XL.to(self.tokens.dtype)
        for index in self._indexes.values():
            index.edit(row_X, old_XL)
        return old_XL

    def _build_index(self) -> None:
        for kind in self.config.index_classes:
            self.index(kind)

    @torch.no_grad()
    def swap(self, token_NL: Tensor) -> Tensor:
        """Give every row another text for a while (a control); the index goes on finding rows by their texts before.

        Returns:
            (N, L): the tokens before. To undo, copy them into `tokens`.
        """
        self._build_index()
        for index in self._indexes.values():
            index.before_swap()
        old_NL = self.tokens.clone()
        self.tokens.copy_(token_NL)
        return old_NL

    # Access counts.

    @torch.no_grad()
    def count(self, readings: list) -> None:
        """Add what each reader has read in one forward pass to its own counts; a read has a weight above 0."""
        if self._count_MN is None:
            shape, device = (len(readings), len(self.tokens)), readings[0].entry_BTS.device
            self._count_MN = torch.zeros(shape, dtype=torch.int32, device=device)
        for count_N, reading in zip(self._count_MN, readings, strict=True):
            self.add_reads(count_N, reading.entry_BTS.flatten(), reading.weight_BTS.flatten())

    def take_counts(self, n_readers: int) -> Tensor:
        """(M, N) int32 reads of each reader since the last call; the counts start again from zero."""
        if self._count_MN is None:
            return torch.zeros(n_readers, len(self.tokens), dtype=torch.int32)
        count_MN = self._count_MN.clone()
        self._count_MN.zero_()
        return count_MN


def add_reads(count_N: Tensor, entry_X: Tensor, weight_X: Tensor) -> None:
    """Count each entry as often as it has a weight above 0.

    Where nothing was found the entry is often the same: one row would take all those zeros one after another, so they
    go to different rows.
    """
    is_read_X = weight_X > 0
    spread_X = torch.arange(len(entry_X), device=entry_X.device) % len(count_N)
    count_N.index_add_(0, torch.where(is_read_X, entry_X, spread_X), is_read_X.int())


def usage_statistics(count_N: Tensor) -> dict[str, float]:
    """How evenly the bank is read, from access counts.

    Returns:
        used_share: share of entries read at least once.  kl_uniform: KL(reads || uniform) in nats, 0 to ln N.
        top50_share, top90_share, top99_share: the smallest share of the bank that holds 50, 90, 99 % of the reads.
        All are 0 where nothing was read.
    """
    N, total = len(count_N), int(count_N.sum())
    if total == 0:
        return dict.fromkeys(("used_share", "kl_uniform", "top50_share", "top90_share", "top99_share"), 0.0)
    share_N = count_N.double().sort(descending=True).values / total
    used_X = share_N[share_N > 0]
    mass_X = used_X.cumsum(0)
    statistics = {
        "used_share": len(used_X) / N,
        "kl_uniform": float((used_X * (used_X * N).log()).sum()),
    }
    for percent in (50, 90, 99):
        needed = int(torch.searchsorted(mass_X, percent / 100 - 1e-12)) + 1
        statistics[f"top{percent}_share"] = min(needed, len(used_X)) / N
    return statistics


def access_histogram(count_N: Tensor) -> list[int]:
    """How many entries of the bank were read 0, 1, 2-3, 4-7, 8-15, ... times, from access counts."""
    powers_N = torch.where(count_N > 0, count_N.clamp(min=1).double().log2().floor() + 1, 0).long()
    return torch.bincount(powers_N).tolist()
