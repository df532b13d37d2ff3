"""The look-up without a model: a word index over the bank answers the questions. A memory model must be above it.

The index weighs each word of a prompt by ln(N / entries that hold it). The answer is the choice that stands in the
best of `READ` entries; where none does, each choice counts as a guess.

Axes: N entries · X postings (pairs of a word and an entry that holds it)
"""

import math
import re
import unicodedata
from collections.abc import Iterable

import numpy as np

from .edits import PARAPHRASES
from .likelihood import letter, read_questions
from .object import BLANK, FIELDS
from .settings import Settings, wilson_interval

TASK_VERSION = 1
READ = 4  # entries that the look-up may read, as many as a position of the memory models
COMMON = 20_000  # words in more entries than this only break ties


def words_of(text: str) -> list[str]:
    """The words of a text, without case and accents' encoding; letters and digits only."""
    return re.findall(r"\w+", unicodedata.normalize("NFKC", text).casefold())


class WordIndex:
    """An inverted index over texts: which entries hold a word.

    Args:
        texts: the N entries, in the order of their rows.
    """

    def __init__(self, texts: Iterable[str]):
        self.word_ids: dict[str, int] = {}
        self.length_N, word_X, entry_X = [], [], []
        for row, text in enumerate(texts):
            words = words_of(text)
            self.length_N.append(len(words))
            for word in set(words):
                word_X.append(self.word_ids.setdefault(word, len(self.word_ids)))
                entry_X.append(row)
        word_X, entry_X = np.array(word_X, dtype=np.int32), np.array(entry_X, dtype=np.int32)
        order_X = np.argsort(word_X, kind="stable")
        self.entry_X = entry_X[order_X]
        self.start_W = np.searchsorted(word_X[order_X], np.arange(len(self.word_ids) + 1))
        self.length_N = np.array(self.length_N)

    def entries_of(self, word: str) -> np.ndarray:
        """The rows that hold a word, ascending; none for an unknown word."""
        place = self.word_ids.get(word)
        return self.entry_X[:0] if place is None else self.entry_X[self.start_W[place] : self.start_W[place + 1]]

    def best(self, text: str, n: int = READ) -> list[int]:
        """The rows of the `n` best entries for a text, best first; fewer where fewer share a word with it."""
        postings = {word: self.entries_of(word) for word in dict.fromkeys(words_of(text))}
        postings = {word: rows for word, rows in postings.items() if len(rows)}
        rare = {word: rows for word, rows in postings.items() if len(rows) <= COMMON}
        common = {word: rows for word, rows in postings.items() if len(rows) > COMMON}
        if not postings:
            return []
        score = self._sum(rare or common)
        # Only entries that reach the n-th best score can win a tie.
        rows = np.fromiter(score, dtype=np.int64)
        score_N = np.array([score[row] for row in rows])
        least = np.sort(score_N)[-n] if len(rows) > n else -math.inf
        rows, score_N = rows[score_N >= least], score_N[score_N >= least]
        tie_N = np.zeros(len(rows))
        for own in common.values() if rare else ():
            place = np.searchsorted(own, rows).clip(max=len(own) - 1)
            tie_N += (own[place] == rows) * self._weight(len(own))
        order = np.lexsort((rows, self.length_N[rows], -tie_N, -score_N))
        return rows[order[:n]].tolist()

    def _sum(self, postings: dict[str, np.ndarray]) -> dict[int, float]:
        rows = np.concatenate(list(postings.values()))
        weights = np.concatenate([np.full(len(own), self._weight(len(own))) for own in postings.values()])
        found, place = np.unique(rows, return_inverse=True)
        return dict(zip(found.tolist(), np.bincount(place, weights).tolist(), strict=True))

    def _weight(self, n_entries: int) -> float:
        return math.log(len(self.length_N) / n_entries)


def choose(texts: list[str], choices: list[str]) -> list[int]:
    """The places of the choices that stand in the best of these texts; all of them where none stands in any.

    Whole words count; of several choices in one text, those that lie inside another are left out.
    """
    folded = [f" {' '.join(words_of(choice))} " for choice in choices]
    for text in texts:
        entry = f" {' '.join(words_of(text))} "
        inside = [i for i, choice in enumerate(folded) if choice.strip() and choice in entry]
        longest = [i for i in inside if not any(folded[i] != folded[j] and folded[i] in folded[j] for j in inside)]
        if longest:
            return longest
    return list(range(len(choices)))


def share_right(index: WordIndex, texts: list[str], prompts: list[str], choices: list[list[str]], right: list[int]):
    """For each question the probability that the look-up is right: 1, 0, or that of a guess among the choices left."""
    shares = []
    for prompt, own, answer in zip(prompts, choices, right, strict=True):
        chosen = choose([texts[row] for row in index.best(prompt)], own)
        shares.append((answer in chosen) / len(chosen))
    return shares


def lookup(model, tokenizer, settings: Settings) -> dict | None:
    """Accuracy of the look-up on object questions, on the same in other wordings, and on statements.

    A statement is held for true if its object stands in one of the best entries. None where the bank is unknown.
    """
    if settings.gold is None or not (settings.object_path or settings.verification_path):
        return None
    texts = [""] * (1 + max((row for row, _ in settings.gold.every()), default=-1))
    for row, fact in settings.gold.every():
        texts[row] = fact.sentence
    if not texts:
        return None
    index, result = WordIndex(texts), {}
    if settings.object_path:
        fields = ("subject", "predicate", *FIELDS)
        rows = read_questions(settings.object_path, fields, settings.limit, "object_path")
        choices, right = [row["choices"] for row in rows], [letter(row) for row in rows]
        wordings = {"object": [row["question"].replace(BLANK, " ") for row in rows]}
        wordings |= {f"reworded_{i}": [p.format(**row) for row in rows] for i, p in enumerate(PARAPHRASES)}
        for name, prompts in wordings.items():
            shares = share_right(index, texts, prompts, choices, right)
            result[name] = mean_share(shares, 1 / len(choices[0]), settings)
    if settings.verification_path:
        fields = ("object", "statement", "answer")
        rows = read_questions(settings.verification_path, fields, settings.limit, "verification_path")
        shares = []
        for row in rows:
            entries = [texts[place] for place in index.best(row["statement"])]
            shares.append(float((choose(entries, [row["object"], ""]) == [0]) == (row["answer"] == "yes")))
        result["verification"] = mean_share(shares, 0.5, settings)
    return result


def mean_share(shares: list[float], chance: float, settings: Settings) -> dict:
    """The result of a task whose questions may be half right; the interval is that of a share."""
    n, total = len(shares), sum(shares)
    return {
        "accuracy": total / n, "n": n, "chance": chance, "ci95": wilson_interval(total, n),
        "seed": settings.seed, "task_version": TASK_VERSION,
    }  # fmt: skip
