"""Language sets: does a memory harm the language model? Questions and texts that others publish (`--language_sets`).

Scores are those of lm-evaluation-harness: a text begins with the begin token, the choice with the highest
log-probability is taken, and a standard error is that of a mean. Sequences longer than the model's context lose their
beginning.

Axes: B sequences · T positions · V vocabulary · X scored tokens · D documents
"""

import math
import re
from collections.abc import Iterator
from itertools import islice
from statistics import mean

import numpy as np

from dataset.language_sets import CHOICES, LAST_WORD, TEXT, LanguageSet, is_wikitext, joined, read_sets
from runs.outcomes import packed_losses

from .config import EvalConfig, accuracy, accuracy_by_part, ratio_error
from .likelihood import Encoded, Score, encode, score_sequences, without_beginning

TASK_VERSION = 1


def encoded_pairs(tokenizer, pairs: list[tuple[str, str]], longest: int) -> list[Encoded]:
    """Token ids of bos, context and choice for each pair, tokenised together; the choice is scored.

    Spaces at the end of a context belong to the choice.

    Args:
        longest: tokens of the model's context. A pair has one more, for the last token is only predicted.
    """
    pairs = [(context.rstrip(), context[len(context.rstrip()) :] + choice) for context, choice in pairs]
    return [without_beginning(own, longest + 1) for own in encode(tokenizer, pairs)]


def windows(ids: list[int], longest: int) -> Iterator[Encoded]:
    """Windows over a long text that score each token but the first one once, the last with as much context as fits.

    Args:
        ids: bos and the tokens of the text.  longest: tokens of the model's context.
    """
    done = 0
    while done < len(ids) - 1:
        end = min(done + longest, len(ids) - 1)
        begin = max(end - longest, 0)
        yield ids[begin : end + 1], done + 1 - begin
        done = end


def score(model, tokenizer, encoded: list[Encoded], batch_size: int) -> list[Score]:
    """The score of each sequence. A batch has at most as many tokens as `batch_size` sequences of full length."""
    return score_sequences(model, tokenizer, encoded, batch_size, batch_size * model.settings.max_seq_len)


def standard_error(values: list[float]) -> float | None:
    """Of their mean; None for a single one."""
    n, middle = len(values), mean(values)
    return math.sqrt(sum((value - middle) ** 2 for value in values) / (n - 1) / n) if n > 1 else None


def with_errors(result: dict) -> dict:
    """An accuracy, and those of its parts, with the standard error of each."""
    share, n = result["accuracy"], result["n"]
    result["stderr"] = math.sqrt(share * (1 - share) / (n - 1)) if n > 1 else None
    for part in result.get("parts", {}).values():
        with_errors(part)
    return result


def choose(model, tokenizer, questions: LanguageSet, config: EvalConfig) -> dict:
    """Accuracy of the likeliest choice. `per_character`: of the highest log-probability a character of the choice.

    The leading space does not count as one. Choices without a context, which are whole sentences, have none of these.
    """
    rows = questions.rows
    pairs = [(row["context"], choice) for row in rows for choice in row["choices"]]
    encoded = encoded_pairs(tokenizer, pairs, model.settings.max_seq_len)
    scores = iter(score(model, tokenizer, encoded, config.batch_size))
    right, right_per_character = [], []
    for row in rows:
        log_p = [own.log_p for own in islice(scores, len(row["choices"]))]
        per_character = [p / max(len(c.removeprefix(" ")), 1) for p, c in zip(log_p, row["choices"], strict=True)]
        for values, into in ((log_p, right), (per_character, right_per_character)):
            into.append(values.index(max(values)) == row["answer"])
    chance = mean(1 / len(row["choices"]) for row in rows)
    asked = [row | {"part": row["field"]} if "field" in row else row for row in rows]
    result = with_errors(accuracy_by_part(asked, right, chance, config, TASK_VERSION))
    if any(row["context"] for row in rows):
        result["per_character"] = with_errors(accuracy(right_per_character, chance, config, TASK_VERSION))
    return result


