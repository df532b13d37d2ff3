"""A smaller bank: of each document the sentences with the rarest words, or as many drawn at random.

    python -m dataset.rarest wiki_knowledge.jsonl --share 0.5 --out half.jsonl
    python -m dataset.rarest wiki_knowledge.jsonl --share 0.5 --drawn 1 --out control.jsonl

Lines with a `sentence` and the `title` of its document stay as they are, in their order. How rare a sentence is: the
mean over its words of ln(sentences / sentences with the word), both counted in the whole file.
"""

import math
import random
import re
from collections import Counter, defaultdict
from pathlib import Path

from common.cli import CommandParser, run_command
from common.files import atomic, read_lines, require_file

from .formats import read_records

WORD = re.compile(r"\w+")


def words_of(sentence: str) -> list[str]:
    return WORD.findall(sentence.casefold())


def rareness(sentences: list[str]) -> list[float]:
    """How rare the words of each sentence are on average, in nats; 0 for one without words."""
    count = Counter(word for sentence in sentences for word in set(words_of(sentence)))
    rare = {word: math.log(len(sentences) / n) for word, n in count.items()}
    return [sum(rare[word] for word in words) / max(len(words), 1) for words in map(words_of, sentences)]


def kept_rows(rows: list[tuple[str, str]], share: float, seed: int | None) -> list[int]:
    """The rows to keep, in their order: of each document a share, rounded up.

    Args:
        rows: sentence and document.  seed: keep rows drawn at random; None: those with the rarest words.
    """
    if seed is None:
        score = rareness([sentence for sentence, _ in rows])
    else:
        rng = random.Random(seed)
        score = [rng.random() for _ in rows]
    documents = defaultdict(list)
    for row, (_, document) in enumerate(rows):
        documents[document].append(row)
    kept = []
    for own in documents.values():
        kept += sorted(own, key=lambda row: -score[row])[: math.ceil(share * len(own) - 1e-9)]
    return sorted(kept)


def write_rarest(path: Path, share: float, seed: int | None, out: Path) -> None:
    """Raises FileNotFoundError, ValueError: no file, a line without sentence or title, or a `share` out of range."""
    if not 0 < share < 1:
        raise ValueError(f"--share must lie between 0 and 1, got {share}")
    rows = []
    for place, row in read_records(require_file(path, "sentences"), ["sentence", "title"]):
        if not isinstance(row, dict) or not isinstance(row.get("sentence"), str) or "title" not in row:
            raise ValueError(f"{place} has no sentence or no title: give lines with both")
        rows.append((row["sentence"], str(row["title"])))
    if not rows:
        raise ValueError(f"{path} is empty: give lines with a sentence and a title")
    kept = set(kept_rows(rows, share, seed))
    lines = (line for _, line in read_lines(path) if not line.isspace())
    with atomic(out) as temporary, open(temporary, "w", encoding="utf-8") as file:
        file.writelines(line.rstrip("\n") + "\n" for number, line in enumerate(lines) if number in kept)
    print(f"{out}: {len(kept):,} of {len(rows):,} sentences")


def main() -> None:
    parser = CommandParser(description=__doc__)
    parser.add_argument("sentences", type=Path, help="knowledge file of sentences, as JSON Lines")
    parser.add_argument("--share", type=float, required=True, help="of the sentences of each document that are kept")
    parser.add_argument("--drawn", type=int, help="seed: keep sentences drawn at random, as a control")
    parser.add_argument("--out", type=Path, required=True, help="knowledge file to write")
    args = parser.parse_args()
    write_rarest(args.sentences, args.share, args.drawn, args.out)


if __name__ == "__main__":
    run_command(main)
