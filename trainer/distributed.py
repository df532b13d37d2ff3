"""Data parallelism without a wrapper around the model: equal weights at the start, one exchange of gradients a step.

The backward passes of all micro-steps stay local, so that they can be replayed from CUDA graphs. The exchange is not
overlapped with them: on GPUs that are linked, it takes under a hundredth of a step.
"""

from collections.abc import Iterable, Iterator

import torch
import torch.distributed as dist
from torch import Tensor, nn

BUCKET_BYTES = 64 * 2**20  # enough to use a link fully, few enough that a second copy of the gradients does no harm


@torch.no_grad()
def broadcast_from_main(model: nn.Module) -> None:
    """Give every process the parameters and buffers of the main one."""
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.numel():
            whole = tensor.detach().contiguous()
            dist.broadcast(whole.view(-1).view(torch.uint8), src=0)  # bytes: not every backend knows every type
            if whole.data_ptr() != tensor.data_ptr():
                tensor.copy_(whole)


class GradientMean:
    """Replaces the gradients by their mean over all processes, in a few flat buckets.

    A parameter without a gradient counts as zero, and stays without one only if no process has one. What goes through
    the buckets is the same in every process, whatever gradients it has.

    Args:
        parameters: the same in every process, in the same order; those that are not trained are left out.
    """

    def __init__(self, parameters: Iterable[Tensor], num_processes: int):
        self.parameters, self.num_processes = [p for p in parameters if p.requires_grad], num_processes
        self.buckets = list(in_buckets(self.parameters))
        self.pattern: list[bool] | None = None
        self.present_P: Tensor | None = None

    @torch.no_grad()
    def __call__(self, loss: Tensor) -> Tensor:
        """Average the gradients in place; returns the mean of the 0-d `loss`, which goes along with them."""
        if self.num_processes == 1:
            return loss
        pattern = [parameter.grad is not None for parameter in self.parameters]
        if pattern != self.pattern:
            self.pattern, self.present_P = pattern, torch.tensor(pattern, device=loss.device)
        pieces = [[gradient_of(parameter) for parameter in bucket] for bucket in self.buckets]
        pieces.append([loss, self.present_P.to(loss.dtype)])
        flat = [torch.cat([piece.flatten() for piece in bucket]).div_(self.num_processes) for bucket in pieces]
        for work in [dist.all_reduce(tensor, async_op=True) for tensor in flat]:
            work.wait()

        *means, (loss_1, present_P) = (
            tensor.split([piece.numel() for piece in bucket]) for tensor, bucket in zip(flat, pieces, strict=True)
        )
        self.create_missing(present_P)
        for bucket, values in zip(self.buckets, means, strict=True):
            found = [(p.grad, value) for p, value in zip(bucket, values, strict=True) if p.grad is not None]
            if found:
                torch._foreach_copy_([grad for grad, _ in found], [value.view_as(grad) for grad, value in found])
        return loss_1.squeeze(0)

    def create_missing(self, present_P: Tensor) -> None:
        """Give a parameter a gradient that another process has.

        Waits for the device in every step in which this process misses one. Only experts of `--use_moe` that received
        no token do, and that forward pass waits for the device anyway.
        """
        if not all(self.pattern):
            for parameter, present in zip(self.parameters, present_P.tolist(), strict=True):
                if parameter.grad is None and present:
                    parameter.grad = torch.empty_like(parameter)


def gradient_of(parameter: Tensor) -> Tensor:
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad


def in_buckets(parameters: list[Tensor]) -> Iterator[list[Tensor]]:
    """Neighbouring parameters of one type, at most BUCKET_BYTES together unless one alone is larger."""
    bucket, n_bytes = [], 0
    for parameter in parameters:
        size = parameter.numel() * parameter.element_size()
        if bucket and (n_bytes + size > BUCKET_BYTES or parameter.dtype != bucket[0].dtype):
            yield bucket
            bucket, n_bytes = [], 0
        bucket.append(parameter)
        n_bytes += size
    if bucket:
        yield bucket
