"""The trained model of a run folder, its bank as the journal of edits left it."""

from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

from model.model_original import Transformer


def load_run(run_dir: str | Path, device: str | torch.device = "cpu") -> Transformer:
    """The trained model of a run folder, in evaluation mode, with all edits of its journal.

    Raises:
        FileNotFoundError: the folder has no weights.
        ValueError: the weights belong to another version of the model, or the journal is damaged.
    """
    if not (Path(run_dir) / "model.safetensors").exists():
        raise FileNotFoundError(f"{run_dir} holds no model.safetensors: the run has not finished, or the path is wrong")
    model, loaded = AutoModelForCausalLM.from_pretrained(run_dir, output_loading_info=True)
    for kind in ("missing_keys", "unexpected_keys"):
        for name in sorted(loaded[kind]):  # transformers would initialise it at random
            raise ValueError(
                f"{run_dir} was written by another version of the model ({kind[:-5]} {name}): use the commit in its "
                "run.json, or train again"
            )
    return model.to(device).eval()
