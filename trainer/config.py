"""The flags of a run that are not architecture, and the command line made of all of them."""

import importlib.util
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

from common.flags import check, flag, idle_flags, require
from model.config import ModelConfig

from .parser import OneSentenceParser, asked_for_help, unknown, with_config

HELP_END = """
also:
  --config FILE     flags from a YAML file, or from a run's flags.json without its folder (--out_dir), record
                    (--experiment, --experiment_dir, --base_experiment, --baseline) and --resume; of equal flags
                    the last one wins
  --no_FLAG         turns a BOOL off, as --FLAG False does
  --help WORD       flags about a word, such as --help fusion
"""


@dataclass(frozen=True)
class DataConfig:
    """What is read. Paths are relative to the working directory."""

    heading = "data"

    data_path: str = flag(
        "dataset/stable/merged_pretrain.jsonl",
        "training text: JSON Lines (also .gz, .zst), parquet, or a folder of these; `text`, `prompt` and `answer`, or "
        "`conversations`; the loss is that of the answers alone",
        basic=True,
    )
    val_path: str | None = flag(None, "validation text; None: the last val_fraction of the documents of data_path")
    val_fraction: float = flag(
        0.005, "share of the documents held out when there is no val_path", within=(0, 1), open_end=True,
        only_with="--val_path None",
    )  # fmt: skip
    data_mode: str = flag(
        "packed", "documents packed into full rows, or one padded document a row", choices=["packed", "padded"]
    )
    init_path: str | None = flag(None, "folder of a trained run whose weights this run starts from (fine-tuning)")
    tokenizer_path: str = flag("dataset/tokenizer", "folder of a Hugging Face tokenizer")
    database_init_path: str | None = flag(
        "dataset/stable/sentence_trex_data.json",
        "knowledge file, or folder of files, that fills the bank of model_memory",
        basic=True,
    )
    reserve_entries: int = flag(
        0, "empty entries among --knowledge_num, at its end, for facts that are added after training", within=(0, None),
        only_with="--model_type model_memory",
    )  # fmt: skip
    cluster_cache_path: str | None = flag(
        None, "order the bank by content and start the sub-keys from that order; it is saved in this .npz file",
        only_with="--model_type model_memory",
    )  # fmt: skip
    cluster_words: int | None = flag(
        None,
        "fill grid rows with entries that share their rarest token among the first K; None: rows are embedding "
        "clusters",
        within=(1, None),
        needs="--cluster_cache_path: the order is saved there",
    )
    cache_dir: str = flag("dataset/cache", "folder of tokenised text and banks")
    val_questions: str | None = flag(
        None, "object questions; training asks the first 200 at each validation, also with the bank shuffled"
    )
    object_path: str | None = flag(None, "object-prediction questions for the evaluation")
    relation_path: str | None = flag(None, "relation-prediction questions for the evaluation")
    verification_path: str | None = flag(None, "fact-verification questions for the evaluation")
    edit_path: str | None = flag(None, "facts to edit, with their new objects, for the evaluation")

    def __post_init__(self):
        check(self)


