"""Where the time and the memory of a run go, and when it is asked to stop."""

import signal
import time
from contextlib import contextmanager

import psutil
import torch

MIB = 2**20


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


def use_histogram(uses_N: torch.Tensor) -> list[int]:
    """How many entries of the bank were read 0, 1, 2-3, 4-7, 8-15, ... times, from counts of reads."""
    powers_N = torch.where(uses_N > 0, uses_N.clamp(min=1).double().log2().floor() + 1, 0).long()
    return torch.bincount(powers_N).tolist()


def memory_readings(device: torch.device) -> dict[str, float]:
    """MiB in use: of this process on the host, and on the GPU now and at its highest."""
    readings = {"host_mib": psutil.Process().memory_info().rss / MIB}
    if device.type == "cuda":
        readings["gpu_mib"] = torch.cuda.memory_allocated(device) / MIB
        readings["peak_gpu_mib"] = torch.cuda.max_memory_reserved(device) / MIB
    return readings


class StopSignal:
    """Turns SIGTERM and SIGINT into a request that the loop honours after the step at hand."""

    def __init__(self):
        self.received: int | None = None
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._receive)

    def _receive(self, number: int, frame) -> None:
        self.received = number

    @property
    def exit_code(self) -> int:
        """The shell's convention: 128 and the number of the signal."""
        return 128 + self.received
