"""One optimizer step: forward and backward of its micro-batches, clipping, AdamW.

On a GPU a micro-batch is captured once as CUDA graphs and then replayed. A small model's step is hundreds of short
kernels, and launching them one by one from Python takes longer than running them. A replay launches all at once.
"""

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from model.config import ModelConfig
from model.losses import count_targets

from .ahead import prepared_ahead
from .config import Flags
from .distributed import GradientMean, broadcast_from_main
from .meters import Stopwatch
from .optim import make_optimizer, set_lr
from .state import Outcome
from .stop import Stop

EAGER_CALLS = 3  # compilation, autotuning and the first gradients must have happened before a capture


class TrainStep:
    """Makes optimizer steps. One whose loss or gradient is not finite changes nothing; that is decided on the device.

    Several processes exchange their gradients once a step, after its last micro-step.

    Attributes:
        model: in training mode, its forward pass in the precision of `--dtype`.  optimizer: the bare optimizer.
        graphed: whether micro-steps are replayed from CUDA graphs.
    Raises:
        ValueError: `--use_cuda_graph` is given and not possible.
    """

    def __init__(self, model: nn.Module, flags: Flags, accelerator, stop: Stop):
        optim, run, self.device = flags.optim, flags.run, accelerator.device
        self.accelerator, self.stop = accelerator, stop
        self.searches_text = flags.model.searches_text
        self.n_micro_steps, self.grad_clip = optim.accumulation_steps, optim.grad_clip or float("inf")
        self.optimizer = make_optimizer(model, optim, self.device)
        self.model = accelerator.prepare_model(model, evaluation_mode=True)  # autocast alone, no wrapper
        self.accelerated = accelerator.prepare_optimizer(self.optimizer)
        if accelerator.num_processes > 1:
            broadcast_from_main(model)
        self.average_gradients = GradientMean(model.parameters(), accelerator.num_processes)
        compiled = self.device.type == "cuda" if run.use_compile is None else run.use_compile
        if compiled:
            model.compile_parts()
        self.model.train()
        obstacle = graphable(flags.model, self.device, optim.dtype, compiled, flags.data.data_mode == "packed")
        if run.use_cuda_graph and obstacle:
            raise ValueError(f"--use_cuda_graph is not possible: {obstacle}")
        self.graphed = run.use_cuda_graph is not False and obstacle is None
        self.micro_step = MicroStep(
            self.forward, accelerator.backward, model.refresh, self.graphed, stores=self.n_micro_steps == 1
        )
        self.watch = Stopwatch(self.device)
        self.every_bad_step_ends_the_run = run.max_skipped_in_row == 1
        self.last_skipped: Tensor | None = None

    def prepared(self, batches: Iterator[dict[str, Tensor]]) -> Iterator[dict[str, Tensor]]:
        """The batches of a generator with what a memory model finds in the bank for their text, ahead of the step.

        The baseline and product keys without supervision search nothing.
        """
        if not self.searches_text:
            return batches
        return prepared_ahead(batches, self.model.search_text, self.device, self.model.searched_together)

    def forward(self, batch: dict[str, Tensor]):
        return self.model(**batch, return_logits=False)

    def __call__(self, batches: Iterator[dict[str, Tensor]], lr: float, timed: bool) -> Outcome:
        """Learn from the next `--accumulation_steps` batches.

        Args:
            timed: measure the parts of the step, and name the first bad gradient; both wait for the device.
        """
        set_lr(self.optimizer, lr)
        self.watch.begin_step(measure=timed)
        with self.watch("data"):
            window = [next(batches) for _ in range(self.n_micro_steps)]
            weights = self.weights_of(window)
        loss = torch.zeros((), device=self.device)
        for micro_batch, weight in zip(window, weights, strict=True):
            out = self.micro_step(micro_batch, weight, 1 / self.n_micro_steps, self.watch)
            loss += out.lm_loss.detach() * weight
        with self.watch("optimizer"):
            loss = self.average_gradients(loss)
            # Clipping by a norm that is not a number spreads it to every gradient.
            first_bad = first_bad_gradient(self.model) if timed and self.may_end_the_run() else None
            grad_norm = self.accelerator.clip_grad_norm_(self.model.parameters(), self.grad_clip)
            skipped = step_if_finite(self.accelerated, loss, grad_norm)
            self.micro_step.clear_gradients(self.accelerated)
        self.last_skipped = skipped
        return Outcome(
            lr, loss, grad_norm, skipped, out.readings, out.aux_losses, first_bad, self.watch.shares() if timed else {}
        )

    def weights_of(self, window: list[dict[str, Tensor]]) -> Tensor:
        """What each micro-batch's mean loss is multiplied by; (micro-steps,) on the device.

        Every token weighs the same, in whichever micro-batch or process it stands. The votes to stop go along with the
        counts of tokens.
        """
        targets = [count_targets(batch["labels"]) for batch in window]
        counts = torch.stack([*targets, torch.stack(targets).sum(), torch.tensor(self.stop.received is not None)])
        counts = counts.to(self.device, non_blocking=True)
        all_targets, votes = self.accelerator.reduce(counts[-2:])
        self.stop.cast(votes)
        return counts[:-2] * self.accelerator.num_processes / all_targets

    def may_end_the_run(self) -> bool:
        """Whether one more bad step could be one too many: after a bad step, or one that is not known."""
        return self.every_bad_step_ends_the_run or self.last_skipped is None or bool(self.last_skipped)


