"""Language modelling: loss, perplexity and bits per byte on held-out text."""

import math

import numpy as np
import torch

from dataset.pretrain import PretrainDataset, open_pretrain_data
from model.losses import count_targets

from .settings import Settings

TASK_VERSION = 1


def validation_rows(model, tokenizer, settings: Settings) -> PretrainDataset:
    part = "val" if settings.val_fraction else "train"
    return open_pretrain_data(
        settings.val_path, tokenizer, model.settings.max_seq_len, "packed", settings.cache_dir, part,
        settings.val_fraction, flag="val_path",
    )  # fmt: skip


def batches(rows: PretrainDataset, settings: Settings, device):
    for begin in range(0, min(len(rows), settings.limit or len(rows)), settings.batch_size):
        end = min(begin + settings.batch_size, settings.limit or len(rows), len(rows))
        yield {name: value.to(device) for name, value in rows.fetch(np.arange(begin, end)).items()}


def bytes_per_token(rows: PretrainDataset, tokenizer) -> float:
    """UTF-8 bytes of the documents over their tokens, the end mark of each counted as a token."""
    cache, n_bytes = rows.cache, 0
    for document in range(rows.first, rows.last):
        ids = cache.token_N[cache.offset_D[document] : cache.offset_D[document + 1]]
        n_bytes += len(tokenizer.decode(ids.tolist(), skip_special_tokens=True).encode())
    return n_bytes / (rows.end - rows.begin - (rows.last - rows.first))


@torch.no_grad()
def language(model, tokenizer, settings: Settings) -> dict | None:
    """`loss` in nats a token, `perplexity`, and `bits_per_byte`, which compares models of different tokenizers."""
    if settings.val_path is None:
        return None
    rows = validation_rows(model, tokenizer, settings)
    total, n_targets = 0.0, 0
    for batch in batches(rows, settings, model.device):
        n = int(count_targets(batch["labels"]))
        total += float(model(**batch, return_logits=False).lm_loss) * n
        n_targets += n
    loss = total / n_targets
    return {
        "loss": loss, "perplexity": math.exp(min(loss, 50.0)),
        "bits_per_byte": loss / math.log(2) / bytes_per_token(rows, tokenizer),
        "n": n_targets, "seed": settings.seed, "task_version": TASK_VERSION,
    }  # fmt: skip