@dataclass(frozen=True)
class OptimConfig:
    """How the weights are learned."""

    heading = "optimisation"

    epochs: int = flag(3, "passes over the training rows", within=(1, None), basic=True)
    max_steps: int | None = flag(
        None, "stop after this many optimizer steps, whatever the epochs say", within=(1, None), basic=True
    )
    batch_size: int = flag(48, "rows of a micro-batch, for each process", within=(1, None), basic=True)
    entry_rows: int = flag(
        0,
        "auxiliary rows of bank entries in each micro-batch: they train the retrieval, without language-model loss",
        within=(0, None),
        needs=["--retrieval_loss_coef: the weight of what they teach", "--data_mode packed: entries are short"],
    )
    accumulation_steps: int = flag(12, "micro-batches of an optimizer step", within=(1, None), basic=True)
    optimizer: str = flag(
        "adamw", "AdamW for all parameters, or Muon for the blocks' matrices beside it", choices=["adamw", "muon"]
    )
    learning_rate: float = flag(2e-4, "peak of the schedule", within=(0, None), basic=True)
    lr_schedule: str = flag(
        "cosine",
        "cosine, linear: falls after the warm-up. wsd: constant, then a linear fall. wsd_sqrt: constant, then 1 - sqrt",
        choices=["cosine", "linear", "wsd", "wsd_sqrt"],
    )
    decay_ratio: float = flag(
        0.3, "share of the steps in which the learning rate of wsd and wsd_sqrt falls", within=(0, 1),
        only_with="--lr_schedule wsd|wsd_sqrt",
    )  # fmt: skip
    min_lr_ratio: float = flag(0.1, "end of the schedule, as a share of its peak", within=(0, 1))
    warmup_ratio: float = flag(0.02, "share of the steps in which the learning rate rises linearly", within=(0, 1))
    memory_lr_scale: float = flag(
        1.0, "learning rate of queries and sub-keys, relative to the other parameters", within=(0, None),
        only_with=["--model_type model_memory", "--retrieval product_key|word_keys"],
    )  # fmt: skip
    muon_lr_scale: float = flag(
        3.0, "learning rate of Muon's matrices, relative to the other parameters", within=(0, None),
        only_with="--optimizer muon",
    )  # fmt: skip
    muon_momentum: float = flag(
        0.95, "decay rate of Muon's momentum", within=(0, 1), open_end=True, only_with="--optimizer muon"
    )
    ngram_table_lr_scale: float = flag(
        1.0, "learning rate of the rows of the n-gram table, relative to the other parameters", within=(0, None),
        only_with="--ngram_table_rows",
    )  # fmt: skip
    ngram_table_weight_decay: float = flag(
        0.0, "decoupled decay of the rows of the n-gram table", within=(0, None), only_with="--ngram_table_rows"
    )
    weight_decay: float = flag(0.1, "decoupled decay, of matrices only", within=(0, None))
    beta1: float = flag(0.9, "AdamW's first decay rate", within=(0, 1), open_end=True)
    beta2: float = flag(0.95, "AdamW's second decay rate", within=(0, 1), open_end=True)
    grad_clip: float = flag(1.0, "largest norm of the gradient; 0 turns clipping off", within=(0, None))
    dtype: str = flag("bfloat16", "autocast precision", choices=["bfloat16", "float16", "float32"], basic=True)

    def __post_init__(self):
        check(self)
        require(self.learning_rate > 0, f"--learning_rate must be positive, got {self.learning_rate}")


@dataclass(frozen=True)
class RunConfig:
    """Where a run writes, how often, and how it repeats."""

    heading = "run folder, intervals, reproducibility"

    out_dir: str = flag("out/run", "run folder: flags, metrics, checkpoints, final weights", basic=True)
    experiment: str | None = flag(None, "number of the experiment's record, such as 1_4_8; None: from out_dir")
    experiment_dir: str = flag("experiment", "folder of the records")
    base_experiment: str | None = flag(None, "the experiment that this one builds on, such as 1.4.7")
    baseline: str | None = flag(None, "run folder of the baseline that the record compares with; None: look in out/")
    target_loss: float | None = flag(None, "validation loss that the experiment aims at")
    seed: int = flag(42, "seed of weights, data order and dropout", within=(0, 2**32 - 1), basic=True)
    deterministic: bool = flag(False, "refuse operations that do not repeat bit for bit; on a CPU all of them do")
    max_skipped_in_row: int = flag(
        10, "stop after so many optimizer steps in a row without a finite loss or gradient", within=(1, None)
    )
    resume: bool = flag(True, "continue from the newest checkpoint in out_dir; --no_resume starts over")
    use_compile: bool | None = flag(None, "torch.compile the blocks; None: on CUDA only")
    use_cuda_graph: bool | None = flag(None, "replay each micro-batch as a CUDA graph; None: where it is possible")
    log_interval: int = flag(10, "optimizer steps between two lines of metrics.jsonl", within=(1, None))
    eval_interval: int = flag(200, "optimizer steps between two validations", within=(1, None))
    eval_batches: int | None = flag(None, "validation batches at most; None: all of them", within=(1, None))
    save_interval: int = flag(500, "optimizer steps between two checkpoints", within=(1, None))
    keep_checkpoints: int = flag(2, "how many of the newest checkpoints stay on disk", within=(1, None))
    keep_best: bool = flag(True, "also write and keep the checkpoint of the best validation")
    memory_monitor_interval: int = flag(
        100, "optimizer steps between two readings of GPU and host memory", within=(1, None)
    )
    use_swanlab: bool = flag(False, "send the metrics to SwanLab as well")
    swanlab_project: str = flag("MiniMind-Experiment", "SwanLab project")
    swanlab_mode: str | None = flag(
        None, "None: online with an account, else local", choices=["online", "local", "offline", "disabled"],
        only_with="--use_swanlab",
    )  # fmt: skip

    def __post_init__(self):
        check(self)

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

    def idle(self, every: bool = False) -> dict[str, str]:
        """The flags that differ from their defaults and do nothing, each with what they would need.

        Args:
            every: also those that have their defaults.
        """
        found = self.model.idle_flags(every)
        for config in (self.data, self.optim, self.run):
            found |= idle_flags(config, lambda _: None, (self.model, self.data, self.optim, self.run), every)
        return found


