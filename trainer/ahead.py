"""Work on batches that needs no weights, done while the steps before them run.

The n-gram search of the bank depends on the text and the bank alone. Its kernels are short and many, and fill a small
part of a GPU: on a stream of their own they overlap with the steps before.
"""

from collections.abc import Callable, Iterator
from contextlib import closing, nullcontext
from itertools import islice

import torch
from torch import Tensor

Batch = dict[str, Tensor]


def prepared_ahead(
    batches: Iterator[Batch], prepare: Callable[..., Batch], device: torch.device, n_together: int = 1
) -> Iterator[Batch]:
    """Yields each batch with its rows of what `prepare` returns. A group is begun before the one before it is used.

    Args:
        batches: a generator of batches on the CPU; it is closed with this one.
        prepare: takes the tensors of a batch, on the device, by name; returns further ones, row by row. On CUDA it runs
            on another stream: it may read nothing that training changes.
        n_together: batches that are prepared as one: on a GPU, a search that goes through its texts token by token
            takes hardly longer for several of them.
    """
    stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def begin(group: list[Batch]) -> tuple[list[Batch], torch.cuda.Event | None]:
        with nullcontext() if stream is None else torch.cuda.stream(stream):
            made = prepare(**joined(group, device))
            n_rows = [len(next(iter(batch.values()))) for batch in group]
            part = {name: value.split(n_rows) for name, value in made.items()}
            ready = [batch | {name: part[name][i] for name in part} for i, batch in enumerate(group)]
            if stream is None:
                return ready, None
            for value in made.values():
                value.record_stream(consumer)  # its memory is not used anew before the consumer is done with it
            return ready, stream.record_event()

    def finished(group: list[Batch], event: torch.cuda.Event | None) -> Iterator[Batch]:
        if event is not None:
            consumer.wait_event(event)
        yield from group

    with closing(batches):
        if stream is not None:
            consumer = torch.cuda.current_stream(device)
            stream.wait_stream(consumer)  # where the model was moved to the device
        pending = None
        while group := list(islice(batches, n_together)):
            ready, pending = pending, begin(group)
            if ready:
                yield from finished(*ready)
                del ready  # its batches are used
        if pending:
            yield from finished(*pending)


def joined(group: list[Batch], device: torch.device) -> Batch:
    """The rows of all batches, on the device."""
    moved = [{name: value.to(device, non_blocking=True) for name, value in batch.items()} for batch in group]
    return moved[0] if len(moved) == 1 else {name: torch.cat([batch[name] for batch in moved]) for name in moved[0]}
