"""Knowledge files: from sentences to the bank's table of token ids, and from an entry's ids back to its text.

Axes: N entries of the bank · L tokens per entry · X any number of entries
"""

import json
import sys
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from math import isqrt
from pathlib import Path

import numpy as np

from common.constants import NO_DOCUMENT, PADDING
from common.files import LONGEST, atomic, explained, open_text, require_text, whole

from .cache import content_key, remember, tokenizer_key
from .formats import data_files, read_rows, require_data
from .tokenizer import encode_as_text, encode_texts

BANK_ORDER = "bank_rows.npy"  # in a run folder: the sentence of the knowledge file that each row holds
CHARACTERS_AT_ONCE = 1 << 20
LONGEST_LITERAL = 16  # characters of a JSON literal or escape, which the end of a block may cut
SENTENCES_AT_ONCE = 16384
DOCUMENTS = "documents.npy"  # of a bank, where its knowledge file tells them
COUNTS = ("read", "empty", "duplicated", "unused")  # of sentences, for the report


class TooFewSentences(ValueError):
    """A knowledge file has fewer different sentences than a bank has entries."""


@dataclass(frozen=True)
class Fact:
    """A sentence of a knowledge file, with its triple and its origin where the file has them."""

    sentence: str
    subject: str = ""
    predicate: str = ""
    object: str = ""
    uuid: str = ""
    source: str = ""
    document: str = ""  # of the training text that it stands in, counted from 0 (`dataset.passages`)


def triple_uuid(subject: str, predicate: str, object: str) -> str:
    """The same identifier for the same triple on every machine."""
    return str(uuid.uuid5(uuid.NAMESPACE_URL, "\x1f".join((subject, predicate, object))))


def encode_entries(tokenizer, texts: list[str], length: int) -> tuple[np.ndarray, np.ndarray]:
    """Texts as entries of a bank.

    Args:
        length: L, tokens per entry.
    Returns:
        (X, L) int64 token ids, cut or padded with PADDING; (X,) int64, the tokens of each text before it is cut.
    Raises:
        ValueError: the tokenizer gives the id of padding to a piece of text.
    """
    ids = [
        without_padding(tokenizer, text, own) for text, own in zip(texts, encode_texts(tokenizer, texts), strict=True)
    ]
    token_XL = np.full((len(ids), length), PADDING, dtype=np.int64)
    for row, own in enumerate(ids):
        token_XL[row, : len(own)] = own[:length]
    return token_XL, np.array([len(own) for own in ids], dtype=np.int64)


def without_padding(tokenizer, text: str, ids: list[int]) -> list[int]:
    """The ids of a text, none of which is PADDING: a special token of this id, in a text, is ordinary characters."""
    if PADDING not in ids:
        return ids
    ids = encode_as_text(tokenizer, text)
    if PADDING in ids:
        raise ValueError(
            f"the tokenizer gives the id {PADDING} to a part of {text!r:.60}, but this id marks padding in a bank: "
            "leave that part out, or train with another --tokenizer_path, which knows all characters"
        )
    return ids


def entry_text(tokenizer, token_L: Iterable[int]) -> str:
    """The text of an entry; empty for an entry of padding."""
    return tokenizer.decode([int(token) for token in token_L if token != PADDING]).strip()


def read_values(path: Path) -> Iterator[tuple[int, object]]:  # noqa: C901 (one state machine, fuzz-tested)
    """Each element of a JSON array, or each line of JSON Lines, with its line number; memory stays bounded.

    Raises:
        ValueError: the file is not JSON or cannot be read, naming file and line.
    """
    decoder, buffer, position, line, ended = json.JSONDecoder(), "", 0, 1, False
    with explained(path, lambda: f"near line {line}"), open_text(path) as file:

        def refill() -> bool:
            nonlocal buffer, position, ended
            # Doubles what is read of a long value, so that decoding it is tried only a few times.
            block = file.read(max(CHARACTERS_AT_ONCE, len(buffer) - position))
            buffer, position, ended = buffer[position:] + block, 0, not block
            return not ended

        def skip(characters: str) -> None:
            nonlocal position, line
            while True:
                while position < len(buffer) and buffer[position] in characters:
                    line += buffer[position] == "\n"
                    position += 1
                if position < len(buffer) or not refill():
                    return

        def refuse(problem: str, at: int) -> ValueError:
            where = line + buffer.count("\n", position, at)
            return ValueError(f"{path}, line {where}: not valid JSON ({problem})")

        skip(" \t\r\n")
        is_array = buffer[position : position + 1] == "["
        position += is_array
        while True:
            skip(" \t\r\n," if is_array else " \t\r\n")
            if position == len(buffer):
                if is_array:
                    raise ValueError(f"{path}, line {line}: the array is not closed (is the file cut off?)")
                return
            if is_array and buffer[position] == "]":
                return
            while True:
                try:
                    value, end = decoder.raw_decode(buffer, position)
                    # A number or word at the end of the buffer may go on in the next block.
                    if end < len(buffer) or ended:
                        break
                except json.JSONDecodeError as problem:
                    cut = problem.msg.startswith("Unterminated") or problem.pos >= len(buffer) - LONGEST_LITERAL
                    if ended or not cut:
                        raise refuse(problem.msg, problem.pos) from None
                except (ValueError, RecursionError) as problem:  # thousands of digits or of nested brackets
                    raise refuse(str(problem), position) from None
                if len(buffer) - position > LONGEST:
                    raise refuse(f"a value longer than {LONGEST} characters; is a quote not closed?", position)
                refill()
            yield line, value
            line += buffer.count("\n", position, end)
            position = end


