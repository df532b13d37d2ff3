"""The loss on text that is not trained on."""

import numpy as np
import torch

from common.constants import IGNORED
from dataset.pretrain import PretrainDataset
from model.losses import count_targets

from .config import Flags


@torch.no_grad()
def validate(model, val: PretrainDataset, flags: Flags, accelerator) -> float:
    """Mean loss in nats a token over the validation rows, divided among the processes.

    Args:
        model: as `TrainStep` holds it, in training mode before and after.
    """
    model.eval()
    batch_size, n_more = flags.optim.batch_size, flags.optim.entry_rows
    rank, world = accelerator.process_index, accelerator.num_processes
    chunks = np.array_split(np.arange(len(val)), -(-len(val) // batch_size))[: flags.run.eval_batches]
    total = torch.zeros(2, device=accelerator.device, dtype=torch.float64)
    for chunk in chunks[rank::world]:
        # Rows are repeated up to those of training, without labels: every batch has one shape, most often the compiled
        # one (with --memory_every the pointer and the loss are compiled once more, for all rows).
        batch = val.fetch(np.resize(chunk, batch_size + n_more))
        batch["labels"][len(chunk) :] = IGNORED
        batch = {name: value.to(accelerator.device) for name, value in batch.items()}
        n_targets = count_targets(batch["labels"])
        loss = model(**batch, return_logits=False).lm_loss
        total += torch.stack([loss.double() * n_targets, n_targets.double()])
    model.train()
    total = accelerator.reduce(total)
    return float(total[0] / total[1])
