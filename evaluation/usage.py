"""Usage: how evenly the bank's entries are read over held-out text.

Axes: M readers (blocks and pointer) · N entries of the bank
"""

import torch

from model.memory.bank import access_histogram, usage_statistics

from .config import EvalConfig
from .language import batches, validation_rows

TASK_VERSION = 2
MAX_ROWS = 256


def gini(count_N: torch.Tensor) -> float:
    """The Gini coefficient of access counts: 0 if all entries are read equally often, near 1 if one takes all."""
    sorted_N, total, N = count_N.double().sort().values, float(count_N.sum()), len(count_N)
    rank_N = torch.arange(1, N + 1, dtype=torch.float64, device=count_N.device)
    return float((2 * rank_N - N - 1) @ sorted_N) / (N * total) if total else 0.0


@torch.no_grad()
def bank_usage(model, tokenizer, config: EvalConfig) -> dict | None:
    """Statistics of the access counts of each reader as `layers`, on the first 256 rows.

    `used_share`: entries that any of them read.  `uses`: how many entries were read 0, 1, 2-3, 4-7, ... times.
    """
    if not model.settings.reads_bank or config.val_path is None:
        return None
    names = [model.settings.reader_name(index) for index in model.settings.readers]
    count_MN = torch.zeros(len(names), model.settings.knowledge_num, dtype=torch.int64, device=model.device)
    entropy, rows = 0.0, 0
    for batch in batches(validation_rows(model, tokenizer, config), config, model.device):
        if rows >= MAX_ROWS:
            break
        rows += len(batch["input_ids"])
        readings = [reading for reading in model(**batch, return_logits=False).readings if reading is not None]
        for count_N, reading in zip(count_MN, readings, strict=True):
            entry = reading.entry_BTS.flatten()
            count_N.index_add_(0, entry, (reading.weight_BTS.flatten() > 0).long())
            mean_entropy = torch.special.entr(reading.weight_BTS.float()).sum(dim=-1).mean()
            entropy += float(mean_entropy) * len(batch["input_ids"]) / len(names)
    layers = {
        name: usage_statistics(count_N) | {"gini": gini(count_N), "uses": access_histogram(count_N)}
        for name, count_N in zip(names, count_MN, strict=True)
    }
    return {
        "used_share": usage_statistics(count_MN.sum(dim=0))["used_share"], "selection_entropy": entropy / rows,
        "reads": int(count_MN.sum()), "layers": layers, "n": rows, "seed": config.seed, "task_version": TASK_VERSION,
    }  # fmt: skip
