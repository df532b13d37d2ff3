"""What the page shows: the answers in three states of the memory, examples, and facts of the store."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch

from common.constants import PADDING
from evaluation.controls import emptied

from .store import MemoryStore
from .trace import Word, trace, words
from .web_html import beginning, share_read


@dataclass(frozen=True)
class Answer:
    """What the model writes after a prompt. `others`: title -> its text in other states of the memory."""

    prompt: str
    n_tokens: int
    words: list[Word] = field(default_factory=list)
    others: dict[str, str] = field(default_factory=dict)

    @property
    def most_read(self) -> int | None:
        """The index of the word, not a sign, for which most was read; None without words."""

        def weight(n: int) -> tuple[bool, float]:
            return any(map(str.isalnum, self.words[n].text)), share_read(self.words[n])

        return max(range(len(self.words)), key=weight, default=None)


@contextmanager
def as_trained(store: MemoryStore) -> Iterator[None]:
    """The bank as training left it, without the edits of the journal."""
    first = {}
    for entry in store.journal.entries():
        for change in entry.changes:
            first.setdefault(change.row, change.old_tokens)
    row_X = torch.tensor(list(first), dtype=torch.long, device=store.bank.tokens.device)
    token_XL = torch.tensor(list(first.values()), dtype=store.bank.tokens.dtype, device=row_X.device)
    now_XL = store.bank.write(row_X, token_XL)
    try:
        yield
    finally:
        store.bank.write(row_X, now_XL)


def answer(store: MemoryStore, prompt: str, n_tokens: int) -> Answer:
    """The model's continuation with its memory, without it, and, if texts were changed, as training left them."""

    def written() -> list[Word]:
        return words(trace(store.model, store.tokenizer, prompt, n_tokens), store.tokenizer)

    store.refresh()
    own, others = written(), {}
    if any(before != now for _, before, now in store.changed()):
        with as_trained(store):
            others["Before all changes"] = "".join(word.text for word in written())
    with emptied(store.model, store.tokenizer, None):
        others["Without the memory"] = "".join(word.text for word in written())
    return Answer(prompt, n_tokens, own, others)


def example_prompts(store: MemoryStore, n: int = 5) -> list[str]:
    """Beginnings of entries: of the two that were changed last, then of some spread over the bank."""
    used_X = torch.where((store.bank.tokens != PADDING).any(dim=1))[0]
    rows = [change.row for entry in store.journal.entries()[-2:] for change in entry.changes][-2:][::-1]
    rows += used_X[len(used_X) // 100 :: max(len(used_X) // (8 * n), 1)].tolist()
    prompts: dict[str, None] = {}
    for row in rows:
        prompt = beginning(store.text(row))
        if 4 < len(prompt) < 50 and len(prompts) < n:
            prompts[prompt] = None
    return list(prompts)


def facts(store: MemoryStore) -> tuple[list[str], str]:
    """The line below the title, and a note on what cannot be done."""
    settings, used = store.model.settings, int((store.bank.tokens != PADDING).any(dim=1).sum())
    readers = [settings.reader_name(layer) for layer in settings.reading_layers]
    readers += ["the pointer"] * settings.pointer
    free = len(store.bank.tokens) - used
    read_by = " and ".join(filter(None, [", ".join(readers[:-1]), readers[-1]]))
    line = [f"{used:,} entries", f"{free:,} free places", f"read by {read_by}"]
    line += [f"bank of {store.bank_path}"] if store.bank_path else []
    writable = os.access(store.run_dir, os.W_OK)
    return line, "" if writable else f"{store.run_dir} cannot be written: entries can be read, not changed"


def refusal(problem: ValueError | OSError, store: MemoryStore) -> str:
    """What went wrong, as one sentence."""
    if isinstance(problem, OSError):
        place = problem.filename or store.run_dir
        return f"{place} cannot be written ({problem.strerror}): nothing was changed"
    return str(problem)
