"""MemoryStore: the bank of a trained run as texts, with a journal of every change."""

import json
import uuid
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch

from common.constants import PADDING
from common.files import atomic, read_json, require_file, require_text
from dataset.knowledge import Bank, Fact, encode_entries, entry_text, read_values
from dataset.tokenizer import encode_texts, load_tokenizer
from model import load_run
from runs.journal import Change, Journal, apply, differs
from runs.load import load_run_bank
from runs.run import now

from .search import TextSearch


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
        places: `knowledge_path` and `cache_dir`, as for `load_run_bank`, if they are not where the run had them.
    Attributes:
        origin_problem: why the origin of entries is unknown, once it was asked for; empty where it is known.
    Raises:
        ValueError: the run has no memory.
    """

    def __init__(self, run_dir: str | Path, device: str = "cpu", **places: str | None):
        self.run_dir, self.places, self.origin_problem = Path(run_dir), places, ""
        self._histories: tuple[tuple[int, int], dict[int, list[Change]]] | None = None
        self._seen = Journal(run_dir).state()  # before loading: a line written meanwhile will be replayed once more
        self.model = load_run(run_dir, device)
        if not self.model.settings.reads_bank:
            raise ValueError(f"{run_dir} is a run without a memory: give a run of model_memory")
        self.tokenizer = load_tokenizer(run_dir, "run")
        self.bank, self.journal, self.search = self.model.bank, Journal(run_dir), TextSearch(self.tokenizer)

    def refresh(self) -> None:
        """Take over what other processes have written to the journal since the last look at it.

        Raises ValueError if the journal was deleted.
        """
        state = self.journal.state()
        if state == self._seen:
            return
        if not state[0]:
            raise ValueError(f"{self.journal.path} was deleted while the run was open: open the run again")
        self.journal.replay(self.bank)
        self._seen = state

    # Reading.

    def show(self, row: int) -> Row:
        """An entry with its fact, as it is now."""
        self._check(row)
        self.refresh()
        history = self._history(row)
        edited = bool(history) and history[0].old_tokens != history[-1].new_tokens
        if edited:
            last = history[-1]
            fact = Fact(last.text, uuid=last.uuid, source=last.source) if last.text else None
        else:
            fact = self._trained_bank.fact(row) if self._trained_bank else None
        return Row(row, self.text(row), bool(self.bank.frozen[row]), fact, edited)

    def text(self, row: int) -> str:
        """The text of an entry as it is now, empty for an empty one."""
        self.refresh()
        return entry_text(self.tokenizer, self.bank.tokens[row].tolist())

    def search_words(self, text: str, n: int = 10) -> list[tuple[float, Row]]:
        """Entries that share rare words with a text: (sum of the words' rarity in nats, entry), best first.

        Case, width and Unicode form do not matter.
        """
        self.refresh()
        found = self.search.best(require_text(text, "the text"), self.bank.tokens, n)
        return [(score, self.show(row)) for score, row in found]

    @torch.no_grad()
    def search_model(self, text: str, n: int = 10) -> list[tuple[str, float, Row]]:
        """What the model reads after a text: (block or pointer, weight, entry), heaviest first in each block."""
        self.refresh()
        (own,) = encode_texts(self.tokenizer, [require_text(text, "the text")])
        ids = torch.tensor([[self.tokenizer.bos_token_id, *own]], device=self.model.device)
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
        for row, history in sorted(self._changes_by_row().items()):
            first, last = history[0], history[-1]
            if differs(first, last):
                yield row, entry_text(self.tokenizer, first.old_tokens), entry_text(self.tokenizer, last.new_tokens)

    # Changes.

    def edit(self, row: int, text: str, source: str = "edit") -> int:
        """Give an entry another text; returns the number of the line in the journal.

        Raises:
            ValueError: there is no such entry, the text is empty, or it is longer than an entry.
        """
        return self.edit_many([(row, text)], source)

    def edit_many(self, texts: Iterable[tuple[int, str]], source: str = "edit") -> int:
        """Edit many entries in one line of the journal; if one text is refused, none is edited."""

        def change() -> list[Change]:
            wanted = list(texts)
            if len({row for row, _ in wanted}) < len(wanted):
                raise ValueError("an entry is edited twice at once: give it one text")
            return [self._edited(row, text, source) for row, text in wanted]

        return self._change("edit", change)

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
        """Write entries as JSON Lines; returns their number. `import_file` restores them exactly.

        A line has `row`, `text`, `frozen` and the origin; `tokens` where the text alone would give other tokens, as
        for a sentence that was cut.
        """
        rows = [row for row, *_ in self.changed()] if only_changed else range(len(self.bank.tokens))
        length = self.bank.tokens.shape[1]
        with atomic(Path(path)) as temporary, open(temporary, "w", encoding="utf-8") as file:
            for row in rows:
                entry, tokens = self.show(row), self.bank.tokens[row].tolist()
                origin = {"uuid": entry.fact.uuid, "source": entry.fact.source} if entry.fact else {}
                value = {"row": row, "text": entry.text, "frozen": entry.frozen} | origin
                token_1L, n_tokens = encode_entries(self.tokenizer, [entry.text], length)
                if n_tokens[0] > length or token_1L[0].tolist() != tokens:
                    value["tokens"] = [token for token in tokens if token != PADDING]
                file.write(json.dumps(value, ensure_ascii=False) + "\n")
        return len(rows)

    def import_file(self, path: str | Path) -> int:
        """Make the edits of a file with `{"row", "text"}` lines, all or none; returns their number.

        An empty text empties the entry. `frozen` and the origin are optional; `tokens` count if they give the text.

        Raises:
            FileNotFoundError, ValueError: the file is missing, or a line is malformed or refused; it is named.
        """
        values = list(read_values(require_file(path)))
        made: list[Change] = []

        def changes() -> list[Change]:
            lines: dict[int, int] = {}
            for line, value in values:
                try:
                    change = self._imported(value, Path(path).name)
                    if (first := lines.setdefault(value["row"], line)) != line:
                        raise ValueError(f"entry {value['row']} is on line {first} already")
                except ValueError as problem:
                    raise ValueError(f"{path}, line {line}: {problem}") from None
                if (change.old_tokens, change.old_frozen) != (change.new_tokens, change.new_frozen):
                    made.append(change)
            return made

        self._change("import", changes)
        return len(made)

    # Helpers.

    def _change(self, operation: str, changes_now, undone: list[int] | None = None) -> int:
        """Write the changes that `changes_now` returns, then make them; returns the number of the line, 0 for none."""
        with self.journal.lock():
            self.refresh()
            changes = changes_now()
            if not changes:
                return 0
            number = self.journal.append(operation, now(), changes, undone[0] if undone else None)
            apply(self.bank, changes)
            self._seen = self.journal.state()
        return number

    def _imported(self, value, name: str) -> Change:
        """The change that a line of an exported file asks for."""
        known = isinstance(value, dict) and type(value.get("row")) is int and isinstance(value.get("text"), str)
        if not known or not isinstance(value.get("frozen", False), bool):
            raise ValueError('an edit needs "row", a number, and "text", a string; "frozen" is true or false')
        row, text, length = value["row"], value["text"], self.bank.tokens.shape[1]
        self._check(row)
        frozen, before = value.get("frozen", bool(self.bank.frozen[row])), self._history(row)
        if entry_text(self.tokenizer, self.bank.tokens[row].tolist()) == text.strip():  # only `frozen` may differ
            origin = {key: getattr(before[-1], key) for key in ("text", "uuid", "source")} if before else {}
            return self._change_of(row, frozen=frozen, **origin)
        if not text.strip():
            return self._change_of(row, [PADDING] * length, frozen)
        origin = {"source": str(value.get("source") or name), "uuid": str(value.get("uuid") or "")}
        require_text("".join(origin.values()), "the origin")
        tokens = value.get("tokens")
        if isinstance(tokens, list) and self._spells(tokens, text):
            tokens = tokens + [PADDING] * (length - len(tokens))
            return self._change_of(row, tokens, frozen, text=text, **origin)
        change = self._edited(row, text, origin["source"])
        return replace(change, new_frozen=frozen, uuid=origin["uuid"] or change.uuid)

    def _spells(self, tokens: list, text: str) -> bool:
        """Whether these are tokens of the vocabulary that fit an entry and give this text."""
        valid = all(type(token) is int and 0 < token < self.model.settings.vocab_size for token in tokens)
        return valid and len(tokens) <= self.bank.tokens.shape[1] and entry_text(self.tokenizer, tokens) == text

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

    def _history(self, row: int) -> list[Change]:
        """All changes of a row, oldest first."""
        return self._changes_by_row().get(row, [])

    def _changes_by_row(self) -> dict[int, list[Change]]:
        """The whole journal; read again only after it has changed."""
        state = self.journal.state()
        if self._histories is None or self._histories[0] != state:
            changes = defaultdict(list)
            for entry in self.journal.entries():
                for change in entry.changes:
                    changes[change.row].append(change)
            self._histories = state, changes
        return self._histories[1]

    @cached_property
    def _trained_bank(self) -> Bank | None:
        """The bank with its facts as training began; None where the knowledge file is missing or has changed."""
        read_json(self.run_dir / "flags.json")  # damaged flags are an error, not an unknown origin
        try:
            return load_run_bank(self.run_dir, self.model, self.tokenizer, **self.places)
        except (OSError, ValueError) as problem:
            self.origin_problem = str(problem)
            return None
