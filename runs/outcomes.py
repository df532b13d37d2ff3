"""What a model did on each question or document, as eval.json keeps it: text of a few hundred bytes.

Two results are compared question by question only if both are of the same questions: their `key` is equal.

Axes: Q questions · X documents, or groups of neighbouring documents
"""

import base64
import hashlib
import json
from typing import NamedTuple

import numpy as np

MAX_DOCUMENTS = 2048  # more are joined into groups of neighbours


class Outcomes(NamedTuple):
    """value_X: right (1) or wrong (0), or the loss of a document.  weight_X: tokens of a document; None: all equal."""

    key: str
    value_X: np.ndarray
    weight_X: np.ndarray | None = None


def text_of(array: np.ndarray) -> str:
    return base64.b64encode(array.tobytes()).decode()


def array_of(text: str, dtype: str) -> np.ndarray:
    return np.frombuffer(base64.b64decode(text), dtype=dtype)


def key_of(content) -> str:
    """A short fingerprint of questions (a JSON value) or of tokens (an array)."""
    data = content.tobytes() if isinstance(content, np.ndarray) else json.dumps(content, sort_keys=True).encode()
    return hashlib.blake2b(data, digest_size=8).hexdigest()


def packed_answers(right_Q: list[bool], questions: list) -> dict:
    """The field `answers` of a share of right answers: a bit for each question, and which questions they were."""
    return {"key": key_of(questions), "n": len(right_Q), "right": text_of(np.packbits(np.array(right_Q, dtype=bool)))}


def packed_losses(total_X: np.ndarray, n_X: np.ndarray, token_N: np.ndarray) -> dict:
    """The field `documents` of a loss.

    Args:
        total_X: the loss of each document in nats.  n_X: its tokens.  token_N: all tokens, for the fingerprint.
    """
    groups = np.array_split(np.arange(len(n_X)), min(len(n_X), MAX_DOCUMENTS))
    n_X = np.array([n_X[group].sum() for group in groups], dtype="<u4")
    loss_X = np.array([total_X[group].sum() for group in groups]) / np.maximum(n_X, 1)
    return {"key": key_of(token_N), "loss": text_of(loss_X.astype("<f4")), "tokens": text_of(n_X)}


def outcomes_of(result: dict) -> Outcomes | None:
    """The outcomes behind a result of eval.json; None where it keeps none."""
    if answers := result.get("answers"):
        bits = np.unpackbits(array_of(answers["right"], "u1"), count=answers["n"])
        return Outcomes(answers["key"], bits.astype(np.float64))
    if documents := result.get("documents"):
        loss_X, n_X = array_of(documents["loss"], "<f4"), array_of(documents["tokens"], "<u4")
        return Outcomes(documents["key"], loss_X.astype(np.float64), n_X.astype(np.float64))
    return None
