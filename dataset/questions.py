"""Questions about facts: how they are asked, how their files are read, and questions with answers to train on.

python -m dataset.questions --object object_train.jsonl --relation relation_train.jsonl --limit 10000 --out out.jsonl

Each line of the output has a `prompt` and an `answer`. Training on it (`--data_path`) learns the answers alone.
"""

import argparse
import json
import random
from collections.abc import Iterator
from pathlib import Path

from common.cli import run_command
from common.files import atomic, parse_json, read_lines, require_file

# The fields that a question of each kind must have.
FIELDS = {
    "object": ("question", "choices", "answer"),
    "relation": ("subject", "object", "choices", "answer"),
    "verification": ("statement", "answer"),
    "edit": ("uuid", "subject", "predicate", "object", "new_object", "new_sentence", "question"),
}
BLANK = "___"
RELATION_PROMPT = "Subject: {subject}\nObject: {object}\nRelation:"
VERIFICATION_PROMPT = "{statement}\nIs this true?"
YES, NO = " yes", " no"
# The edit task asks in these wordings. Training never uses them.
PARAPHRASES = (
    "Question: What is the {predicate} of {subject}?\nAnswer:",
    "Tell me about {subject}. The {predicate} is",
)
# Training on reworded object questions uses these wordings.
REWORDINGS = ("{predicate} of {subject}:", "For {subject}, give the {predicate}:")


def read_questions(path: str | Path, fields: tuple[str, ...], limit: int | None, flag: str) -> list[dict]:
    """The first `limit` objects of a JSON Lines file; None: all.

    Args:
        fields: what every object must have.  flag: the command-line flag that named the file.
    Raises:
        FileNotFoundError, ValueError: the file is missing or malformed; the message names the line.
    """
    rows = []
    for number, line in read_lines(require_file(path, flag)):
        if len(rows) == limit:
            break
        if line.isspace():
            continue
        row = parse_json(line, f"{path}, line {number}")
        missing = [name for name in fields if not isinstance(row, dict) or name not in row]
        if missing:
            raise ValueError(f"{path}, line {number}: no field {missing[0]!r}")
        rows.append(row)
    return rows


def answer_index(row: dict) -> int:
    """The index of the right choice, from the answer's letter."""
    return ord(row["answer"]) - ord("A")


def counterfactual_index(row: dict) -> int:
    """The index of the wrong choice that the counterfactual bank states."""
    return 1 if row["answer"] == "A" else 0


def split_question(question: str, choices: list[str]) -> tuple[str, list[str]]:
    """The text before the blank, and each choice followed by the text after it. The space belongs to the choice."""
    before, after = question.split(BLANK, 1)
    space = " " if before.endswith(" ") else ""
    return before.rstrip(" "), [space + choice + after for choice in choices]


def object_questions(path: Path, limit: int | None, rng: random.Random, reworded: float) -> Iterator[tuple[str, str]]:
    """(prompt, answer) of object questions; a share of `reworded` names the relation instead."""
    for row in read_questions(path, (*FIELDS["object"], "subject", "predicate"), limit, "object"):
        prompt, choices = split_question(row["question"], row["choices"])
        right = answer_index(row)
        if rng.random() < reworded:
            yield rng.choice(REWORDINGS).format(**row), " " + row["choices"][right]
        else:
            yield prompt, choices[right]


def relation_questions(path: Path, limit: int | None, *_) -> Iterator[tuple[str, str]]:
    """(prompt, answer) of relation questions."""
    for row in read_questions(path, FIELDS["relation"], limit, "relation"):
        yield RELATION_PROMPT.format(**row), " " + row["choices"][answer_index(row)]


def verification_questions(path: Path, limit: int | None, *_) -> Iterator[tuple[str, str]]:
    """(prompt, answer) of statements."""
    for row in read_questions(path, FIELDS["verification"], limit, "verification"):
        yield VERIFICATION_PROMPT.format(**row), YES if row["answer"] == "yes" else NO


KINDS = {"object": object_questions, "relation": relation_questions, "verification": verification_questions}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for kind in KINDS:
        parser.add_argument(f"--{kind}", type=Path, help=f"file of {kind} questions with their answers")
    parser.add_argument("--limit", type=int, help="questions of each file, at most; default: all")
    parser.add_argument(
        "--reworded", type=float, default=0.0,
        help="share of the object questions that name the relation instead of the wording of the entries",
    )  # fmt: skip
    parser.add_argument("--seed", type=int, default=0, help="seed of the order of the questions")
    parser.add_argument("--out", type=Path, required=True, help="file to write")
    args = parser.parse_args()
    rng = random.Random(args.seed)
    paths = {kind: path for kind in KINDS if (path := getattr(args, kind))}
    pairs = [pair for kind, path in paths.items() for pair in KINDS[kind](path, args.limit, rng, args.reworded)]
    if not pairs:
        raise ValueError("no questions: give --object, --relation or --verification")
    random.Random(args.seed).shuffle(pairs)
    with atomic(args.out) as temporary, open(temporary, "w", encoding="utf-8") as file:
        for prompt, answer in pairs:
            file.write(json.dumps({"prompt": prompt, "answer": answer}, ensure_ascii=False) + "\n")
    print(f"{len(pairs)} questions written to {args.out}")


if __name__ == "__main__":
    run_command(main)
