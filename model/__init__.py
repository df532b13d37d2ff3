"""Language models with an explicit, editable knowledge memory: `from model import ModelConfig, build_model`.

Importing this package registers both models with transformers' Auto classes.
"""

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from .config import ModelConfig
from .model_memory import MemoryTransformer
from .model_original import Transformer

MODELS = {"model_original": Transformer, "model_memory": MemoryTransformer}

for model_class in MODELS.values():
    AutoConfig.register(model_class.config_class.model_type, model_class.config_class)
    AutoModelForCausalLM.register(model_class.config_class, model_class)


def build_model(config: ModelConfig, bank_tokens: torch.Tensor | None = None, seed: int = 0) -> Transformer:
    """A freshly initialised model of `config.model_type`.

    Args:
        bank_tokens: (N, L) token ids of the entries; None fills a memory model's bank with random tokens.
        seed: which random `freeze_ratio` of the entries is frozen, and the random tokens. Weights follow torch's seed.
    Raises:
        ValueError: the bank does not fit the configuration.
    """
    model_class = MODELS[config.model_type]
    model = model_class(model_class.config_class.wrap(config))
    if config.reads_bank:
        if bank_tokens is None:
            model.bank.fill_random(seed)
        else:
            model.bank.fill(bank_tokens, seed)
    return model


def __getattr__(name: str):
    """`load_run` of runs/load.py, imported at its first use, so that `import model` imports nothing of `runs`."""
    if name != "load_run":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from runs.load import load_run

    return load_run


__all__ = ["MODELS", "ModelConfig", "build_model", "load_run"]
