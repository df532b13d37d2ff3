"""Training text: JSON Lines or parquet, tokenised once into a memory-mapped cache, read as packed or padded rows.

Axes: B rows of a batch · T positions of a row
"""

import json
import time
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from common.constants import IGNORED
from common.files import atomic, require_text, whole

from .cache import content_key, tokenizer_key
from .conversations import is_conversation, turns
from .formats import read_records, require_data
from .tokenizer import border

# Enough to keep every core of the tokenizer busy, few enough to bound memory: a token's encoding takes 100 bytes.
DOCUMENTS_AT_ONCE, CHARACTERS_AT_ONCE = 2048, 1 << 22
FIELDS = ("text", "prompt", "answer", "conversations", "source")


@dataclass(frozen=True)
class Document:
    """A text. Its first `given` characters, such as a question, are not predicted."""

    text: str
    given: int = 0
    source: str | None = None


def read_documents(path: Path) -> Iterator[Document]:
    """Every line or row: `{"text"}`, or `{"prompt", "answer"}`, of which only the answer is predicted.

    A line with `text` and `prompt` but without `answer` is a text; synthetic texts often keep their prompt. A line with
    `conversations` gives a document for each of the assistant's turns: the turns before it, then this turn, predicted.

    Args:
        path: JSON Lines, also packed, parquet, or a folder of these.
    Raises:
        ValueError: a line is not a JSON object of one of these forms; file and line are named.
    """
    for place, value in read_records(path, FIELDS):
        fields = value if isinstance(value, dict) else {}
        source = fields["source"] if isinstance(fields.get("source"), str) else None
        if is_conversation(fields):
            yield from (Document(before + turn, len(before), source) for before, turn in turns(fields, place))
            continue
        is_question = "prompt" in fields and ("answer" in fields or "text" not in fields)
        prompt, answer = (fields.get("prompt"), fields.get("answer")) if is_question else ("", fields.get("text"))
        if not isinstance(prompt, str) or not isinstance(answer, str):
            has = f"it has {', '.join(map(repr, list(fields)[:6]))}" if fields else "it is not an object with fields"
            raise ValueError(
                f'{place}: no "text" field with a string in it, nor "prompt" and "answer", nor "conversations": {has}'[
                    :300
                ]
            )
        yield Document(require_text(prompt + answer, place), len(prompt), source)


def build_token_cache(path: Path, tokenizer, folder: Path) -> None:
    """Write tokens.bin, offsets.npy (documents + 1), answers.npy and report.json. A document is bos, text, eos."""
    dtype = np.uint16 if len(tokenizer) <= np.iinfo(np.uint16).max + 1 else np.uint32
    bos, eos, encoder = tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.backend_tokenizer
    start, n_empty, n_bytes, n_characters = time.perf_counter(), 0, 0, 0
    lengths, answers, documents = array("q"), array("i"), []  # as numbers, 12 bytes a document
    folder.mkdir(parents=True)

    def encode(texts: list[str]) -> list[list[int]]:
        return [encoding.ids for encoding in encoder.encode_batch_fast(texts, add_special_tokens=False)]

    with open(folder / "tokens.bin", "wb") as out:

        def write_batch():
            prompts = iter(encode([document.text[: document.given] for document in documents if document.given]))
            for document, ids in zip(documents, encode([document.text for document in documents]), strict=True):
                lengths.append(len(ids) + 2)
                answers.append(1 + (border(next(prompts), ids) if document.given else 0))
                out.write(np.array([bos, *ids, eos], dtype=dtype).tobytes())
            documents.clear()

        for document in read_documents(path):
            if not document.text.strip():
                n_empty += 1
                continue
            n_bytes += len(document.text.encode())
            n_characters += len(document.text)
            documents.append(document)
            if len(documents) == DOCUMENTS_AT_ONCE or n_characters >= CHARACTERS_AT_ONCE:
                write_batch()
                n_characters = 0
        write_batch()
    if not lengths:
        raise ValueError(f"{path} holds no text: every line is empty")
    np.save(folder / "offsets.npy", np.concatenate([[0], np.cumsum(lengths)]))
    np.save(folder / "answers.npy", np.array(answers, dtype=np.int32))
    seconds = time.perf_counter() - start
    report = {
        "documents": len(lengths), "empty_documents": n_empty, "tokens": int(sum(lengths)), "bytes": n_bytes,
        "dtype": np.dtype(dtype).name, "tokenise_mb_per_s": round(n_bytes / 1e6 / seconds, 2),
    }  # fmt: skip
    (folder / "report.json").write_text(json.dumps(report), encoding="utf-8")


