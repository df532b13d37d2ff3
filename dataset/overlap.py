"""Mark the questions whose subject and object stand in one line of the training text: it may have taught their facts.

python -m dataset.overlap --text merged_pretrain.jsonl --questions object_dev.jsonl --out object_dev_parts.jsonl

Each question gets a `part`, "met in text" or "only in bank", by which the evaluation reports its results apart.
"""

import argparse
import json
import re
import sys
from collections import defaultdict
from pathlib import Path

from common.files import atomic
from dataset.pretrain import read_documents
from evaluation.likelihood import read_questions

WORD = re.compile(r"\w+")


def met_pairs(pairs: set[tuple[str, str]], lines) -> set[tuple[str, str]]:
    """Those of the (subject, object) pairs that occur, word for word, in a line; subjects at the start of a word."""
    by_word: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for subject, object in pairs:
        if first := WORD.search(subject):
            by_word[first.group()].append((subject, object))
    met = set()
    for line in lines:
        for word in WORD.finditer(line):
            for subject, object in by_word.get(word.group(), ()):
                begin = word.start() - WORD.search(subject).start()
                if (subject, object) not in met and line.startswith(subject, max(begin, 0)) and has_words(line, object):
                    met.add((subject, object))
    return met


def has_words(line: str, words: str) -> bool:
    """Whether the words stand in the line, not within longer ones."""
    return bool(words) and re.search(rf"(?<!\w){re.escape(words)}(?!\w)", line) is not None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=Path, nargs="+", required=True, help="JSON Lines that the model was trained on")
    parser.add_argument("--questions", type=Path, required=True, help="with `subject` and `object`")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    rows = read_questions(args.questions, ("subject", "object"), None, "questions")
    lines = (line for path in args.text for document in read_documents(path) for line in document.text.split("\n"))
    met = met_pairs({(row["subject"], row["object"]) for row in rows}, lines)
    with atomic(args.out) as temporary, open(temporary, "w", encoding="utf-8") as file:
        for row in rows:
            part = "met in text" if (row["subject"], row["object"]) in met else "only in bank"
            file.write(json.dumps(row | {"part": part}, ensure_ascii=False) + "\n")
    n_met = sum((row["subject"], row["object"]) in met for row in rows)
    print(f"{n_met} of {len(rows)} questions met in text")


if __name__ == "__main__":
    try:
        main()
    except (ValueError, FileNotFoundError) as problem:
        sys.exit(f"error: {problem}")