def read_knowledge(path: str | Path) -> Iterator[Fact]:
    """Every sentence of a knowledge file, or of all files of a folder.

    Accepted elements, in a JSON array or as JSON Lines: `{"target": [{"sentence", "subject", "predicate", "object",
    "uuid", "source"}, ...]}`, `{"sentence"}`, `{"text"}` and bare strings; only the sentence must be there. A parquet
    file has these names as columns.

    Raises:
        FileNotFoundError, ValueError: missing, empty or malformed file, naming file and line.
    """
    for place, value in knowledge_values(require_data(path, "database_init_path")):
        for item in value["target"] if isinstance(value, dict) and isinstance(value.get("target"), list) else [value]:
            fields = {"sentence": item} if isinstance(item, str) else item
            sentence = fields.get("sentence", fields.get("text")) if isinstance(fields, dict) else None
            if not isinstance(sentence, str):
                raise ValueError(f'{place}: an entry needs a "sentence" or "text" string, or must be a string itself')
            rest = {name: str(fields.get(name) or "") for name in Fact.__dataclass_fields__ if name != "sentence"}
            if fields.get("document") == 0:  # as a number, a document like any other
                rest["document"] = "0"
            require_text("".join((sentence, *rest.values())), place)
            yield Fact(sentence.strip(), **rest)


def knowledge_values(path: Path) -> Iterator[tuple[str, object]]:
    """Each value of a knowledge file, or of a folder's files, with its place."""
    for file in data_files(path):
        if file.suffix == ".parquet":
            yield from read_rows(file)
        else:
            yield from ((f"{file}, line {line}", value) for line, value in read_values(file))


@dataclass
class Bank:
    """A table of token ids, and the facts behind its rows.

    Attributes:
        tokens: (N, L) token ids in the order of the file, memory-mapped; int16 where the vocabulary allows, else int32.
        report: how many sentences were cut, dropped and duplicated.
        order_N: the sentence of the file in each row, for a run that ordered its bank by content.
    """

    tokens: np.ndarray
    report: dict
    folder: Path
    order_N: np.ndarray | None = None

    def documents(self) -> np.ndarray | None:
        """(N,) int32: the document of the training text that each row was cut from, -1 for none; None without any."""
        path = self.folder / DOCUMENTS
        return np.load(path) if path.exists() else None

    def fact(self, row: int) -> Fact | None:
        """The fact that row `row` was made from; None for an entry in reserve."""
        index = row if self.order_N is None else self.order_N[row]
        offsets = np.load(self.folder / "offsets.npy", mmap_mode="r")
        if index >= len(offsets):
            return None
        offset = offsets[index]
        with open(self.folder / "facts.jsonl", "rb") as file:
            file.seek(offset)
            return Fact(**json.loads(file.readline()))

    def facts(self) -> Iterator[tuple[int, Fact]]:
        """Every row and its fact, in the order of the file; none for entries in reserve."""
        row_of_sentence = None if self.order_N is None else np.argsort(self.order_N)
        with open(self.folder / "facts.jsonl", encoding="utf-8") as file:
            for index, line in enumerate(file):
                yield index if row_of_sentence is None else int(row_of_sentence[index]), Fact(**json.loads(line))


def load_bank(path, tokenizer, knowledge_num: int, knowledge_length: int, cache_dir, reserve_entries: int = 0) -> Bank:
    """The first different sentences of a knowledge file, cut or padded to `knowledge_length` tokens.

    Built once for each content, tokenizer and shape, then opened from the cache.

    Args:
        knowledge_num: rows of the bank.  reserve_entries: how many of them, the last, are left empty.
    Raises:
        FileNotFoundError, ValueError: missing, empty or malformed file, too few sentences, or a damaged cache.
    """
    path, cache_dir = require_data(path, "database_init_path"), Path(cache_dir)
    shape = (knowledge_num, knowledge_length, *([reserve_entries] if reserve_entries else []))
    key = content_key(path, cache_dir, "bank", tokenizer_key(tokenizer), *shape)
    folder = bank_folder(cache_dir, key)
    if not folder.exists():
        with atomic(folder, "cache_dir") as temporary:
            build_bank(path, tokenizer, *shape[:2], temporary, reserve_entries)
    return open_bank(folder)


def bank_folder(cache_dir: str | Path, key: str) -> Path:
    """The folder of the cache that holds a bank."""
    return Path(cache_dir) / f"bank_{key}"


