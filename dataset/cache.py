"""Files derived from other files: kept under a key made of the contents they came from."""

import hashlib
import json
from pathlib import Path

from common.files import BLOCK, atomic


def content_key(path: Path, cache_dir: Path, *parts: object) -> str:
    """A short hash of a file's content and of whatever else shapes the derived file.

    The content of an unchanged file (same path, size and time) is hashed once: a side file remembers it.
    """
    stat, absolute = path.stat(), str(path.resolve())
    side = cache_dir / "hashes" / (hashlib.blake2b(absolute.encode(), digest_size=12).hexdigest() + ".json")
    seen = [absolute, stat.st_size, stat.st_mtime_ns]
    try:
        remembered = json.loads(side.read_text())
    except (OSError, ValueError):  # none, or one that a crash of the machine left empty
        remembered = {}
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