@dataclass
class TokenCache:
    """The documents of a file as token ids.

    Attributes:
        token_N: all tokens, on the disk.  offset_D: document d is at `offset_D[d]` to `offset_D[d + 1]`.
        answer_D: the first predicted token of each document, from its start; 1 where only bos is given.
    """

    token_N: np.memmap
    offset_D: np.ndarray
    answer_D: np.ndarray
    report: dict


def open_token_cache(path: str | Path, tokenizer, cache_dir: str | Path, flag: str = "data_path") -> TokenCache:
    """The tokens of a file or folder of texts, tokenised now if content or tokenizer are new.

    Raises:
        FileNotFoundError, ValueError: the file is missing, empty or malformed, or its cache is damaged.
    """
    path, cache_dir = require_data(path, flag), Path(cache_dir)
    around = tokenizer.bos_token_id, tokenizer.eos_token_id
    key = content_key(path, cache_dir, "tokens and answers", tokenizer_key(tokenizer), *around)
    folder = cache_dir / f"tokens_{key}"
    if not folder.exists():
        with atomic(folder, "cache_dir") as temporary:
            build_token_cache(path, tokenizer, temporary)
    with whole(folder):
        report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
        tokens = np.memmap(folder / "tokens.bin", dtype=report["dtype"], mode="r")
        cache = TokenCache(tokens, np.load(folder / "offsets.npy"), np.load(folder / "answers.npy"), report)
        if cache.offset_D[-1] != len(tokens) or len(cache.offset_D) != len(cache.answer_D) + 1:
            raise ValueError("its parts do not fit together")
    return cache


