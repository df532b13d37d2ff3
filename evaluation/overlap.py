"""Loss by overlap: where does reading help, and where does it hurt?

Positions of held-out text are grouped by the longest run of tokens that ends at the position and that they share with
an entry that is read there. The token that is predicted there comes after the run, so a group is known before it. The
losses of the same tokens are compared: of the run, of the run with its bank shuffled and emptied, of a plain run.

Axes: B rows of a batch · T positions · V vocabulary · X entries read at a position · L tokens per entry
      N predicted tokens · D documents
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from common.constants import IGNORED, PADDING
from model.memory.text import tokens_in_common

from .config import EvalConfig, ratio_error
from .controls import BANK_CONTROLS
from .language import batches, document_of, losses_of, validation_rows

TASK_VERSION = 1
MAX_ROWS = 1024
MARGIN = 0.1  # nats that count as help or harm
# The name of each group, and the shortest run in it.
GROUPS = {"0": 0, "1_to_2": 1, "3_to_7": 3, "8_or_more": 8}
LONGEST = max(GROUPS.values())
EVERY = "all"


class Losses(NamedTuple):
    """loss_N: float64, nats.  run_N: the length of the shared run, at most LONGEST.  document_N: from 0."""

    loss_N: np.ndarray
    run_N: np.ndarray
    document_N: np.ndarray


def tokens_read(model, readings: list) -> Tensor:
    """(B, T, X, L): the entries that any block or the pointer reads at each position; PADDING for no entry."""
    found = [reading for reading in readings if reading is not None]
    entry_BTX = torch.cat([reading.entry_BTS for reading in found], dim=-1)
    is_read_BTX = torch.cat([reading.weight_BTS > 0 for reading in found], dim=-1)
    return model.bank.tokens[entry_BTX].masked_fill(~is_read_BTX[..., None], PADDING)


def shared_runs(token_BTXL: Tensor, input_BT: Tensor, document_BT: Tensor, longest: int = LONGEST) -> Tensor:
    """(B, T) int64: the longest run of tokens that ends at a position and stands in one of its entries.

    A run stays inside a document of the text, and counts `longest` tokens at most.
    """
    return tokens_in_common(token_BTXL, input_BT, document_BT, longest).flatten(-2).amax(dim=-1)


@torch.no_grad()
def pass_over(model, rows, config: EvalConfig, device, with_runs: bool = False) -> Iterator[tuple[Tensor, ...]]:
    """For each batch: its losses and, `with_runs`, the runs before each token and the document of each, N each."""
    done = 0
    for batch in batches(rows, config, device):
        if done >= MAX_ROWS:
            break
        labels_BT = batch.pop("labels")
        out = model(**batch)
        is_predicted_BT = labels_BT[:, 1:] != IGNORED
        found = [losses_of(out.logits, labels_BT)[:, 1:][is_predicted_BT].double()]
        if with_runs:
            run_BT = shared_runs(tokens_read(model, out.readings), batch["input_ids"], batch["document_ids"])
            document_BT = torch.from_numpy(document_of(rows, done, len(labels_BT)))
            found += [run_BT[:, :-1][is_predicted_BT], document_BT[:, 1:][is_predicted_BT.cpu()]]
        done += len(labels_BT)
        yield tuple(value.cpu() for value in found)


def losses_by_run(model, rows, config: EvalConfig) -> Losses:
    """The losses of the run itself, grouped by what it reads."""
    parts = zip(*pass_over(model, rows, config, model.device, with_runs=True), strict=True)
    return Losses(*(torch.cat(part).numpy() for part in parts))


def losses_alone(model, rows, config: EvalConfig, device) -> np.ndarray:
    return torch.cat([loss_N for (loss_N,) in pass_over(model, rows, config, device)]).numpy()


def mean_over(value_N: np.ndarray, document_N: np.ndarray) -> dict:
    """A mean over tokens, and its 95 % interval over documents; none for a single document."""
    n_D = np.bincount(document_N)
    total_D, n_D = np.bincount(document_N, value_N)[n_D > 0], n_D[n_D > 0]
    mean, error = float(value_N.mean()), ratio_error(total_D, n_D)
    ci95 = None if error is None else [mean - 1.96 * error, mean + 1.96 * error]
    return {"mean": mean, "ci95": ci95, "n": len(value_N)}


def gain_over(other_N: np.ndarray, loss_N: np.ndarray, document_N: np.ndarray) -> dict:
    """How much lower the loss is than another on the same tokens, and the tokens that it helps or hurts by MARGIN."""
    gain_N = other_N - loss_N
    result = {"loss": mean_over(other_N, document_N), "gain": mean_over(gain_N, document_N)}
    for name, is_so_N in (("helped", gain_N > MARGIN), ("hurt", gain_N < -MARGIN)):
        by = float(np.abs(gain_N[is_so_N]).mean()) if is_so_N.any() else None
        result[name] = mean_over(is_so_N.astype(np.float64), document_N) | {"by": by}
    return result


def overlap(model, tokenizer, config: EvalConfig) -> dict | None:
    """For each group, and for all tokens: n, its share of the tokens, the loss, and gains over the other losses.

    Over the first 1,024 rows. None for a model without a memory.
    """
    if not model.settings.reads_bank or config.val_path is None:
        return None
    rows = validation_rows(model, tokenizer, config)
    own, others = losses_by_run(model, rows, config), {}
    if not len(own.loss_N):
        raise ValueError(f"{config.val_path} has no token to predict: give another --val_path")
    for name, control in BANK_CONTROLS.items():
        with control(model, tokenizer, config):
            others[name] = losses_alone(model, rows, config, model.device)
    if config.plain is not None:
        others["plain"] = losses_alone(config.plain, rows, config, model.device)
    group_N = np.searchsorted(list(GROUPS.values()), own.run_N, side="right") - 1
    groups = {}
    for number, name in enumerate([*GROUPS, EVERY]):
        is_in_N = group_N == number if name != EVERY else np.ones_like(group_N, dtype=bool)
        if not is_in_N.any():
            continue
        loss_N, document_N = own.loss_N[is_in_N], own.document_N[is_in_N]
        groups[name] = {
            "n": int(is_in_N.sum()), "share": float(is_in_N.mean()), "n_documents": len(np.unique(document_N)),
            "loss": mean_over(loss_N, document_N),
            "against": {other: gain_over(other_N[is_in_N], loss_N, document_N) for other, other_N in others.items()},
        }  # fmt: skip
    return {"groups": groups, "n": len(group_N), "seed": config.seed, "task_version": TASK_VERSION}


def grid_of(result: dict) -> list[list[str]]:
    """The table: a line for each group and each loss that it is compared with."""

    def told(value: dict) -> str:
        half = "" if value["ci95"] is None else f" ±{value['ci95'][1] - value['mean']:.3f}"
        return f"{value['mean']:.3f}{half}"

    def tokens(value: dict) -> str:
        return f"{value['mean']:.1%}" + ("" if value["by"] is None else f" by {value['by']:.2f}")

    grid = [["tokens shared", "of all", "loss", "against", "its loss", "gain", "helped", "hurt"]]
    for name, group in result["groups"].items():
        first = [name.replace("_", " "), f"{group['share']:.1%}", told(group["loss"])]
        for other, against in group["against"].items():
            shares = [tokens(against["helped"]), tokens(against["hurt"])]
            grid.append([*first, other, told(against["loss"]), told(against["gain"]), *shares])
            first = ["", "", ""]
    return grid
