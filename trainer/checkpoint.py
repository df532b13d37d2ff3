"""Checkpoints that a run resumes from: complete or absent, checked when read, no pickle anywhere.

A checkpoint is a folder `checkpoint_<step>` of a run: the model, the optimizer's state and each process's random state
as safetensors, and `state.json` with the data position and a checksum of every file. The bank stands apart, in
`banks/<hash of its content>.safetensors`: checkpoints between which it did not change share one file.
"""

import hashlib
import json
import logging
import os
import shutil
import sys
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save, save_file
from torch import nn

from common.files import flush
from dataset.tokenizer import save_tokenizer

from .muon import require_same_optimizer
from .state import TrainState

STATE_FILE, BANKS = "state.json", "banks"
BANK_TENSORS = ("bank.tokens", "bank.frozen")
log = logging.getLogger("run")


def checkpoint_dirs(out_dir: str | Path) -> list[Path]:
    """The complete checkpoints of a run, oldest first."""
    return sorted(path.parent for path in Path(out_dir).glob(f"checkpoint_*/{STATE_FILE}"))


class Checkpoints:
    """The checkpoints of a run: written, pruned, resumed from. Every process calls the same methods.

    Args:
        optimizer: the bare AdamW.
        keep: how many of the newest stay; that of the best validation stays too.
    """

    def __init__(self, out_dir: str | Path, model: nn.Module, optimizer, keep: int, accelerator):
        self.out_dir, self.model, self.optimizer = Path(out_dir), model, optimizer
        self.keep, self.accelerator = keep, accelerator

    def save(self, state: TrainState, stopping: bool = False) -> None:
        """Write a checkpoint, unless the step at hand was skipped and the run goes on.

        Raises:
            OSError: the disk is full, or cannot be written.
            FloatingPointError: a parameter is not finite.
        """
        if state.skipped_in_row and not stopping:
            log.warning("no checkpoint at step %d, which was skipped: the newest is from before it", state.step)
            return
        save_checkpoint(self.out_dir, state.saved(), self.model, self.optimizer, self.keep, self.accelerator)

    def resume(self, state: TrainState) -> None:
        """Put the newest undamaged checkpoint in place, if there is one.

        Raises:
            ValueError: all checkpoints are damaged, or the newest good one is of another model or split.
        """
        saved = resume(self.out_dir, state.split, self.model, self.optimizer, self.accelerator)
        if saved:
            state.restore(saved)


def save_checkpoint(out_dir, state: dict, model: nn.Module, optimizer, keep: int, accelerator) -> Path:
    """Write a checkpoint, then delete all but the newest `keep` and that of `best_step`.

    It is written under a temporary name, flushed to disk, and renamed.

    Called by every process: each writes its own random state, the main process everything else. A kill at any moment,
    or a full disk, leaves the older checkpoints as they were.

    Args:
        state: JSON-serialisable; must hold `step` and `best_step`.
    Raises:
        OSError: the disk is full, or cannot be written.
        FloatingPointError: a parameter is not finite.
    """
    out_dir = Path(out_dir)
    final = out_dir / f"checkpoint_{state['step']:08d}"
    if (final / STATE_FILE).exists():  # the same step of the same run is the same state
        return final
    temporary = out_dir / f".writing_{final.name}"
    if accelerator.is_main_process:
        with whole_or_not_at_all(temporary, out_dir):
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)
    accelerator.wait_for_everyone()
    with whole_or_not_at_all(temporary, out_dir):
        save_file(random_state(accelerator.device), temporary / f"random_{accelerator.process_index}.safetensors")
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        with whole_or_not_at_all(temporary, out_dir):
            tensors = {name: t for name, t in model.state_dict().items() if name not in model._tied_weights_keys}
            require_finite(model, state["step"])
            bank = {name: tensors.pop(name) for name in BANK_TENSORS if name in tensors}
            save_file(tensors, temporary / "model.safetensors")
            save_file(optimizer_tensors(model, optimizer), temporary / "optimizer.safetensors")
            files = [*sorted(temporary.iterdir()), *([save_bank(out_dir, bank)] if bank else [])]
            checksums = {os.path.relpath(path, temporary): file_digest(path) for path in files}
            scaler = accelerator.scaler.state_dict() if accelerator.scaler else None
            write_state(temporary / STATE_FILE, state | {"scaler": scaler, "checksums": checksums})
            for path in (*temporary.iterdir(), temporary):
                flush(path)
            temporary.rename(final)
            flush(out_dir)
        prune(out_dir, keep, state["best_step"])
    accelerator.wait_for_everyone()
    return final


