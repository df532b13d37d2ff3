"""Task: the share of held-out tokens that are the model's first guess.

Axes: B rows of a batch · T positions
"""

import torch

from common.constants import IGNORED

from .config import EvalConfig, wilson_interval
from .language import batches, validation_rows

TASK_VERSION = 1


@torch.no_grad()
def next_token(model, tokenizer, config: EvalConfig) -> dict | None:
    """`accuracy` over the tokens of the validation text, with its interval."""
    if config.val_path is None:
        return None
    right, n = 0, 0
    for batch in batches(validation_rows(model, tokenizer, config), config, model.device):
        labels_BT = batch.pop("labels")[:, 1:]
        guess_BT = model(**batch).logits[:, :-1].argmax(dim=-1)
        has_label_BT = labels_BT != IGNORED
        right += int((guess_BT == labels_BT)[has_label_BT].sum())
        n += int(has_label_BT.sum())
    ci95 = wilson_interval(right, n)
    return {"accuracy": right / n, "n": n, "ci95": ci95, "seed": config.seed, "task_version": TASK_VERSION}
