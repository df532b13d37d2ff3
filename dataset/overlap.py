"""Overlap of questions with the training text (contamination): does one line of it hold both subject and object?

python -m dataset.overlap --text merged_pretrain.jsonl --questions object_dev.jsonl --out object_dev_parts.jsonl

Each question gets a `part`, "met in text" or "only in bank". The evaluation reports its results for each part.
"""

import json
import re
from collections import defaultdict
from pathlib import Path

from common.cli import CommandParser, run_command
from common.files import atomic

from .formats import require_data
from .pretrain import read_documents
from .questions import read_questions

WORD = re.compile(r"\w+")


def overlapping_pairs(pairs: set[tuple[str, str]], lines) -> set[tuple[str, str]]:
    """Those (subject, object) pairs that occur in one line as whole words."""
    by_word: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for subject, object in pairs:
        if first := WORD.search(subject):
            by_word[first.group()].append((subject, object))
    found = set()
    for line in lines:
        for word in WORD.finditer(line):
            for subject, object in by_word.get(word.group(), ()):
                begin = word.start() - WORD.search(subject).start()
                if (subject, object) not in found and line.startswith(subject, max(begin, 0)):
                    if has_words(line, object):
                        found.add((subject, object))
    return found


def has_words(line: str, words: str) -> bool:
    """Whether the line has these words, not as a part of longer ones."""
    return bool(words) and re.search(rf"(?<!\w){re.escape(words)}(?!\w)", line) is not None


def main() -> None:
    parser = CommandParser(description=__doc__)
    parser.add_argument("--text", type=Path, nargs="+", required=True, help="JSON Lines of the training text")
    parser.add_argument("--questions", type=Path, required=True, help="questions with `subject` and `object`")
    parser.add_argument("--out", type=Path, required=True, help="file to write")
    args = parser.parse_args()
    rows = read_questions(args.questions, ("subject", "object"), None, "questions")
    for path in args.text:
        require_data(path, "text")
    lines = (line for path in args.text for document in read_documents(path) for line in document.text.split("\n"))
    found = overlapping_pairs({(row["subject"], row["object"]) for row in rows}, lines)
    with atomic(args.out) as temporary, open(temporary, "w", encoding="utf-8") as file:
        for row in rows:
            part = "met in text" if (row["subject"], row["object"]) in found else "only in bank"
            file.write(json.dumps(row | {"part": part}, ensure_ascii=False) + "\n")
    n_found = sum((row["subject"], row["object"]) in found for row in rows)
    print(f"{n_found} of {len(rows)} questions met in text")


if __name__ == "__main__":
    run_command(main)
