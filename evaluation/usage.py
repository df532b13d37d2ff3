"""How the bank is used while the model reads held-out text."""

import torch

from model.memory.bank import usage_statistics

from .language import batches, validation_rows
from .settings import Settings

TASK_VERSION = 1
MAX_ROWS = 256


def gini(uses_N: torch.Tensor) -> float:
    """0 where every entry is read equally often, towards 1 where one entry takes all reads."""
    sorted_N, total, N = uses_N.double().sort().values, float(uses_N.sum()), len(uses_N)
    rank_N = torch.arange(1, N + 1, dtype=torch.float64, device=uses_N.device)
    return float((2 * rank_N - N - 1) @ sorted_N) / (N * total) if total else 0.0


@torch.no_grad()
def bank_usage(model, tokenizer, settings: Settings) -> dict | None:
    """Statistics of the reads, over all memory blocks and for each."""
    places = [*model.settings.reading_layers, *([model.settings.n_layers] if model.settings.pointer else [])]
    layers = [model.settings.reader_name(place) for place in places]
    if not model.settings.reads_bank or settings.val_path is None:
        return None
    uses_MN = torch.zeros(len(layers), model.settings.knowledge_num, dtype=torch.int64, device=model.device)
    entropy, rows = 0.0, 0
    for batch in batches(validation_rows(model, tokenizer, settings), settings, model.device):
        if rows >= MAX_ROWS:
            break
        rows += len(batch["input_ids"])
        readings = [reading for reading in model(**batch, return_logits=False).readings if reading is not None]
        for uses_N, reading in zip(uses_MN, readings, strict=True):
            entry = reading.entry_BTS.flatten()
            uses_N.index_add_(0, entry, (reading.weight_BTS.flatten() > 0).long())
            share = torch.special.entr(reading.weight_BTS.float()).sum(dim=-1).mean()
            entropy += float(share) * len(batch["input_ids"]) / len(layers)
    uses_N = uses_MN.sum(dim=0)
    per_layer = {layer: usage_statistics(own_N) for layer, own_N in zip(layers, uses_MN, strict=True)}
    return usage_statistics(uses_N) | {
        "gini": gini(uses_N), "selection_entropy": entropy / rows, "reads": int(uses_N.sum()), "layers": per_layer,
        "n": rows, "seed": settings.seed, "task_version": TASK_VERSION,
    }  # fmt: skip
