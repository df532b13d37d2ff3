"""MemoryStore: the bank of a trained run as texts, with a journal of every change."""

import uuid
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch

from common.constants import PADDING
from common.files import read_json, require_text
from dataset.knowledge import Bank, Fact, encode_entries, entry_text
from dataset.tokenizer import encode_texts, load_tokenizer
from model import load_run
from runs.journal import Change, Journal, apply, differs
from runs.load import load_run_bank, with_bank
from runs.run import now

from .files import FileCommands
from .search import TextSearch


@dataclass(frozen=True)
class Row:
    """An entry: its row, its text as the model reads it, and its fact where the origin is known."""

    row: int
    text: str
    frozen: bool
    fact: Fact | None = None
    edited: bool = False


class MemoryStore(FileCommands):
    """The memory of one run. A change is written to the journal first; `load_run` replays the journal.

    Args:
        bank_path: a knowledge file to read in place of the bank of the training; its edits have their own journal.
        places: `knowledge_path` and `cache_dir`, as for `load_run_bank`, if they are not where the run had them.
    Attributes:
        origin_problem: why the origin of entries is unknown, once it was asked for; empty where it is known.
    Raises:
        ValueError: the run has no memory.
    """

    def __init__(self, run_dir: str | Path, device: str = "cpu", bank_path: str | None = None, **places: str | None):
        seen = Journal(run_dir).state()  # before loading: a line written meanwhile will be replayed once more
        model, tokenizer, journal = load_run(run_dir, device), load_tokenizer(run_dir, "run"), Journal(run_dir)
        if not model.settings.reads_bank:
            raise ValueError(f"{run_dir} is a run without a memory: give a run of model_memory")
        if bank_path:
            cache_dir = places.get("cache_dir")
            model, self.trained_bank, journal = with_bank(run_dir, model, tokenizer, bank_path, cache_dir)
            seen = journal.state()
        self._open(run_dir, model, tokenizer, journal, seen, bank_path, places)

    @classmethod
    def in_memory(cls, run_dir: str | Path, model, tokenizer, folder: str | Path, trained_bank=None, **places):
        """The memory of a model of a run that is loaded already. Its changes are of this process alone.

        Args:
            folder: takes the journal; an empty one.  trained_bank: the facts behind the bank; None: those of the run.
        """
        store, journal = cls.__new__(cls), Journal(folder)
        store._open(run_dir, model, tokenizer, journal, journal.state(), None, places)
        if trained_bank is not None:
            store.trained_bank = trained_bank
        return store

    def _open(self, run_dir, model, tokenizer, journal: Journal, seen, bank_path: str | None, places: dict) -> None:
        self.run_dir, self.bank_path, self.places, self.origin_problem = Path(run_dir), bank_path, places, ""
        self._histories: tuple[tuple[int, int], dict[int, list[Change]]] | None = None
        self.model, self.tokenizer, self.journal, self._seen = model, tokenizer, journal, seen
        self.bank, self.search = model.bank, TextSearch(tokenizer)

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
            fact = self.trained_bank.fact(row) if self.trained_bank else None
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
            best = sorted(((w, row) for row, w in reading.last_weights().items()), reverse=True)
            found += [(name, w, self.show(row)) for w, row in best[:n] if w > 0]
        return found

    def changed(self) -> Iterator[tuple[int, str, str]]:
        """(row, text after training, text now) of every row that was edited, frozen or unfrozen."""
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
            empty = self._empty_rows()
            if not empty:
                raise ValueError(
                    f"all {len(self.bank.tokens)} entries are taken: delete one, edit one, or train with "
                    "--knowledge_num auto --reserve_entries 100"
                )
            chosen.append(empty[0])
            return [self._edited(chosen[0], text, source)]

        self._change("add", change)
        return chosen[0]

    def delete(self, *rows: int) -> int:
        """Empty entries in one line of the journal. Retrieval no longer finds them."""
        for row in rows:
            self._check(row)
        empty = [PADDING] * self.bank.tokens.shape[1]
        return self._change("delete", lambda: [self._change_of(row, empty) for row in dict.fromkeys(rows)])

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
    def trained_bank(self) -> Bank | None:
        """The bank with its facts as training began; None where the knowledge file is missing or has changed."""
        read_json(self.run_dir / "flags.json")  # damaged flags are an error, not an unknown origin
        try:
            return load_run_bank(self.run_dir, self.model, self.tokenizer, **self.places)
        except (OSError, ValueError) as problem:
            self.origin_problem = str(problem)
            return None
