"""Faults that a forked run installs in itself before it starts: kills, signals, full disks, bad numbers."""

import hashlib
import importlib
import os
import resource
import signal
import time
from functools import partial, wraps
from itertools import count
from pathlib import Path

import torch


def on_call(place: str, number: int, action) -> None:
    """Let `action(original, *args, **kwargs)` stand for the `number`-th call (from 1) of `place`, "module:a.b"."""
    module_name, path = place.split(":")
    *owners, name = path.split(".")
    owner = importlib.import_module(module_name)
    for part in owners:
        owner = getattr(owner, part)
    original, calls = getattr(owner, name), count(1)

    @wraps(original)
    def wrapper(*args, **kwargs):
        chosen = action if next(calls) == number else lambda function, *a, **k: function(*a, **k)
        return chosen(original, *args, **kwargs)

    setattr(owner, name, wrapper)


def die(*args, **kwargs):
    os.kill(os.getpid(), signal.SIGKILL)


def die_after(original, *args, **kwargs):
    original(*args, **kwargs)
    die()


def die_half_written(original, tensors, path):
    original(tensors, path)
    Path(path).write_bytes(Path(path).read_bytes()[: Path(path).stat().st_size // 2])
    die()


def die_text_half_written(original, path, text, **options):
    original(path, text[: len(text) // 2], **options)
    die()


def then(other: partial, original, *args, **kwargs):
    """Install another fault, which counts its calls from here."""
    other()
    return original(*args, **kwargs)


def disk_full(original, tensors, path):
    """The write itself fails, in the library that makes it, as on a full disk: files end at 1,000 bytes."""
    unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, unlimited[1]))
    try:
        original(tensors, path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)


def send(number: int, original, *args, **kwargs):
    os.kill(os.getpid(), number)
    return original(*args, **kwargs)


def fault(place: str, number: int, action=die) -> partial:
    """A fault that can be sent to a forked run."""
    return partial(on_call, place, number, action)


def on_rank(rank: int, other: partial) -> None:
    """A fault in one process of several."""
    if int(os.environ["RANK"]) == rank:
        other()


def on_ranks(faults: dict[int, partial]) -> None:
    """A fault of its own in some of several processes."""
    for rank, other in faults.items():
        on_rank(rank, other)


def die_noting(path: Path, original, *args, **kwargs):
    """Die, and leave a file with the time."""
    path.write_text(str(time.time()))
    die()


def wait_before(seconds: float, original, *args, **kwargs):
    time.sleep(seconds)
    return original(*args, **kwargs)


def refuse(original, *args, **kwargs):
    raise ValueError("no more")


def set_variables(variables: dict[str, str]) -> None:
    os.environ.update(variables)


def note_bank_hashes(folder: Path) -> None:
    """Let every process write down a hash of its bank after each rewriting."""
    from model.model_memory import MemoryTransformer

    original = MemoryTransformer.ema_update

    def ema_update(self, readings):
        changed = original(self, readings)
        tensors = (self.bank.tokens, self.bank.frozen, self.bank.average)
        digest = hashlib.blake2b(b"".join(tensor.numpy().tobytes() for tensor in tensors)).hexdigest()
        with open(folder / f"bank_hashes_{os.environ['RANK']}", "a") as file:
            file.write(f"{changed} {digest}\n")
        return changed

    MemoryTransformer.ema_update = ema_update


def poison_losses(first: int, last: int) -> None:
    """Make the loss of the training micro-batches `first` to `last` (from 1) not a number, gradients with it."""
    from model.model_original import Transformer

    original, calls = Transformer.forward, count(1)

    def forward(self, *args, **kwargs):
        out = original(self, *args, **kwargs)
        if self.training and first <= next(calls) <= last:
            out.lm_loss, out.loss = out.lm_loss * torch.nan, out.loss * torch.nan
        return out

    Transformer.forward = forward


def poison_gradient(name: str) -> None:
    """Make every gradient of one parameter not a number."""
    import train_pretrain_accelerate as script

    original = script.make_model

    def make_model(*args):
        model = original(*args)
        model.get_parameter(name).register_hook(lambda gradient: gradient * torch.nan)
        return model

    script.make_model = make_model


def run_out_of_gpu_memory() -> None:
    from model.model_original import Transformer

    def forward(self, *args, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")

    Transformer.forward = forward


def draw_curves() -> None:
    """No fault: the run draws its curves, which others forked leave out."""
    from runs import plots, record

    record.draw_run = plots.draw_run
