"""MemoryBank: the table of token ids that is the memory, its frozen rows, its rewriting and its use counts.

Axes: N bank entries · L tokens per entry · D width · V vocabulary · K common words · U entries rewritten at once
      X any number of reads
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.constants import PADDING

from ..config import ModelConfig
from ..ops import read_entries
from ..ops.entries import CommonTokens
from .ngram_index import NgramIndex

ROWS_AT_ONCE = 65536  # bounds the temporary memory of whole-bank passes
COMMON_WORDS = 256  # two thirds of the words of real entries (docs/speed.md)


class MemoryBank(nn.Module):
    """N short texts as token ids. Every memory block of a model reads the same bank.

    Attributes:
        tokens: (N, L) int16 where the vocabulary allows it, else int32; row n is entry n, padded with PADDING.
        frozen: (N,) bool; these rows are never rewritten by training.
        average: (N_unfrozen, D) float16 moving averages, only with `ema_interval`; in the order of `unfrozen_rows()`.
    """

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = config
        N, L = config.knowledge_num, config.knowledge_length
        dtype = torch.int16 if config.vocab_size <= torch.iinfo(torch.int16).max else torch.int32
        self.register_buffer("tokens", torch.zeros(N, L, dtype=dtype))
        self.register_buffer("frozen", torch.zeros(N, dtype=torch.bool))
        if config.ema_interval:
            n_unfrozen = N - round(config.freeze_ratio * N)
            self.register_buffer("average", torch.zeros(n_unfrozen, config.dim, dtype=torch.float16))
        self._norm_N, self._norm_of = None, None
        self._ngrams: NgramIndex | None = None
        self._common: CommonTokens | None = None
        self._uses_N = None

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
        self._ngrams = None
        n_frozen = round(self.config.freeze_ratio * len(token_NL))
        order_N = torch.randperm(len(token_NL), generator=torch.Generator().manual_seed(seed))
        self.frozen.zero_()[order_N[:n_frozen]] = True

    def fill_random(self, seed: int = 0) -> None:
        """Random tokens: for tests and benchmarks, where no knowledge file is given."""
        generator = torch.Generator().manual_seed(seed)
        self.fill(torch.randint(1, self.config.vocab_size, self.tokens.shape, generator=generator), seed)

    def unfrozen_rows(self) -> Tensor:
        return torch.where(~self.frozen)[0]

    def vectors(self, row_X: Tensor, embedding_VD: Tensor) -> Tensor:
        """(X, D): the mean embedding of the tokens of each row."""
        return read_entries(self.tokens[row_X], embedding_VD)

    @torch.no_grad()
    def norms(self, embedding_VD: Tensor) -> Tensor:
        """(N,) float32: the length of every entry's vector, worked out again only after a change of words or rows."""
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
    def ngrams(self) -> NgramIndex:
        """Where the n-grams of the entries stand; built on the first call, kept up to date by `write` alone."""
        if self._ngrams is None or self._ngrams.stale_N.device != self.tokens.device:
            self._ngrams = NgramIndex(self.tokens, self.config)
        return self._ngrams

    def count_words(self) -> Tensor:
        """(V,) int64: how often each token stands in the bank."""
        count_V = torch.zeros(self.config.vocab_size, dtype=torch.int64, device=self.tokens.device)
        for token_XL in self.tokens.split(ROWS_AT_ONCE):
            count_V += torch.bincount(token_XL.flatten().long(), minlength=len(count_V))
        return count_V

    @torch.no_grad()
    def common_words(self) -> CommonTokens:
        """Counted on the first call alone: nothing but speed depends on it."""
        if self._common is None or self._common.token_K.device != self.tokens.device:
            count_V = self.count_words()
            count_V[PADDING] = -1
            token_K = count_V.topk(min(COMMON_WORDS, len(count_V) - 1)).indices
            place_V = torch.full_like(count_V, -1, dtype=torch.int16)
            place_V[token_K] = torch.arange(len(token_K), dtype=torch.int16, device=token_K.device)
            self._common = CommonTokens(token_K, place_V)
        return self._common

    @torch.no_grad()
    def write(self, row_X: Tensor, token_XL: Tensor) -> Tensor:
        """Edit entries, frozen or not, for it is a person who asks.

        Returns:
            (X, L): what stood there. To undo, write it back.
        """
        old_XL = self.tokens[row_X].clone()
        self.tokens[row_X] = token_XL.to(self.tokens.dtype)
        if self._ngrams is not None:
            self._ngrams.edit(row_X, old_XL)
        return old_XL

    # Use counts.

    @torch.no_grad()
    def count(self, entry_BTS: Tensor, weight_BTS: Tensor) -> None:
        """Add the reads of one forward pass, those of any weight, to the counts that `take_counts` hands out."""
        if self._uses_N is None:
            self._uses_N = torch.zeros(len(self.tokens), dtype=torch.int32, device=entry_BTS.device)
        self._uses_N.index_add_(0, entry_BTS.flatten(), (weight_BTS.flatten() > 0).int())

    def take_counts(self) -> Tensor:
        """(N,) int32 reads since the last call; the counts start again from zero."""
        if self._uses_N is None:
            return torch.zeros(len(self.tokens), dtype=torch.int32)
        uses_N = self._uses_N.clone()
        self._uses_N.zero_()
        return uses_N

    # Rewriting by moving average.

    @torch.no_grad()
    def rewrite(self, entry_X: Tensor, query_XD: Tensor, embedding_VD: Tensor) -> int:
        """Move the unfrozen entries among `entry_X` toward the queries that read them, and spell them anew.

        The average of an entry starts as its own direction. At each call it decays toward the mean direction of its
        queries, and the L tokens whose mean embedding comes nearest to it, taken greedily, become the entry. The result
        depends only on the arguments and the buffers: ranks that pass the same reads keep the same bank.

        Returns:
            How many rows changed.
        """
        unfrozen_N = ~self.frozen
        keep_X = unfrozen_N[entry_X]
        row_U, group_X = entry_X[keep_X].unique(return_inverse=True)
        if not len(row_U):
            return 0
        direction_XD = F.normalize(query_XD[keep_X].float(), dim=-1)
        total_UD = torch.zeros(len(row_U), direction_XD.shape[1], device=row_U.device)
        target_UD = F.normalize(total_UD.index_add_(0, group_X, direction_XD), dim=-1)

        place_U = (unfrozen_N.cumsum(0) - 1)[row_U]
        average_UD = self.average[place_U].float()
        fresh_U1 = ~average_UD.any(dim=-1, keepdim=True)
        own_UD = F.normalize(self.vectors(row_U, embedding_VD).float(), dim=-1)
        decay = self.config.ema_decay
        average_UD = decay * torch.where(fresh_U1, own_UD, average_UD) + (1 - decay) * target_UD
        self.average[place_U] = average_UD.half()

        changed = 0
        for row_Y, goal_YD in zip(row_U.split(ROWS_AT_ONCE), average_UD.split(ROWS_AT_ONCE), strict=True):
            token_YL = spell(goal_YD, embedding_VD.float(), self.tokens.shape[1]).to(self.tokens.dtype)
            changed += int((token_YL != self.tokens[row_Y]).any(dim=-1).sum())
            self.tokens[row_Y] = token_YL
        return changed


