"""Batches of a run: the rows of every batch as a pure function of seed and epoch, fetched in advance by a thread."""

import queue
import threading
from collections.abc import Iterator

import numpy as np
import torch

from .pretrain import PretrainDataset


def batch_rows(n_rows: int, batch_size: int, seed: int, epoch: int) -> np.ndarray:
    """(batches, batch_size): the rows of an epoch, a pure function of the arguments, without an incomplete batch."""
    order = np.random.default_rng([seed, epoch]).permutation(n_rows)
    n_batches = n_rows // batch_size
    return order[: n_batches * batch_size].reshape(n_batches, batch_size)


class BatchLoader:
    """This process's share of every global batch, fetched in advance by one background thread.

    A global batch has `world_size * batch_size` rows; process r takes the r-th part. Two processes with half the batch
    see together exactly the rows of one process with the whole batch.

    Args:
        beside: another dataset, and how many of its rows are added to each batch; it has its own order.
    """

    def __init__(
        self, dataset, batch_size: int, seed: int, rank: int = 0, world_size: int = 1, pin_memory=False,
        beside: tuple[PretrainDataset, int] | None = None,
    ):  # fmt: skip
        self.dataset, self.batch_size, self.seed, self.beside = dataset, batch_size, seed, beside
        self.rank, self.world_size, self.pin_memory = rank, world_size, pin_memory

    def __len__(self) -> int:
        """Batches of an epoch."""
        return len(self.dataset) // (self.batch_size * self.world_size)

    def iterate(self, start_batch: int, ahead: int = 32) -> Iterator[dict[str, torch.Tensor]]:
        """Batches of the run from number `start_batch` on, epoch after epoch, without end; `close` it after use."""
        ready: queue.Queue = queue.Queue(maxsize=ahead)
        stopped = threading.Event()

        def put(item) -> None:
            while not stopped.is_set():
                try:
                    return ready.put(item, timeout=0.1)
                except queue.Full:
                    continue

        def fetch_ahead() -> None:
            try:
                for batch in self._batches(start_batch):
                    put(batch)
                    if stopped.is_set():
                        return
            except BaseException as problem:  # the consumer raises it
                put(problem)

        thread = threading.Thread(target=fetch_ahead, daemon=True)
        thread.start()
        try:
            while True:
                item = ready.get()
                if isinstance(item, BaseException):
                    raise item
                yield item
        finally:
            stopped.set()
            thread.join()  # a thread that still runs when the interpreter ends would abort the process

    def _batches(self, start_batch: int) -> Iterator[dict[str, torch.Tensor]]:
        batches = self._batches_of(self.dataset, self.batch_size, start_batch)
        if self.beside:
            pairs = zip(batches, self._batches_of(*self.beside, start_batch), strict=True)
            batches = ({name: torch.cat([a[name], b[name]]) for name in a} for a, b in pairs)
        for batch in batches:
            yield {name: value.pin_memory() for name, value in batch.items()} if self.pin_memory else batch

    def _batches_of(self, dataset, batch_size: int, start_batch: int) -> Iterator[dict[str, torch.Tensor]]:
        global_size, share = batch_size * self.world_size, slice(self.rank * batch_size, (self.rank + 1) * batch_size)
        epoch, skip = divmod(start_batch, len(dataset) // global_size)
        while True:
            for rows in batch_rows(len(dataset), global_size, self.seed, epoch)[skip:]:
                yield dataset.fetch(rows[share])
            epoch, skip = epoch + 1, 0
