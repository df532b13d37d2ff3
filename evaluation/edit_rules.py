"""Edits answered without a model: by the look-up, and by what the model's own search finds in its edited bank."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from .edits import Edits, written
from .in_context import EntryFinder
from .lookup import LookUp, choose

if TYPE_CHECKING:
    from .counterfact import Asked


class LookUpAnswers:
    """The answers of a word index, as in lookup.py: which option stands in the best entry with any of them?"""

    def __init__(self, look_up: LookUp):
        self.look_up, self.found = look_up, {}

    def entries(self, prompts: list[str]) -> list[list[str]]:
        return self.look_up.entries(prompts)

    def choose(self, asked: "list[Asked]") -> list[float]:
        """1 or 0, or 0.5 where the entries hold neither option.

        Where one entry holds both, an option that the prompt names already, as part of the subject, is not the answer.
        """
        values, new = [], list(dict.fromkeys(one.prompt for one in asked if one.prompt not in self.found))
        self.found |= dict(zip(new, self.entries(new), strict=True))  # many cases share their neighbours
        for one in asked:
            chosen = choose(self.found[one.prompt], [*one.options, ""])  # all three: neither option was found
            if len(chosen) == 2:
                named = choose([one.prompt], [*one.options, ""])
                chosen = [i for i in chosen if i not in named or len(named) > 1]
            values.append(0.5 if len(chosen) > 1 else float(chosen == [0]))
        return values

    def compared(self, asked: "list[Asked]") -> tuple[list[float], list[float]]:
        """As `choose`; it has no log-probabilities whose sums could be compared."""
        return self.choose(asked), []

    write = None  # it writes nothing

    @contextmanager
    def edited(self, edits: Edits) -> Iterator[float]:
        start, kept, found = time.perf_counter(), self.look_up, self.found
        self.look_up, self.found = kept.replaced(dict(edits)), {}
        seconds = time.perf_counter() - start
        try:
            yield seconds
        finally:
            self.look_up, self.found = kept, found


class SearchAnswers(LookUpAnswers):
    """The same rule over what the model's own search finds in its bank, which is edited for a while."""

    def __init__(self, finder: EntryFinder):
        self.finder, self.found = finder, {}

    def entries(self, prompts: list[str]) -> list[list[str]]:
        return self.finder.entries(prompts)

    @contextmanager
    def edited(self, edits: Edits) -> Iterator[float]:
        found, self.found = self.found, {}
        try:
            with written(self.finder.model, self.finder.tokenizer, edits) as seconds:
                yield seconds
        finally:
            self.found = found
