"""Look-up without a model: a word index over the bank answers the questions. A memory model should be above it.

The index weighs each word of a prompt by ln(N / entries with it). The answer is the choice that occurs in the best of
`READ` entries; if no choice occurs, each one counts as a guess.

Axes: N entries · X postings (pairs of a word and an entry that holds it)
"""

import math
import re
import unicodedata
from array import array
from collections import defaultdict
from collections.abc import Callable, Iterable
from copy import copy
from dataclasses import dataclass

import numpy as np

from dataset.knowledge import Fact
from dataset.questions import BLANK, FIELDS, PARAPHRASES, answer_index, chance_of, read_named, read_questions

from .config import EvalConfig, wilson_interval

TASK_VERSION = 1
READ = 4  # entries that the look-up reads, as many as a position of the memory models
COMMON = 20_000  # words in more entries than this only break ties


def words_of(text: str) -> list[str]:
    """The words of a text in lower case and in one Unicode form; letters and digits only."""
    return re.findall(r"\w+", unicodedata.normalize("NFKC", text).casefold())


class WordIndex:
    """An inverted index: for each word, the entries with it.

    Args:
        texts: the N entries, in the order of their rows.
    """

    def __init__(self, texts: Iterable[str]):
        self.word_ids: dict[str, int] = {}
        lengths, word_X, entry_X = [], array("q"), array("q")
        for row, text in enumerate(texts):
            words = words_of(text)
            lengths.append(len(words))
            for word in set(words):
                word_X.append(self.word_ids.setdefault(word, len(self.word_ids)))
                entry_X.append(row)
        self.length_N, N = np.array(lengths, dtype=np.int64), max(len(lengths), 1)
        key_X = np.sort(np.array(word_X) * N + np.array(entry_X))
        self.entry_X = (key_X % N).astype(np.int32)
        self.start_W = np.searchsorted(key_X, np.arange(len(self.word_ids) + 1) * N)
        self._score_N = np.zeros(N)  # of the search that runs; 0 between searches
        self.changes: dict[int, str] = {}  # texts of rows that `entry_X` has otherwise

    def replaced(self, texts: dict[int, str]) -> "WordIndex":
        """The index with other texts in some rows, which may be new ones at its end; this one stays as it is."""
        new, N = copy(self), max(len(self.length_N), *(row + 1 for row in texts), 0)
        new.changes = self.changes | texts
        new.length_N, new._score_N, new._is_changed_N = np.zeros(N, np.int64), np.zeros(N), np.zeros(N, dtype=bool)
        new.length_N[: len(self.length_N)] = self.length_N
        new._added, new._entries = defaultdict(list), {}
        for row in sorted(new.changes):
            words = words_of(new.changes[row])
            new.length_N[row], new._is_changed_N[row] = len(words), True
            for word in set(words):
                new._added[word].append(row)
        return new

    def entries_of(self, word: str) -> np.ndarray:
        """The rows with a word, ascending; none for an unknown word."""
        index = self.word_ids.get(word)
        rows = self.entry_X[:0] if index is None else self.entry_X[self.start_W[index] : self.start_W[index + 1]]
        if not self.changes:
            return rows
        if word not in self._entries:
            kept, added = rows[~self._is_changed_N[rows]], np.array(self._added.get(word, []), dtype=rows.dtype)
            self._entries[word] = np.insert(kept, np.searchsorted(kept, added), added) if len(added) else kept
        return self._entries[word]

    def best(self, text: str, n: int = READ) -> list[int]:
        """The rows of the `n` best entries for a text, best first; fewer where fewer share a word with it."""
        return self.search(text, n)[0]

    def search(self, text: str, n: int = READ) -> tuple[list[int], list[float]]:
        """The rows of the `n` best entries for a text, best first, and their sums of weights in nats."""
        postings = {word: self.entries_of(word) for word in dict.fromkeys(words_of(text))}
        postings = {word: rows for word, rows in postings.items() if len(rows)}
        rare = [rows for rows in postings.values() if len(rows) <= COMMON]
        common = [rows for rows in postings.values() if len(rows) > COMMON]
        if not postings:
            return [], []
        score_N, found = self._score_N, rare or common
        for own in found:  # no row twice
            score_N[own] += self._weight(len(own))
        rows = np.concatenate(found)
        own_score = score_N[rows]
        fewest = min((own for own in found if len(own) >= n), key=len, default=None)
        if fewest is not None:
            is_good_X = own_score >= np.partition(score_N[fewest], -n)[-n]  # all others are worse than n of its rows
            rows, own_score = rows[is_good_X], own_score[is_good_X]
        for own in found:
            score_N[own] = 0.0
        # Only entries that reach the n-th best score can win a tie. An entry stands here once for each word.
        for most in (n * len(found), n):
            if len(rows) > most:
                least = np.partition(own_score, -most)[-most]
                rows, own_score = rows[own_score >= least], own_score[own_score >= least]
            rows, first_X = np.unique(rows, return_index=True)
            own_score = own_score[first_X]
        tie_N = np.zeros(len(rows))
        for own in common if rare else ():
            nearest_N = np.searchsorted(own, rows).clip(max=len(own) - 1)
            tie_N += (own[nearest_N] == rows) * self._weight(len(own))
        order = np.lexsort((rows, self.length_N[rows], -tie_N, -own_score))[:n]
        return rows[order].tolist(), own_score[order].tolist()

    def _weight(self, n_entries: int) -> float:
        return math.log(len(self.length_N) / n_entries)


