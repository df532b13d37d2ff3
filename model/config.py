"""ModelConfig: every architecture flag, declared once beside what it configures, with its help and its checks."""

from dataclasses import asdict, dataclass, fields
from math import isqrt

from transformers import PreTrainedConfig

from common.flags import check, flag, require

from .base_config import CoreConfig, MemoryConfig


@dataclass(frozen=True)
class NgramConfig(MemoryConfig):
    heading = "n-gram index: of --retrieval ngram, and of --retrieval_loss_coef"

    ngram_lengths: list[int] = flag([3, 4], "lengths n of the n-grams that point to entries, in tokens")
    ngram_max_places: int = flag(
        32, "an n-gram found in more places of the bank than this points to nothing", within=(1, None)
    )
    ngram_pairs: int = flag(0, "also index all pairs of each entry's K rarest tokens; 0: none")
    ngram_decay: float = flag(0.98, "factor of a found entry's score from one token to the next", within=(0, 1))
    ngram_window: int = flag(
        32, "last tokens of the text that rank the found entries, and that pairs are made of", within=(1, None)
    )

    def check(self) -> None:
        longest = 62 // max((self.vocab_size - 1).bit_length(), 1)  # an n-gram is packed into 63 bits
        require(
            bool(self.ngram_lengths) and all(1 <= n <= longest for n in self.ngram_lengths),
            f"--ngram_lengths {self.ngram_lengths} must lie in [1, {longest}] with --vocab_size {self.vocab_size}",
        )
        require(
            self.ngram_pairs == 0 or 2 <= self.ngram_pairs <= self.knowledge_length,
            f"--ngram_pairs {self.ngram_pairs} must be 0 or lie in [2, {self.knowledge_length}], --knowledge_length",
        )


@dataclass(frozen=True)
class ProductKeysConfig(NgramConfig):
    heading = "--retrieval product_key"

    query_norm: bool = flag(
        False, "bring each half of a query to unit scale before it meets the sub-keys",
        needs="--retrieval product_key: n-grams have no queries",
    )  # fmt: skip
    selection: str = flag(
        "product_key",
        "how S of C candidates are selected: by product-key score, re-scored by cosine, or by straight-through Gumbel",
        choices=["product_key", "cosine", "gumbel"],
    )
    cosine_temperature: float = flag(0.1, "the cosine is divided by this before it joins the product-key score")
    gumbel_temperature: float = flag(1.0, "temperature of the Gumbel softmax (selection gumbel)")
    balance_loss_coef: float = flag(0.1, "weight of the sub-keys' balance loss", within=(0, None))
    similarity_loss_coef: float = flag(
        0.0, "weight of the loss that draws queries to the entries they select", within=(0, None)
    )
    diversity_loss_coef: float = flag(
        0.0, "weight of the loss that pushes a position's candidates apart", within=(0, None)
    )
    retrieval_loss_coef: float = flag(
        0.0, "weight of the retrieval supervision: cross-entropy on the sub-keys of the entry that n-grams find",
        within=(0, None), needs=["--retrieval product_key", "--ema_interval 0: n-grams do not follow the update"],
    )  # fmt: skip
    teacher_forcing: float = flag(
        0.0,
        "share of the positions with an n-gram match at which training reads that entry, whatever the keys propose",
        within=(0, 1), needs="--retrieval_loss_coef",
    )  # fmt: skip

    def check(self) -> None:
        R = isqrt(self.knowledge_num)
        require(
            R * R == self.knowledge_num,
            f"--knowledge_num {self.knowledge_num} is not a square (product keys span a square grid); "
            f"the nearest are {R * R} and {(R + 1) ** 2}",
        )
        require(self.dim % 2 == 0, f"--dim {self.dim} must be even: a query has two halves")
        require(
            self.num_candidates <= R,
            f"--num_candidates {self.num_candidates} must lie in [1, {R}], the side of the grid of entries",
        )
        # A softmax over a single entry is the constant 1: the language-model loss could not train the retrieval.
        require(
            self.num_selected > 1 or self.selection == "gumbel",
            f"--num_selected 1 cannot be trained with --selection {self.selection}; take 2 or more, or gumbel",
        )
        if self.retrieval_loss_coef:
            NgramConfig.check(self)


@dataclass(frozen=True)
class NgramsConfig(NgramConfig):
    heading = "--retrieval ngram"

    retrieval_noise: float = flag(
        0.0, "share of the found entries that training replaces by random ones", within=(0, 1), open_end=True
    )

    def check(self) -> None:
        NgramConfig.check(self)
        require(
            self.num_selected > 1 or self.fusion == "words" or not self.reading_layers,
            f"--num_selected 1 cannot be trained with --fusion {self.fusion}; take 2 or more, or words",
        )


@dataclass(frozen=True)
class CrossAttentionConfig(MemoryConfig):
    heading = "--fusion cross_attention"

    fusion_heads: int = flag(8, "heads of the cross-attention fusion; must divide dim", within=(1, None), divides="dim")
    attention_dropout: float = flag(
        0.1, "dropout of whole keys in the cross-attention fusion", within=(0, 1), open_end=True
    )


@dataclass(frozen=True)
class TokensConfig(MemoryConfig):
    heading = "--fusion words, and the pointer"

    word_key_dim: int = flag(
        64, "width of the queries and keys that compare a position with the tokens of its entries", within=(1, None)
    )
    word_value_dim: int = flag(
        128, "width of the values that are read from the tokens of entries (fusion words)", within=(1, None)
    )
    pointer: bool = flag(
        False, "a pointer at the end may copy the next token from an entry",
        needs="--retrieval ngram: the pointer reads what the n-grams found",
    )  # fmt: skip


