"""Parameter groups and the learning rate."""

import math

import torch
from torch import nn

from .config import OptimConfig

MEMORY_PARAMETERS = ("query_proj", "keys_2RK")


def parameter_groups(model: nn.Module, config: OptimConfig) -> list[dict]:
    """Matrices decay; norms, queries and sub-keys do not, and the last two may have a learning rate of their own.

    Every group carries `name` and `lr_scale`; the learning rate itself is set at each step.
    """
    groups = {
        "matrices": {"params": [], "weight_decay": config.weight_decay, "lr_scale": 1.0},
        "norms": {"params": [], "weight_decay": 0.0, "lr_scale": 1.0},
        "memory": {"params": [], "weight_decay": 0.0, "lr_scale": config.memory_lr_scale},
    }
    for name, parameter in model.named_parameters():
        if any(part in MEMORY_PARAMETERS for part in name.split(".")):
            groups["memory"]["params"].append(parameter)
        else:
            groups["matrices" if parameter.ndim >= 2 else "norms"]["params"].append(parameter)
    return [{"name": name, **group} for name, group in groups.items() if group["params"]]


def make_optimizer(model: nn.Module, config: OptimConfig, device: torch.device) -> torch.optim.AdamW:
    """AdamW in its fused form, which alone can be told on the device to skip a step (`trainer.meters.StepGuard`)."""
    return torch.optim.AdamW(
        parameter_groups(model, config),
        lr=config.learning_rate, betas=(config.beta1, config.beta2), fused=device.type in ("cpu", "cuda"),
    )  # fmt: skip


def lr_at(step: int, total_steps: int, config: OptimConfig) -> float:
    """The learning rate of optimizer step `step` (counted from 0): linear warm-up, then a cosine down to its end."""
    warmup = max(1, round(config.warmup_ratio * total_steps))
    if step < warmup:
        return config.learning_rate * (step + 1) / warmup
    progress = (step - warmup) / max(1, total_steps - warmup)
    cosine = 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))
    return config.learning_rate * (config.min_lr_ratio + (1 - config.min_lr_ratio) * cosine)


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_scale"]
