"""How far a run has come: the position in the data, counters, the best validation."""

import math
import sys
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .config import Flags, OptimConfig

# The fields that a checkpoint's state.json holds, in the order in which they are written.
SAVED = (
    "step", "loss_sum", "loss_steps", "best_val_loss", "best_step", "skipped", "skipped_in_row", "skipped_at_log",
    "split",
)  # fmt: skip


@dataclass
class Outcome:
    """What one optimizer step did; its tensors are on the device.

    Attributes:
        loss: the mean over the tokens of all processes.  grad_norm: before clipping.  skipped: bool, loss or gradient
            was not finite. All three are 0-d.
        readings, aux_losses: of the last micro-batch, as the model returns them.
        first_bad: the first parameter whose gradient is not finite, if that was asked for.
        time_shares: share of the step's time by part, of a timed step.
    """

    lr: float
    loss: Tensor
    grad_norm: Tensor
    skipped: Tensor
    readings: list
    aux_losses: dict[str, Tensor]
    first_bad: str | None
    time_shares: dict[str, float]


@dataclass
class TrainState:
    """What changes from step to step besides the model and the optimizer.

    Counters of losses and skipped steps are 0-d tensors on the device: no step waits for them, only a reader does.

    Attributes:
        total_steps, steps_per_epoch, tokens_per_step: of optimizer steps; constants of the run.
        split: by flag, what decides which rows a step learns from. A checkpoint of another split is refused.
        step: optimizer steps taken, the skipped ones included.
        loss_sum, loss_steps: sum of the losses since the last log line, float32; and how many steps that line covers.
        best_val_loss, best_step: the lowest validation loss and its step; None before the first.
        skipped, skipped_in_row: int64; skipped steps of the run, and those since the last good one.
        skipped_at_log: `skipped` at the last log line.
    """

    total_steps: int
    steps_per_epoch: int
    tokens_per_step: int
    split: dict[str, int | str]
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    step: int = 0
    loss_sum: Tensor | float = 0.0
    loss_steps: int = 0
    best_val_loss: float | None = None
    best_step: int | None = None
    skipped: Tensor | int = 0
    skipped_in_row: Tensor | int = 0
    skipped_at_log: int = 0

    def __post_init__(self):
        self._to_device()

    @classmethod
    def fresh(cls, loader, flags: Flags, accelerator, inputs: dict[str, str] | None = None) -> "TrainState":
        """The state before the first step of a run over a `BatchLoader`.

        Args:
            inputs: fingerprints of the files that the run reads, by their names in messages.
        """
        optim, processes = flags.optim, accelerator.num_processes
        steps_per_epoch = len(loader) // optim.accumulation_steps
        split = {
            "--num_processes": processes, "--batch_size": optim.batch_size, "--seed": flags.run.seed,
            "--accumulation_steps": optim.accumulation_steps, "rows of training data": len(loader.dataset),
        } | ({"--entry_rows": optim.entry_rows} if loader.beside else {})  # fmt: skip
        split |= {f"content of the {name}": key for name, key in (inputs or {}).items()}
        return cls(
            total_steps=total_steps_of(optim, steps_per_epoch),
            steps_per_epoch=steps_per_epoch,
            tokens_per_step=optim.batch_size * flags.model.max_seq_len * optim.accumulation_steps * processes,
            split=split,
            device=accelerator.device,
        )

    def _to_device(self) -> None:
        self.loss_sum = torch.tensor(float(self.loss_sum), device=self.device)
        self.skipped = torch.tensor(int(self.skipped), device=self.device)
        self.skipped_in_row = torch.tensor(int(self.skipped_in_row), device=self.device)

    def saved(self) -> dict:
        """The fields of `SAVED` as JSON values. Waits for the device."""
        values = {name: getattr(self, name) for name in SAVED}
        return {name: value.item() if isinstance(value, Tensor) else value for name, value in values.items()}

    def restore(self, saved: dict) -> None:
        """Take over the fields of a checkpoint's state.json."""
        for name in SAVED:
            setattr(self, name, saved[name])
        self._to_device()

    @property
    def epoch(self) -> float:
        return self.step / self.steps_per_epoch

    @property
    def is_best(self) -> bool:
        """Whether the step at hand has the lowest validation loss so far."""
        return self.step == self.best_step

    def due(self, interval: int, ahead: int = 0) -> bool:
        """True at every multiple of `interval` and at the last step; `ahead` looks that many steps forward."""
        step = self.step + ahead
        return step % interval == 0 or step == self.total_steps

    def advance(self, outcome: Outcome) -> None:
        """Count one optimizer step; nothing waits for the device."""
        self.step += 1
        self.loss_steps += 1
        self.loss_sum += outcome.loss.masked_fill(outcome.skipped, 0.0)
        self.skipped += outcome.skipped
        self.skipped_in_row = (self.skipped_in_row + 1) * outcome.skipped

    def note(self, val_loss: float) -> None:
        """Compare a validation loss with the best so far."""
        if math.isfinite(val_loss) and (self.best_step is None or val_loss < self.best_val_loss):
            self.best_val_loss, self.best_step = val_loss, self.step

    def start_interval(self) -> None:
        """Begin to sum the losses of the next log line."""
        self.loss_sum.zero_()
        self.loss_steps, self.skipped_at_log = 0, int(self.skipped)

    def refuse_divergence(self, max_skipped_in_row: int, first_bad: str | None) -> None:
        """End a run whose last steps were all skipped.

        Args:
            first_bad: the first parameter whose gradient was not finite in the last of them.
        Raises:
            FloatingPointError: so many steps in a row had a loss or gradient that is not finite.
        """
        if self.skipped_in_row >= max_skipped_in_row:
            raise FloatingPointError(
                f"{int(self.skipped_in_row)} steps in a row, to step {self.step}, had a loss or gradient that is not "
                f"finite (first in {first_bad}); all of them were skipped, so the newest checkpoint is good: try a "
                "lower --learning_rate or --grad_clip, or --dtype float32"
            )


def total_steps_of(optim: OptimConfig, steps_per_epoch: int) -> int:
    """The optimizer steps of a whole run."""
    return min(optim.max_steps or sys.maxsize, optim.epochs * steps_per_epoch)
