"""Reading and writing files: whole or not at all, and with one clear sentence when something is wrong."""

import codecs
import errno
import gzip
import io
import json
import os
import re
import shutil
import socket
import sys
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

BLOCK = 1 << 22
FORGOTTEN_S = 86400.0  # so long after its last write a temporary path of another machine counts as left behind
ZSTD_BLOCK = 1 << 14  # packed bytes unpacked at once: text grows tenfold, a file of zeros ten thousandfold
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
UNFINISHED = "unfinished"  # in the name of what `atomic` has not finished yet
LONGEST = 1 << 26  # characters of a line or a JSON value: a quote without its end must not fill the memory


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


class ZstdFile(io.RawIOBase):
    """The unpacked bytes of a zstd file, of one frame or several.

    Raises:
        ValueError: the package zstandard is not installed.  EOFError, on reading: the file is cut off.
    """

    def __init__(self, path: Path):
        try:
            from zstandard import ZstdDecompressor  # at the first file that needs it
        except ModuleNotFoundError:
            raise ValueError(
                f"{path} is packed by zstd, which needs a package: .venv/bin/python -m pip install zstandard"
            ) from None
        self._make, self._file, self._frame, self._rest = ZstdDecompressor, open(path, "rb"), None, memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        while not self._rest:
            block = self._file.read(ZSTD_BLOCK)
            if not block:
                if self._frame is not None:
                    raise EOFError("it ends before its last frame does")
                return 0
            unpacked = []
            while block:
                self._frame = self._frame or self._make().decompressobj()
                unpacked.append(self._frame.decompress(block))
                block = self._frame.unused_data if self._frame.eof else b""
                self._frame = None if self._frame.eof else self._frame
            self._rest = memoryview(b"".join(unpacked))
        n = min(len(buffer), len(self._rest))
        buffer[:n], self._rest = self._rest[:n], self._rest[n:]
        return n

    def close(self) -> None:
        if not self.closed:
            self._file.close()
        super().close()


def open_binary(path: Path):
    """A file to read bytes from; what gzip or zstd has packed is unpacked."""
    if path.suffix == ".zst":
        return io.BufferedReader(ZstdFile(path), BLOCK)
    return (gzip.open if path.suffix == ".gz" else open)(path, "rb")


def open_text(path: Path):
    """A text file, also a packed one, to be read line by line within `explained`."""
    if path.suffix == ".zst":
        return io.TextIOWrapper(open_binary(path), encoding="utf-8-sig", newline="\n")
    return (gzip.open if path.suffix == ".gz" else open)(path, "rt", encoding="utf-8-sig", newline="\n")


def unpacked_name(path: Path) -> str:
    """The name of a file without the suffix of its packing."""
    return path.name.removesuffix(".gz").removesuffix(".zst")


def unpacking_errors() -> tuple[type[Exception], ...]:
    """What a damaged or cut archive raises."""
    zstandard = sys.modules.get("zstandard")
    return EOFError, OSError, zlib.error, *((zstandard.ZstdError,) if zstandard else ())


@contextmanager
def explained(path: Path, place: Callable[[], str]) -> Iterator[None]:
    """Name the file and the place that cannot be read: broken UTF-8, a damaged archive, a fault of the disk.

    Raises:
        ValueError: instead of the error.
    """
    try:
        try:
            yield
        except UnicodeDecodeError as problem:
            raise ValueError(f"{path}, line {line_of_broken_utf8(path)}: not UTF-8 ({problem.reason})") from None
    except unpacking_errors() as problem:
        raise ValueError(f"{path}, {place()}: cannot be read ({problem})") from None


def line_of_broken_utf8(path: Path) -> int:
    """The line of a file that is not UTF-8. A reader has read further than this line when it finds out."""
    decoder, line = codecs.getincrementaldecoder("utf-8")(), 1
    with open_binary(path) as file:
        while block := file.read(BLOCK):
            try:
                decoder.decode(block)
            except UnicodeDecodeError as problem:
                return line + problem.object[: problem.start].count(b"\n")
            line += block.count(b"\n")
    return line  # the last character is cut off


def read_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Every line of a text file, also a packed one, with its number; memory stays bounded.

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
    except (ValueError, RecursionError) as problem:  # thousands of digits or of nested brackets
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
    """Name the derived file, or the folder of such files, that is cut or damaged.

    Raises:
        ValueError: instead of the error.
    """
    try:
        yield
    except (ValueError, OSError, EOFError, LookupError, TypeError, zipfile.BadZipFile, zlib.error) as problem:
        what = " ".join(str(problem).split())
        raise ValueError(f"{folder} is damaged: delete it, and it is made again ({what})") from None


@contextmanager
def atomic(path: Path, flag: str | None = None) -> Iterator[Path]:
    """A temporary path that replaces `path` only when the block ends well; a folder or a file.

    Processes that make the same path at the same time use different temporary paths. The first to finish wins. What
    killed processes have left in the folder is deleted.

    Args:
        flag: the command-line flag that names the folder.
    Raises:
        OSError: it cannot be written: the folder is missing or read-only, or the disk is full.
    """
    temporary = path.with_name(f".{path.name}.{UNFINISHED}.{socket.gethostname()}.{os.getpid()}")
    another = f"give another --{flag}" if flag else "give another"
    if not path.parent.is_dir():
        raise FileNotFoundError(f"there is no folder {path.parent} to write {path.name} into: make it, or {another}")
    delete_leftovers(path.parent)
    try:
        yield temporary
        for written in temporary.iterdir() if temporary.is_dir() else [temporary]:
            flush(written)
        try:
            os.replace(temporary, path)
        except OSError as problem:
            if problem.errno not in (errno.ENOTEMPTY, errno.EEXIST):  # another process has finished the same folder
                raise
    except OSError as problem:
        if problem.errno in FULL or "requested and" in str(problem):  # the words of numpy for half an array
            raise OSError(f"no room to write {path}: make room, or choose another disk ({problem})") from problem
        if problem.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise OSError(
                f"the folder {path.parent} cannot be written: give permission, or {another} ({problem.strerror})"
            ) from problem
        raise
    finally:
        delete(temporary)


def delete(path: Path) -> None:
    """Delete a folder or a file, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def delete_leftovers(folder: Path) -> None:
    """Delete temporary paths of `atomic` whose process does not live any more.

    Whether a process of another machine lives cannot be asked. A container's name, too, is another at each start. Their
    paths are deleted once nothing has been written for a day.
    """
    here = re.compile(rf"\..+\.{re.escape(socket.gethostname())}\.(\d+)")
    anywhere = re.compile(rf"\..+\.{UNFINISHED}\..+\.\d+")
    for name in os.listdir(folder):
        if found := here.fullmatch(name):
            is_left = not is_alive(int(found[1]))
        else:
            is_left = anywhere.fullmatch(name) and last_write(folder / name) < time.time() - FORGOTTEN_S
        if is_left:
            delete(folder / name)


def last_write(path: Path) -> float:
    """When something was last written to a file, or to anything in a folder; now, if it has just gone."""
    try:
        return max(inside.stat().st_mtime for inside in (path, *path.rglob("*")))
    except FileNotFoundError:
        return time.time()


def is_alive(process: int) -> bool:
    """Whether a process with this number lives on this machine."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # it belongs to somebody else
        return True
    return True


def flush(path: Path) -> None:
    """Write a file or a folder through to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