CONFIGS = (ModelConfig, DataConfig, OptimConfig, RunConfig)


def parse_cli(argv: list[str] | None = None) -> Flags:
    """The flags of a command line, and of the files that its `--config` names; `--help WORD` prints and ends.

    Raises:
        ValueError: a flag does not exist or a value is refused; one sentence says which and why.
    """
    from .bank_size import sized, without_auto  # it needs Flags

    argv, parser = sys.argv[1:] if argv is None else argv, OneSentenceParser(*CONFIGS)
    if (words := asked_for_help(argv)) is not None:
        print(parser.help_about(words), end="")
        print("" if words else HELP_END, end="")
        sys.exit(0)
    argv, auto = without_auto(with_config(argv, parser))
    *configs, left = parser.parse_args_into_dataclasses(argv, return_remaining_strings=True)
    if left:
        raise ValueError(unknown(left[0], parser))
    flags = sized(Flags(*configs)) if auto else Flags(*configs)
    check_together(flags)
    return flags


def check_together(flags: Flags) -> None:
    """Refuse flags of one section that contradict those of another."""
    model, data, optim = flags.model, flags.data, flags.optim
    check(data, others=(model,))
    check(optim, others=(model, data))
    require(
        data.reserve_entries < model.knowledge_num or not model.reads_bank,
        f"--reserve_entries {data.reserve_entries} leaves no entry of --knowledge_num {model.knowledge_num} for the "
        "knowledge file: lower it, or give --knowledge_num auto",
    )
    rows = optim.batch_size + optim.entry_rows
    words, length = data.cluster_words, model.knowledge_length
    require(words is None or words <= length, f"--cluster_words {words} exceeds --knowledge_length {length}")
    require(
        data.cluster_cache_path is None or not model.reads_bank or model.retrieval_class.has_grid,
        "--cluster_cache_path orders the grid of product keys: it needs --retrieval product_key",
    )
    require(
        model.model_type == "model_memory" or not (model.retrieval_loss_coef or model.teacher_forcing),
        "--retrieval_loss_coef and --teacher_forcing teach product keys: they need --model_type model_memory",
    )
    require(
        optim.entry_rows == 0 or model.teaches_retrieval,
        "--entry_rows needs blocks that read the memory: --memory_layers names none",
    )
    require(
        rows % (every := model.row_stride) == 0,
        f"--memory_every {every} does not divide the {rows} rows of a micro-batch (--batch_size and --entry_rows)",
    )
    if model.use_flash_attn and model.flash_backend == "flash_attn":
        require_flash_attn(optim.dtype, flags.run.deterministic)


def require_flash_attn(dtype: str, deterministic: bool) -> None:
    require(
        importlib.util.find_spec("flash_attn") is not None,
        "--flash_backend flash_attn needs the flash-attn package: pip install flash-attn, or leave the flag out",
    )
    require(
        dtype != "float32",
        "--flash_backend flash_attn computes in 16 bits: take --dtype bfloat16 or float16, or leave the flag out",
    )
    require(
        not deterministic,
        "--flash_backend flash_attn does not repeat bit for bit: leave it out, or leave out --deterministic",
    )
