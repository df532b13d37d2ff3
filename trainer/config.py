"""The flags of a run that are not architecture, and the command line made of all of them."""

import difflib
import importlib.util
import math
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

from transformers import HfArgumentParser

from common.flags import flag, require
from model.config import ModelConfig


@dataclass(frozen=True)
class DataConfig:
    """What is read. Paths are relative to the working directory."""

    data_path: str = flag(
        "dataset/stable/merged_pretrain.jsonl",
        "JSON Lines to learn: `text`, or `prompt` and `answer`, of which only the answer is learnt",
    )
    val_path: str | None = flag(None, "validation text; None: the last val_fraction of the documents of data_path")
    val_fraction: float = flag(0.005, "share of the documents held out when there is no val_path")
    data_mode: str = flag(
        "packed", "documents packed into full rows, or one padded document a row", choices=["packed", "padded"]
    )
    init_path: str | None = flag(None, "folder of a trained run whose weights this one starts from (fine-tuning)")
    tokenizer_path: str = flag("dataset/tokenizer", "folder of a Hugging Face tokenizer")
    database_init_path: str | None = flag(
        "dataset/stable/sentence_trex_data.json", "knowledge file that fills the bank of model_memory"
    )
    cluster_cache_path: str | None = flag(
        None, "order the bank by content and start the sub-keys from it; the order is kept in this .npz file"
    )
    cluster_words: int | None = flag(
        None, "put entries side by side that share the rarest of so many first tokens, as rows; None: rows are clusters"
    )
    cache_dir: str = flag("dataset/cache", "where tokenised text and banks are kept")
    object_path: str | None = flag(None, "object-prediction questions for the evaluation")
    relation_path: str | None = flag(None, "relation-prediction questions for the evaluation")
    verification_path: str | None = flag(None, "fact-verification questions for the evaluation")
    edit_path: str | None = flag(None, "facts to edit, with their new objects, for the evaluation")

    def __post_init__(self):
        words, ordered = self.cluster_words, self.cluster_cache_path is not None
        require(words is None or words >= 1, f"--cluster_words must be at least 1, got {words}")
        require(words is None or ordered, "--cluster_words needs --cluster_cache_path, where the order is kept")
        require(0 <= self.val_fraction < 1, f"--val_fraction must lie in [0, 1), got {self.val_fraction}")


@dataclass(frozen=True)
class OptimConfig:
    epochs: int = flag(3, "passes over the training rows")
    max_steps: int | None = flag(None, "stop after this many optimizer steps, whatever the epochs say")
    batch_size: int = flag(48, "rows of a micro-batch, for each process")
    entry_rows: int = flag(
        0, "rows of the bank's own entries beside those of a micro-batch: they teach the retrieval, and no words"
    )
    accumulation_steps: int = flag(12, "micro-batches of an optimizer step")
    optimizer: str = flag(
        "adamw", "AdamW for all parameters, or Muon for the blocks' matrices beside it", choices=["adamw", "muon"]
    )
    learning_rate: float = flag(2e-4, "peak of the cosine schedule")
    min_lr_ratio: float = flag(0.1, "end of the schedule, as a share of its peak")
    warmup_ratio: float = flag(0.02, "share of the steps in which the learning rate rises linearly")
    memory_lr_scale: float = flag(1.0, "learning rate of queries and sub-keys, relative to the other parameters")
    muon_lr_scale: float = flag(3.0, "learning rate of Muon's matrices, relative to the other parameters")
    muon_momentum: float = flag(0.95, "decay rate of Muon's momentum")
    weight_decay: float = flag(0.1, "decoupled decay, of matrices only")
    beta1: float = flag(0.9, "AdamW's first decay rate")
    beta2: float = flag(0.95, "AdamW's second decay rate")
    grad_clip: float = flag(1.0, "largest norm of the gradient; 0 turns clipping off")
    dtype: str = flag("bfloat16", "autocast precision", choices=["bfloat16", "float16", "float32"])

    def __post_init__(self):
        for name in ("epochs", "batch_size", "accumulation_steps"):
            require(getattr(self, name) >= 1, f"--{name} must be at least 1, got {getattr(self, name)}")
        require(self.entry_rows >= 0, f"--entry_rows must not be negative, got {self.entry_rows}")
        for name, low, high in (
            ("learning_rate", 0, math.inf), ("memory_lr_scale", 0, math.inf), ("weight_decay", 0, math.inf),
            ("grad_clip", 0, math.inf), ("min_lr_ratio", 0, 1), ("warmup_ratio", 0, 1), ("beta1", 0, 1),
            ("beta2", 0, 1), ("muon_lr_scale", 0, math.inf), ("muon_momentum", 0, 1),
        ):  # fmt: skip
            value = getattr(self, name)
            require(low <= value <= high and value < math.inf, f"--{name} must lie in [{low}, {high}], got {value}")
        require(self.learning_rate > 0, f"--learning_rate must be positive, got {self.learning_rate}")
        require(max(self.beta1, self.beta2) < 1, f"--beta1 and --beta2 must be below 1, got {self.beta1}, {self.beta2}")
        require(self.muon_momentum < 1, f"--muon_momentum must be below 1, got {self.muon_momentum}")
        require(self.max_steps is None or self.max_steps >= 1, f"--max_steps must be at least 1, got {self.max_steps}")


