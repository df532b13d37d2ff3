"""MemoryStore: the bank of a trained run as texts, with a journal of every change."""

import json
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch

from common.constants import PADDING
from common.files import atomic, read_json, require_file, require_text
from dataset.knowledge import Bank, Fact, encode_entries, entry_text, read_values
from dataset.tokenizer import load_tokenizer
from model import load_run
from runs.journal import Change, Journal, apply
from runs.load import load_run_bank
from runs.run import now


@dataclass(frozen=True)
class Row:
    """An entry: its row, its text as the model reads it, and its fact where the origin is known."""

    row: int
    text: str
    frozen: bool
    fact: Fact | None = None
    edited: bool = False


class MemoryStore:
    """The memory of one run. A change is written to the journal first; `load_run` replays the journal.

    Args:
        knowledge_path: where the run's knowledge file is, if it was moved.
    Attributes:
        origin_problem: why the origin of entries is unknown, once it was asked for; empty where it is known.
    Raises:
        ValueError: the run has no memory.
    """

    def __init__(self, run_dir: str | Path, device: str = "cpu", knowledge_path: str | None = None):
        self.run_dir, self.knowledge_path, self.origin_problem = Path(run_dir), knowledge_path, ""
        self.model = load_run(run_dir, device)
        if not self.model.settings.reads_bank:
            raise ValueError(f"{run_dir} is a run without a memory: give a run of model_memory")
        self.tokenizer = load_tokenizer(run_dir)
        self.bank, self.journal = self.model.bank, Journal(run_dir)
        self._seen = self.journal.size()

    # Reading.

    def show(self, row: int) -> Row:
        self._check(row)
        history = self._history(row)
        edited = bool(history) and history[0].old_tokens != history[-1].new_tokens
        if edited:
            last = history[-1]
            fact = Fact(last.text, uuid=last.uuid, source=last.source) if last.text else None
        else:
            fact = self._trained_bank.fact(row) if self._trained_bank else None
        return Row(row, self.text(row), bool(self.bank.frozen[row]), fact, edited)

    def text(self, row: int) -> str:
        """The text of an entry, empty for an empty one."""
        return entry_text(self.tokenizer, self.bank.tokens[row].tolist())

    def search_words(self, text: str, n: int = 10) -> list[tuple[float, Row]]:
        """Entries that share rare tokens with a text: (sum of the tokens' rarity in nats, entry), best first."""
        ids = sorted(set(self._encode(text)))
        index = self.bank.ngrams()
        score_N = torch.zeros(len(self.bank.tokens), device=self.bank.tokens.device)
        for token in ids:
            score_N += (self.bank.tokens == token).any(dim=1) * index.rarity_V[token]
        score_X, row_X = score_N.topk(min(n, len(score_N)))
        return [(s, self.show(r)) for s, r in zip(score_X.tolist(), row_X.tolist(), strict=True) if s > 0]

    @torch.no_grad()
    def search_model(self, text: str, n: int = 10) -> list[tuple[str, float, Row]]:
        """What the model reads after a text: (block or pointer, weight, entry), heaviest first in each block."""
        ids = torch.tensor([[self.tokenizer.bos_token_id, *self._encode(text)]], device=self.model.device)
        found = []
        for layer, reading in enumerate(self.model(ids, logits_to_keep=1).readings):
            if reading is None:
                continue
            name = self.model.settings.reader_name(layer)
            pairs = zip(reading.weight_BTS[0, -1].tolist(), reading.entry_BTS[0, -1].tolist(), strict=True)
            found += [(name, w, self.show(row)) for w, row in sorted(pairs, reverse=True)[:n] if w > 0]
        return found

    def changed(self) -> Iterator[tuple[int, str, str]]:
        """(row, text after training, text now) of every row that was edited."""
        first, last = {}, {}
        for entry in self.journal.entries():
            for change in entry.changes:
                first.setdefault(change.row, change)
                last[change.row] = change
        for row in sorted(last):
            if (first[row].old_tokens, first[row].old_frozen) != (last[row].new_tokens, last[row].new_frozen):
                yield (
                    row,
                    entry_text(self.tokenizer, first[row].old_tokens),
                    entry_text(self.tokenizer, last[row].new_tokens),
                )

    # Changes.

    def edit(self, row: int, text: str, source: str = "edit") -> int:
        """Give an entry another text; returns the number of the line in the journal.

        Raises:
            ValueError: there is no such entry, the text is empty, or it is longer than an entry.
        """
        return self.edit_many([(row, text)], source)

    def edit_many(self, texts: Iterable[tuple[int, str]], source: str = "edit") -> int:
        """Edit many entries in one line of the journal; if one text is refused, none is edited."""
        return self._change("edit", lambda: [self._edited(row, text, source) for row, text in texts])

    def add(self, text: str, source: str = "add") -> int:
        """Put a text into the first empty row; returns the row.

        Raises:
            ValueError: the bank has no empty row.
        """
        chosen = []

        def change() -> list[Change]:
            empty = torch.where((self.bank.tokens == PADDING).all(dim=1))[0]
            if not len(empty):
                raise ValueError(
                    f"all {len(self.bank.tokens)} entries are taken: delete one, or train with a larger --knowledge_num"
                )
            chosen.append(int(empty[0]))
            return [self._edited(chosen[0], text, source)]

        self._change("add", change)
        return chosen[0]

    def delete(self, row: int) -> int:
        """Empty an entry. Retrieval no longer finds it."""
        self._check(row)
        length = self.bank.tokens.shape[1]
        return self._change("delete", lambda: [self._change_of(row, [PADDING] * length)])

    def freeze(self, row: int, frozen: bool = True) -> int:
        """Keep training from rewriting an entry, or allow it."""
        self._check(row)

        def change() -> list[Change]:
            history = self._history(row)
            origin = {name: getattr(history[-1], name) for name in ("text", "uuid", "source")} if history else {}
            return [self._change_of(row, frozen=frozen, **origin)]

        return self._change("freeze" if frozen else "unfreeze", change)

    def undo(self, number: int | None = None) -> int:
        """Undo a line of the journal, by default the last that is not undone yet; returns its number.

        Raises:
            ValueError: there is nothing to undo, or a later line changed the same entry.
        """
        undone = []

        def change() -> list[Change]:
            entries = self.journal.entries()
            taken_back = {entry.undoes for entry in entries}
            standing = [e for e in entries if e.number not in taken_back and e.undoes is None]
            wanted = [e for e in standing if number in (None, e.number)]
            if not wanted:
                raise ValueError(
                    "there is nothing to undo" if number is None else f"line {number} of the journal cannot be undone"
                )
            rows = {c.row for c in wanted[-1].changes}
            later = [e.number for e in standing if e.number > wanted[-1].number and rows & {c.row for c in e.changes}]
            if later:
                raise ValueError(f"line {later[-1]} of the journal changed the same entry later: undo that first")
            undone.append(wanted[-1].number)
            before = {c.row: c for e in entries if e.number < wanted[-1].number for c in e.changes}
            return [c.inverse(before.get(c.row)) for c in wanted[-1].changes]

        self._change("undo", change, undone)
        return undone[0]

    # Files.

    def export(self, path: str | Path, only_changed: bool = False) -> int:
        """Write entries as JSON Lines with `row`, `text` and origin; returns their number. `import_file` reads them."""
        rows = [row for row, *_ in self.changed()] if only_changed else range(len(self.bank.tokens))
        with atomic(Path(path)) as temporary, open(temporary, "w", encoding="utf-8") as file:
            for row in rows:
                entry = self.show(row)
                origin = {"uuid": entry.fact.uuid, "source": entry.fact.source} if entry.fact else {}
                value = {"row": row, "text": entry.text, "frozen": entry.frozen} | origin
                file.write(json.dumps(value, ensure_ascii=False) + "\n")
        return len(rows)

    def import_file(self, path: str | Path) -> int:
        """Make the edits of a file with `{"row", "text"}` lines, all or none; returns their number.

        Raises:
            FileNotFoundError, ValueError: the file is missing, or a line is malformed or refused; it is named.
        """
        wanted = []
        for line, value in read_values(require_file(path)):
            if (
                not isinstance(value, dict)
                or type(value.get("row")) is not int
                or not isinstance(value.get("text"), str)
            ):
                raise ValueError(f'{path}, line {line}: an edit needs "row", a number, and "text", a string')
            try:
                self._check(value["row"])
                if self.text(value["row"]) != value["text"]:
                    wanted.append(
                        self._edited(value["row"], value["text"], str(value.get("source") or Path(path).name))
                    )
            except ValueError as problem:
                raise ValueError(f"{path}, line {line}: {problem}") from None
        if wanted:
            self._change("import", lambda: wanted)
        return len(wanted)

    # Helpers.

    def _change(self, operation: str, changes_now, undone: list[int] | None = None) -> int:
        with self.journal.lock():
            if self.journal.size() != self._seen:  # another process has written to it
                self.journal.replay(self.bank)
            changes = changes_now()
            number = self.journal.append(operation, now(), changes, undone[0] if undone else None)
            apply(self.bank, changes)
            self._seen = self.journal.size()
        return number

    def _change_of(self, row: int, tokens: list[int] | None = None, frozen: bool | None = None, **origin) -> Change:
        old, was_frozen = self.bank.tokens[row].tolist(), bool(self.bank.frozen[row])
        return Change(
            row, old, old if tokens is None else tokens, was_frozen, was_frozen if frozen is None else frozen, **origin
        )

    def _edited(self, row: int, text: str, source: str) -> Change:
        self._check(row)
        length = self.bank.tokens.shape[1]
        token_1L, n_tokens = encode_entries(self.tokenizer, [require_text(text, "the text")], length)
        if not text.strip():
            raise ValueError(f"entry {row}: the text is empty; `delete` empties an entry")
        if n_tokens[0] > length:
            raise ValueError(f"entry {row}: the text takes {n_tokens[0]} tokens, an entry holds {length}: shorten it")
        identity = str(uuid.uuid5(uuid.NAMESPACE_URL, text))
        return self._change_of(row, token_1L[0].tolist(), text=text, uuid=identity, source=source)

    def _check(self, row: int) -> None:
        if not 0 <= row < len(self.bank.tokens):
            raise ValueError(f"there is no entry {row}: they are numbered from 0 to {len(self.bank.tokens) - 1}")

    def _encode(self, text: str) -> list[int]:
        require_text(text, "the text")
        return self.tokenizer(text, add_special_tokens=False).input_ids

    def _history(self, row: int) -> list[Change]:
        return [c for entry in self.journal.entries() for c in entry.changes if c.row == row]

    @cached_property
    def _trained_bank(self) -> Bank | None:
        """The bank with its facts as training began; None where the knowledge file is missing or has changed."""
        read_json(self.run_dir / "flags.json")  # damaged flags are an error, not an unknown origin
        try:
            return load_run_bank(self.run_dir, self.model, self.tokenizer, self.knowledge_path)
        except (FileNotFoundError, ValueError) as problem:
            self.origin_problem = str(problem)
            return None
