"""ModelConfig: every architecture flag, declared once beside what it configures, with its help and its checks."""

from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property

from transformers import PreTrainedConfig

from common.flags import check, flag, idle_flags, require

from .base_config import IN_A_BLOCK, READER, CoreConfig, MemoryConfig
from .memory import FUSIONS, RETRIEVALS, ContinuationFusion, Suffixes, chosen_by, config_classes
from .memory.ngram_table import NgramTableConfig
from .memory.ngrams import NoiseConfig
from .memory.tokens import Pointer


@dataclass(frozen=True)
class ModelConfig(*config_classes(), NgramTableConfig):
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
        "how entries are found: by learned product keys in each block, or once a position by the n-grams, by the "
        "rare words (bm25), by product keys over words (word_keys), or by the longest suffix that they share with the "
        "text so far",
        choices=list(RETRIEVALS), basic=True,
        only_with=["--model_type model_memory", READER],
    )  # fmt: skip
    fusion: str = flag(
        "cross_attention",
        "how the found entries join the stream: as vectors, or token by token (words), or (continuations) what follows "
        "the places found, one distribution for each distance, or (coverage) how far the text has said each entry",
        choices=list(FUSIONS), basic=True, only_with=["--model_type model_memory", IN_A_BLOCK],
    )  # fmt: skip

    def __post_init__(self):
        parts = self.parts
        check(self, parts, needs=self.model_type == "model_memory")
        for part in parts:
            part.check(self)
        if self.has_suffix_layers:
            check_suffix_layers(self)

    @property
    def parts(self) -> list[type]:
        """The configs of what is in use; without a memory's while the names of its parts are not checked yet."""
        core = [CoreConfig, NgramTableConfig] if self.ngram_table_rows else [CoreConfig]
        if self.model_type != "model_memory" or self.retrieval not in RETRIEVALS or self.fusion not in FUSIONS:
            return core
        return list(dict.fromkeys([*core, MemoryConfig, self.retrieval_class.Config, self.fusion_class.Config]))

    def unused(self, config_class: type) -> str | None:
        """What it would take for the flags that a class declares to do something; None: they do."""
        if config_class in (CoreConfig, NgramTableConfig, ModelConfig):
            return None
        if self.model_type != "model_memory":
            return "--model_type model_memory"
        if config_class is MemoryConfig:
            return None
        readers = [self.retrieval_class.Config] if self.reads_bank else []
        readers += [self.fusion_class.Config] if self.fused_layers else []
        readers += [Pointer.Config] if self.pointer else []
        readers += [Suffixes.Config, ContinuationFusion.Config] if self.suffix_layers else []
        if any(issubclass(reader, config_class) for reader in readers):
            return None
        able = chosen_by(config_class)
        chosen = {f"--retrieval {self.retrieval}", f"--fusion {self.fusion}"}
        return IN_A_BLOCK if chosen & set(able) else " or ".join(able)

    def idle_flags(self, every: bool = False) -> dict[str, str]:
        """The flags that differ from their defaults and do nothing, each with what they would need."""
        return idle_flags(self, self.unused, every=every)

    @property
    def has_ffn(self) -> bool:
        """Whether a block has a feed-forward."""
        return self.keep_ffn or len(self.reading_layers) < self.n_layers

    @property
    def fusion_has_scope(self) -> bool:
        """Whether the fusion can read what other positions have found."""
        return "mask" in self.fusion_class.prepares

    @property
    def retrieval_class(self) -> type:
        return RETRIEVALS[self.retrieval]

    @property
    def fusion_class(self) -> type:
        return FUSIONS[self.fusion]

    @property
    def fused_layers(self) -> list[int]:
        """The blocks that read by `--retrieval` and `--fusion`: none of them in the baseline."""
        if self.model_type == "model_original":
            return []
        return list(range(self.n_layers)) if self.memory_layers is None else sorted(set(self.memory_layers) - {-1})

    @property
    def reading_layers(self) -> list[int]:
        """The blocks that read the memory, those of `--suffix_layers` among them."""
        return sorted({*self.fused_layers, *(self.suffix_layers if self.has_suffix_layers else [])})

    @property
    def has_suffix_layers(self) -> bool:
        return self.model_type == "model_memory" and bool(self.suffix_layers)

    @cached_property
    def suffix_part(self) -> "ModelConfig | None":
        """What the blocks of `--suffix_layers` are made of, else None. It takes a lock: not for compiled code."""
        if not self.has_suffix_layers:
            return None
        return replace(
            self, retrieval="suffix", fusion="continuations", memory_layers=self.suffix_layers, suffix_layers=None,
            num_selected=self.suffix_selected, num_candidates=self.suffix_candidates, pointer=False, pointer_edited=0.0,
            pointer_edited_said=False, pointer_edited_unsaid=0.0, token_places=False, unsaid_tokens=False,
            block_selected=None,
        )  # fmt: skip

    def part_of(self, layer: int) -> "ModelConfig":
        """What a block that reads the memory is made of."""
        return self.suffix_part if self.has_suffix_layers and layer in self.suffix_layers else self

    @property
    def readers(self) -> list[int]:
        """The indices, among the readings of a forward pass, of what reads the bank."""
        return [*self.reading_layers, *([self.n_layers] if self.reads_bank and self.pointer else [])]

    @property
    def reads_bank(self) -> bool:
        """Whether anything reads the memory: a block, or the pointer."""
        return self.model_type == "model_memory" and (bool(self.reading_layers) or self.pointer)

    def reader_name(self, index: int) -> str:
        """The name of what made `readings[index]` of a forward pass."""
        return "pointer" if index == self.n_layers else f"block {index}"

    @property
    def index_class(self) -> type | None:
        """The index of the bank that every forward pass looks the text up in, for `--retrieval`."""
        return self.retrieval_class.index_class if self.reads_bank else None

    @property
    def index_classes(self) -> list[type]:
        """All indexes that a forward pass looks the text up in."""
        found = [self.index_class, Suffixes.index_class if self.has_suffix_layers else None]
        return [kind for kind in found if kind is not None]

    @property
    def row_stride(self) -> int:
        """Training searches, by `--retrieval`, and reads one of so many rows: the first, and each so many further."""
        has_flag = self.reads_bank and issubclass(self.retrieval_class.Config, NoiseConfig)
        return (self.memory_every if has_flag else None) or 1

    @property
    def leaves_out_own(self) -> bool:
        """Whether no position of the training text is shown what was cut from its own document."""
        return self.has_suffix_layers or self.retrieval_class.leaves_out_own

    @property
    def searches_text(self) -> bool:
        """Whether training can look up the text of a batch before its forward pass."""
        return self.reads_bank and self.retrieval_class.searches_text(self)

    @property
    def prepares(self) -> frozenset[str]:
        """What the fusion and the pointer need once for each forward pass."""
        fusion = self.fusion_class.prepares if self.fused_layers else frozenset()
        fusion |= ContinuationFusion.prepares if self.has_suffix_layers else frozenset()
        return fusion | (Pointer.prepares if self.reads_bank and self.pointer else frozenset())

    @property
    def reads_text(self) -> bool:
        """Whether the memory compares entries with the tokens of the text, which a cache then stores."""
        return self.index_class is not None or "text" in self.prepares

    @property
    def cache_layers(self) -> int:
        """Layers of a key-value cache: one for each attention, each reading block, and the text with its matches.

        The text stands there twice where suffixes are searched beside another retrieval.
        """
        n_texts = (self.reads_text or self.ngram_table_rows > 0) + self.has_suffix_layers
        return self.n_layers + len(self.reading_layers) + n_texts


