"""The journal of a bank's edits: an append-only file in the run folder, replayed whenever the run is loaded.

The weights do not change. Each line is one change of any number of rows, with their content before and after. A kill
can cut off the last line; a line without its end has not happened.
"""

import errno
import fcntl
import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from common.files import flush
from model.memory.bank import MemoryBank

FILE = "memory_journal.jsonl"


@dataclass(frozen=True)
class Change:
    """One row: its tokens and whether it is frozen, before and after.

    `text`, `uuid`, `source` describe the new content. They are empty for an empty entry, or for that of the training.
    """

    row: int
    old_tokens: list[int]
    new_tokens: list[int]
    old_frozen: bool
    new_frozen: bool
    text: str = ""
    uuid: str = ""
    source: str = ""

    def require_types(self) -> None:
        """Raises ValueError where a field has another type than declared: a person can edit the file."""
        texts = (self.text, self.uuid, self.source)
        ids = [self.row, *self.old_tokens, *self.new_tokens]
        if not all(type(i) is int and i >= 0 for i in ids) or not all(isinstance(text, str) for text in texts):
            raise ValueError("a row, token or text of another type")
        if type(self.old_frozen) is not bool or type(self.new_frozen) is not bool:
            raise ValueError("a frozen mark that is neither true nor false")

    def inverse(self, before: "Change | None") -> "Change":
        """The change that undoes this one. `before` is the row's change before it, with the origin of the old text."""
        origin = {} if before is None else {"text": before.text, "uuid": before.uuid, "source": before.source}
        return Change(self.row, self.new_tokens, self.old_tokens, self.new_frozen, self.old_frozen, **origin)


@dataclass(frozen=True)
class Entry:
    """A line of the journal. `undoes`: the number of the line that this one undoes."""

    number: int
    operation: str
    time: str
    changes: list[Change]
    undoes: int | None = None


class Journal:
    """The edits of one run folder, of the bank that it was trained with or of another.

    Args:
        bank_key: the fingerprint of another bank, whose edits have a file of their own.
    Raises:
        ValueError: a line is not readable (a last line without its end is ignored).
    """

    def __init__(self, run_dir: str | Path, bank_key: str = ""):
        self.path = Path(run_dir) / (f"memory_journal_{bank_key}.jsonl" if bank_key else FILE)

    def entries(self) -> list[Entry]:
        """All lines, oldest first."""
        entries = []
        for number, line in enumerate(self._whole_lines(), start=1):
            try:
                value = json.loads(line)
                changes = [Change(**change) for change in value.pop("changes")]
                entries.append(Entry(number=number, changes=changes, **value))
                for change in changes:
                    change.require_types()
            except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as problem:
                what = " ".join(str(problem).split())
                raise ValueError(f"{self.path}, line {number}: not a journal line ({what})") from None
        return entries

    def changed_rows(self) -> dict[int, Change]:
        """The last change of every row whose text or mark is not as after training, by row."""
        return {row: last for row, (first, last) in self._first_and_last().items() if differs(first, last)}

    def edited_rows(self) -> dict[int, Change]:
        """The last change of every row whose text is not as after training: marks change no answer."""
        changes = self._first_and_last().items()
        return {row: last for row, (first, last) in changes if first.old_tokens != last.new_tokens}

    def _first_and_last(self) -> dict[int, tuple[Change, Change]]:
        first: dict[int, Change] = {}
        last: dict[int, Change] = {}
        for change in (change for entry in self.entries() for change in entry.changes):
            first.setdefault(change.row, change)
            last[change.row] = change
        return {row: (first[row], last[row]) for row in sorted(last)}

    def digest(self) -> str | None:
        """16 hexadecimal digits that name the bank's content; None where all texts are those of the training."""
        rows = [(row, change.new_tokens) for row, change in self.edited_rows().items()]
        return hashlib.sha256(json.dumps(rows).encode()).hexdigest()[:16] if rows else None

    def state(self) -> tuple[int, int]:
        """Size and time of the file: another state means new lines."""
        try:
            found = self.path.stat()
        except FileNotFoundError:
            return 0, 0
        return found.st_size, found.st_mtime_ns

    def _whole_lines(self) -> list[bytes]:
        if not self.path.exists():
            return []
        return self.path.read_bytes().split(b"\n")[:-1]  # after the last newline is nothing, or a line without its end

    def append(self, operation: str, time: str, changes: list[Change], undoes: int | None = None) -> int:
        """Write one line to the disk; returns its number. Call it within `lock`."""
        value = {"operation": operation, "time": time, "undoes": undoes, "changes": [asdict(c) for c in changes]}
        lines = self._whole_lines()
        size = sum(len(line) + 1 for line in lines)
        with open(self.path, "ab", buffering=0) as file:
            file.truncate(size)  # removes a line that a kill has cut off
            try:
                line = json.dumps(value, ensure_ascii=False).encode() + b"\n"
                if file.write(line) < len(line):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path))
                os.fsync(file.fileno())
            except OSError:  # a full disk: the change has not happened
                file.truncate(size)
                raise
        if not lines:
            flush(self.path.parent)
        return len(lines) + 1

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Allow one writer at a time, among all processes."""
        with open(self.path.with_suffix(".lock"), "wb") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def replay(self, bank: MemoryBank) -> None:
        """Bring a bank from the state of the weights, or of any earlier line, to that of the last line.

        Raises:
            ValueError: the journal is damaged, or belongs to another bank.
        """
        last, (n_rows, length) = {}, bank.tokens.shape
        for entry in self.entries():
            for change in entry.changes:
                fits = change.row < n_rows and len(change.new_tokens) == length
                if not fits or max(change.new_tokens) >= bank.config.vocab_size:
                    raise ValueError(
                        f"{self.path}, line {entry.number}: entry {change.row} does not fit the bank of "
                        f"{n_rows} entries of {length} tokens"
                    )
                last[change.row] = change
        if last:
            apply(bank, list(last.values()))


def differs(first: Change, last: Change) -> bool:
    """Whether a row's last change leaves it otherwise than it was before the first."""
    return (first.old_tokens, first.old_frozen) != (last.new_tokens, last.new_frozen)


def apply(bank: MemoryBank, changes: list[Change]) -> None:
    """Put the new tokens and marks of each change into the bank."""
    device = bank.tokens.device
    row_X = torch.tensor([change.row for change in changes], device=device)
    bank.write(row_X, torch.tensor([change.new_tokens for change in changes], device=device))
    bank.frozen[row_X] = torch.tensor([change.new_frozen for change in changes], device=device)