@dataclass(frozen=True)
class RunConfig:
    out_dir: str = flag("out/run", "run folder: flags, metrics, checkpoints, final weights")
    experiment: str | None = flag(None, "number of the experiment's record, such as 1_4_8; None: from out_dir")
    experiment_dir: str = flag("experiment", "where the records are")
    base_experiment: str | None = flag(None, "the experiment that this one builds on, such as 1.4.7")
    baseline: str | None = flag(None, "run folder of the baseline that the record compares with; None: look in out/")
    target_loss: float | None = flag(None, "validation loss that the experiment aims at")
    seed: int = flag(42, "seed of weights, data order and dropout")
    deterministic: bool = flag(False, "refuse operations that do not repeat bit for bit; on a CPU all of them do")
    max_skipped_in_row: int = flag(10, "stop after so many optimizer steps in a row without a finite loss or gradient")
    resume: bool = flag(True, "go on from the newest checkpoint in out_dir; --no_resume starts over")
    use_compile: bool | None = flag(None, "torch.compile the blocks; None: on CUDA only")
    use_cuda_graph: bool | None = flag(None, "replay each micro-batch as a CUDA graph; None: where it is possible")
    log_interval: int = flag(10, "optimizer steps between two lines of metrics.jsonl")
    eval_interval: int = flag(200, "optimizer steps between two validations")
    eval_batches: int | None = flag(None, "validation batches at most; None: all of them")
    save_interval: int = flag(500, "optimizer steps between two checkpoints")
    keep_checkpoints: int = flag(2, "how many of the newest checkpoints are kept")
    keep_best: bool = flag(True, "also write and keep the checkpoint of the best validation")
    memory_monitor_interval: int = flag(100, "optimizer steps between two readings of GPU and host memory")
    use_swanlab: bool = flag(False, "send the metrics to SwanLab as well")
    swanlab_project: str = flag("MiniMind-Experiment", "SwanLab project")
    swanlab_mode: str | None = flag(
        None, "None: online with an account, else local", choices=["online", "local", "offline", "disabled"]
    )

    def __post_init__(self):
        intervals = ("log_interval", "eval_interval", "save_interval", "memory_monitor_interval")
        for name in (*intervals, "keep_checkpoints", "max_skipped_in_row"):
            require(getattr(self, name) >= 1, f"--{name} must be at least 1, got {getattr(self, name)}")
        require(0 <= self.seed < 2**32, f"--seed must lie in [0, {2**32 - 1}], got {self.seed}")
        batches = self.eval_batches
        require(batches is None or batches >= 1, f"--eval_batches must be at least 1, got {batches}")

    @property
    def name(self) -> str:
        return Path(self.out_dir).name

    @property
    def experiment_id(self) -> str:
        return self.experiment or self.name.removeprefix("experiment_")


@dataclass(frozen=True)
class Flags:
    """All flags of a run, by section."""

    model: ModelConfig
    data: DataConfig
    optim: OptimConfig
    run: RunConfig

    def as_dict(self) -> dict[str, dict]:
        return asdict(self)


class OneSentenceParser(HfArgumentParser):
    def error(self, message: str):
        sys.exit(f"error: {message} (--help lists the flags)")


def parse_cli(argv: list[str] | None = None) -> Flags:
    """The flags of a command line.

    Raises:
        ValueError: a flag does not exist or a value is refused; one sentence says which and why.
    """
    # allow_abbrev=False: else a typo such as --n_layer is silently taken as --n_layers.
    parser = OneSentenceParser([ModelConfig, DataConfig, OptimConfig, RunConfig], allow_abbrev=False)
    *configs, unknown = parser.parse_args_into_dataclasses(argv, return_remaining_strings=True)
    if unknown:
        known = [option for action in parser._actions for option in action.option_strings]
        near = difflib.get_close_matches(unknown[0], known, n=1)
        cure = f"did you mean {near[0]}?" if near else "--help lists the flags"
        raise ValueError(f"unknown flag {unknown[0]}: {cure}")
    flags = Flags(*configs)
    ordered = flags.data.cluster_cache_path is not None
    if ordered and flags.model.reads_bank:
        require(
            flags.model.retrieval == "product_key",
            "--cluster_cache_path orders the grid of product keys: it needs --retrieval product_key",
        )
    require(
        flags.model.model_type == "model_memory"
        or not (flags.model.retrieval_loss_coef or flags.model.teacher_forcing),
        "--retrieval_loss_coef and --teacher_forcing teach product keys: they need --model_type model_memory",
    )
    words, length = flags.data.cluster_words, flags.model.knowledge_length
    require(words is None or words <= length, f"--cluster_words {words} exceeds --knowledge_length {length}")
    if flags.optim.entry_rows:
        require(
            flags.model.teaches_retrieval,
            "--entry_rows needs --retrieval_loss_coef, the weight of what they teach, and blocks that read the memory",
        )
        require(flags.data.data_mode == "packed", "--entry_rows needs --data_mode packed: entries are short")
    if flags.model.use_flash_attn and flags.model.flash_backend == "flash_attn":
        require_flash_attn(flags.data.data_mode)
    return flags


def require_flash_attn(data_mode: str) -> None:
    require(
        importlib.util.find_spec("flash_attn") is not None,
        "--flash_backend flash_attn needs the flash-attn package: pip install flash-attn, or leave the flag out",
    )
    require(
        data_mode == "padded",
        "--flash_backend flash_attn sees no borders of documents: add --data_mode padded, or leave the flag out",
    )
