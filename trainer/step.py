"""Forward and backward of one micro-batch; on one GPU captured once as CUDA graphs and then replayed.

A small model's step is hundreds of short kernels, and launching them one by one from Python takes longer than running
them. A replay launches all of them at once.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from model.config import ModelConfig

EAGER_CALLS = 3  # compilation, autotuning and the first gradients must have happened before a capture


def graphable(config: ModelConfig, device: torch.device, processes: int, dtype: str, compiled: bool) -> str | None:
    """Why a model's step cannot be captured; None where it can."""
    if device.type != "cuda":
        return "there is no CUDA device"
    if processes > 1:
        return "several processes exchange gradients during the backward pass"
    if not compiled:
        return "without --use_compile the blocks copy constants from the host"
    if torch.are_deterministic_algorithms_enabled():
        return "some operations of --deterministic wait for the host"
    if config.use_moe:
        return "--use_moe sends tokens to experts in numbers that the host must know"
    return "--dtype float16 scales its loss on the host" if dtype == "float16" else None


class MicroStep:
    """Adds the gradients of one micro-batch to those that the parameters hold.

    Args:
        forward: batch -> the model's output with `loss` and `lm_loss`; whatever it does with the output besides is
            captured too. Every batch must have the shapes of the first.
        backward: called with the loss.
        refresh: called before each forward pass, outside of the graph.
    """

    def __init__(self, forward: Callable, backward: Callable, refresh: Callable, graphed: bool):
        self.forward, self.backward, self.refresh, self.graphed = forward, backward, refresh, graphed
        self.calls, self.graphs = 0, None

    def __call__(self, batch: dict[str, Tensor], lm_weight: Tensor, aux_weight: float, watch: Callable):
        """The model's output, without gradient; of a replayed step it is overwritten by the next.

        Args:
            batch: on the device, or in pinned memory.  lm_weight: 0-d, what the language-model loss is multiplied by.
            aux_weight: the same for the other terms; a constant of the run.
            watch: a context manager by name, "forward" and "backward".
        """
        self.calls += 1
        self.refresh()
        device = lm_weight.device
        if not self.graphed or self.calls <= EAGER_CALLS:
            batch = {name: value.to(device, non_blocking=True) for name, value in batch.items()}
            with watch("forward"):
                out, loss = self._forward(batch, lm_weight, aux_weight)
            with watch("backward"):
                self.backward(loss)
            return detached(out)
        if self.graphs is None:
            self._capture(batch, lm_weight, aux_weight)
        for name, value in batch.items():
            self.batch[name].copy_(value, non_blocking=True)
        self.lm_weight.copy_(lm_weight)
        for part, graph in zip(("forward", "backward"), self.graphs, strict=True):
            with watch(part):
                graph.replay()
        return self.out

    def _forward(self, batch, lm_weight: Tensor, aux_weight: float):
        out = self.forward(batch)
        return out, out.lm_loss * lm_weight + (out.loss - out.lm_loss) * aux_weight

    def _capture(self, batch: dict[str, Tensor], lm_weight: Tensor, aux_weight: float) -> None:
        # Copies, though they may be there already: every later batch is written into them.
        self.batch = {name: value.to(lm_weight.device, copy=True) for name, value in batch.items()}
        self.lm_weight = lm_weight.clone()
        torch.cuda.synchronize()
        torch.cuda.empty_cache()  # the graphs have memory of their own; what the eager calls used goes back
        forward, backward = torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph()
        # The thread that fetches batches pins memory meanwhile, which a capture of "global" mode forbids.
        with torch.cuda.graph(forward, capture_error_mode="thread_local"):
            self.out, loss = self._forward(self.batch, self.lm_weight, aux_weight)
        with torch.cuda.graph(backward, pool=forward.pool(), capture_error_mode="thread_local"):
            self.backward(loss)
        self.out = detached(self.out)
        self.graphs = (forward, backward)


def detached(out):
    """An output that does not hold on to the autograd graph: a capture must find none left of the eager calls."""
    out.loss, out.lm_loss = out.loss.detach(), out.lm_loss.detach()
    out.aux_losses = {name: value.detach() for name, value in out.aux_losses.items()}
    return out