def save_result(out_dir: Path, model: nn.Module, tokenizer) -> None:
    """Put the final weights and the tokenizer into the run folder; a kill leaves those of an earlier end in place."""
    temporary = out_dir / ".writing_result"
    with whole_or_not_at_all(temporary, out_dir):
        shutil.rmtree(temporary, ignore_errors=True)
        model.set_special_tokens(tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id)
        tokenizer.model_max_length = model.settings.max_seq_len
        model.save_pretrained(temporary)
        save_tokenizer(tokenizer, temporary)
        for path in temporary.iterdir():
            flush(path)
        for path in temporary.iterdir():
            path.replace(out_dir / path.name)
        temporary.rmdir()
        flush(out_dir)


@contextmanager
def whole_or_not_at_all(temporary: Path, out_dir: Path):
    """Take away what was half written when it cannot be finished, and say so in one sentence."""
    try:
        yield
    except (OSError, SafetensorError) as problem:
        shutil.rmtree(temporary, ignore_errors=True)
        raise OSError(
            f"cannot write a checkpoint into {out_dir} ({problem}); the older ones are intact: "
            "make room, and the same command goes on from the newest"
        ) from problem


def require_finite(model: nn.Module, step: int) -> None:
    for name, parameter in model.named_parameters():
        if not parameter.isfinite().all():
            raise FloatingPointError(
                f"{name} is not finite after step {step}, so no checkpoint was written and the newest is good: "
                "try a lower --learning_rate, or --dtype float32"
            )


def save_bank(out_dir: Path, tensors: dict[str, torch.Tensor]) -> Path:
    """The file that holds exactly these tensors; written unless it is there already."""
    content = save({name: tensor.contiguous() for name, tensor in tensors.items()})
    digest = hashlib.blake2b(content).hexdigest()
    path = out_dir / BANKS / f"{digest[:32]}.safetensors"
    if not path.exists() or file_digest(path) != digest:
        path.parent.mkdir(exist_ok=True)
        temporary = path.with_name(f".writing_{path.name}")
        temporary.write_bytes(content)
        flush(temporary)
        temporary.rename(path)
        flush(path.parent)
    return path


def prune(out_dir: Path, keep: int, best_step: int | None) -> None:
    """Delete old checkpoints, and the banks that none is left to need."""
    for old in checkpoint_dirs(out_dir)[:-keep]:
        if old.name != f"checkpoint_{best_step or 0:08d}":
            (old / STATE_FILE).unlink()  # from here on it is not a checkpoint any more
            shutil.rmtree(old)
    states = [(path / STATE_FILE).read_bytes() for path in checkpoint_dirs(out_dir)]
    for bank in (out_dir / BANKS).glob("*.safetensors"):
        if not any(bank.name.encode() in state for state in states):
            bank.unlink()


def resume(out_dir: str | Path, split: dict, model: nn.Module, optimizer, accelerator) -> dict:
    """Put the newest undamaged checkpoint's weights, optimizer state and random state in place.

    Damaged checkpoints are set aside, as `damaged_<name>`, and half-written ones deleted, with a message.

    Args:
        split: what decides the order of the data; a checkpoint that had another one is refused.
    Returns:
        The `state.json` of the checkpoint, empty where there is none.
    Raises:
        ValueError: all checkpoints are damaged, or the newest good one is of another model or split.
    """
    out_dir, checkpoints, damaged, found = Path(out_dir), checkpoint_dirs(out_dir), [], None
    for path in reversed(checkpoints):
        try:
            found = path, read_state(path)
            break
        except ValueError as problem:
            damaged.append((path, problem))
    if checkpoints and not found:
        raise ValueError(f"{damaged[0][1]}, and no older checkpoint is whole: start over with --no_resume")
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        for path, problem in damaged:
            target = path.with_name(f"damaged_{path.name}")
            shutil.rmtree(target, ignore_errors=True)
            path.rename(target)
            tell(f"{problem}: going on from {found[0].name} instead")
        left = [*out_dir.glob(".writing_*"), *(out_dir / BANKS).glob(".writing_*")]
        left += [path for path in out_dir.glob("checkpoint_*") if not (path / STATE_FILE).exists()]
        for path in left:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
            tell(f"{path.name} was left half written, or half deleted, by an earlier session and is ignored")
    accelerator.wait_for_everyone()
    if not found:
        return {}
    path, state = found
    load_checkpoint(path, state, split, model, optimizer, accelerator)
    log.info("resumed from %s", path)
    return state