def spell(goal_UD: Tensor, embedding_VD: Tensor, length: int) -> Tensor:
    """(U, length) int64: tokens, chosen one by one, whose summed embedding points most nearly along each goal.

    Source: matching pursuit, Mallat & Zhang 1993, with a fixed number of steps and unit steps.
    """
    goal_UD = F.normalize(goal_UD, dim=-1)
    along_UV = goal_UD @ embedding_VD.T
    squared_V = embedding_VD.square().sum(dim=-1)
    sum_UD, tokens = torch.zeros_like(goal_UD), []
    for _ in range(length):
        numerator_UV = (sum_UD * goal_UD).sum(dim=-1, keepdim=True) + along_UV
        squared_UV = sum_UD.square().sum(dim=-1, keepdim=True) + 2 * sum_UD @ embedding_VD.T + squared_V
        cosine_UV = numerator_UV / squared_UV.clamp(min=1e-12).sqrt()
        cosine_UV[:, PADDING] = -2.0
        tokens.append(cosine_UV.argmax(dim=-1))
        sum_UD = sum_UD + embedding_VD[tokens[-1]]
    return torch.stack(tokens, dim=-1)


def usage_statistics(uses_N: Tensor) -> dict[str, float]:
    """How evenly the bank is used, from counts of reads.

    Returns:
        used_share: share of entries read at least once.  kl_uniform: KL(use || uniform) in nats, 0 to ln N.
        top50_share, top90_share, top99_share: the smallest share of the bank that holds 50, 90, 99 % of the reads.
        All are 0 where nothing was read.
    """
    N, total = len(uses_N), int(uses_N.sum())
    if total == 0:
        return dict.fromkeys(("used_share", "kl_uniform", "top50_share", "top90_share", "top99_share"), 0.0)
    share_N = uses_N.double().sort(descending=True).values / total
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


def use_histogram(uses_N: Tensor) -> list[int]:
    """How many entries of the bank were read 0, 1, 2-3, 4-7, 8-15, ... times, from counts of reads."""
    powers_N = torch.where(uses_N > 0, uses_N.clamp(min=1).double().log2().floor() + 1, 0).long()
    return torch.bincount(powers_N).tolist()
