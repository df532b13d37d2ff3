"""When a run is asked to stop: signals, and votes among several processes."""

import signal
import sys
from collections import deque

import torch
from torch import Tensor


class Stop:
    """SIGTERM and Ctrl-C. They end the program at once before the first step, and after the step at hand later.

    Several processes stop after the same step, the one after that in which some process got the signal.

    Attributes:
        received: the number of the signal; None: there was none.
        waits_for_step: set it before the first step.
    """

    def __init__(self, num_processes: int):
        self.received: int | None = None
        self.waits_for_step = False
        self.votes = StopVotes() if num_processes > 1 else None
        self.agreed = False
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._receive)

    def _receive(self, number: int, frame) -> None:
        self.received = number
        if not self.waits_for_step:
            sys.exit(self.exit_code)

    @property
    def exit_code(self) -> int:
        """0, or as a shell counts: 128 and the number of the signal."""
        return 0 if self.received is None else 128 + self.received

    def cast(self, votes: Tensor) -> None:
        """Take in how many processes had a signal when the step at hand began: a scalar on the device, summed."""
        if self.votes:
            self.votes.cast(votes)

    def asked(self, late: int = 1) -> bool:
        """Whether to stop now. The answer is the same in every process, for all ask after the same steps.

        Args:
            late: so many of the last votes are not read yet; 0 after the last step.
        """
        if self.votes is None:
            return self.received is not None
        self.agreed = self.votes.read(late) or self.agreed
        if self.agreed and self.received is None:
            self.received = signal.SIGTERM  # only another process got it
        return self.agreed


class StopVotes:
    """Whether some process of several was asked to stop, known to all of them one step late.

    All of them read the votes of the same step, and so stop after the same one. The votes were copied to the host
    before the step at hand began, so nothing waits for that step.
    """

    def __init__(self):
        self.unread: deque[tuple[Tensor, torch.cuda.Event | None]] = deque()

    def cast(self, votes: Tensor) -> None:
        """Take in the number of processes that were asked, a scalar on the device."""
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
