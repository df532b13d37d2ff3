"""Weights of earlier layouts: parameters that had other names, or were stored apart.

| earlier                                | now                                                    |
|----------------------------------------|--------------------------------------------------------|
| blocks.N.query_proj.weight             | blocks.N.retrieval.query_proj.weight                   |
| blocks.N.keys_2RK                      | blocks.N.retrieval.keys_2RK                            |
| blocks.N.strength                      | blocks.N.retrieval.score_scale                         |
| blocks.N.entry_norm.weight             | blocks.N.fusion.entry_norm.weight                      |
| strength                               | pointer.score_scale                                    |
| blocks.N.attention.{q,k,v}_proj.weight | blocks.N.attention.qkv_proj.weight, joined row by row  |
"""

import re
from collections.abc import Iterable
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

RENAMES = {
    r"(blocks\.\d+)\.(query_proj\.weight|keys_2RK)": r"\1.retrieval.\2",
    r"(blocks\.\d+)\.strength": r"\1.retrieval.score_scale",
    r"(blocks\.\d+)\.entry_norm\.weight": r"\1.fusion.entry_norm.weight",
    r"strength": "pointer.score_scale",
}
SEPARATE = re.compile(r"(blocks\.\d+\.attention)\.q_proj\.weight")


def current_name(name: str) -> str:
    """The name that a parameter or buffer has now."""
    for pattern, replacement in RENAMES.items():
        if match := re.fullmatch(pattern, name):
            return match.expand(replacement)
    return name


def is_current(names: Iterable[str]) -> bool:
    """Whether a state dict with these names needs no conversion."""
    return all(current_name(name) == name and not SEPARATE.fullmatch(name) for name in names)


def convert_state_dict(old: dict[str, Tensor]) -> dict[str, Tensor]:
    """A state dict of any earlier layout as the model has it now; a current one is returned with equal content."""
    new = {current_name(name): tensor for name, tensor in old.items()}
    for name in old:
        if match := SEPARATE.fullmatch(name):
            parts = [new.pop(f"{match[1]}.{part}_proj.weight") for part in "qkv"]
            new[f"{match[1]}.qkv_proj.weight"] = torch.cat(parts)
    return new


def earlier_state(run_dir: str | Path) -> dict[str, Tensor] | None:
    """The converted weights of a folder if their layout is an earlier one.

    None: the layout is the current one, or the folder holds no weights.
    """
    weights = Path(run_dir) / "model.safetensors"
    if not weights.is_file():
        return None
    with safe_open(weights, "pt") as file:
        if is_current(file.keys()):
            return None
        return convert_state_dict({name: file.get_tensor(name) for name in file.keys()})
