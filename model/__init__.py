"""Language models with an explicit, editable knowledge memory: `from model import ModelConfig, build_model`.

Importing this package registers both models with transformers' Auto classes.
"""

from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from runs.journal import Journal

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


def load_run(run_dir: str | Path, device: str | torch.device = "cpu") -> Transformer:
    """The trained model of a run folder, in evaluation mode, its bank as the journal of edits left it.

    Raises:
        FileNotFoundError: the folder holds no weights.
        ValueError: the weights are those of another version of the model.
    """
    if not (Path(run_dir) / "model.safetensors").exists():
        raise FileNotFoundError(f"{run_dir} holds no model.safetensors: the run has not finished, or the path is wrong")
    model, loaded = AutoModelForCausalLM.from_pretrained(run_dir, output_loading_info=True)
    for kind in ("missing_keys", "unexpected_keys"):
        for name in sorted(loaded[kind]):  # transformers would start it at random
            raise ValueError(
                f"{run_dir} was written by another version of the model ({kind[:-5]} {name}): use the commit in its "
                "run.json, or train again"
            )
    model = model.to(device).eval()
    if model.settings.reads_bank:
        Journal(run_dir).replay(model.bank)
    return model


__all__ = ["MODELS", "ModelConfig", "build_model", "load_run"]
