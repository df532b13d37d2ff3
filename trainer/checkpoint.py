"""Checkpoints that a run resumes from: complete or absent, checked when read, no pickle anywhere.

A checkpoint is a folder `checkpoint_<step>` of a run: the model as transformers saves it, the optimizer's state and
each process's random state as safetensors, and `state.json` with the data position and a checksum of every file.
"""

import hashlib
import json
import os
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn

STATE_FILE = "state.json"


def checkpoint_dirs(out_dir: str | Path) -> list[Path]:
    """The complete checkpoints of a run, oldest first."""
    return sorted(path.parent for path in Path(out_dir).glob(f"checkpoint_*/{STATE_FILE}"))


def save_checkpoint(out_dir, state: dict, model: nn.Module, optimizer, keep: int, accelerator) -> Path:
    """Write a checkpoint under a temporary name, flush it to disk, rename it, then delete all but the newest `keep`.

    Called by every process: each writes its own random state, the main process everything else. A kill at any moment
    leaves the older checkpoints as they were.

    Args:
        state: JSON-serialisable; must hold `step`.
    """
    out_dir = Path(out_dir)
    final = out_dir / f"checkpoint_{state['step']:08d}"
    temporary = out_dir / f".writing_{final.name}"
    if accelerator.is_main_process:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
    accelerator.wait_for_everyone()
    save_file(random_state(accelerator.device), temporary / f"random_{accelerator.process_index}.safetensors")
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        model.save_pretrained(temporary)
        save_file(optimizer_tensors(model, optimizer), temporary / "optimizer.safetensors")
        checksums = {path.name: file_digest(path) for path in sorted(temporary.iterdir())}
        state = state | {"processes": accelerator.num_processes, "checksums": checksums}
        (temporary / STATE_FILE).write_text(json.dumps(state, indent=1))
        for path in (*temporary.iterdir(), temporary):
            flush(path)
        shutil.rmtree(final, ignore_errors=True)
        temporary.rename(final)
        flush(out_dir)
        for old in checkpoint_dirs(out_dir)[:-keep]:
            shutil.rmtree(old)
    accelerator.wait_for_everyone()
    return final


def load_weights(model: nn.Module, run_dir: str | Path) -> None:
    """Take over the trained parameters of another run; the bank stays the one that the model was built with.

    Raises:
        FileNotFoundError, ValueError: the folder holds no weights, or those of another architecture.
    """
    path = Path(run_dir) / "model.safetensors"
    if not path.is_file():
        raise FileNotFoundError(f"{run_dir} holds no model.safetensors: give another --init_path")
    trained, own = load_file(path), dict(model.named_parameters())
    trained = {name: tensor for name, tensor in trained.items() if not name.startswith("bank.")}
    for name in sorted(own.keys() ^ trained.keys()):
        raise ValueError(f"--init_path {run_dir} is another architecture: only one of the two models has {name}")
    for name, parameter in own.items():
        if parameter.shape != trained[name].shape:
            raise ValueError(
                f"--init_path {run_dir} is another architecture: {name} has the shape {tuple(trained[name].shape)} "
                f"there and {tuple(parameter.shape)} here"
            )
        parameter.data.copy_(trained[name])


def load_checkpoint(path: Path, model: nn.Module, optimizer, accelerator) -> dict:
    """Put a checkpoint's weights, optimizer state and random state in place; returns its `state.json`.

    Raises:
        ValueError: a file is damaged, or the checkpoint was written by another number of processes.
    """
    state = json.loads((path / STATE_FILE).read_text())
    for name, digest in state["checksums"].items():
        if not (path / name).exists() or file_digest(path / name) != digest:
            raise ValueError(f"{path / name} is missing or damaged: delete {path} to resume from the one before")
    if state["processes"] != accelerator.num_processes:
        raise ValueError(
            f"{path} was written by {state['processes']} processes and this run has {accelerator.num_processes}: "
            f"launch with --num_processes {state['processes']}, or start over with --no_resume"
        )
    tensors = load_file(path / "model.safetensors", device=str(accelerator.device))
    missing, unexpected = model.load_state_dict(tensors, strict=False)
    if unexpected or set(missing) - {"lm_head.weight"}:
        raise ValueError(f"{path} holds another model: use its flags, another --out_dir, or --no_resume")
    model.tie_weights()
    load_optimizer_tensors(model, optimizer, load_file(path / "optimizer.safetensors"))
    set_random_state(load_file(path / f"random_{accelerator.process_index}.safetensors"), accelerator.device)
    return state


def optimizer_tensors(model: nn.Module, optimizer) -> dict[str, torch.Tensor]:
    """AdamW's state as named tensors: `<parameter>/<exp_avg | exp_avg_sq | step>`."""
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
        # AdamW wants `step` on the CPU unless it is fused.
        fused = key != "step" or optimizer.param_groups[0]["fused"]
        optimizer.state[parameters[name]][key] = value.to(parameters[name].device if fused else "cpu")


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


def flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
