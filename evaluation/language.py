"""Language modelling: loss, perplexity and bits per byte on held-out text."""

import math
from itertools import islice
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from common.constants import IGNORED
from dataset.pretrain import PretrainDataset, open_pretrain_data, read_documents

from .settings import Settings

TASK_VERSION = 2


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


def sources_of(rows: PretrainDataset, path: str) -> list[str] | None:
    """The `source` that each document of a text file names; None where none does."""
    documents = (document for document in read_documents(Path(path)) if document.text.strip())
    named = [document.source for document in islice(documents, rows.first, rows.last)]
    return [name or "without source" for name in named] if any(named) else None


@torch.no_grad()
def token_losses(model, batch: dict[str, Tensor]) -> Tensor:
    """(B, T) float32 in nats: what each token cost to predict; 0 where none was to be predicted."""
    labels_BT = batch.pop("labels")
    logits_BTV = model(**batch).logits[:, :-1]
    loss_BT = F.cross_entropy(logits_BTV.flatten(0, 1).float(), labels_BT[:, 1:].flatten(), reduction="none")
    return F.pad(loss_BT.view(len(labels_BT), -1), (1, 0))


@torch.no_grad()
def language(model, tokenizer, settings: Settings) -> dict | None:
    """`loss` in nats a token, `perplexity`, and `bits_per_byte`, which compares models of different tokenizers.

    `sources`: the loss over the documents of each source, where the text names them.
    """
    if settings.val_path is None:
        return None
    rows = validation_rows(model, tokenizer, settings)
    sources = sources_of(rows, settings.val_path)
    names = sorted(set(sources)) if sources else ["all"]
    group_D = torch.tensor([names.index(source) for source in sources] if sources else [0] * (rows.last - rows.first))
    total_X, n_X, place = torch.zeros(len(names), dtype=torch.float64), torch.zeros(len(names), dtype=torch.int64), 0
    for batch in batches(rows, settings, model.device):
        labels_BT = F.pad(batch["labels"][:, 1:], (1, 0), value=IGNORED).cpu()
        loss_BT = token_losses(model, batch).double().cpu()
        place_BT = rows.begin + (place + np.arange(len(labels_BT)))[:, None] * rows.max_seq_len
        place_BT = place_BT + np.arange(rows.max_seq_len)
        document_BT = np.searchsorted(rows.cache.offset_D, place_BT, side="right") - 1 - rows.first
        group_BT = group_D[torch.from_numpy(document_BT.clip(max=len(group_D) - 1))]
        learnt_BT = labels_BT != IGNORED
        total_X.index_add_(0, group_BT[learnt_BT], loss_BT[learnt_BT])
        n_X += torch.bincount(group_BT[learnt_BT], minlength=len(names))
        place += len(labels_BT)
    loss = float(total_X.sum() / n_X.sum())
    result = {
        "loss": loss, "perplexity": math.exp(min(loss, 50.0)),
        "bits_per_byte": loss / math.log(2) / bytes_per_token(rows, tokenizer),
        "n": int(n_X.sum()), "seed": settings.seed, "task_version": TASK_VERSION,
    }  # fmt: skip
    if sources:
        parts = zip(names, total_X.tolist(), n_X.tolist(), strict=True)
        result["sources"] = {name: {"loss": total / n, "n": n} for name, total, n in parts if n}
    return result
