"""Where the time and the memory of a run go, which steps are skipped, and when it is asked to stop."""

import signal
import sys
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

import psutil
import torch
from torch import Tensor, nn

from .config import OptimConfig

MIB, GIB = 2**20, 2**30


class Stopwatch:
    """Shares of a step's time by named part, measured in full steps only on request.

    On CUDA the host runs ahead of the device, so a part's time means something only with a synchronisation on both
    sides; it is spent only in steps that begin with `measure=True`.
    """

    def __init__(self, device: torch.device):
        self.device, self.measuring, self.seconds = device, False, {}

    def begin_step(self, measure: bool) -> None:
        self.measuring = measure
        if measure:
            self.seconds = {}

    @contextmanager
    def __call__(self, part: str):
        if not self.measuring:
            yield
            return
        self._synchronize()
        start = time.perf_counter()
        yield
        self._synchronize()
        self.seconds[part] = self.seconds.get(part, 0.0) + time.perf_counter() - start

    def shares(self) -> dict[str, float]:
        """Each part's share of the last measured step; empty before one."""
        total = sum(self.seconds.values())
        return {f"time_share/{part}": seconds / total for part, seconds in self.seconds.items()} if total else {}

    def _synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def memory_readings(device: torch.device) -> dict[str, float]:
    """MiB in use: of this process on the host, and on the GPU now and at its highest."""
    readings = {"host_mib": psutil.Process().memory_info().rss / MIB}
    if device.type == "cuda":
        readings["gpu_mib"] = torch.cuda.memory_allocated(device) / MIB
        readings["peak_gpu_mib"] = torch.cuda.max_memory_reserved(device) / MIB
    return readings


class StepGuard:
    """Skips every optimizer step whose loss or gradient is not finite, and counts them.

    The decision stays on the device: nothing waits for it until `skipped` or `in_row` is read, on log steps. Processes
    that pass the same loss and gradient norm decide alike.

    Attributes:
        skipped, in_row: int64 scalars on the device; all skipped steps of the run, and those since the last good one.
    """

    def __init__(self, device: torch.device, state: dict):
        self.skipped = torch.tensor(state["skipped"], device=device)
        self.in_row = torch.tensor(state["skipped_in_row"], device=device)

    def step(self, optimizer, loss: Tensor, grad_norm: Tensor) -> Tensor:
        """Step the accelerated fused optimizer unless loss or gradient is not finite; returns that, a bool scalar."""
        bad = ~(torch.isfinite(loss) & torch.isfinite(grad_norm))
        optimizer.optimizer.found_inf = bad.float()  # with float16 the gradient scaler puts its own finding here
        optimizer.step()
        # A fused step does not raise the version counters that `DerivedWeights` and `MemoryBank.norms` go by.
        torch.autograd.graph.increment_version(p for group in optimizer.param_groups for p in group["params"])
        self.skipped += bad
        self.in_row = (self.in_row + 1) * bad
        return bad

    def state(self) -> dict:
        return {"skipped": int(self.skipped), "skipped_in_row": int(self.in_row)}


def first_bad_gradient(model: nn.Module) -> str | None:
    """The first parameter, from the input on, whose gradient is not finite."""
    gradients = ((name, parameter.grad) for name, parameter in model.named_parameters())
    return next((name for name, grad in gradients if grad is not None and not grad.isfinite().all()), None)


@contextmanager
def explained_out_of_memory(device: torch.device, optim: OptimConfig, max_seq_len: int) -> Iterator[None]:
    """Turn a lack of GPU memory into a sentence with the numbers and the flags to change.

    Raises:
        MemoryError: the device has no room for the model at this batch size.
    """
    try:
        yield
    except torch.OutOfMemoryError as problem:
        sizes = ""
        if device.type == "cuda":
            free, total = torch.cuda.mem_get_info(device)
            used = torch.cuda.memory_allocated(device)
            sizes = f" ({total / GIB:.1f} GiB, of which this run used {used / GIB:.1f} and {free / GIB:.1f} are free)"
        cure = f"halve --max_seq_len {max_seq_len}, or take a smaller model"
        if optim.batch_size > 1:
            half, twice = optim.batch_size // 2, optim.accumulation_steps * 2
            cure = f"--batch_size {half} --accumulation_steps {twice} needs about half, for as many tokens a step"
            if optim.entry_rows:
                cure = f"--entry_rows {optim.entry_rows // 2} " + cure
        raise MemoryError(
            f"the GPU's memory{sizes} is too small for --batch_size {optim.batch_size} rows of --max_seq_len "
            f"{max_seq_len}: {cure}"
        ) from problem


class StopSignal:
    """SIGTERM and SIGINT: an exit at once before the loop, then a request that it honours after the step at hand.

    Several processes, told by `StopVotes`, do so after the next one.
    """

    def __init__(self):
        self.received: int | None = None
        self.waits_for_step = False
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._receive)

    def _receive(self, number: int, frame) -> None:
        self.received = number
        if not self.waits_for_step:
            sys.exit(self.exit_code)

    @property
    def exit_code(self) -> int:
        """The shell's convention: 128 and the number of the signal."""
        return 128 + self.received


class StopVotes:
    """Whether some process of several was asked to stop, known to all of them one step late.

    All of them read the votes of the same step, and so stop after the same one. They were copied to the host before the
    step at hand began, so nothing waits for that.
    """

    def __init__(self):
        self.unread: deque[tuple[Tensor, torch.cuda.Event | None]] = deque()

    def cast(self, votes: Tensor) -> None:
        """Take the number of processes that were asked, a scalar on the device."""
        copied = torch.cuda.Event() if votes.is_cuda else None
        self.unread.append((votes.to("cpu", non_blocking=True), copied))
        if copied:
            copied.record()

    def read(self, late: int = 1) -> bool:
        """Whether there was a vote in any step but the last `late` ones."""
        asked = False
        while len(self.unread) > late:
            votes, copied = self.unread.popleft()
            if copied:
                copied.synchronize()
            asked = asked or bool(votes)
        return asked
