"""What comes before the first step: precision, determinism, and the model with its first weights."""

import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from threading import Timer

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import GradientAccumulationPlugin, parse_flag_from_env, set_seed
from torch import nn

from common.constants import NO_DOCUMENT
from common.files import read_json
from dataset.cache import cached_order
from dataset.knowledge import BANK_ORDER
from dataset.tokenizer import load_tokenizer
from model import build_model
from model.compat import convert_state_dict

from .checkpoint import checkpoint_dirs, load_tensors, tell
from .config import Flags

MIXED_PRECISION = {"bfloat16": "bf16", "float16": "fp16", "float32": "no"}
SHARDED = {  # what Accelerate's launcher and its config file ask for, by the variable that they set
    "ACCELERATE_USE_FSDP": "FSDP", "ACCELERATE_USE_DEEPSPEED": "DeepSpeed", "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "a parallelism other than that of the data",
}  # fmt: skip
MEMORY_PART = re.compile(r"blocks\.\d+\.(retrieval|fusion|memory_norm)|pointer|finder")
SILENT_S = 20.0  # seconds that a process waits for the others without a word


def start(flags: Flags) -> Accelerator:
    """Precision, determinism and the process group.

    Variables of Accelerate that are left in the environment change nothing: the run's own flags decide.

    Raises:
        ValueError: Accelerate is told to shard the model, or to wait for processes that no launcher has started.
    """
    require_whole_weights()
    with waiting_for_processes():
        accelerator = Accelerator(
            mixed_precision=MIXED_PRECISION[flags.optim.dtype], dynamo_backend="no",
            gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),  # else a variable divides each loss
        )  # fmt: skip
    torch.set_float32_matmul_precision("high")
    if flags.run.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS repeats itself only with this
        torch.use_deterministic_algorithms(True)
    return accelerator


def require_whole_weights() -> None:
    """Refuse launchers that would leave each process a part of the weights.

    Raises:
        ValueError: Accelerate is told to shard the model.
    """
    for variable, name in SHARDED.items():
        if parse_flag_from_env(variable):
            raise ValueError(
                f"Accelerate is told to use {name} ({variable}), but checkpoints, the bank and the evaluation need the "
                "whole weights in every process: launch with --multi_gpu instead, as NUM_PROCESSES=N "
                "bash run_file/experiment_*.sh does"
            )


@contextmanager
def waiting_for_processes() -> Iterator[None]:
    """Say what a process waits for that no other process joins.

    Raises:
        ValueError: `WORLD_SIZE` is left in the environment, without what a launcher sets beside it.
        ConnectionError: the processes do not reach each other.
    """
    world, missing = os.environ.get("WORLD_SIZE", "1"), [n for n in ("RANK", "MASTER_ADDR") if n not in os.environ]
    if not world.isdecimal() or int(world) < 2:
        yield
        return
    if missing and ("LOCAL_RANK" in os.environ or not torch.cuda.is_available()):
        raise ValueError(
            f"the environment has WORLD_SIZE={world} without {' and '.join(missing)}, so this process would wait for "
            "others for ever: unset WORLD_SIZE, or launch with NUM_PROCESSES=N bash run_file/experiment_*.sh"
        )
    told = (
        f"waiting for the {world} processes of WORLD_SIZE; stop this one if another has failed, or if it is alone: "
        "then unset WORLD_SIZE"
    )
    timer = Timer(SILENT_S, print, [told], {"file": sys.stderr, "flush": True})
    timer.daemon = True
    timer.start()
    try:
        yield
    except RuntimeError as problem:
        if not isinstance(problem, torch.distributed.DistError) and "connect" not in str(problem):
            raise
        raise ConnectionError(
            f"process {os.environ.get('RANK')} of {world} does not reach the others "
            f"({str(problem).splitlines()[0]}): every machine must be able to reach {os.environ.get('MASTER_ADDR')} on "
            "any port; if a machine's own name means 127.0.0.1 or 127.0.1.1 there, name its network interface, as in "
            "GLOO_SOCKET_IFNAME=eth0, or NCCL_SOCKET_IFNAME on GPUs"
        ) from None
    finally:
        timer.cancel()


