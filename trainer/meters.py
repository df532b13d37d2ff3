"""Where the time and the memory of a run go, and the numbers of a log line."""

import logging
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import psutil
import torch
from tqdm import tqdm

from .config import OptimConfig
from .state import Outcome, TrainState

MIB, GIB = 2**20, 2**30
log = logging.getLogger("run")


class Meter:
    """The numbers of a log line, and the progress bar. The tokens/s are those of learning, without the pauses.

    Args:
        describe: writes the numbers of a step as text, for the log.
        mfu_per_speed: MFU over tokens/s, from `flops.mfu_per_speed`; None: no MFU.
    """

    def __init__(
        self, state: TrainState, accelerator, describe: Callable[[dict[str, float]], str],
        mfu_per_speed: float | None = None,
    ):  # fmt: skip
        self.state, self.describe, self.mfu_per_speed = state, describe, mfu_per_speed
        self.outcome: Outcome | None = None
        self.tokens, self.paused_at, self.clock = 0, 0.0, time.perf_counter()
        self.progress = tqdm(
            total=state.total_steps, initial=state.step, disable=not accelerator.is_main_process, unit="step"
        )

    def __enter__(self) -> "Meter":
        return self

    def __exit__(self, *exception) -> None:
        self.progress.close()

    def add(self, outcome: Outcome) -> None:
        """Take in one optimizer step."""
        self.outcome = outcome
        self.tokens += self.state.tokens_per_step
        self.progress.update()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """What is done inside does not count as time of learning."""
        self.paused_at = time.perf_counter()
        try:
            yield
        finally:
            self.clock += time.perf_counter() - self.paused_at

    def read(self) -> dict[str, float]:
        """The metrics since the last call, by name; waits for the device. Call it within `paused`."""
        state, outcome = self.state, self.outcome
        n_skipped = int(state.skipped) - state.skipped_at_log
        n_taken = state.loss_steps - n_skipped
        loss = float(state.loss_sum) / n_taken if n_taken else math.nan
        grad_norm = float(outcome.grad_norm)
        self.paused_at = time.perf_counter()
        speed = self.tokens / (self.paused_at - self.clock)
        self.tokens, self.clock = 0, self.paused_at
        metrics = {
            "epoch": state.epoch, "loss": loss, "ppl": float(np.exp(min(loss, 50.0))), "lr": outcome.lr,
            "tokens": state.step * state.tokens_per_step, "tokens_per_s": speed, "grad_norm": grad_norm,
            "skipped_steps": state.skipped_at_log + n_skipped,
            **{f"aux/{name}": value.item() for name, value in outcome.aux_losses.items()}, **outcome.time_shares,
        }  # fmt: skip
        if self.mfu_per_speed is not None:
            metrics["mfu"] = speed * self.mfu_per_speed
        self.progress.set_postfix(loss=f"{loss:.4f}", tok_s=f"{speed:,.0f}")
        log.info("step %d/%d %s", state.step, state.total_steps, self.describe(metrics))
        if n_skipped:
            log.warning("%d of these %d steps were skipped: loss not finite", n_skipped, state.loss_steps)
        state.start_interval()
        return metrics

    def read_validation(self, val_loss: float) -> dict[str, float]:
        """The metrics of a validation that has just ended, by name."""
        log.info("step %d validation loss %.4f", self.state.step, val_loss)
        seconds = time.perf_counter() - self.paused_at
        val_ppl = float(np.exp(val_loss))
        return {"epoch": self.state.epoch, "val_loss": val_loss, "val_ppl": val_ppl, "eval_s": seconds}


class Stopwatch:
    """Shares of a step's time by named part, measured in full steps only on request.

    On CUDA the host runs ahead of the device, so a part's time means something only with a synchronisation on both
    sides; it is spent only in steps that begin with `measure=True`. Only the current stream is waited for: the search
    that `prepared_ahead` begins on another stream takes no time of the step.
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
        try:
            yield
            self._synchronize()
        finally:
            self.seconds[part] = self.seconds.get(part, 0.0) + time.perf_counter() - start

    def shares(self) -> dict[str, float]:
        """Each part's share of the last measured step; empty before one."""
        total = sum(self.seconds.values())
        return {f"time_share/{part}": seconds / total for part, seconds in self.seconds.items()} if total else {}

    def _synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.current_stream(self.device).synchronize()


def memory_readings(device: torch.device) -> dict[str, float]:
    """MiB in use: of this process on the host, and on the GPU now and at its highest; what others use of the GPU.

    The last has the driver's own part, up to a GiB: what is neither free nor reserved by this process.
    """
    readings = {"host_mib": psutil.Process().memory_info().rss / MIB}
    if device.type == "cuda":
        readings["gpu_mib"] = torch.cuda.memory_allocated(device) / MIB
        readings["peak_gpu_mib"] = torch.cuda.max_memory_reserved(device) / MIB
        free, total = torch.cuda.mem_get_info(device)
        readings["other_gpu_mib"] = max(total - free - torch.cuda.memory_reserved(device), 0) / MIB
    return readings


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
