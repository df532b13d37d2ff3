"""ModelConfig: every architecture flag, declared once with its help and its checks."""

from dataclasses import asdict, dataclass, fields
from math import isqrt

from transformers import PreTrainedConfig

from common.flags import flag, require


@dataclass(frozen=True)
class ModelConfig:
    """The architecture. Frozen: derived values are properties; `dataclasses.replace` makes a variant.

    Raises:
        ValueError: a value is out of range, or two values contradict each other.
    """

    model_type: str = flag("model_memory", "dense baseline or memory model", choices=["model_original", "model_memory"])
    dim: int = flag(512, "width D of the residual stream; a multiple of n_heads and of fusion_heads")
    n_layers: int = flag(8, "number of blocks")
    n_heads: int = flag(32, "query heads H; must divide dim")
    n_kv_heads: int | None = flag(None, "key/value heads G of grouped-query attention; None: as many as n_heads")
    ffn_dim: int | None = flag(None, "inner width F of the feed-forward; None: 8/3 dim, rounded up to 64")
    vocab_size: int = flag(6400, "vocabulary V; a training run takes the tokenizer's")
    max_seq_len: int = flag(512, "longest sequence T, in tokens")
    rope_theta: float = flag(10000.0, "base of the rotary position embedding")
    norm_eps: float = flag(1e-5, "epsilon of every RMSNorm")
    residual_in_fp32: bool = flag(True, "keep the residual stream in float32 under autocast; False: in its precision")
    dropout: float = flag(0.0, "dropout on the outputs of attention and feed-forward")
    use_flash_attn: bool = flag(True, "fused attention; False: the plain softmax of the textbook (slow reference)")
    flash_backend: str = flag(
        "pytorch", "which fused attention: PyTorch's own, or the flash-attn package", choices=["pytorch", "flash_attn"]
    )

    use_moe: bool = flag(False, "mixture of experts in place of each dense feed-forward")
    n_experts: int = flag(4, "routed experts")
    n_experts_per_tok: int = flag(2, "experts that each token uses")
    n_shared_experts: int = flag(1, "experts that every token uses")
    moe_loss_coef: float = flag(0.01, "weight of the experts' balance loss")

    ngram_table_rows: int = flag(0, "rows of each head of a table hashed by the last tokens; 0: no table")
    ngram_table_heads: int = flag(4, "heads of the table for each order, each with rows and a hash of its own")
    ngram_table_dim: int = flag(64, "width of a row of the table")
    ngram_table_orders: list[int] = flag([2, 3], "how many last tokens each order of the table hashes")
    ngram_table_layers: list[int] = flag([1, 4], "blocks that the table is gated into, counted from 0")
    ngram_table_dropout: float = flag(0.0, "dropout of whole rows of the table")

    memory_layers: list[int] | None = flag(
        None, "blocks that read the memory, counted from 0; None: all of them; -1: none (the pointer alone)"
    )
    keep_ffn: bool = flag(False, "keep the feed-forward beside the memory, instead of the memory in its place")
    knowledge_num: int = flag(1048576, "bank entries N; for product keys a square number R*R")
    knowledge_length: int = flag(8, "tokens L of an entry")
    retrieval: str = flag(
        "product_key",
        "how entries are found: by learned product keys in each block, or once a position by the n-grams that they "
        "share with the text so far",
        choices=["product_key", "ngram"],
    )
    ngram_lengths: list[int] = flag(
        [3, 4], "tokens of the n-grams that point to entries (retrieval ngram, or taught by it)"
    )
    ngram_max_places: int = flag(32, "an n-gram that stands in more places of the bank than this points to nothing")
    ngram_pairs: int = flag(0, "so many rarest tokens of an entry point to it in pairs as well (retrieval ngram)")
    ngram_decay: float = flag(0.98, "what a found entry's score keeps from one token to the next")
    ngram_window: int = flag(
        32, "last tokens of the text: their words rank the found entries, and pairs are made of them"
    )
    retrieval_noise: float = flag(0.0, "share of the found entries that training replaces by random ones")
    pointer: bool = flag(False, "a pointer at the end may copy the next token from an entry (retrieval ngram)")
    query_norm: bool = flag(False, "bring each half of a query to unit scale before it meets the sub-keys")
    selection: str = flag(
        "product_key",
        "how S of C candidates are selected: by product-key score, re-scored by cosine, or by straight-through Gumbel",
        choices=["product_key", "cosine", "gumbel"],
    )
    num_candidates: int = flag(16, "candidates C that the product keys propose")
    num_selected: int = flag(4, "entries S that a position reads")
    cosine_temperature: float = flag(0.1, "the cosine is divided by this before it joins the product-key score")
    gumbel_temperature: float = flag(1.0, "temperature of the Gumbel softmax (selection gumbel)")
    fusion: str = flag(
        "cross_attention",
        "how the read entries join the stream: as vectors, or (words) word by word",
        choices=["gated_mlp", "cross_attention", "concat", "words"],
    )
    word_key_dim: int = flag(64, "width of the queries and keys that compare a position with the words of its entries")
    word_value_dim: int = flag(128, "width in which the words of the entries are read (fusion words)")
    fusion_scope: str = flag(
        "sequence",
        "what a position may read: entries selected at positions up to its own, or its own only",
        choices=["sequence", "token"],
    )
    fusion_heads: int = flag(8, "heads of the cross-attention fusion; must divide dim")
    attention_dropout: float = flag(0.1, "dropout of keys in the cross-attention fusion")
    fusion_dropout: float = flag(0.15, "dropout on the output of the fusion")
    freeze_ratio: float = flag(0.2, "share of entries that are never rewritten")
    ema_interval: int = flag(0, "optimizer steps between two rewritings of the unfrozen entries; 0: never")
    ema_decay: float = flag(0.9, "decay of an entry's moving average at each rewriting")
    balance_loss_coef: float = flag(0.1, "weight of the sub-keys' balance loss")
    similarity_loss_coef: float = flag(0.0, "weight of the loss that draws queries to the entries they select")
    diversity_loss_coef: float = flag(0.0, "weight of the loss that keeps a position's candidates apart")
    retrieval_loss_coef: float = flag(
        0.0, "weight of the loss that teaches product keys the entries which n-grams find (the flags --ngram_* hold)"
    )
    teacher_forcing: float = flag(
        0.0,
        "share of the positions with an entry that n-grams find at which training reads it, whatever the keys propose",
    )

    def __post_init__(self):
        for name in ("dim", "n_layers", "n_heads", "vocab_size", "max_seq_len", "knowledge_num", "knowledge_length"):
            require(getattr(self, name) >= 1, f"--{name} must be at least 1, got {getattr(self, name)}")
        require(self.dim % self.n_heads == 0, f"--dim {self.dim} is not a multiple of --n_heads {self.n_heads}")
        require(
            self.head_dim % 2 == 0,
            f"--dim {self.dim} / --n_heads {self.n_heads} = {self.head_dim} is odd; rotary positions need it even",
        )
        require(
            self.n_heads % self.kv_heads == 0,
            f"--n_kv_heads {self.n_kv_heads} does not divide --n_heads {self.n_heads}",
        )
        for name in ("dropout", "attention_dropout", "fusion_dropout"):
            require(0 <= getattr(self, name) < 1, f"--{name} must lie in [0, 1), got {getattr(self, name)}")
        if self.use_moe:
            require(
                1 <= self.n_experts_per_tok <= self.n_experts,
                f"--n_experts_per_tok {self.n_experts_per_tok} must lie in [1, --n_experts {self.n_experts}]",
            )
        for name in ("model_type", "flash_backend", "retrieval", "selection", "fusion", "fusion_scope"):
            choices = self.__dataclass_fields__[name].metadata["choices"]
            require(getattr(self, name) in choices, f"--{name} must be one of {choices}, got {getattr(self, name)!r}")
        require(self.ngram_table_rows >= 0, f"--ngram_table_rows must not be negative, got {self.ngram_table_rows}")
        if self.ngram_table_rows:
            self._check_ngram_table()
        if self.model_type == "model_memory":
            self._check_memory()

    def _check_ngram_table(self):
        for name in ("ngram_table_heads", "ngram_table_dim"):
            require(getattr(self, name) >= 1, f"--{name} must be at least 1, got {getattr(self, name)}")
        orders = self.ngram_table_orders
        require(
            bool(orders) and min(orders) >= 1 and len(set(orders)) == len(orders),
            f"--ngram_table_orders must be different numbers of at least 1, got {orders}",
        )
        require(bool(self.ngram_table_layers), "--ngram_table_rows needs --ngram_table_layers, the blocks that read it")
        for layer in self.ngram_table_layers:
            require(0 <= layer < self.n_layers, f"--ngram_table_layers {layer} must lie in [0, {self.n_layers - 1}]")
        require(
            0 <= self.ngram_table_dropout < 1,
            f"--ngram_table_dropout must lie in [0, 1), got {self.ngram_table_dropout}",
        )

    def _check_memory(self):
        for name in ("balance_loss_coef", "similarity_loss_coef", "diversity_loss_coef", "retrieval_loss_coef"):
            require(getattr(self, name) >= 0, f"--{name} must not be negative, got {getattr(self, name)}")
        if self.retrieval == "product_key":
            self._check_product_keys()
        else:
            self._check_ngrams()
        require(
            self.dim % self.fusion_heads == 0,
            f"--dim {self.dim} is not a multiple of --fusion_heads {self.fusion_heads}",
        )
        require(
            1 <= self.num_selected <= self.num_candidates,
            f"--num_selected {self.num_selected} must lie in [1, --num_candidates {self.num_candidates}]",
        )
        require(0 <= self.retrieval_noise < 1, f"--retrieval_noise must lie in [0, 1), got {self.retrieval_noise}")
        require(0 <= self.teacher_forcing <= 1, f"--teacher_forcing must lie in [0, 1], got {self.teacher_forcing}")
        require(
            self.teacher_forcing == 0 or self.retrieval_loss_coef > 0, "--teacher_forcing needs --retrieval_loss_coef"
        )
        require(0 <= self.freeze_ratio <= 1, f"--freeze_ratio must lie in [0, 1], got {self.freeze_ratio}")
        require(0 <= self.ema_decay <= 1, f"--ema_decay must lie in [0, 1], got {self.ema_decay}")
        for name in ("word_key_dim", "word_value_dim"):
            require(getattr(self, name) >= 1, f"--{name} must be at least 1, got {getattr(self, name)}")
        for layer in self.memory_layers or []:
            require(
                -1 <= layer < self.n_layers, f"--memory_layers {layer} must lie in [0, {self.n_layers - 1}], or be -1"
            )

    def _check_product_keys(self):
        R = isqrt(self.knowledge_num)
        require(
            R * R == self.knowledge_num,
            f"--knowledge_num {self.knowledge_num} is not a square (product keys span a square grid); "
            f"the nearest are {R * R} and {(R + 1) ** 2}",
        )
        require(self.dim % 2 == 0, f"--dim {self.dim} must be even: a query has two halves")
        require(
            1 <= self.num_candidates <= R,
            f"--num_candidates {self.num_candidates} must lie in [1, {R}], the side of the grid of entries",
        )
        # A softmax over a single entry is the constant 1: the language-model loss could not train the retrieval.
        require(
            self.num_selected > 1 or self.selection == "gumbel",
            f"--num_selected 1 cannot be trained with --selection {self.selection}; take 2 or more, or gumbel",
        )
        require(not self.pointer, "--pointer needs --retrieval ngram: the pointer reads what the n-grams found")
        if self.retrieval_loss_coef:
            self._check_ngram_search()
            require(
                self.ema_interval == 0, "--retrieval_loss_coef needs --ema_interval 0: n-grams do not follow rewriting"
            )

    def _check_ngram_search(self):
        longest = 62 // (self.vocab_size - 1).bit_length()  # an n-gram is packed into 63 bits
        require(
            bool(self.ngram_lengths) and all(1 <= n <= longest for n in self.ngram_lengths),
            f"--ngram_lengths {self.ngram_lengths} must lie in [1, {longest}] with --vocab_size {self.vocab_size}",
        )
        require(self.ngram_max_places >= 1, f"--ngram_max_places must be at least 1, got {self.ngram_max_places}")
        require(
            self.ngram_pairs == 0 or 2 <= self.ngram_pairs <= self.knowledge_length,
            f"--ngram_pairs {self.ngram_pairs} must be 0 or lie in [2, {self.knowledge_length}], --knowledge_length",
        )
        require(self.ngram_window >= 1, f"--ngram_window must be at least 1, got {self.ngram_window}")
        require(0 <= self.ngram_decay <= 1, f"--ngram_decay must lie in [0, 1], got {self.ngram_decay}")

    def _check_ngrams(self):
        self._check_ngram_search()
        require(not self.query_norm, "--query_norm needs --retrieval product_key: n-grams have no queries")
        require(self.retrieval_loss_coef == 0, "--retrieval_loss_coef needs --retrieval product_key")
        require(self.num_candidates >= 1, f"--num_candidates must be at least 1, got {self.num_candidates}")
        require(
            self.num_selected > 1 or self.fusion == "words" or not self.reading_layers,
            f"--num_selected 1 cannot be trained with --fusion {self.fusion}; take 2 or more, or words",
        )
        require(self.ema_interval == 0, "--ema_interval needs --retrieval product_key: rewriting follows its queries")

    @property
    def head_dim(self) -> int:
        return self.dim // self.n_heads

    @property
    def kv_heads(self) -> int:
        return self.n_kv_heads or self.n_heads

    @property
    def hidden_dim(self) -> int:
        """F: the inner width of the feed-forward."""
        return self.ffn_dim or -(-8 * self.dim // (3 * 64)) * 64

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

    @property
    def ngram_table_width(self) -> int:
        """Numbers that a position reads from the table: one row of each head of each order."""
        return len(self.ngram_table_orders) * self.ngram_table_heads * self.ngram_table_dim

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
            **values, num_hidden_layers=config.cache_layers, tie_word_embeddings=True,
            bos_token_id=1, eos_token_id=2, pad_token_id=0,
        )  # fmt: skip

    def unwrap(self) -> ModelConfig:
        values = {f.name: getattr(self, f.name) for f in fields(ModelConfig) if hasattr(self, f.name)}
        return ModelConfig(**values)


class MemoryHFConfig(OriginalHFConfig):
    model_type = "model_memory"
