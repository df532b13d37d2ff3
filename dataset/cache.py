"""Files derived from other files: kept under a key made of the contents they came from."""

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from common.files import BLOCK, atomic, whole

from .formats import data_files


def content_key(path: Path, cache_dir: Path, *parts: object) -> str:
    """A short hash of a file's content, or a folder's, and of whatever else shapes the derived file.

    The content of an unchanged file (same path, size and times) is hashed once: a side file remembers it. Of the times
    one is that of the last change of any kind, for a copy or an archive can set the other back.
    """
    if path.is_dir():
        inside = [(str(file.relative_to(path)), content_digest(file, cache_dir)) for file in data_files(path)]
        return hashlib.blake2b(repr((inside, parts)).encode(), digest_size=12).hexdigest()
    return hashlib.blake2b(repr((content_digest(path, cache_dir), parts)).encode(), digest_size=12).hexdigest()


def remember(side: Path, value: object) -> None:
    """Write a side file, where the cache can be written: one that can only be read is still of use."""
    try:
        side.parent.mkdir(parents=True, exist_ok=True)
        with atomic(side) as temporary:
            temporary.write_text(json.dumps(value), encoding="utf-8")
    except OSError:
        pass


def content_digest(path: Path, cache_dir: Path) -> str:
    """The hash of a file's content."""
    stat, absolute = path.stat(), str(path.resolve())
    side = cache_dir / "hashes" / (hashlib.blake2b(os.fsencode(absolute), digest_size=12).hexdigest() + ".json")
    seen = [absolute, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns]
    try:
        remembered = json.loads(side.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # none, or one that a crash of the machine left empty
        remembered = {}
    if remembered.get("file") != seen:
        digest = hashlib.blake2b()
        with open(path, "rb") as file:
            while block := file.read(BLOCK):
                digest.update(block)
        remembered = {"file": seen, "digest": digest.hexdigest()}
        remember(side, remembered)
    return remembered["digest"]


def tokenizer_key(tokenizer) -> str:
    """A hash of everything that decides how text becomes ids."""
    return hashlib.blake2b(tokenizer.backend_tokenizer.to_str().encode(), digest_size=12).hexdigest()


def cached_order(path: str | Path, depends_on: tuple[Tensor, ...], make: Callable[[], Tensor]) -> Tensor:
    """An order of a bank's entries, from the .npz file `path` or, if there is none, made and saved there.

    Args:
        depends_on: what the order was made from: the bank's tokens, and the order by rarest tokens, if any.
    Raises:
        ValueError: the file orders another bank, or in another way.
    """
    path, digest = Path(path), hashlib.blake2b()
    for tensor in depends_on:
        digest.update(tensor.cpu().numpy().tobytes())
    if path.exists():
        with whole(path), np.load(path) as saved:
            made_from, order_N = str(saved["bank"]), torch.from_numpy(saved["order"])
        if made_from != digest.hexdigest():
            raise ValueError(
                f"{path} orders another bank, or by other words: give the --cluster_words it was made with, or "
                "another --cluster_cache_path, or delete it"
            )
        return order_N
    order_N = make().cpu()
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic(path) as temporary, open(temporary, "wb") as file:
        np.savez(file, order=order_N.numpy(), bank=digest.hexdigest())
    return order_N
