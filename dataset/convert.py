"""Converters to the knowledge format.

    python -m dataset.convert trex re-nlg_0-10000.json knowledge.json      # a file or a folder of the T-REx release
    python -m dataset.convert triples facts.tsv knowledge.json             # subject, predicate, object [, source [, sentence]]
"""

import argparse
import csv
import json
import sys
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path

from .cache import atomic, open_text, require_file
from .memory_init import Fact, read_values, triple_uuid

TEMPLATE = "{subject} {predicate} {object}."


def read_trex(path: Path) -> Iterator[Fact]:
    """A fact for each triple of the T-REx release, with the sentence that states it.

    Source: Elsahar et al. 2018, the JSON release: documents with `text`, `sentences_boundaries` and `triples`.

    Raises:
        ValueError: a document or a triple lacks a field, naming file and line.
    """
    files = sorted(path.glob("*.json")) if path.is_dir() else [require_file(path, "IN")]
    if not files:
        raise FileNotFoundError(f"{path} holds no .json file of the T-REx release")
    for file in files:
        for line, document in read_values(file):
            try:
                for triple in document["triples"]:
                    begin, end = document["sentences_boundaries"][triple["sentence_id"]]
                    names = [triple[role]["surfaceform"] for role in ("subject", "predicate", "object")]
                    # A predicate found by distant supervision has no words of its own, only its URI.
                    names[1] = names[1] or triple["predicate"]["uri"].rsplit("/", 1)[-1]
                    sentence = document["text"][begin:end].strip()
                    yield Fact(sentence, *names, uuid=triple_uuid(*names), source="trex")
            except (KeyError, IndexError, TypeError, ValueError) as problem:
                raise ValueError(
                    f"{file}, line {line}: not a document of the T-REx release ({type(problem).__name__}: {problem})"
                ) from None


def read_triples(path: Path, template: str) -> Iterator[Fact]:
    """A fact for each row of a TSV or CSV file. A first row `subject, predicate, object` is a header.

    Raises:
        ValueError: a row has fewer than three columns, or an empty one among them.
    """
    delimiter = "," if ".csv" in path.suffixes else "\t"
    # Quotation marks are quoting in CSV and ordinary characters in TSV.
    quoting = csv.QUOTE_MINIMAL if delimiter == "," else csv.QUOTE_NONE
    with open_text(require_file(path, "IN")) as file:
        for row in csv.reader(file, delimiter=delimiter, quoting=quoting):
            line = row and [column.strip() for column in row]
            if not line or [name.lower() for name in line[:3]] == ["subject", "predicate", "object"]:
                continue
            if len(line) < 3 or not all(line[:3]):
                raise ValueError(f"{path}: needs subject, predicate and object in three columns, got {row!r}")
            subject, predicate, object_, source, sentence = (line + ["", ""])[:5]
            sentence = sentence or template.format(subject=subject, predicate=predicate, object=object_)
            yield Fact(sentence, subject, predicate, object_, triple_uuid(subject, predicate, object_), source)


def write_knowledge(facts: Iterable[Fact], out: Path) -> int:
    """Write facts as `[{"target": [fact]}, ...]`, one a line; returns how many."""
    n = 0
    with atomic(out) as temporary, open(temporary, "w", encoding="utf-8") as file:
        file.write("[\n")
        for n, fact in enumerate(facts, start=1):
            file.write((",\n" if n > 1 else "") + json.dumps({"target": [asdict(fact)]}, ensure_ascii=False))
        file.write("\n]\n")
    return n


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("form", choices=["trex", "triples"])
    parser.add_argument("source", type=Path, metavar="IN")
    parser.add_argument("out", type=Path, metavar="OUT")
    parser.add_argument("--template", default=TEMPLATE, help="sentence of a triple that has none")
    args = parser.parse_args()
    facts = read_trex(args.source) if args.form == "trex" else read_triples(args.source, args.template)
    print(f"{write_knowledge(facts, args.out)} facts written to {args.out}")


if __name__ == "__main__":
    try:
        main()
    except (ValueError, FileNotFoundError) as problem:
        sys.exit(f"error: {problem}")
