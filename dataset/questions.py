"""Training questions for fine-tuning, worded as the evaluation asks them.

python -m dataset.questions --object object_train.jsonl --relation relation_train.jsonl --limit 10000 --out out.jsonl

Each line has a `prompt` and an `answer`; a run with `--data_path out.jsonl` learns the answers alone.
"""

import argparse
import json
import random
import sys
from collections.abc import Iterator
from pathlib import Path

from common.files import atomic
from evaluation import object as object_task
from evaluation import relation, verification
from evaluation.likelihood import read_questions

# Other than those of `edits.PARAPHRASES`, which stay unseen.
REWORDINGS = ("{predicate} of {subject}:", "For {subject}, give the {predicate}:")


def object_questions(path: Path, limit: int | None, rng: random.Random, reworded: float) -> Iterator[tuple[str, str]]:
    for row in read_questions(path, (*object_task.FIELDS, "subject", "predicate"), limit, "object"):
        prompt, choices = object_task.split_question(row["question"], row["choices"])
        right = ord(row["answer"]) - ord("A")
        if rng.random() < reworded:
            yield rng.choice(REWORDINGS).format(**row), " " + row["choices"][right]
        else:
            yield prompt, choices[right]


def relation_questions(path: Path, limit: int | None, *_) -> Iterator[tuple[str, str]]:
    for row in read_questions(path, relation.FIELDS, limit, "relation"):
        yield relation.PROMPT.format(**row), " " + row["choices"][ord(row["answer"]) - ord("A")]


def verification_questions(path: Path, limit: int | None, *_) -> Iterator[tuple[str, str]]:
    for row in read_questions(path, verification.FIELDS, limit, "verification"):
        yield verification.PROMPT.format(**row), verification.YES if row["answer"] == "yes" else verification.NO


KINDS = {"object": object_questions, "relation": relation_questions, "verification": verification_questions}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for kind in KINDS:
        parser.add_argument(f"--{kind}", type=Path, help=f"file of {kind} questions with their answers")
    parser.add_argument("--limit", type=int, help="the first so many questions of each file")
    parser.add_argument(
        "--reworded", type=float, default=0.0,
        help="share of the object questions that name the relation instead of using the wording of the entries",
    )  # fmt: skip
    parser.add_argument("--seed", type=int, default=0, help="of the order in which the kinds are mixed")
    parser.add_argument("--out", type=Path, required=True)
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
    try:
        main()
    except (ValueError, FileNotFoundError) as problem:
        sys.exit(f"error: {problem}")
