"""Entries as files: export and import of rows, and import of facts, which chooses the places itself."""

import difflib
import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path

import torch

from common.constants import PADDING
from common.files import atomic, require_text, unpacked_name
from dataset.convert import read_triples
from dataset.formats import require_data
from dataset.knowledge import Fact, encode_entries, entry_text, knowledge_values, read_knowledge, triple_uuid
from runs.journal import Change

TABLES = (".tsv", ".csv")


@dataclass(frozen=True)
class Placed:
    """Where an imported fact is: its row, its text, and what the row said before ("" for an empty one)."""

    row: int
    text: str
    before: str


def read_facts(path: str | Path) -> list[Fact]:
    """The facts of a table, without a sentence where it has none, or of a knowledge file.

    Raises:
        FileNotFoundError, ValueError: it is missing or malformed, or has no fact.
    """
    path = require_data(path)
    facts = list(read_triples(path, template="") if unpacked_name(path).endswith(TABLES) else read_knowledge(path))
    if not facts:
        raise ValueError(f"{path} holds no fact: give another")
    return facts


def has_rows(path: str | Path) -> bool:
    """Whether a file names the rows of its texts, as `export` writes it."""
    path = require_data(path)
    if unpacked_name(path).endswith(TABLES):
        return False
    _, first = next(knowledge_values(path), ("", None))
    return isinstance(first, dict) and "row" in first


def beginning(fact: Fact) -> str:
    """The words of a fact before its object, if they name the subject, and the fact a predicate; else empty."""
    before = fact.sentence.rpartition(fact.object)[0].rstrip() if fact.object and fact.predicate else ""
    return before if fact.subject and fact.subject in before else ""


def rows_by_beginning(rows: dict[str, int], wanted: set[str]) -> dict[str, list[int]]:
    """The rows of the texts that begin with each of these words."""
    found, lengths = defaultdict(list), {len(begin) for begin in wanted}
    for text, row in rows.items():
        for length in lengths:
            if text[length : length + 1] == " " and text[:length] in wanted:
                found[text[:length]].append(row)
    return found