def check_suffix_layers(config: ModelConfig) -> None:
    """Raise ValueError: a block does not exist or reads twice, or what such blocks are made of is refused."""
    layers = config.suffix_layers
    for layer in layers:
        require(
            0 <= layer < config.n_layers, f"--suffix_layers {layer} must lie in [0, {config.n_layers - 1}], the blocks"
        )
    require(
        bool(config.fused_layers) or config.pointer,
        "--suffix_layers needs a reader of what --retrieval finds: --pointer or --memory_layers; without one take "
        "--retrieval suffix",
    )
    both = sorted({*layers} & {*config.fused_layers})
    require(not both, f"--suffix_layers and --memory_layers both name block {both and both[0]}: a block reads once")
    try:
        assert config.suffix_part  # made here, with its checks
    except ValueError as problem:  # it names the flags of --retrieval suffix
        raise ValueError(str(problem).replace("--num_", "--suffix_")) from None


class OriginalHFConfig(PreTrainedConfig):
    """A ModelConfig in the form that transformers saves, loads and hands to `generate`."""

    model_type = "model_original"
    attribute_map = {
        "hidden_size": "dim", "num_attention_heads": "n_heads", "max_position_embeddings": "max_seq_len"
    }  # fmt: skip

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
    """The configuration of `model_memory` in transformers' form."""

    model_type = "model_memory"