def make_model(flags: Flags, bank, accelerator: Accelerator) -> nn.Module:
    """The model on its device: fresh weights, or those of `--init_path`.

    Args:
        bank: as `load_bank` returns it; None for the baseline.
    Raises:
        FileNotFoundError, ValueError: `--init_path` holds no weights, or those of another model or order of the bank;
            or the run to go on with had another order.
    """
    set_seed(flags.run.seed)
    tokens = None if bank is None else torch.tensor(bank.tokens)
    model = build_model(flags.model, tokens, seed=flags.run.seed).to(accelerator.device)
    if flags.model.reads_bank:
        model.bank.spell(load_tokenizer(flags.data.tokenizer_path))
    if bank is not None and (document_N := bank.documents()) is not None:
        model.bank.document = torch.from_numpy(document_N).to(accelerator.device)
        model.bank.tell_passages(model.bank.document != NO_DOCUMENT)
    order_N = None
    if bank is not None and flags.data.cluster_cache_path:
        with accelerator.main_process_first():
            cached = partial(cached_order, flags.data.cluster_cache_path)
            order_N = model.order_by_content(flags.data.cluster_words, cached).numpy()
    if bank is not None and checkpoint_dirs(flags.run.out_dir) and not has_order(flags.run.out_dir, order_N):
        raise ValueError(
            f"{flags.run.out_dir} was begun with its bank in another order: give the --cluster_cache_path file and the "
            "--cluster_words of then, or none if it had none, or start over with --no_resume"
        )
    if order_N is not None and accelerator.is_main_process:
        np.save(Path(flags.run.out_dir) / BANK_ORDER, order_N)
    if flags.data.init_path:  # after the ordering, which starts the sub-keys anew
        if bank is not None and flags.model.retrieval_class.has_grid and not is_plain(flags.data.init_path):
            check_order(order_N, flags.data.init_path)
        fresh = load_weights(model, flags.data.init_path)
        if fresh and accelerator.is_main_process:
            tell(f"--init_path {flags.data.init_path} has no memory, so these parts start fresh: {', '.join(fresh)}")
    return model


def is_plain(run_dir: str | Path) -> bool:
    """Whether the model of a run folder has no memory."""
    path = Path(run_dir) / "config.json"
    return path.is_file() and read_json(path).get("model_type") == "model_original"


def check_order(order_N: np.ndarray | None, init_path: str) -> None:
    """Refuse sub-keys that were trained over a bank in another order than this run's."""
    if not has_order(init_path, order_N):
        raise ValueError(
            f"--init_path {init_path} was trained with its bank in another order, and its sub-keys fit that one alone: "
            "give the --cluster_cache_path file and the --cluster_words of that run, or none if it had none"
        )


def has_order(run_dir: str | Path, order_N: np.ndarray | None) -> bool:
    """Whether the bank of a run has this order; None: that of its knowledge file."""
    path = Path(run_dir) / BANK_ORDER
    known_N = np.load(path) if path.exists() else None
    return known_N is order_N is None or np.array_equal(known_N, order_N)


def weights_alone(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Tensors by name, without those of the bank."""
    return {name: tensor for name, tensor in tensors.items() if not name.startswith("bank.")}


def load_weights(model: nn.Module, run_dir: str | Path) -> list[str]:
    """Take over the trained parameters of another run, and the multipliers that the rows of its n-gram table fit.

    The bank stays the one that the model was built with. The state of an optimizer starts anew.

    Returns:
        The parts of a memory model that a plain run lacks: they keep their fresh weights.
    Raises:
        FileNotFoundError, ValueError: the folder holds no weights, or those of another architecture.
    """
    path = Path(run_dir) / "model.safetensors"
    if not path.is_file():
        raise FileNotFoundError(f"{run_dir} holds no model.safetensors: give another --init_path")
    trained, own = weights_alone(convert_state_dict(load_tensors(path))), dict(model.named_parameters())
    own |= weights_alone(dict(model.named_buffers()))
    fresh = {name for name in own.keys() - trained.keys() if is_plain(run_dir) and MEMORY_PART.match(name)}
    for name in sorted(trained.keys() - own.keys()) if fresh else ():
        raise ValueError(
            f"--init_path {run_dir} is a plain model with {name}, which this memory model lacks: give --keep_ffn"
        )
    for name in sorted(own.keys() - fresh ^ trained.keys()):
        raise ValueError(f"--init_path {run_dir} is another architecture: only one of the two models has {name}")
    for name, parameter in ((name, own[name]) for name in own if name not in fresh):
        if parameter.shape != trained[name].shape:
            raise ValueError(
                f"--init_path {run_dir} is another architecture: {name} has the shape {tuple(trained[name].shape)} "
                f"there and {tuple(parameter.shape)} here"
            )
        with torch.no_grad():  # not through `.data`, which raises no version counter
            parameter.copy_(trained[name])
    return sorted({MEMORY_PART.match(name)[0] for name in fresh})
