"""Work that runs beside the rest of a step, on a CUDA stream of its own."""

from collections.abc import Callable
from functools import cache

import torch


@cache
def branch_of(device: torch.device) -> torch.cuda.Stream:
    """The stream of a GPU for work beside a training step: its kernels go after those of the step."""
    return torch.cuda.Stream(device)


def beside(stream: torch.cuda.Stream | None, work: Callable):
    """`work()` and the event of its end: it runs beside what the current stream does next. No stream: at once, None.

    What reads the result must wait for the event first, and `work` must read nothing that is freed before.
    """
    if stream is None:
        return work(), None
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        return work(), stream.record_event()
