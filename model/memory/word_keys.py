"""Retrieval by learned product keys over words, found once for all blocks, by a table that the text alone enters."""

from dataclasses import dataclass

from .bm25 import BM25
from .interfaces import ForwardPass, Found
from .ngrams import NoiseConfig
from .word_keys_index import KeyFinder, WordKeysConfig, WordKeysIndex


class WordKeys(BM25):
    """As retrieval by words, but learned product keys propose the entries that BM25 ranks."""

    index_class = WordKeysIndex

    @dataclass(frozen=True)
    class Config(WordKeysConfig, NoiseConfig):
        def check(self) -> None:
            WordKeysConfig.check(self)
            NoiseConfig.check(self)

    @classmethod
    def make_finder(cls, config: Config) -> KeyFinder:
        return KeyFinder(config)

    @classmethod
    def searches_text(cls, config: Config) -> bool:
        """The search reads what training changes, so it cannot run ahead of a step."""
        return False

    @classmethod
    def search(cls, config: Config, bank, inputs: ForwardPass, lay_out: bool) -> Found:
        found = super().search(config, bank, inputs, lay_out)
        if not (inputs.training and config.finder_loss_coef and inputs.labels_BT is not None):
            return found
        return found._replace(loss=bank.index(cls.index_class).loss(inputs.input_BT))
