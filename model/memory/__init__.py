"""The two axes of a memory: how entries are found, and how they join the residual stream.

A new retrieval or fusion is one file, and here an import and a table entry. Its flags then are in the command line
and in `--help`, and every invariant of the tests covers it (docs/adding_a_variant.md).
"""

from .bm25 import BM25
from .continuations import ContinuationFusion
from .coverage import CoverageFusion
from .cross_attention import CrossAttention
from .ngrams import Ngrams
from .pooled import Concat, GatedMLP
from .product_keys import ProductKeys
from .suffixes import Suffixes
from .tokens import Pointer, TokenFusion
from .word_keys import WordKeys

RETRIEVALS = {
    "product_key": ProductKeys,
    "ngram": Ngrams,
    "bm25": BM25,
    "suffix": Suffixes,
    "word_keys": WordKeys,
}
FUSIONS = {
    "gated_mlp": GatedMLP,
    "cross_attention": CrossAttention,
    "concat": Concat,
    "words": TokenFusion,
    "continuations": ContinuationFusion,
    "coverage": CoverageFusion,
}


def config_classes() -> list[type]:
    """The `Config` of everything in the tables and of the pointer, without those that others inherit."""
    configs = dict.fromkeys(part.Config for part in (*RETRIEVALS.values(), *FUSIONS.values(), Pointer))
    return [c for c in configs if not any(other is not c and issubclass(other, c) for other in configs)]


def chosen_by(config_class: type) -> list[str]:
    """The flags, any of which puts to use what a `Config`, or a class that several of them share, declares."""
    parts = {f"--retrieval {name}": part for name, part in RETRIEVALS.items()}
    parts |= {f"--fusion {name}": part for name, part in FUSIONS.items()} | {"--pointer": Pointer}
    return [name for name, part in parts.items() if issubclass(part.Config, config_class)]
