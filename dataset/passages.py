"""The training text as entries of a bank: passages of whole sentences, each with the number of its document.

python -m dataset.passages dataset/stable/wiki_train.jsonl --out dataset/stable/wiki_passages.jsonl
python -m dataset.passages dataset/asked/text --only text.jsonl --longest 96 --out dataset/asked/bank/passages.jsonl

A model whose bank holds its own training text must not read, in training, the document that it is learning: the next
token would stand there. Training therefore leaves out the entries of each position's own document, as RETRO does.
Related: Khandelwal et al. 2020, arXiv:1911.00172 (kNN-LM: the training text as datastore); Borgeaud et al. 2022,
arXiv:2112.04426 (RETRO: no neighbour from the same document).
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path

from common.cli import CommandParser, positive_int, run_command
from common.files import atomic

from .formats import data_files, require_data
from .pretrain import read_documents

SENTENCE = re.compile(r".+?(?:[.!?](?=\s)|[。！？]|$)\s*")  # with the spaces after it
LONGEST, SHORTEST = 200, 20  # characters of a passage: in English about 60 tokens of this tokenizer at most


def passages(text: str, longest: int = LONGEST) -> Iterator[str]:
    """Neighbouring sentences of a line, as they stand, up to `longest` characters; a longer one is cut at a space.

    A passage is a piece of the text, down to its spaces: what it says is then tokenised as in training.
    """
    for line in text.split("\n"):
        passage = ""
        for sentence in SENTENCE.findall(line.strip()):
            if passage and len((passage + sentence).rstrip()) > longest:
                yield passage.rstrip()
                passage = ""
            passage += sentence
            while len(passage.rstrip()) > longest:
                cut = passage.rfind(" ", 1, longest + 1)
                cut = longest if cut < 1 else cut
                yield passage[:cut].rstrip()
                passage = passage[cut:].lstrip()
        if passage:
            yield passage.rstrip()


def main() -> None:
    parser = CommandParser(description=__doc__)
    parser.add_argument("text", type=Path, help="the --data_path of the training: a file or a folder")
    parser.add_argument("--out", type=Path, required=True, help="knowledge file to write, as JSON Lines")
    parser.add_argument(
        "--longest", type=positive_int, default=LONGEST,
        help=f"characters of a passage (default: {LONGEST}, for --knowledge_length 64; 96 for 28 tokens)",
    )  # fmt: skip
    parser.add_argument(
        "--only", nargs="+", metavar="NAME", help="files of the folder that give passages; the others are counted alone"
    )
    args = parser.parse_args()
    files, number, written = data_files(require_data(args.text, "text")), 0, 0
    if unknown := set(args.only or ()) - {file.name for file in files}:
        raise ValueError(f"--only {min(unknown)}: {args.text} has no file of this name")
    with atomic(args.out) as temporary, open(temporary, "w", encoding="utf-8") as out:
        for name, document in ((file.name, document) for file in files for document in read_documents(file)):
            if not document.text.strip():
                continue  # training does not count it either
            # The turns of a conversation are documents that repeat each other: to leave out the own one would not do.
            gives = not document.given and (args.only is None or name in args.only)
            for passage in passages(document.text, args.longest) if gives else ():
                if len(passage) >= SHORTEST:
                    out.write(json.dumps({"sentence": passage, "document": str(number)}, ensure_ascii=False) + "\n")
                    written += 1
            number += 1
    if not written:
        raise ValueError(f"{args.text} holds no passage of {SHORTEST} characters: give another text")
    print(f"{args.out}: {written:,} passages of {number:,} documents")


if __name__ == "__main__":
    run_command(main)