@dataclass(frozen=True)
class NgramTableConfig(CoreConfig):
    heading = "hashed n-gram table, of both models"

    ngram_table_rows: int = flag(
        0, "rows M of each head of a table of learned vectors for the last tokens of the text; 0: no table",
        within=(0, None),
    )  # fmt: skip
    ngram_table_heads: int = flag(
        4, "heads of the table for each order, each with a hash and rows of its own", within=(1, None)
    )
    ngram_table_dim: int = flag(64, "width W of a row of the table", within=(1, None))
    ngram_table_orders: list[int] = flag([2, 3], "orders of the table: how many last tokens a row stands for")
    ngram_table_layers: list[int] = flag([1, 4], "blocks that the table is gated into, counted from 0")
    ngram_table_dropout: float = flag(0.0, "dropout of whole rows of the table", within=(0, 1), open_end=True)

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


RETRIEVALS = {"product_key": ProductKeysConfig, "ngram": NgramsConfig}
FUSIONS = {
    "gated_mlp": MemoryConfig, "cross_attention": CrossAttentionConfig, "concat": MemoryConfig, "words": TokensConfig,
}  # fmt: skip


@dataclass(frozen=True)
class ModelConfig(ProductKeysConfig, NgramsConfig, CrossAttentionConfig, TokensConfig, NgramTableConfig):
    """The architecture. Frozen: derived values are properties; `dataclasses.replace` makes a variant.

    Raises:
        ValueError: a value is out of range, or two values contradict each other.
    """

    heading = "the model's parts"

    model_type: str = flag(
        "model_memory", "dense baseline or memory model", choices=["model_original", "model_memory"], basic=True
    )
    retrieval: str = flag(
        "product_key",
        "how entries are found: by learned product keys in each block, or once a position by the n-grams that they "
        "share with the text so far",
        choices=list(RETRIEVALS), basic=True,
    )  # fmt: skip
    fusion: str = flag(
        "cross_attention",
        "how the found entries join the stream: as vectors, or (words) token by token",
        choices=list(FUSIONS), basic=True,
    )  # fmt: skip

    def __post_init__(self):
        parts = self.parts
        check(self, parts, needs=MemoryConfig in parts)
        for part in parts:
            part.check(self)

    @property
    def parts(self) -> list[type]:
        """The configs of what is in use."""
        core = [CoreConfig, NgramTableConfig] if self.ngram_table_rows else [CoreConfig]
        if self.model_type != "model_memory" or self.retrieval not in RETRIEVALS or self.fusion not in FUSIONS:
            return core
        return [*core, MemoryConfig, RETRIEVALS[self.retrieval], FUSIONS[self.fusion]]

    @property
    def grid_side(self) -> int:
        """R: sub-keys in each of the two sets."""
        return isqrt(self.knowledge_num)

    @property
    def reading_layers(self) -> list[int]:
        """The blocks that read the memory: none of them in the baseline."""
        if self.model_type == "model_original":
            return []
        return list(range(self.n_layers)) if self.memory_layers is None else sorted(set(self.memory_layers) - {-1})

    @property
    def reads_bank(self) -> bool:
        """Whether anything reads the memory: a block, or the pointer."""
        return self.model_type == "model_memory" and (bool(self.reading_layers) or self.pointer)

    def reader_name(self, place: int) -> str:
        """What stands at a place of a forward pass's `readings`."""
        return "pointer" if place == self.n_layers else f"block {place}"

    @property
    def uses_ngrams(self) -> bool:
        return self.reads_bank and self.retrieval == "ngram"

    @property
    def reads_words(self) -> bool:
        """Whether the words of entries meet those of the text, which a cache must keep."""
        return self.uses_ngrams or (self.fusion == "words" and bool(self.reading_layers))

    @property
    def teaches_retrieval(self) -> bool:
        """Whether training shows the product keys which entry is right."""
        return self.reads_bank and self.retrieval == "product_key" and self.retrieval_loss_coef > 0

    @property
    def cache_layers(self) -> int:
        """Layers of a key-value cache: one for each attention, each reading block, and the text with what it found."""
        return self.n_layers + len(self.reading_layers) + (self.reads_words or self.ngram_table_rows > 0)

    def needs_cosine(self, with_losses: bool = True) -> bool:
        """Whether a candidate's cosine with the query is needed: to select by it, or for a loss."""
        if self.retrieval != "product_key":
            return False
        has_losses = self.similarity_loss_coef > 0 or self.diversity_loss_coef > 0
        return self.selection != "product_key" or (with_losses and has_losses)


class OriginalHFConfig(PreTrainedConfig):
    """A ModelConfig in the form that transformers saves, loads and hands to `generate`."""

    model_type = "model_original"
    attribute_map = {"hidden_size": "dim", "num_attention_heads": "n_heads"}

    @classmethod
    def wrap(cls, config: ModelConfig) -> "OriginalHFConfig":
        values = asdict(config)
        del values["model_type"]  # a class attribute here
        return cls(
            **values, num_hidden_layers=config.cache_layers, tie_word_embeddings=config.tie_embeddings,
            bos_token_id=1, eos_token_id=2, pad_token_id=0,
        )  # fmt: skip

    def unwrap(self) -> ModelConfig:
        values = {f.name: getattr(self, f.name) for f in fields(ModelConfig) if hasattr(self, f.name)}
        return ModelConfig(**values)


class MemoryHFConfig(OriginalHFConfig):
    model_type = "model_memory"