def open_bank(folder: Path) -> Bank:
    """A bank of the cache. Its report has, as `bank_key`, the fingerprint of file, tokenizer and shape.

    Raises:
        ValueError: the folder is damaged.
    """
    with whole(folder):
        report = json.loads((folder / "report.json").read_text(encoding="utf-8")) | {
            "bank_key": folder.name.removeprefix("bank_")
        }
        return Bank(np.load(folder / "tokens.npy", mmap_mode="r"), report, folder)


def count_sentences(path: str | Path, cache_dir: str | Path) -> int:
    """How many different sentences a knowledge file has; counted once for each content.

    Raises:
        FileNotFoundError, ValueError: it is missing, empty or malformed.
    """
    path, cache_dir = require_data(path, "database_init_path"), Path(cache_dir)
    side = cache_dir / "hashes" / f"sentences_{content_key(path, cache_dir)}.json"
    try:
        return int(json.loads(side.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):  # none, or one that a crash of the machine left empty
        pass
    number = sum(1 for _ in different_facts(path, sys.maxsize, dict.fromkeys(COUNTS, 0)))
    if not number:
        raise ValueError(f"{path} has no sentence: give another --database_init_path")
    remember(side, number)
    return number


def build_bank(
    path: Path, tokenizer, knowledge_num: int, knowledge_length: int, folder: Path, reserve_entries: int = 0
) -> None:
    """Write tokens.npy, facts.jsonl with offsets.npy, and report.json."""
    folder.mkdir(parents=True)
    dtype = np.int16 if len(tokenizer) <= np.iinfo(np.int16).max + 1 else np.int32
    counts, wanted = dict.fromkeys(COUNTS, 0), knowledge_num - reserve_entries
    lengths, offsets, documents, known_objects, objects_kept = [], [0], [], 0, 0
    facts = different_facts(path, wanted, counts)
    # Written piece by piece, not through a memory map: on a full disk a map kills the process without a message.
    with open(folder / "facts.jsonl", "wb") as out, open(folder / "tokens.npy", "wb") as table:
        header = {"descr": np.lib.format.dtype_to_descr(np.dtype(dtype)), "fortran_order": False}
        np.lib.format.write_array_header_1_0(table, header | {"shape": (knowledge_num, knowledge_length)})
        while chunk := list(islice(facts, SENTENCES_AT_ONCE)):
            token_XL, length_X = encode_entries(tokenizer, [fact.sentence for fact in chunk], knowledge_length)
            table.write(token_XL.astype(dtype).tobytes())
            lengths += length_X.tolist()
            for fact, token_L, length in zip(chunk, token_XL, length_X, strict=True):
                offsets.append(offsets[-1] + out.write(json.dumps(asdict(fact), ensure_ascii=False).encode() + b"\n"))
                documents.append(int(fact.document) if fact.document.isdecimal() else NO_DOCUMENT)
                if fact.object:
                    known_objects += 1
                    text = fact.sentence if length <= knowledge_length else tokenizer.decode(token_L.tolist())
                    objects_kept += fact.object in text
        table.write(np.full((reserve_entries, knowledge_length), PADDING, dtype=dtype).tobytes())
    if len(lengths) < wanted:
        largest = isqrt(len(lengths)) ** 2
        less = f" less --reserve_entries {reserve_entries}" if reserve_entries else ""
        raise TooFewSentences(
            f"{path} has {len(lengths)} different sentences, fewer than --knowledge_num {knowledge_num}{less}: "
            f"give --knowledge_num auto, a larger file, or a square of at most {largest}"
        )
    length_N = np.array(lengths)
    report = counts | {
        "entries": knowledge_num, "knowledge_length": knowledge_length, "dtype": np.dtype(dtype).name,
        "cut": int((length_N > knowledge_length).sum()), "padded": int((length_N < knowledge_length).sum()),
        "mean_tokens": round(float(length_N.mean()), 2),
        "object_kept_share": round(objects_kept / known_objects, 4) if known_objects else None,
    } | ({"reserve": reserve_entries} if reserve_entries else {})  # fmt: skip
    np.save(folder / "offsets.npy", np.array(offsets[:-1]))
    if max(documents) != NO_DOCUMENT:
        np.save(folder / DOCUMENTS, np.array(documents + [NO_DOCUMENT] * reserve_entries, dtype=np.int32))
    (folder / "report.json").write_text(json.dumps(report), encoding="utf-8")


def different_facts(path: Path, most: int, counts: dict[str, int]) -> Iterator[Fact]:
    """The first `most` facts with different sentences; `counts` gets read, empty, duplicated and unused sentences."""
    seen: set[int] = set()
    for fact in read_knowledge(path):
        counts["read"] += 1
        # 64-bit hashes tell a few million sentences apart, in far less memory than the sentences.
        fingerprint = hash(fact.sentence)
        if not fact.sentence:
            counts["empty"] += 1
        elif fingerprint in seen:
            counts["duplicated"] += 1
        elif len(seen) == most:
            counts["unused"] += 1
        else:
            seen.add(fingerprint)
            yield fact
