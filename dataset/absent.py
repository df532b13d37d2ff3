"""A bank that lacks a share of the facts that training asks for, so that a model learns to answer without an entry.

    python -m dataset.absent --knowledge knowledge.json --object object_train.jsonl --share 0.2 --out bank.json

Where every trained question has its entry in the bank, a model learns to copy from the best entry that it finds, also
from one about another subject. The facts are drawn among those of the questions, by the seed; all others stay.
"""

import random
from collections.abc import Iterator
from pathlib import Path

from common.cli import CommandParser, run_command

from .convert import write_knowledge
from .knowledge import Fact, read_knowledge
from .questions import read_questions


def drawn_uuids(questions: Path, share: float, seed: int) -> set[str]:
    """The facts to leave out: a share of those that the questions ask for.

    Raises:
        FileNotFoundError, ValueError: the file is missing or malformed, or no question names a fact.
    """
    asked = sorted({row["uuid"] for row in read_questions(questions, (), None, "object") if row.get("uuid")})
    if not asked:
        raise ValueError(f"{questions} has no question with the uuid of its fact: nothing can be left out")
    return set(random.Random(seed).sample(asked, round(share * len(asked))))


def write_bank(knowledge: Path, questions: Path, share: float, out: Path, seed: int) -> None:
    """Write the knowledge without the facts that are left out.

    Raises:
        FileNotFoundError, ValueError: a file is missing or malformed, the share is none, or no asked fact is known.
    """
    if not 0 < share <= 1:
        raise ValueError(f"--share must lie in (0, 1], got {share}")
    left_out, n_left_out = drawn_uuids(questions, share, seed), 0

    def kept() -> Iterator[Fact]:
        nonlocal n_left_out
        for fact in read_knowledge(knowledge):
            if fact.uuid in left_out:
                n_left_out += 1
            else:
                yield fact
        if not n_left_out:
            raise ValueError(f"{knowledge} has none of the {len(left_out)} facts of {questions} to leave out")

    print(f"{write_knowledge(out, kept())} facts written to {out}, without {n_left_out} that are asked for")


def main() -> None:
    parser = CommandParser(description=__doc__)
    parser.add_argument("--knowledge", type=Path, required=True, help="knowledge file")
    parser.add_argument("--object", type=Path, required=True, help="training questions with the uuids of their facts")
    parser.add_argument("--share", type=float, default=0.2, help="share of the asked facts to leave out")
    parser.add_argument("--seed", type=int, default=0, help="seed of the draw")
    parser.add_argument("--out", type=Path, required=True, help="file to write")
    args = parser.parse_args()
    write_bank(args.knowledge, args.object, args.share, args.out, args.seed)


if __name__ == "__main__":
    run_command(main)