def choose(texts: list[str], choices: list[str]) -> list[int]:
    """The indices of the choices in the first text with any choice; all choices if no text has one.

    Whole words count. Of several choices in one text, those that are a part of another are left out.
    """
    folded = [f" {' '.join(words_of(choice))} " for choice in choices]
    for text in texts:
        entry = f" {' '.join(words_of(text))} "
        inside = [i for i, choice in enumerate(folded) if choice.strip() and choice in entry]
        longest = [i for i in inside if not any(folded[i] != folded[j] and folded[i] in folded[j] for j in inside)]
        if longest:
            return longest
    return list(range(len(choices)))


def shares_right(entries: list[list[str]], choices: list[list[str]], right: list[int]) -> list[float]:
    """For each question, the probability that the rule of `choose` is right: 1, 0, or that of a guess.

    Args:
        entries: the texts that were found for each question, best first.  right: the index of its right choice.
    """
    chosen = [choose(texts, own) for texts, own in zip(entries, choices, strict=True)]
    return [(answer in own) / len(own) for own, answer in zip(chosen, right, strict=True)]


@dataclass(frozen=True)
class LookUp:
    """The look-up over a bank: its index, and the texts of its rows."""

    index: WordIndex
    texts: list[str]

    @classmethod
    def of(cls, facts: Iterable[tuple[int, Fact]]) -> "LookUp":
        """The look-up over (row, fact) pairs; the rows between them are empty."""
        found = {row: fact.sentence for row, fact in facts}
        texts = [found.get(row, "") for row in range(1 + max(found, default=-1))]
        return cls(WordIndex(texts), texts)

    def replaced(self, texts: dict[int, str]) -> "LookUp":
        """The same with other texts in some rows, as `WordIndex.replaced`."""
        rows = self.texts + [""] * (max(texts, default=-1) + 1 - len(self.texts))
        for row, text in texts.items():
            rows[row] = text
        return LookUp(self.index.replaced(texts), rows)

    def found(self, prompts: list[str], n: int = READ) -> list[list[int]]:
        """The rows of the `n` best entries for each prompt, best first."""
        return [self.index.best(prompt, n) for prompt in prompts]

    def entries(self, prompts: list[str]) -> list[list[str]]:
        """The texts of the `READ` best entries for each prompt, best first."""
        return [[self.texts[row] for row in rows] for rows in self.found(prompts)]

    def chosen(self, found: list[list[int]], choices: list[list[str]]) -> list[list[int]]:
        """For each question the choices that the best `READ` of these rows state: one, or those to guess among."""
        return [choose([self.texts[row] for row in rows[:READ]], own) for rows, own in zip(found, choices, strict=True)]


def lookup(model, tokenizer, config: EvalConfig) -> dict | None:
    """The answers of the look-up; None where the bank is unknown."""
    if config.gold is None or not config.gold.look_up.texts:
        return None
    return answered_by(config.gold.look_up.entries, config, lambda row: row["question"].replace(BLANK, " "))


def answered_by(
    entries: Callable[[list[str]], list[list[str]]], config: EvalConfig, prompt_of: Callable[[dict], str]
) -> dict | None:
    """Accuracy by `choose` on object questions, on the same in other wordings, and on statements.

    A statement counts as true if its object occurs in one of the entries. What does not name subject, predicate or
    object is not asked in that way. None where there are no questions.

    Args:
        entries: finds texts for prompts, best first.  prompt_of: the text to search of an object question as read.
    """
    result = {}
    if path := config.object_path:
        rows = read_questions(path, FIELDS["object"], config.limit, "object_path")
        choices, right = [row["choices"] for row in rows], [answer_index(row) for row in rows]
        wordings = {"object": [prompt_of(row) for row in rows]}
        if read_named(path, "object", ("subject", "predicate"), config.limit, "object_path"):
            wordings |= {f"reworded_{i}": [p.format(**row) for row in rows] for i, p in enumerate(PARAPHRASES)}
        for name, prompts in wordings.items():
            shares = shares_right(entries(prompts), choices, right)
            result[name] = mean_share(shares, chance_of(rows), config)
    path = config.verification_path
    if path and (rows := read_named(path, "verification", ("object",), config.limit, "verification_path")):
        found = entries([row["statement"] for row in rows])
        said = [choose(texts, [row["object"], ""]) == [0] for texts, row in zip(found, rows, strict=True)]
        shares = [float(yes == (row["answer"] == "yes")) for yes, row in zip(said, rows, strict=True)]
        result["verification"] = mean_share(shares, 0.5, config)
    return result or None


def mean_share(shares: list[float], chance: float, config: EvalConfig) -> dict:
    """The result of a task whose questions may be right in part; the interval is that of a share."""
    n, total = len(shares), sum(shares)
    return {
        "accuracy": total / n, "n": n, "chance": chance, "ci95": wilson_interval(total, n),
        "seed": config.seed, "task_version": TASK_VERSION,
    }  # fmt: skip
