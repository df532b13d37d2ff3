"""Look-up without a model: a word index over the bank answers the questions. A memory model should be above it.

The index weighs each word of a prompt by ln(N / entries with it). The answer is the choice that occurs in the best of
`READ` entries; if no choice occurs, each one counts as a guess.

Axes: N entries · X postings (pairs of a word and an entry that holds it)
"""

import math
import re
import unicodedata
from collections.abc import Iterable

import numpy as np

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
        """The rows with a word, ascending; none for an unknown word."""
        index = self.word_ids.get(word)
        return self.entry_X[:0] if index is None else self.entry_X[self.start_W[index] : self.start_W[index + 1]]

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
            nearest_N = np.searchsorted(own, rows).clip(max=len(own) - 1)
            tie_N += (own[nearest_N] == rows) * self._weight(len(own))
        order = np.lexsort((rows, self.length_N[rows], -tie_N, -score_N))
        return rows[order[:n]].tolist()

    def _sum(self, postings: dict[str, np.ndarray]) -> dict[int, float]:
        rows = np.concatenate(list(postings.values()))
        weights = np.concatenate([np.full(len(own), self._weight(len(own))) for own in postings.values()])
        found, index_X = np.unique(rows, return_inverse=True)
        return dict(zip(found.tolist(), np.bincount(index_X, weights).tolist(), strict=True))

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


def share_right(index: WordIndex, texts: list[str], prompts: list[str], choices: list[list[str]], right: list[int]):
    """For each question, the probability that the look-up is right: 1, 0, or that of a guess among several choices."""
    shares = []
    for prompt, own, answer in zip(prompts, choices, right, strict=True):
        chosen = choose([texts[row] for row in index.best(prompt)], own)
        shares.append((answer in chosen) / len(chosen))
    return shares


def lookup(model, tokenizer, config: EvalConfig) -> dict | None:
    """Accuracy of the look-up on object questions, on the same in other wordings, and on statements.

    A statement counts as true if its object occurs in one of the best entries. None where the bank is unknown; what
    does not name subject, predicate or object is not asked in that way.
    """
    if config.gold is None or not (config.object_path or config.verification_path):
        return None
    texts = [""] * (1 + max((row for row, _ in config.gold.every()), default=-1))
    for row, fact in config.gold.every():
        texts[row] = fact.sentence
    if not texts:
        return None
    index, result = WordIndex(texts), {}
    if path := config.object_path:
        rows = read_questions(path, FIELDS["object"], config.limit, "object_path")
        choices, right = [row["choices"] for row in rows], [answer_index(row) for row in rows]
        wordings = {"object": [row["question"].replace(BLANK, " ") for row in rows]}
        if read_named(path, "object", ("subject", "predicate"), config.limit, "object_path"):
            wordings |= {f"reworded_{i}": [p.format(**row) for row in rows] for i, p in enumerate(PARAPHRASES)}
        for name, prompts in wordings.items():
            shares = share_right(index, texts, prompts, choices, right)
            result[name] = mean_share(shares, chance_of(rows), config)
    path = config.verification_path
    if path and (rows := read_named(path, "verification", ("object",), config.limit, "verification_path")):
        shares = []
        for row in rows:
            entries = [texts[i] for i in index.best(row["statement"])]
            shares.append(float((choose(entries, [row["object"], ""]) == [0]) == (row["answer"] == "yes")))
        result["verification"] = mean_share(shares, 0.5, config)
    return result or None


def mean_share(shares: list[float], chance: float, config: EvalConfig) -> dict:
    """The result of a task whose questions may be right in part; the interval is that of a share."""
    n, total = len(shares), sum(shares)
    return {
        "accuracy": total / n, "n": n, "chance": chance, "ci95": wilson_interval(total, n),
        "seed": config.seed, "task_version": TASK_VERSION,
    }  # fmt: skip
