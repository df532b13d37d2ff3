"""Reading and writing files: whole or not at all, and with one clear sentence when something is wrong."""

import codecs
import errno
import gzip
import json
import os
import shutil
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

BLOCK = 1 << 22
LONGEST = 1 << 26  # characters of a line or a JSON value: a quote that is not closed shall not fill the memory


def require_file(path: str | Path, flag: str | None = None) -> Path:
    """The path, if it is a file with something in it; `flag` is what names another.

    Raises:
        FileNotFoundError, ValueError: it is not there, or empty.
    """
    path, cure = Path(path), f"give another --{flag}" if flag else "give another"
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}: {cure}")
    if path.stat().st_size == 0:
        raise ValueError(f"{path} is empty: {cure}")
    return path


def open_text(path: Path):
    """A text file, or a gzipped one, for reading line by line; to be read within `explained`."""
    return (gzip.open if path.suffix == ".gz" else open)(path, "rt", encoding="utf-8-sig", newline="\n")


@contextmanager
def explained(path: Path, place: Callable[[], str]) -> Iterator[None]:
    """Name file and place of what cannot be read: broken UTF-8, a damaged archive, a fault of the disk.

    Raises:
        ValueError: in the place of the error.
    """
    try:
        try:
            yield
        except UnicodeDecodeError as problem:
            raise ValueError(f"{path}, line {line_of_broken_utf8(path)}: not UTF-8 ({problem.reason})") from None
    except (EOFError, OSError, zlib.error) as problem:
        raise ValueError(f"{path}, {place()}: cannot be read ({problem})") from None


def line_of_broken_utf8(path: Path) -> int:
    """Where the text of a file that is not UTF-8 breaks: a reader is ahead of its lines when it finds out."""
    decoder, line = codecs.getincrementaldecoder("utf-8")(), 1
    with (gzip.open if path.suffix == ".gz" else open)(path, "rb") as file:
        while block := file.read(BLOCK):
            try:
                decoder.decode(block)
            except UnicodeDecodeError as problem:
                return line + problem.object[: problem.start].count(b"\n")
            line += block.count(b"\n")
    return line  # the last character is cut off


def read_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Every line of a text file, or a gzipped one, with its number; memory stays bounded.

    Raises:
        ValueError: the file cannot be read, or a line is longer than any text; file and line are named.
    """
    number = 0
    with explained(path, lambda: f"after line {number}"), open_text(path) as file:
        while line := file.readline(LONGEST):
            number += 1
            if len(line) == LONGEST:
                raise ValueError(f"{path}, line {number}: longer than {LONGEST} characters, which no text is")
            yield number, line


def parse_json(text: str, place: str):
    """The value of a JSON text.

    Raises:
        ValueError: it is not valid JSON; `place` is named.
    """
    try:
        return json.loads(text)
    except json.JSONDecodeError as problem:
        raise ValueError(f"{place}: not valid JSON ({problem.msg})") from None
    except (ValueError, RecursionError) as problem:  # a number of thousands of digits, brackets nested as deep
        raise ValueError(f"{place}: not valid JSON ({problem})") from None


def read_json(path: Path):
    """The value of a JSON file.

    Raises:
        ValueError: it is not there, or not valid JSON.
    """
    with explained(path, lambda: "line 1"):
        return parse_json(path.read_text(encoding="utf-8"), str(path))


def require_text(text: str, place: str) -> str:
    """The text, if it is one that UTF-8 can write.

    Raises:
        ValueError: it holds half of a surrogate pair, as a JSON escape can; `place` is named.
    """
    try:
        text.encode()
    except UnicodeEncodeError as problem:
        half = text[problem.start]
        raise ValueError(f"{place}: \\u{ord(half):04x} alone is half a character: repair the text") from None
    return text


@contextmanager
def whole(folder: Path) -> Iterator[None]:
    """Name the folder of derived files that turn out to be cut or of another kind.

    Raises:
        ValueError: in the place of the error.
    """
    try:
        yield
    except (ValueError, OSError, EOFError, LookupError, TypeError) as problem:
        what = " ".join(str(problem).split())
        raise ValueError(f"{folder} is damaged: delete it, and it is made anew ({what})") from None


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """A temporary path that takes the place of `path` only when the block ends well; a folder or a file.

    Processes that race write to names of their own, and the first to finish wins.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield temporary
        for written in temporary.iterdir() if temporary.is_dir() else [temporary]:
            flush(written)
        try:
            os.replace(temporary, path)
        except OSError as problem:
            if problem.errno not in (errno.ENOTEMPTY, errno.EEXIST):  # the folder that another process has finished
                raise
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary)
        else:
            temporary.unlink(missing_ok=True)


def flush(path: Path) -> None:
    """Write a file or a folder through to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