def last_words(model, tokenizer, questions: LanguageSet, config: EvalConfig) -> dict:
    """Accuracy of greedy decoding over the last word; `word`: its perplexity."""
    rows = questions.rows
    encoded = encoded_pairs(
        tokenizer, [(row["context"], row["choices"][0]) for row in rows], model.settings.max_seq_len
    )
    scores = score(model, tokenizer, encoded, config.batch_size)
    nats_D = np.array([-own.log_p for own in scores])
    perplexity, error = math.exp(min(nats_D.mean(), 50.0)), standard_error(nats_D.tolist())
    token_N = np.array([token for ids, _ in encoded for token in ids], dtype=np.int32)
    word = {
        "perplexity": perplexity, "stderr": None if error is None else error * perplexity,
        "documents": packed_losses(nats_D, np.ones(len(rows), dtype=np.int64), token_N), "n": len(rows),
    }  # fmt: skip
    result = accuracy_by_part(rows, [own.is_greedy for own in scores], 0.0, config, TASK_VERSION)
    return with_errors(result) | {"word": word}


def running_text(model, tokenizer, texts: LanguageSet, config: EvalConfig) -> dict:
    """Loss in nats a token and a word, and bits a byte, each with its standard error over documents.

    Words and bytes are those of the file. A text in WikiText's form is joined first, as people write it.
    """
    longest, written = model.settings.max_seq_len, [row["text"] for row in texts.rows]
    read = [joined(text) for text in written] if is_wikitext(written) else written
    ids = [[tokenizer.bos_token_id, *own] for own in tokenizer(read, add_special_tokens=False, verbose=False).input_ids]
    encoded, document = [], []
    for number, own in enumerate(ids):
        parts = list(windows(own, longest))
        encoded += parts
        document += [number] * len(parts)
    nats_D = np.zeros(len(ids))
    for number, own in zip(document, score(model, tokenizer, encoded, config.batch_size), strict=True):
        nats_D[number] -= own.log_p
    token_N = np.array([token for own in ids for token in own], dtype=np.int32)
    result: dict = {"n_documents": len(ids), "seed": config.seed, "task_version": TASK_VERSION}
    sizes = {
        "token": np.array([len(own) - 1 for own in ids]),
        "word": np.array([len(re.split(r"\s+", text)) for text in written]),
        "byte": np.array([len(text.encode()) for text in written]),
    }
    for unit, size_D in sizes.items():
        name, scale = ("bits_per_byte", 1 / math.log(2)) if unit == "byte" else (f"nats_per_{unit}", 1.0)
        result[name] = scale * float(nats_D.sum() / size_D.sum())
        error = ratio_error(nats_D, size_D)
        result[f"{name}_stderr"] = None if error is None else scale * error
        result[f"{unit}s"] = int(size_D.sum())
    result["word_perplexity"] = math.exp(min(result["nats_per_word"], 50.0))
    return result | {"n": result["tokens"], "documents": packed_losses(nats_D, sizes["token"], token_N)}


KINDS = {CHOICES: choose, LAST_WORD: last_words, TEXT: running_text}


def language_sets(model, tokenizer, config: EvalConfig) -> dict | None:
    """The result of each file of `--language_sets`, by its name."""
    if not config.language_sets:
        return None
    sets = {own.name: own for own in read_sets(config.language_sets, config.limit)}
    found = {name: {"kind": own.kind} | KINDS[own.kind](model, tokenizer, own, config) for name, own in sets.items()}
    n = sum(result["n"] for result in found.values())
    return {"sets": found, "n": n, "seed": config.seed, "task_version": TASK_VERSION}


def cells_of(result: dict) -> dict[str, tuple[str, str, str]]:
    """The lines of the table: measure -> (value and standard error, chance, number of questions or documents)."""
    lines = {}

    def line(name: str, value: float, error: float | None, chance: float | None, n: int, form: str) -> None:
        told = f"{value:{form}}" + ("" if error is None else f" ±{error:{form}}")
        lines[name] = told, "" if chance is None else f"{chance:.1%}", f"{n:,}"

    for name, own in result["sets"].items():
        if own["kind"] == TEXT:
            for label in ("nats_per_token", "nats_per_word", "bits_per_byte"):
                line(
                    f"{name}, {label.replace('_', ' ')}",
                    own[label],
                    own[f"{label}_stderr"],
                    None,
                    own["n_documents"],
                    ".4f",
                )
            continue
        chance = own["chance"] or None
        line(name, own["accuracy"], own["stderr"], chance, own["n"], ".1%")
        for part, share in own.get("parts", {}).items():
            line(f"{name}, {part}", share["accuracy"], share["stderr"], chance, share["n"], ".1%")
        if share := own.get("per_character"):
            line(f"{name}, per character", share["accuracy"], share["stderr"], chance, share["n"], ".1%")
        if word := own.get("word"):
            line(f"{name}, perplexity", word["perplexity"], word["stderr"], None, own["n"], ".4g")
    return lines
