"""Work on a batch that needs no weights, done while the step before it runs.

The n-gram search of the bank depends on the text and the bank alone. Its kernels are short and many, and fill a small
part of a GPU: on a stream of their own they overlap with the step before.
"""

from collections.abc import Callable, Iterator
from contextlib import closing

import torch
from torch import Tensor

Batch = dict[str, Tensor]


def prepared_ahead(batches: Iterator[Batch], prepare: Callable[..., Batch], device: torch.device) -> Iterator[Batch]:
    """Yields each batch joined with `prepare(batch)`. Preparation of the next batch starts before this one is returned.

    Args:
        batches: a generator of batches on the CPU; it is closed with this one.
        prepare: takes the tensors of a batch, on the device, by name; returns further ones. On CUDA it runs on another
            stream: it may read nothing that training changes.
    """
    stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def begin(batch: Batch) -> tuple[Batch, torch.cuda.Event | None]:
        if stream is None:
            return batch | prepare(**batch), None
        with torch.cuda.stream(stream):
            made = prepare(**{name: value.to(device, non_blocking=True) for name, value in batch.items()})
            for value in made.values():
                value.record_stream(consumer)  # its memory is not used anew before the consumer is done with it
            return batch | made, stream.record_event()

    def finish(batch: Batch, event: torch.cuda.Event | None) -> Batch:
        if event is not None:
            consumer.wait_event(event)
        return batch

    with closing(batches):
        if stream is not None:
            consumer = torch.cuda.current_stream(device)
            stream.wait_stream(consumer)  # where the model was moved to the device
        pending = None
        for batch in batches:
            ready, pending = pending, begin(batch)
            if ready:
                yield finish(*ready)
        if pending:
            yield finish(*pending)
