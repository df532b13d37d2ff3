"""The flags of every model and of every memory. `model/config.py` adds those of each retrieval and fusion."""

from dataclasses import dataclass

from common.flags import flag, require

FEED_FORWARD = "has_ffn: a feed-forward: --keep_ffn, or blocks without a memory"
READER = "reads_bank: something that reads the memory: other --memory_layers, or --pointer"
ANY_BLOCK = "reading_layers: a block that reads the memory: other --memory_layers"
IN_A_BLOCK = "fused_layers: a block that reads the memory: other --memory_layers"


@dataclass(frozen=True)
class CoreConfig:
    """What both models have."""

    heading = "transformer"

    dim: int = flag(
        512, "width D of the residual stream; a multiple of n_heads and of fusion_heads",
        within=(1, None), multiple_of="n_heads", basic=True,
    )  # fmt: skip
    n_layers: int = flag(8, "number of blocks", within=(1, None), basic=True)
    n_heads: int = flag(32, "query heads H; must divide dim", within=(1, None), basic=True)
    n_kv_heads: int | None = flag(
        None, "key/value heads G of grouped-query attention; None: as many as n_heads",
        within=(0, None), divides="n_heads",
    )  # fmt: skip
    ffn_dim: int | None = flag(
        None, "inner width F of the feed-forward; None: 8/3 dim (swiglu) or 4 dim (relu2), rounded up to 64",
        only_with=FEED_FORWARD,
    )  # fmt: skip
    ffn_activation: str = flag(
        "swiglu", "feed-forward: gated by SiLU, or without a gate by a squared ReLU of equal parameters",
        choices=["swiglu", "relu2"], only_with=FEED_FORWARD,
    )  # fmt: skip
    vocab_size: int = flag(6400, "vocabulary V; a training run takes the tokenizer's", within=(1, None))
    max_seq_len: int = flag(512, "longest sequence T, in tokens", within=(1, None), basic=True)
    rope_theta: float = flag(10000.0, "base of the rotary position embedding")
    norm_eps: float = flag(1e-5, "epsilon of every RMSNorm")
    residual_in_fp32: bool = flag(True, "keep the residual stream in float32 under autocast; False: in its precision")
    qk_norm: bool = flag(False, "bring the queries and keys of each attention head to unit scale, with a learned gain")
    residual_scalars: bool = flag(
        False, "input of each block: a * stream + b * normed token embeddings, with learned a and b"
    )
    zero_init_out: bool = flag(False, "start the projections that write to the stream at zero")
    value_embeddings: list[int] | None = flag(
        None, "blocks, counted from 0, whose attention adds a learned vector of the token to its values; None: no block"
    )
    tie_embeddings: bool = flag(True, "one matrix for token embeddings and head; False: one for each")
    logit_softcap: float = flag(
        0.0, "largest logit c: each logit x becomes c tanh(x / c), in float32; 0: no cap", within=(0, None)
    )
    dropout: float = flag(0.0, "dropout on the outputs of attention and feed-forward", within=(0, 1), open_end=True)
    use_flash_attn: bool = flag(True, "fused attention; False: the plain softmax of the textbook (slow reference)")
    flash_backend: str = flag(
        "pytorch",
        "which fused attention: PyTorch's own, or that of the flash-attn package in 16 bits (PyTorch's in float32)",
        choices=["pytorch", "flash_attn"], only_with="--use_flash_attn",
    )  # fmt: skip

    use_moe: bool = flag(False, "mixture of experts in place of each dense feed-forward", only_with=FEED_FORWARD)
    n_experts: int = flag(4, "routed experts", only_with=["--use_moe", FEED_FORWARD])
    n_experts_per_tok: int = flag(2, "experts that each token uses", only_with=["--use_moe", FEED_FORWARD])
    n_shared_experts: int = flag(
        1, "experts that every token uses", within=(0, None), only_with=["--use_moe", FEED_FORWARD]
    )
    moe_loss_coef: float = flag(0.01, "weight of the experts' balance loss", only_with=["--use_moe", FEED_FORWARD])

    def check(self) -> None:
        """Raise ValueError for what the declaration of a single flag cannot say."""
        require(
            self.head_dim % 2 == 0,
            f"--dim {self.dim} / --n_heads {self.n_heads} = {self.head_dim} is odd; rotary positions need it even",
        )
        require(
            not self.use_moe or 1 <= self.n_experts_per_tok <= self.n_experts,
            f"--n_experts_per_tok {self.n_experts_per_tok} must lie in [1, --n_experts {self.n_experts}]",
        )
        for layer in self.value_embeddings or []:
            require(
                0 <= layer < self.n_layers,
                f"--value_embeddings {layer} must lie in [0, {self.n_layers - 1}], the blocks",
            )

    @property
    def head_dim(self) -> int:
        return self.dim // self.n_heads

    @property
    def kv_heads(self) -> int:
        return self.n_kv_heads or self.n_heads

    @property
    def hidden_dim(self) -> int:
        """F: the inner width of the feed-forward. Two matrices of relu2 have the parameters of swiglu's three."""
        gated = -(-8 * self.dim // (3 * 64)) * 64
        return self.ffn_dim or (gated if self.ffn_activation == "swiglu" else 3 * gated // 2)


@dataclass(frozen=True)
class MemoryConfig(CoreConfig):
    """What every memory has, however it finds entries and reads them."""

    heading = "memory: the bank and where it is read"

    memory_layers: list[int] | None = flag(
        None, "blocks that read the memory, counted from 0; None: all of them; -1: none (the pointer alone)", basic=True
    )
    keep_ffn: bool = flag(
        False, "keep the feed-forward beside the memory, instead of the memory in its place", only_with=ANY_BLOCK
    )
    knowledge_num: int = flag(
        1048576,
        "bank entries N, for product keys a square number R*R; auto: all of the knowledge file, and --reserve_entries",
        within=(1, None),
        basic=True,
    )
    knowledge_length: int = flag(8, "tokens L of an entry", within=(1, None), basic=True)
    num_candidates: int = flag(16, "candidates C that the retrieval ranks", within=(1, None), only_with=READER)
    num_selected: int = flag(4, "entries S that a position reads", within=(1, "num_candidates"), only_with=READER)
    fusion_scope: str = flag(
        "sequence",
        "what a position may read: entries selected at positions up to its own, or its own only",
        choices=["sequence", "token"],
        only_with=[IN_A_BLOCK, "fusion_has_scope: a --fusion that can read other positions (docs/memory.md)"],
    )  # fmt: skip
    fusion_dropout: float = flag(
        0.15, "dropout on the output of the fusion", within=(0, 1), open_end=True, only_with=ANY_BLOCK
    )
    freeze_ratio: float = flag(0.2, "share of entries that training never changes", within=(0, 1), only_with=READER)
    ema_interval: int = flag(
        0, "optimizer steps between two moving-average updates of the unfrozen entries; 0: never",
        within=(0, None), needs="--retrieval product_key: the update follows its queries",
    )  # fmt: skip
    ema_decay: float = flag(
        0.9, "decay of an entry's moving average at each update", within=(0, 1), only_with="--ema_interval"
    )

    def check(self) -> None:
        for layer in self.memory_layers or []:
            require(
                -1 <= layer < self.n_layers, f"--memory_layers {layer} must lie in [0, {self.n_layers - 1}], or be -1"
            )
