"""Retrieval by words: entries that share rare words with the text, in whatever order and wording."""

from dataclasses import dataclass

from torch import Tensor

from .bm25_index import BM25Config, BM25Index
from .ngrams import Ngrams, NoiseConfig

SCALE = 0.25  # of a score in nats, where a block begins


class BM25(Ngrams):
    """As retrieval by n-grams; the log-weights are `score_scale` times a quarter of the scores."""

    index_class = BM25Index

    @dataclass(frozen=True)
    class Config(BM25Config, NoiseConfig):
        def check(self) -> None:
            BM25Config.check(self)
            NoiseConfig.check(self)

    @classmethod
    def log_weight(cls, score_BTS: Tensor) -> Tensor:
        return SCALE * score_BTS