def load_tensors(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a safetensors file, a format that holds nothing else.

    Raises ValueError if it is another kind of file, or damaged.
    """
    try:
        return load_file(path)
    except SafetensorError as problem:
        raise ValueError(f"{path} is not a whole safetensors file ({problem})") from None


def tell(message: str) -> None:
    log.warning(message)
    print(f"warning: {message}", file=sys.stderr)


def load_checkpoint(path: Path, state: dict, split: dict, model: nn.Module, optimizer, accelerator) -> None:
    """Put the weights, optimizer state and random state of a whole checkpoint in place.

    Raises:
        ValueError: the checkpoint is of another model or split.
    """
    for name in split | state["split"]:
        before, now = (x.get(name, 0) for x in (state["split"], split))
        if name.startswith("content"):  # a checkpoint of an earlier version does not know it
            if before and before != now:
                raise ValueError(f"{path} was written with another {name}: put it back, or start over with --no_resume")
        elif before != now:
            raise ValueError(
                f"{path} was written with {name} {before} and this run has {now}, which would learn "
                "other rows than the run that never stopped: use the same, or start over with --no_resume"
            )
    files = [path / name for name in state["checksums"] if name == "model.safetensors" or BANKS in Path(name).parts]
    tensors = {key: value for file in files for key, value in load_tensors(file).items()}
    missing = model.state_dict().keys() - tensors.keys() - model._tied_weights_keys.keys()
    try:
        unexpected = model.load_state_dict(tensors, strict=False).unexpected_keys
    except RuntimeError:  # another shape
        unexpected = True
    if unexpected or missing:
        raise ValueError(
            f"{path} holds another model, or that of another commit: use its flags and its commit, another --out_dir, "
            "or --no_resume"
        )
    model.tie_weights()
    states = load_tensors(path / "optimizer.safetensors")
    require_same_optimizer(path, states, optimizer)
    load_optimizer_tensors(model, optimizer, states)
    set_random_state(load_tensors(path / f"random_{accelerator.process_index}.safetensors"), accelerator.device)
    if accelerator.scaler and state["scaler"]:
        accelerator.scaler.load_state_dict(state["scaler"])


def state_digest(state: dict) -> str:
    return hashlib.blake2b(json.dumps(state, sort_keys=True).encode()).hexdigest()


def write_state(path: Path, state: dict) -> None:
    path.write_text(json.dumps(state | {"digest": state_digest(state)}, indent=1), encoding="utf-8")


def read_state(path: Path) -> dict:
    """The state of a checkpoint, every file of which has its checksum.

    Raises:
        ValueError: a file is missing or damaged.
    """
    try:
        state = json.loads((path / STATE_FILE).read_text(encoding="utf-8"))
        whole = state.pop("digest") == state_digest(state)
    except (ValueError, KeyError, AttributeError, OSError):
        whole = False
    if not whole:
        raise ValueError(f"{path / STATE_FILE} is damaged")
    for name, digest in state["checksums"].items():
        if not (path / name).is_file() or file_digest(path / name) != digest:
            raise ValueError(f"{os.path.normpath(path / name)} is missing or damaged")
    return state


def optimizer_tensors(model: nn.Module, optimizer) -> dict[str, torch.Tensor]:
    """The optimizer's state as named tensors: `<parameter>/<exp_avg | exp_avg_sq | step>`, or Muon's momentum."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {
        f"{names[id(parameter)]}/{key}": value.contiguous()
        for parameter, values in optimizer.state.items()
        for key, value in values.items()
    }


def load_optimizer_tensors(model: nn.Module, optimizer, tensors: dict[str, torch.Tensor]) -> None:
    parameters = dict(model.named_parameters())
    for full_name, value in tensors.items():
        name, key = full_name.rsplit("/", 1)
        optimizer.state[parameters[name]][key] = value.to(parameters[name].device)


def random_state(device: torch.device) -> dict[str, torch.Tensor]:
    state = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def set_random_state(state: dict[str, torch.Tensor], device: torch.device) -> None:
    torch.set_rng_state(state["cpu"])
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)


def file_digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "blake2b").hexdigest()