def step_if_finite(optimizer, loss: Tensor, grad_norm: Tensor) -> Tensor:
    """Step an accelerated fused optimizer unless loss or gradient is not finite.

    The decision stays on the device. Processes that pass the same loss and gradient norm decide alike.

    Returns:
        Whether the step was skipped, a bool scalar.
    """
    bad = ~(torch.isfinite(loss) & torch.isfinite(grad_norm))
    optimizer.optimizer.found_inf = bad.float()  # with float16 the gradient scaler puts its own finding here
    optimizer.step()
    # A fused step does not raise the version counters that `DerivedWeights` and `MemoryBank.norms` go by.
    torch.autograd.graph.increment_version(p for group in optimizer.param_groups for p in group["params"])
    return bad


def first_bad_gradient(model: nn.Module) -> str | None:
    """The first parameter, from the input on, whose gradient is not finite."""
    gradients = ((name, parameter.grad) for name, parameter in model.named_parameters())
    return next((name for name, grad in gradients if grad is not None and not grad.isfinite().all()), None)


def graphable(config: ModelConfig, device: torch.device, dtype: str, compiled: bool, packed: bool = True) -> str | None:
    """Why a model's step cannot be captured; None where it can."""
    if device.type != "cuda":
        return "there is no CUDA device"
    if not compiled:
        return "without --use_compile the blocks copy constants from the host"
    if torch.are_deterministic_algorithms_enabled():
        return "some operations of --deterministic wait for the host"
    if config.use_moe:
        return "--use_moe sends tokens to experts in numbers that the host must know"
    if config.use_flash_attn and config.flash_backend == "flash_attn" and packed:
        return "--flash_backend flash_attn must know on the host how many documents the packed rows hold"
    return "--dtype float16 scales its loss on the host" if dtype == "float16" else None


class MicroStep:
    """Adds the gradients of one micro-batch to those that the parameters hold.

    Args:
        forward: batch -> the model's output with `loss` and `lm_loss`. Everything that `forward` does is captured.
            Every batch must have the shapes of the first.
        backward: called with the loss.
        refresh: called before each forward pass, outside of the graph.
        stores: each optimizer step has one micro-batch. A replay then overwrites the gradients of the last one.
    """

    def __init__(self, forward: Callable, backward: Callable, refresh: Callable, graphed: bool, stores: bool = False):
        self.forward, self.backward, self.refresh, self.graphed = forward, backward, refresh, graphed
        self.stores = stores
        self.calls, self.graphs = 0, None
        # The eager calls run on the stream of the capture: a gradient's autograd node that outlives them would
        # otherwise tie the capture to another stream, which CUDA forbids. Its kernels go before those of the search of
        # the next batches, which fill what is left of the GPU: else the many blocks of one of these hold up a step.
        self.stream = torch.cuda.Stream(priority=-1) if graphed else None

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
            with self._on_own_stream():
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

    def clear_gradients(self, optimizer) -> None:
        """What every optimizer step ends with.

        A replay adds to the gradients that were there at its capture, so these stay and become zero. Where none were,
        it writes them where its own backward pass makes them, so there is nothing to do.
        """
        if not (self.stores and self.graphs):
            optimizer.zero_grad(set_to_none=self.stores or not self.graphed)

    @contextmanager
    def _on_own_stream(self):
        """Between what the current stream has done and what it will do; without graphs simply on it."""
        if self.stream is None:
            yield
            return
        current = torch.cuda.current_stream()
        self.stream.wait_stream(current)
        with torch.cuda.stream(self.stream):
            yield
        current.wait_stream(self.stream)

    def _forward(self, batch, lm_weight: Tensor, aux_weight: float):
        out = self.forward(batch)
        return out, out.lm_loss * lm_weight + (out.loss - out.lm_loss) * aux_weight

    def _capture(self, batch: dict[str, Tensor], lm_weight: Tensor, aux_weight: float) -> None:
        # Copies, though they may be there already: every later batch is written into them.
        self.batch = {name: value.to(lm_weight.device, copy=True) for name, value in batch.items()}
        self.lm_weight = lm_weight.clone()
        torch.cuda.synchronize()
        gc.collect()  # graphs of the eager calls that a cycle keeps alive
        torch.cuda.empty_cache()  # the graphs have memory of their own; what the eager calls used goes back
        forward, backward = torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph()
        # The thread that fetches batches pins memory meanwhile, which a capture of "global" mode forbids.
        with torch.cuda.graph(forward, stream=self.stream, capture_error_mode="thread_local"):
            self.out, loss = self._forward(self.batch, self.lm_weight, aux_weight)
        with torch.cuda.graph(backward, forward.pool(), self.stream, capture_error_mode="thread_local"):
            self.backward(loss)
        self.out = detached(self.out)
        self.graphs = (forward, backward)


def detached(out):
    """An output that does not hold on to the autograd graph: a capture must find none left of the eager calls."""
    out.loss, out.lm_loss = out.loss.detach(), out.lm_loss.detach()
    out.aux_losses = {name: value.detach() for name, value in out.aux_losses.items()}
    return out