class PretrainDataset(torch.utils.data.Dataset):
    """Rows of `max_seq_len` tokens over a range of a cache's documents.

    packed: the stream of documents, cut into full rows; `document_ids` count the documents of the file. A document
    that crosses the end of a row continues in the next one. The tokens after the last full row are left out.
    padded: one document per row, cut at the end, padded with label -100; no `document_ids`.

    Args:
        labelled_only: leave out rows in which no token is predicted, such as the middle of a long prompt.
    Raises:
        ValueError: with `labelled_only`, no row is left.
    """

    def __init__(
        self, cache: TokenCache, first: int, last: int, max_seq_len: int, mode: str, pad_token_id: int,
        labelled_only: bool = False,
    ):  # fmt: skip
        self.cache, self.first, self.last, self.mode = cache, first, last, mode
        self.max_seq_len, self.pad_token_id = max_seq_len, pad_token_id
        self.begin, self.end = int(cache.offset_D[first]), int(cache.offset_D[last])
        n_tokens = self.end - self.begin
        self.n_rows = last - first if mode == "padded" else max(n_tokens // max_seq_len, 1)
        if mode == "padded":
            lengths = np.diff(cache.offset_D[first : last + 1])
            left_out = int(np.maximum(lengths - max_seq_len, 0).sum())
        else:
            left_out = max(n_tokens - self.n_rows * max_seq_len, 0)
        self.report = cache.report | {
            "documents": last - first, "tokens": n_tokens, "rows": self.n_rows, "tokens_left_out": left_out,
            "mode": mode,
        }  # fmt: skip
        self.labelled_rows = None
        if labelled_only and (unlabelled := self._targets_per_row() == 0).any():
            self.labelled_rows = np.flatnonzero(~unlabelled)
            self.n_rows = len(self.labelled_rows)
            self.report |= {"rows": self.n_rows, "rows_without_labels": int(unlabelled.sum())}
            if not self.n_rows:
                raise ValueError(
                    f"every prompt fills a row of --max_seq_len {max_seq_len} tokens, so no answer is left to predict: "
                    "give a larger --max_seq_len"
                )

    def __len__(self) -> int:
        return self.n_rows

    def _targets_per_row(self) -> np.ndarray:
        """(rows,) int64: tokens that are predicted in each row. The first token of a row never is."""
        offset_D, T = self.cache.offset_D[self.first : self.last + 1] - self.begin, self.max_seq_len
        answer_D = self.cache.answer_D[self.first : self.last]
        if self.mode == "padded":
            return np.maximum(np.minimum(np.diff(offset_D), T) - np.maximum(answer_D, 1), 0)
        begin_D, end_D = np.minimum(offset_D[:-1] + answer_D, offset_D[1:]), offset_D[1:]
        edges = np.arange(self.n_rows + 1) * T

        def predicted_before(position: np.ndarray) -> np.ndarray:
            document = np.clip(np.searchsorted(begin_D, position, side="right") - 1, 0, None)
            before = np.concatenate([[0], np.cumsum(end_D - begin_D)])[document]
            return before + np.clip(np.minimum(position, end_D[document]) - begin_D[document], 0, None)

        first_is_predicted = predicted_before(edges[:-1] + 1) - predicted_before(edges[:-1])
        return np.diff(predicted_before(edges)) - first_is_predicted

    def __getitem__(self, row: int) -> dict[str, torch.Tensor]:
        return {name: value[0] for name, value in self.fetch(np.array([row])).items()}

    def fetch(self, rows: np.ndarray) -> dict[str, torch.Tensor]:
        """A batch of rows: `input_ids`, `labels` and, if packed, `document_ids`; (B, T) int64 each."""
        rows = rows if self.labelled_rows is None else self.labelled_rows[rows]
        batch = self._fetch_packed(rows) if self.mode == "packed" else self._fetch_padded(rows)
        return {name: torch.from_numpy(value) for name, value in batch.items()}

    def _fetch_packed(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        T = self.max_seq_len
        position_BT = self.begin + rows[:, None] * T + np.arange(T)
        inside_BT = position_BT < self.end  # false only in the single row of a text shorter than T
        input_BT = self.cache.token_N[np.minimum(position_BT, self.end - 1)].astype(np.int64)
        document_BT = np.searchsorted(self.cache.offset_D, position_BT, side="right") - 1
        known_BT = np.minimum(document_BT, self.last - 1)
        # The first token of a document is not predicted from the document before.
        given_BT = position_BT - self.cache.offset_D[known_BT] < self.cache.answer_D[known_BT]
        return {
            "input_ids": np.where(inside_BT, input_BT, self.pad_token_id),
            "labels": np.where(inside_BT & ~given_BT, input_BT, IGNORED),
            "document_ids": document_BT,
        }

    def _fetch_padded(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        start_B = self.cache.offset_D[self.first + rows]
        length_B = np.minimum(self.cache.offset_D[self.first + rows + 1] - start_B, self.max_seq_len)
        column_T = np.arange(self.max_seq_len)
        inside_BT = column_T < length_B[:, None]
        position_BT = np.minimum(start_B[:, None] + column_T, self.end - 1)
        input_BT = np.where(inside_BT, self.cache.token_N[position_BT].astype(np.int64), self.pad_token_id)
        predicted_BT = inside_BT & (column_T >= self.cache.answer_D[self.first + rows][:, None])
        labels_BT = np.where(predicted_BT, input_BT, IGNORED)
        return {"input_ids": input_BT, "labels": labels_BT}


def open_pretrain_data(
    data_path, tokenizer, max_seq_len: int, mode: str, cache_dir, part: str = "train", val_fraction: float = 0.0,
    flag: str = "data_path", labelled_only: bool = False,
) -> PretrainDataset:  # fmt: skip
    """The rows of a JSON Lines file, or of one part of it.

    Args:
        mode: "packed" or "padded".
        part: "train" or "val"; the last `val_fraction` of the documents are "val".
        labelled_only: leave out rows without a token to predict.
    Raises:
        FileNotFoundError, ValueError: the file is missing, empty or malformed, too short for a validation part, or
            all of its prompts fill whole rows.
    """
    cache = open_token_cache(data_path, tokenizer, cache_dir, flag)
    n_documents = len(cache.offset_D) - 1
    held_out = max(1, round(val_fraction * n_documents)) if val_fraction else 0
    if held_out >= n_documents:
        raise ValueError(f"{data_path} has {n_documents} documents, too few to hold any out: give a --val_path")
    cut = n_documents - held_out
    first, last = (0, cut) if part == "train" else (cut, n_documents)
    try:
        return PretrainDataset(cache, first, last, max_seq_len, mode, tokenizer.pad_token_id, labelled_only)
    except ValueError as problem:
        raise ValueError(f"{data_path}: {problem}") from None


def open_entries(token_NL: np.ndarray, tokenizer, max_seq_len: int) -> PretrainDataset:
    """The entries of a bank as packed rows. Each entry is one document. No token has a label.

    Args:
        token_NL: (N, L) token ids, padded with 0.
    """
    length_N = (token_NL != 0).sum(axis=1)
    column_X = np.arange(token_NL.shape[1] + 2)
    whole_NX = np.pad(token_NL, ((0, 0), (1, 1)))
    whole_NX[:, 0] = tokenizer.bos_token_id
    np.put_along_axis(whole_NX, length_N[:, None] + 1, tokenizer.eos_token_id, axis=1)
    token_M, length_N = whole_NX[column_X < length_N[:, None] + 2], length_N + 2
    cache = TokenCache(token_M, np.concatenate([[0], np.cumsum(length_N)]), length_N, {})
    return PretrainDataset(cache, 0, len(token_NL), max_seq_len, "packed", tokenizer.pad_token_id)
