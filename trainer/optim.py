"""Parameter groups, the optimizer and the learning rate."""

import math

import torch
from torch import nn

from model.config import ModelConfig

from .config import OptimConfig
from .muon import Muon

MEMORY_PARAMETERS = ("query_proj", "keys_2RK", "finder")
MUON_SKIPS = ("router", "value_embedding")  # a head over the experts, a table of tokens
NARROWEST = 8  # rows and columns of a matrix worth orthogonalising; narrower ones are a few vectors


def parameter_groups(model: nn.Module, config: OptimConfig) -> list[dict]:
    """Matrices decay; norms, queries and sub-keys do not, and the last two may have a learning rate of their own.

    With `optimizer` muon the blocks' matrices are a group of their own; "matrices" then holds embeddings and head.
    The rows of an n-gram table are a group of their own, which AdamW steps.
    Every group carries `name` and `lr_scale`; the learning rate itself is set at each step.
    """
    groups = {
        "muon": {
            "params": [], "weight_decay": config.weight_decay, "lr_scale": config.muon_lr_scale,
            "momentum": config.muon_momentum, "rows": [],
        },
        "matrices": {"params": [], "weight_decay": config.weight_decay, "lr_scale": 1.0},
        "norms": {"params": [], "weight_decay": 0.0, "lr_scale": 1.0},
        "memory": {"params": [], "weight_decay": 0.0, "lr_scale": config.memory_lr_scale},
        "tables": {
            "params": [], "weight_decay": config.ngram_table_weight_decay, "lr_scale": config.ngram_table_lr_scale,
        },
    }  # fmt: skip
    for name, parameter in model.named_parameters():
        parts = name.split(".")
        if any(part in MEMORY_PARAMETERS for part in parts):
            group = groups["memory"]
        elif name == "ngram_table.rows.weight":
            group = groups["tables"]
        elif config.optimizer == "muon" and is_muon(parts, parameter):
            group = groups["muon"]
            group["rows"].append(matrix_heights(parts[-2], parameter, model.settings))
        else:
            group = groups["matrices" if parameter.ndim >= 2 else "norms"]
        group["params"].append(parameter)
    return [{"name": name, **group} for name, group in groups.items() if group["params"]]


def is_muon(parts: list[str], parameter: nn.Parameter) -> bool:
    """Whether a parameter, by the parts of its name, is a matrix of a block that Muon steps."""
    is_matrix = parameter.ndim == 2 and min(parameter.shape) >= NARROWEST
    return parts[0] == "blocks" and is_matrix and not any(part in MUON_SKIPS for part in parts)


def matrix_heights(layer: str, parameter: nn.Parameter, config: ModelConfig) -> list[int]:
    """Rows of each projection that a layer of this name stores joined; all of them for any other layer."""
    if layer == "qkv_proj":
        key_rows = config.kv_heads * config.head_dim
        return [len(parameter) - 2 * key_rows, key_rows, key_rows]
    return [len(parameter) // 2] * 2 if layer == "gate_up_proj" else [len(parameter)]


def make_optimizer(model: nn.Module, config: OptimConfig, device: torch.device) -> torch.optim.Optimizer:
    """A fused AdamW, or Muon with one: both obey `trainer.step.step_if_finite`, which skips steps on the device."""
    kind = Muon if config.optimizer == "muon" else torch.optim.AdamW
    return kind(
        parameter_groups(model, config),
        lr=config.learning_rate, betas=(config.beta1, config.beta2), fused=device.type in ("cpu", "cuda"),
    )  # fmt: skip


COOL_DOWNS = {  # from 1 to 0 over a schedule's last part
    "cosine": lambda progress: 0.5 * (1 + math.cos(math.pi * progress)),
    "linear": lambda progress: 1 - progress,
    "sqrt": lambda progress: 1 - math.sqrt(progress),  # Hägele et al. 2024, arXiv:2405.18392
}


def lr_at(step: int, total_steps: int, config: OptimConfig) -> float:
    """The learning rate of optimizer step `step` (counted from 0): linear warm-up, then down to its end.

    Cosine and linear go down from the warm-up on; wsd and wsd_sqrt stay at the peak until the last `decay_ratio`.
    """
    warmup = max(1, round(config.warmup_ratio * total_steps))
    if step < warmup:
        return config.learning_rate * (step + 1) / warmup
    first, shape = warmup, config.lr_schedule
    if shape.startswith("wsd"):
        first = max(warmup, total_steps - round(config.decay_ratio * total_steps))
        shape = "sqrt" if shape == "wsd_sqrt" else "linear"
    progress = min(max(0, step - first) / max(1, total_steps - first), 1.0)
    return config.learning_rate * (config.min_lr_ratio + (1 - config.min_lr_ratio) * COOL_DOWNS[shape](progress))


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_scale"]
