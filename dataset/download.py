"""Download a file: resumed where it was cut, checked against its size and checksum, refused in one sentence."""

import hashlib
import json
import shutil
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from http.client import HTTPException
from pathlib import Path

from common.files import BLOCK, FULL

from .sources import HUB, File

TRIES, TIMEOUT, PAUSE = (
    5,
    30,
    2.0,
)  # connections for one file; seconds of silence; seconds before the second try, doubled
CHUNK = 1 << 18
AGAIN = (408, 429, 500, 502, 503, 504)  # of a busy or broken server, which a later try may not meet


class Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects, and keeps the checksum that the hub states beside the address of its store."""

    stated: str | None = None

    def redirect_request(self, request, file, code, message, headers, new_url):
        self.stated = headers.get("X-Linked-Etag") or self.stated
        return super().redirect_request(request, file, code, message, headers, new_url)


def url_of(file: File) -> str:
    """The address of a file for urllib. HF_ENDPOINT names a mirror of the hub."""
    if not file.address.startswith(HUB):
        return file.address
    from huggingface_hub import hf_hub_url

    repository, rest = file.address.removeprefix(HUB).split("@", 1)
    revision, path = rest.split("/", 1)
    return hf_hub_url(repository, path, repo_type="dataset", revision=revision)


def download(file: File, folder: Path, say: Callable[[str], None]) -> Path:
    """The file in `folder`: what is there whole is taken, what was cut is continued.

    A part lies beside it as NAME.part, with NAME.part.json for what it is a part of.

    Args:
        say: gets a line of progress now and then.
    Raises:
        ValueError: the place is out of reach, does not have it, or has another content.  OSError: the disk is full.
    """
    path, url = folder / file.name, url_of(file)
    folder.mkdir(parents=True, exist_ok=True)
    if path.exists() and (file.size or path.stat().st_size) == path.stat().st_size:
        say(f"{path} is there already")
        return path
    part, note = path.with_name(path.name + ".part"), path.with_name(path.name + ".part.json")
    stated = None
    for attempt in range(TRIES):
        try:
            stated = fetch_rest(url, file, part, note, say) or stated
            break
        except urllib.error.HTTPError as problem:
            problem.close()
            if problem.code == 416 and attempt < TRIES - 1:  # the file is shorter now than what is here of it
                part.unlink(missing_ok=True)
            elif problem.code not in AGAIN or attempt == TRIES - 1:
                raise ValueError(refusal(url, problem.code)) from None
            why = f"it answers {problem.code}"
        except urllib.error.URLError as problem:
            raise ValueError(unreachable(url, problem.reason)) from None
        except (ConnectionError, TimeoutError, HTTPException) as problem:
            if attempt == TRIES - 1:
                have = part.stat().st_size if part.exists() else 0
                raise ValueError(
                    f"{url} was cut off {TRIES} times, {have} bytes are kept: the same command goes on from there"
                ) from None
            why = f"the connection was cut ({problem})"
        pause = PAUSE * 2**attempt
        say(f"{why}; again in {pause:.0f} s")
        time.sleep(pause)
    check(part, note, url, file.sha256 or stated, say)
    part.replace(path)
    note.unlink(missing_ok=True)
    return path


def fetch_rest(url: str, file: File, part: Path, note: Path, say: Callable[[str], None]) -> str | None:
    """Append what is missing to a part; returns the checksum that the place states, if it does.

    Raises:
        ConnectionError, TimeoutError, URLError: it was cut or cannot be had.  ValueError, OSError: as in `download`.
    """
    have = part.stat().st_size if part.exists() else 0
    kept = json.loads(note.read_text(encoding="utf-8")) if have and note.exists() else {}
    have = have if kept.get("url") == url else 0
    if have and kept.get("total") == have:  # all came, but it was not checked
        return kept.get("sha256")
    headers = {"User-Agent": "dataset.fetch", "Accept-Encoding": "identity"}
    if have:
        headers |= {"Range": f"bytes={have}-"} | ({"If-Range": kept["tag"]} if kept.get("tag") else {})
    redirects, request = Redirects(), urllib.request.Request(url, headers=headers)
    get = urllib.request.build_opener(redirects).open
    with get(request, timeout=TIMEOUT) as answer:
        goes_on = answer.status == 206 and str(answer.headers.get("Content-Range", "")).startswith(f"bytes {have}-")
        have = have if goes_on else 0  # the place knows no ranges, or has another file now
        length = answer.headers.get("Content-Length")
        total = have + int(length) if length is not None else None
        if file.size and total and total != file.size:
            raise ValueError(
                f"{url} has {total} bytes now, and {file.size} were expected: it is not the file that was checked; "
                "report it, or fetch it by hand and name the file"
            )
        require_room(part.parent, (total or 0) - have, url)
        stated = checksum_of(redirects.stated or answer.headers.get("X-Linked-Etag"))
        tag = answer.headers.get("ETag")
        about = {"url": url, "total": total, "tag": tag if tag and not tag.startswith("W/") else None, "sha256": stated}
        note.write_text(json.dumps(about), encoding="utf-8")
        append(answer, part, have, total, file.name, say)
    return stated


def append(answer, part: Path, have: int, total: int | None, name: str, say: Callable[[str], None]) -> None:
    """Write the body of an answer behind the first `have` bytes of a part."""
    begin, first = time.monotonic(), have
    try:
        with open(part, "ab") as out:
            out.truncate(have)
            while block := answer.read(CHUNK):
                out.write(block)
                have += len(block)
                rate = (have - first) / max(time.monotonic() - begin, 1e-3) / 1e6
                of = f" of {total / 1e6:.1f} MB, {have / total:.0%}" if total else " MB"
                say(f"{name}: {have / 1e6:.1f}{of}, {rate:.1f} MB/s")
    except OSError as problem:
        if problem.errno in FULL:
            raise OSError(f"no room to write {part}: make room, and the same command goes on ({problem})") from None
        if isinstance(problem, (ConnectionError, TimeoutError)):
            raise
        raise ConnectionError(str(problem)) from None
    if total is not None and have < total:
        raise ConnectionError(f"{have} of {total} bytes came")


def require_room(folder: Path, needed: int, url: str) -> None:
    """Raises OSError if the disk has fewer free bytes than that."""
    if (free := shutil.disk_usage(folder).free) < needed:
        raise OSError(
            f"no room for {url}: it needs {needed / 1e6:.0f} MB, and {folder} has {free / 1e6:.0f} MB free; make room, "
            "or give --downloads on another disk"
        )


def checksum_of(tag: str | None) -> str | None:
    """The sha256 in a tag of the hub; None where the tag is another."""
    text = (tag or "").strip('"').lower()
    return text if len(text) == 64 and not set(text) - set("0123456789abcdef") else None


def check(part: Path, note: Path, url: str, expected: str | None, say: Callable[[str], None]) -> None:
    """Raises ValueError if the content has another checksum than expected; the part is then deleted."""
    digest = hashlib.sha256()
    with open(part, "rb") as file:
        while block := file.read(BLOCK):
            digest.update(block)
    if expected is None:
        say(f"sha256 {digest.hexdigest()}, but nothing states what it should be")
    elif digest.hexdigest() != expected:
        part.unlink()
        note.unlink(missing_ok=True)
        raise ValueError(
            f"{url} has the sha256 {digest.hexdigest()}, and {expected} was expected: it came damaged, or is another "
            "file now; what came is deleted, so try again, and report it if that fails too"
        )
    else:
        say("size and checksum are right")


def refusal(url: str, code: int) -> str:
    """The sentence for an answer that is no file."""
    if code in (404, 410):
        return f"{url} is not there any more ({code}): fetch the data by hand, and name the file instead"
    if code in (401, 403):
        return f"{url} is not open to everybody ({code}): fetch the data by hand, and name the file instead"
    return f"{url} answers {code}: try again later"


def unreachable(url: str, reason) -> str:
    host = urllib.request.Request(url).host or url
    return (
        f"{host} cannot be reached ({reason}): is there a network? HF_ENDPOINT names a mirror of the hub, HTTPS_PROXY "
        "a proxy; or bring the file, and name it instead"
    )


class Progress:
    """One line that is written over on a terminal, else a line every ten seconds; on stderr."""

    def __init__(self):
        self.next, self.open = 0.0, False

    def __call__(self, line: str) -> None:
        moving, now = line.endswith("MB/s"), time.monotonic()
        if sys.stderr.isatty():
            if not moving or now >= self.next or "100%" in line:
                sys.stderr.write(f"\r\033[K{line}" + ("" if moving else "\n"))
                self.next = now + 0.2
        elif not moving or now >= self.next or "100%" in line:
            sys.stderr.write(line + "\n")
            self.next = now + 10
        sys.stderr.flush()
