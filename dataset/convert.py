"""Converters from public formats: of facts to the knowledge format, of public sets to their files of questions.

python -m dataset.convert trex FOLDER_OR_FILE knowledge.json
python -m dataset.convert triples facts.tsv knowledge.json --template "{subject} {predicate} {object}."
python -m dataset.convert popqa test.tsv            # as published; its files go to dataset/stable, or a third argument
"""

import csv
import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path

from common.cli import CommandParser, run_command
from common.files import atomic, read_lines, require_file, require_text, unpacked_name

from .formats import files_inside
from .knowledge import Fact, read_values, triple_uuid
from .sources import SOURCES

TEMPLATE = "{subject} {predicate} {object}."


def write_knowledge(path: Path, facts: Iterable[Fact]) -> int:
    """Write facts as a JSON array with one element per line; returns their number. Memory stays bounded."""
    path.parent.mkdir(parents=True, exist_ok=True)
    number = 0
    with atomic(path) as temporary:
        with open(temporary, "w", encoding="utf-8") as out:
            for number, fact in enumerate(facts, start=1):
                entry = json.dumps({"target": [asdict(fact)]}, ensure_ascii=False)
                out.write(("[\n" if number == 1 else ",\n") + entry)
            out.write("\n]\n" if number else "[]\n")
    return number


def read_triples(path: Path, template: str = TEMPLATE) -> Iterator[Fact]:
    """The facts of a TSV file, or of a CSV file if its name ends so: one row each.

    Columns: subject, predicate, object and, optionally, source and sentence. A first row that begins with "subject" is
    a header. The template makes the sentence of a row without one.

    Raises:
        FileNotFoundError, ValueError: the file is missing or empty, a row has fewer than three columns, is not CSV or
            has its sentence in the fourth column (it is named), or the template does not take these three names.
    """
    path = require_file(path)
    try:
        template.format(subject="s", predicate="p", object="o")
    except (LookupError, ValueError, AttributeError, TypeError) as problem:
        raise ValueError(f"the template {template!r} is not one like {TEMPLATE!r} ({problem!r})") from None
    lines = (line for _, line in read_lines(path))
    is_csv = unpacked_name(path).endswith(".csv")
    rows, number = csv.reader(lines) if is_csv else (line.rstrip("\r\n").split("\t") for line in lines), 0
    while True:
        number += 1
        try:
            row = next(rows, None)
        except csv.Error as problem:
            raise ValueError(f"{path}, row {number}: not valid CSV ({problem})") from None
        if row is None:
            return
        if not any(row) or number == 1 and row[0].lower() == "subject":
            continue
        if len(row) < 3:
            raise ValueError(f"{path}, row {number}: {len(row)} columns, need subject, predicate and object")
        subject, predicate, object, source, sentence = (*row, "", "")[:5]
        if not sentence and " " in source.strip() and source.rstrip().endswith("."):
            raise ValueError(
                f"{path}, row {number}: the fourth column is the source, and {source!r:.80} looks like a sentence: put "
                "it into the fifth column (subject, predicate, object, source, sentence)"
            )
        sentence = sentence or template.format(subject=subject, predicate=predicate, object=object)
        yield Fact(sentence, subject, predicate, object, triple_uuid(subject, predicate, object), source)


def read_trex(path: Path) -> Iterator[Fact]:
    """One fact for each triple of the public T-REx release, with the sentence that states it.

    A triple names its sentence by `sentence_id`, an index into `sentences_boundaries`. Most predicates have a URI
    and no readable form: the last part of the URI (such as P17) takes its place.

    Raises:
        FileNotFoundError, ValueError: the file is missing, the folder has no JSON, or a document has another format.
    """
    files = (
        sorted(file for file in files_inside(path) if file.suffix == ".json") if path.is_dir() else [require_file(path)]
    )
    if not files:
        raise ValueError(f"{path} holds no .json file: unpack the T-REx release there")
    for file in files:
        for line, document in read_values(file):
            try:
                for triple in document["triples"]:
                    begin, end = document["sentences_boundaries"][triple["sentence_id"]]
                    sentence = " ".join(document["text"][begin:end].split())
                    subject, object = triple["subject"]["surfaceform"], triple["object"]["surfaceform"]
                    relation = triple["predicate"]
                    predicate = relation.get("surfaceform") or relation["uri"].rsplit("/", 1)[-1]
                    require_text(sentence + subject + predicate + object, f"{file}, line {line}")
                    uuid = triple_uuid(subject, predicate, object)
                    yield Fact(sentence, subject, predicate, object, uuid, "T-REx")
            except (LookupError, TypeError, AttributeError) as problem:
                raise ValueError(f"{file}, line {line}: not a T-REx document ({problem!r})") from None


def convert_set(name: str, path: Path, out: Path) -> str:
    """Write the files that a published set becomes into a folder; returns what they are and which flags take them.

    Raises:
        FileNotFoundError, ValueError: the file is missing, has another form than published, or would replace a file.
    """
    from .public import make  # it imports this module

    source = SOURCES[name]
    if not path.is_dir():
        require_file(path)
    if there := [out / made for made in source.makes if (out / made).exists()]:
        raise ValueError(f"{there[0]} is there, and {name} would replace it: move it away, or name another folder")
    counts = make(source.convert, [path], source.makes, out, out)
    return f"{', '.join(f'{out / file} ({n} rows)' for file, n in counts.items())}: give to {source.flag}"


def main() -> None:
    sets = [name for name, source in SOURCES.items() if source.convert and len(source.files) == 1 and name != "trex"]
    parser = CommandParser(description=__doc__)
    parser.add_argument("format", choices=["trex", "triples", *sets], help="format of the input, or a published set")
    parser.add_argument("input", type=Path, help="a file; for trex also a folder of files")
    parser.add_argument("output", type=Path, nargs="?",
                        help="the knowledge file to write; of a set the folder, by default dataset/stable")  # fmt: skip
    parser.add_argument("--template", default=TEMPLATE, help="sentence of a triple without one")
    args = parser.parse_args()
    if args.format in sets:
        print(convert_set(args.format, args.input, args.output or Path("dataset/stable")))
        return
    if args.output is None:
        raise ValueError(f"{args.format} needs a third argument: the knowledge file to write")
    facts = read_trex(args.input) if args.format == "trex" else read_triples(args.input, args.template)
    print(f"{write_knowledge(args.output, facts)} facts written to {args.output}")


if __name__ == "__main__":
    run_command(main)
