"""Files derived from other files: kept under a key made of the contents they came from."""

import gzip
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

BLOCK = 1 << 22


def require_file(path: str | Path, flag: str) -> Path:
    """The path, if it is a file with something in it.

    Raises:
        FileNotFoundError, ValueError: it is not there, or empty.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}: give another --{flag}")
    if path.stat().st_size == 0:
        raise ValueError(f"{path} is empty: give another --{flag}")
    return path


def open_text(path: Path):
    """A text file, or a gzipped one, for reading line by line; broken UTF-8 raises UnicodeDecodeError."""
    return (gzip.open if path.suffix == ".gz" else open)(path, "rt", encoding="utf-8-sig", newline="\n")


def content_key(path: Path, cache_dir: Path, *parts: object) -> str:
    """A short hash of a file's content and of whatever else shapes the derived file.

    The content of an unchanged file (same path, size and time) is hashed once: a side file remembers it.
    """
    stat, absolute = path.stat(), str(path.resolve())
    side = cache_dir / "hashes" / (hashlib.blake2b(absolute.encode(), digest_size=12).hexdigest() + ".json")
    seen = [absolute, stat.st_size, stat.st_mtime_ns]
    remembered = json.loads(side.read_text()) if side.exists() else {}
    if remembered.get("file") != seen:
        digest = hashlib.blake2b()
        with open(path, "rb") as file:
            while block := file.read(BLOCK):
                digest.update(block)
        remembered = {"file": seen, "digest": digest.hexdigest()}
        side.parent.mkdir(parents=True, exist_ok=True)
        with atomic(side) as temporary:
            temporary.write_text(json.dumps(remembered))
    return hashlib.blake2b(repr((remembered["digest"], parts)).encode(), digest_size=12).hexdigest()


def tokenizer_key(tokenizer) -> str:
    """A hash of everything that decides how text becomes ids."""
    return hashlib.blake2b(tokenizer.backend_tokenizer.to_str().encode(), digest_size=12).hexdigest()


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """A temporary path that takes the place of `path` only when the block ends well; a folder or a file.

    Processes that race write to names of their own, and the first to finish wins.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield temporary
        if not (temporary.is_dir() and path.exists()):
            os.replace(temporary, path)
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary)
        else:
            temporary.unlink(missing_ok=True)
