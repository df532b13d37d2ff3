"""The table of operations that have a Triton kernel, and the one rule that chooses between kernel and reference."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps

import torch


@dataclass(frozen=True)
class Op:
    """An operation: its reference in plain torch, its kernel, and when the kernel is used.

    Attributes:
        name: of the reference and of the kernel in `model/ops/triton/`.
        reference, kernel: take the same arguments. `kernel` imports Triton when it is first called.
        deterministic: two runs of the kernel give the same bits, gradients included.
        excludes: dtypes of the first argument that the kernel does not take.
        flag: a flag of the model's configuration without which the reference is used; None: always the kernel.
    """

    name: str
    reference: Callable
    kernel: Callable
    deterministic: bool
    excludes: tuple[torch.dtype, ...]
    flag: str | None

    def uses_kernel(self, device: torch.device, dtype: torch.dtype | None = None, config=None) -> bool:
        """Whether tensors of this device and dtype go to the kernel; reads no tensor, so nothing waits for the GPU."""
        return (
            device.type == "cuda"
            and dtype not in self.excludes
            and (self.flag is None or getattr(config, self.flag))
            and (self.deterministic or not torch.are_deterministic_algorithms_enabled())
        )


OPS: dict[str, Op] = {}


def twin(
    kernel: Callable, *, deterministic: bool, excludes: tuple[torch.dtype, ...] = (), flag: str | None = None
) -> Callable:
    """The decorator that turns a reference into an operation of `OPS`; the arguments are those of `Op`.

    The first argument of the operation is a tensor, whose device and dtype decide. With `flag` the last one is the
    configuration. The decorated function has its `Op` as the attribute `op`.
    """

    def register(reference: Callable) -> Callable:
        op = OPS[reference.__name__] = Op(reference.__name__, reference, kernel, deterministic, excludes, flag)

        @wraps(reference)
        def chosen(first, *rest, **named):
            config = rest[-1] if flag else None
            run = kernel if op.uses_kernel(first.device, first.dtype, config) else reference
            return run(first, *rest, **named)

        chosen.op = op
        return chosen

    return register
