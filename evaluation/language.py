"""Language modelling: loss, perplexity and bits per byte on held-out text.

Axes: B rows of a batch · T positions · V vocabulary · D documents · X groups of documents (sources)
"""

import math
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from common.constants import IGNORED
from dataset.pretrain import PretrainDataset, open_pretrain_data, read_documents
from runs.outcomes import packed_losses

from .config import EvalConfig

TASK_VERSION = 2


def validation_rows(model, tokenizer, config: EvalConfig) -> PretrainDataset:
    """The packed rows of the validation text."""
    part = "val" if config.val_fraction else "train"
    return open_pretrain_data(
        config.val_path, tokenizer, model.settings.max_seq_len, "packed", config.cache_dir, part,
        config.val_fraction, flag="val_path",
    )  # fmt: skip


def batches(rows: PretrainDataset, config: EvalConfig, device) -> Iterator[dict[str, Tensor]]:
    """The first `limit` rows in batches."""
    for begin in range(0, min(len(rows), config.limit or len(rows)), config.batch_size):
        end = min(begin + config.batch_size, config.limit or len(rows), len(rows))
        yield {name: value.to(device) for name, value in rows.fetch(np.arange(begin, end)).items()}


def bytes_per_token(rows: PretrainDataset, tokenizer) -> float:
    """UTF-8 bytes of the documents over their tokens; the end-of-text token of each document counts as a token."""
    cache, n_bytes = rows.cache, 0
    for document in range(rows.first, rows.last):
        ids = cache.token_N[cache.offset_D[document] : cache.offset_D[document + 1]]
        n_bytes += len(tokenizer.decode(ids.tolist(), skip_special_tokens=True).encode())
    return n_bytes / (rows.end - rows.begin - (rows.last - rows.first))


def sources_of(rows: PretrainDataset, path: str) -> list[str] | None:
    """The `source` of each document in the text file; None where no document names one."""
    documents = (document for document in read_documents(Path(path)) if document.text.strip())
    named = [document.source for document in islice(documents, rows.first, rows.last)]
    return [name or "without source" for name in named] if any(named) else None


@torch.no_grad()
def token_losses(model, batch: dict[str, Tensor]) -> Tensor:
    """(B, T) float32: the cross-entropy of each token in nats, 0 where there is no label."""
    labels_BT = batch.pop("labels")
    return losses_of(model(**batch).logits, labels_BT)


def losses_of(logits_BTV: Tensor, labels_BT: Tensor) -> Tensor:
    """(B, T) float32: as `token_losses`, from the logits."""
    loss_X = F.cross_entropy(logits_BTV[:, :-1].flatten(0, 1).float(), labels_BT[:, 1:].flatten(), reduction="none")
    return F.pad(loss_X.view(len(labels_BT), -1), (1, 0))


def document_of(rows: PretrainDataset, first_row: int, n_rows: int) -> np.ndarray:
    """(n_rows, T) int64: which document, counted from the first of `rows`, each position belongs to."""
    position_BT = rows.begin + (first_row + np.arange(n_rows))[:, None] * rows.max_seq_len
    position_BT = position_BT + np.arange(rows.max_seq_len)
    return np.searchsorted(rows.cache.offset_D, position_BT, side="right") - 1 - rows.first


@torch.no_grad()
def language(model, tokenizer, config: EvalConfig) -> dict | None:
    """`loss` in nats per token, `perplexity`, and `bits_per_byte`, which compares models with different tokenizers.

    `sources`: the loss over the documents of each source, if the text names sources.
    `documents`: the loss of each document, for paired tests.
    """
    if config.val_path is None:
        return None
    rows = validation_rows(model, tokenizer, config)
    sources = sources_of(rows, config.val_path)
    names = sorted(set(sources)) if sources else ["all"]
    group_D = torch.tensor([names.index(source) for source in sources] if sources else [0] * (rows.last - rows.first))
    total_X, n_X, n_rows = torch.zeros(len(names), dtype=torch.float64), torch.zeros(len(names), dtype=torch.int64), 0
    total_D, n_D = torch.zeros(len(group_D), dtype=torch.float64), torch.zeros(len(group_D), dtype=torch.int64)
    for batch in batches(rows, config, model.device):
        labels_BT = F.pad(batch["labels"][:, 1:], (1, 0), value=IGNORED).cpu()
        loss_BT = token_losses(model, batch).double().cpu()
        document_BT = torch.from_numpy(document_of(rows, n_rows, len(labels_BT)).clip(max=len(group_D) - 1))
        group_BT = group_D[document_BT]
        has_label_BT = labels_BT != IGNORED
        total_D.index_add_(0, document_BT[has_label_BT], loss_BT[has_label_BT])
        n_D += torch.bincount(document_BT[has_label_BT], minlength=len(n_D))
        total_X.index_add_(0, group_BT[has_label_BT], loss_BT[has_label_BT])
        n_X += torch.bincount(group_BT[has_label_BT], minlength=len(names))
        n_rows += len(labels_BT)
    if not n_X.sum():
        raise ValueError(f"{config.val_path} has no token to predict: give another --val_path")
    loss = float(total_X.sum() / n_X.sum())
    end = min(rows.end, rows.begin + n_rows * rows.max_seq_len)
    result = {
        "loss": loss, "perplexity": math.exp(min(loss, 50.0)),
        "bits_per_byte": loss / math.log(2) / bytes_per_token(rows, tokenizer),
        "n": int(n_X.sum()), "seed": config.seed, "task_version": TASK_VERSION,
        "documents": packed_losses(total_D.numpy(), n_D.numpy(), rows.cache.token_N[rows.begin : end]),
    }  # fmt: skip
    if sources:
        parts = zip(names, total_X.tolist(), n_X.tolist(), strict=True)
        result["sources"] = {name: {"loss": total / n, "n": n} for name, total, n in parts if n}
    return result