class FileCommands:
    """What `MemoryStore` does with files."""

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
        values = list(knowledge_values(require_data(path)))
        made: list[Change] = []

        def changes() -> list[Change]:
            places: dict[int, str] = {}
            for place, value in values:
                try:
                    change = self._imported(value, Path(path).name)
                    if (first := places.setdefault(value["row"], place)) != place:
                        raise ValueError(f"entry {value['row']} is on {first.rpartition(', ')[2]} already")
                except ValueError as problem:
                    raise ValueError(f"{place}: {problem}") from None
                if (change.old_tokens, change.old_frozen) != (change.new_tokens, change.new_frozen):
                    made.append(change)
            return made

        self._change("import", changes)
        return len(made)

    def import_facts(self, path: str | Path, templates: dict[str, list[str]] | None = None) -> list[Placed]:
        """Give the facts of a file a place each, all or none; returns where those are that the bank did not have.

        A fact takes the entry that states another object of its subject and predicate, else an empty entry. An entry
        whose predicate is unknown is left alone.

        Args:
            path: TSV or CSV (subject, predicate, object and, optionally, source and sentence), or a knowledge file.
            templates: wordings by predicate, of which the first counts. Without them, a fact without a sentence has
                the wording of the bank's own entries with its predicate.
        Raises:
            FileNotFoundError, ValueError: the file is missing or malformed, a wording is unknown, a text is too long,
                or there are too few empty entries.
        """
        return self.place_facts(self.worded(read_facts(path), Path(path), templates or {}), str(path))

    def place_facts(self, facts: list[Fact], path: str, places: Iterable[int] = ()) -> list[Placed]:
        """As `import_facts`, of facts that were read and have their sentences.

        Args:
            path: the file that they are from, for errors and as their source.
            places: rows to overwrite once no empty entry is left.
        """
        placed: list[Placed] = []

        def changes() -> list[Change]:
            rows, empty = self._rows_by_text(), chain(self._empty_rows(), places)
            begins = rows_by_beginning(rows, {begin for fact in facts if (begin := beginning(fact))})
            stays = {rows[fact.sentence] for fact in facts if fact.sentence in rows}
            made: dict[int, Change] = {}
            for fact in (fact for fact in facts if fact.sentence not in rows):
                old = (row for row in begins.get(beginning(fact), ()) if row not in made and row not in stays)
                row = next((row for row in old if self._was_of(row, fact)), None)
                if row is None:
                    row = next((row for row in empty if row not in made and row not in stays), None)
                if row is None:
                    raise ValueError(self._too_full(len(facts) - len(stays) - len(placed)))
                try:
                    change = self._edited(row, fact.sentence, fact.source or Path(path).name)
                except ValueError as problem:
                    raise ValueError(f"{path}, {fact.sentence!r:.80}: {problem}") from None
                made[row] = replace(change, uuid=fact.uuid or change.uuid)
                placed.append(Placed(row, fact.sentence, entry_text(self.tokenizer, change.old_tokens)))
            return list(made.values())

        self._change("import", changes)
        return placed

    def worded(self, facts: list[Fact], path: Path, templates: dict[str, list[str]]) -> list[Fact]:
        """The facts of a file, each with a sentence; see `import_facts`."""
        needed = {fact.predicate for fact in facts if not fact.sentence} - set(templates)
        templates = {**(self.wordings(needed) if needed else {}), **templates}
        worded = {}
        for fact in facts:
            if not fact.sentence and fact.predicate not in templates:
                why = self.origin_problem and f" ({self.origin_problem})"
                raise ValueError(
                    f"{path}: no entry of the bank has the predicate {fact.predicate!r} of {fact.subject!r}, so its "
                    f"wording is unknown{why}{self._predicates_like(fact.predicate)}add the "
                    "sentence as a fifth column, or give --templates"
                )
            sentence = fact.sentence or templates[fact.predicate][0].format(subject=fact.subject, object=fact.object)
            worded.setdefault(sentence.strip(), replace(fact, sentence=sentence.strip()))
        return list(worded.values())

    def wordings(self, predicates: set[str]) -> dict[str, list[str]]:
        """The commonest wording of each of these predicates in the bank, where the origin of its entries is known."""
        found: dict[str, Counter] = defaultdict(Counter)
        for _, fact in self.trained_bank.facts() if self.trained_bank else ():
            names = fact.subject and fact.object and fact.predicate in predicates
            if names and fact.sentence.count(fact.subject) == fact.sentence.count(fact.object) == 1:
                plain = fact.sentence.replace("{", "{{").replace("}", "}}")
                found[fact.predicate][plain.replace(fact.subject, "{subject}").replace(fact.object, "{object}")] += 1
        return {predicate: [texts.most_common(1)[0][0]] for predicate, texts in found.items()}

    def _predicates_like(self, predicate: str) -> str:
        """Words about the bank's predicates, for one that it lacks: the nearest, and the commonest five."""
        facts = self.trained_bank.facts() if self.trained_bank else ()
        counts = Counter(fact.predicate for _, fact in facts if fact.predicate)
        plain = {re.sub(r"[-_\s]+", " ", own).casefold(): own for own in counts}
        near = difflib.get_close_matches(re.sub(r"[-_\s]+", " ", predicate).casefold(), plain, n=1)
        nearest = f"; the nearest it has is {plain[near[0]]!r}" if near else ""
        common = ", ".join(repr(own) for own, _ in counts.most_common(5))
        return f"{nearest}; its commonest are {common}: write one of these, " if common else ": "

    def _was_of(self, row: int, fact: Fact) -> bool:
        """Whether an entry was trained or imported with the subject and the predicate of a fact."""
        trained = self.trained_bank.fact(row) if self.trained_bank else None
        if trained and (trained.subject, trained.predicate) == (fact.subject, fact.predicate):
            return True
        before, _, after = fact.sentence.rpartition(fact.object)
        for change in self._history(row):  # the journal keeps no triple, but an identifier that is made of it
            object = change.text.strip().removeprefix(before).removesuffix(after)
            if change.uuid == triple_uuid(fact.subject, fact.predicate, object):
                return True
        return False

    def _rows_by_text(self) -> dict[str, int]:
        ids = [[token for token in row if token != PADDING] for row in self.bank.tokens.tolist()]
        texts = self.tokenizer.backend_tokenizer.decode_batch(ids, skip_special_tokens=False)
        return {text.strip(): row for row, text in reversed(list(enumerate(texts))) if text.strip()}

    def _empty_rows(self) -> list[int]:
        return torch.where((self.bank.tokens == PADDING).all(dim=1))[0].tolist()

    def _too_full(self, wanted: int) -> str:
        empty = len(self._empty_rows())
        have = f"{empty} of the {len(self.bank.tokens)} entries are empty" if empty else "no entry is empty"
        return (
            f"{have}, and {wanted} are to be added: delete entries, edit them, or train with --knowledge_num auto "
            f"--reserve_entries {max(wanted, 100)}"
        )

    def _imported(self, value, name: str) -> Change:
        """The change that a line of an exported file asks for."""
        if not isinstance(value, dict) or type(value.get("row")) is not int or not isinstance(value.get("text"), str):
            raise ValueError('a line needs "row", a number, and "text", a string')
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
