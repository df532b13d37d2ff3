"""Questions about facts: how they are asked, how their files are read, and questions with answers to train on.

    python -m dataset.questions --object object_train.jsonl --relation relation_train.jsonl --out out.jsonl
    python -m dataset.questions facts.tsv --templates templates.json --out dataset/own

The first writes lines with a `prompt` and an `answer`. Training on it (`--data_path`) learns the answers alone.
dataset/wordings.py tells how a share of them is asked in other words.
The second makes text, bank, questions and edits of your own facts (subject, predicate, object), some held out.
docs/examples has such facts and templates; dataset/own.py tells the files and their fields.
"""

from collections.abc import Iterator
from pathlib import Path
from statistics import mean

from common.cli import CommandParser, positive_int, run_command
from common.files import read_lines, require_text

from .formats import data_files, read_records, require_data
from .knowledge import read_values

# The fields that a question of each kind must have.
FIELDS = {
    "object": ("question", "choices", "answer"),
    "relation": ("subject", "object", "choices", "answer"),
    "verification": ("statement", "answer"),
    "edit": ("uuid", "subject", "predicate", "object", "new_object", "new_sentence", "question"),
}
TRAINED = ("object", "relation", "verification")  # the kinds that training learns
VAL_QUESTIONS = 200  # asked at each validation of a training run
BLANK = "___"
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
VERDICTS = {
    "yes": {"yes", "y", "true", "t", "1", "supports", "supported", "correct", "entailment"},
    "no": {"no", "n", "false", "f", "0", "refutes", "refuted", "incorrect", "contradiction"},
}
RELATION_PROMPT = "Subject: {subject}\nObject: {object}\nRelation:"
VERIFICATION_PROMPT = "{statement}\nIs this true?"
QUESTION_PROMPT = "Question: {question}\nAnswer:"  # of questions in others' words
YES, NO = " yes", " no"
# The edit task asks in these wordings. Training never uses them.
PARAPHRASES = (
    "Question: What is the {predicate} of {subject}?\nAnswer:",
    "Tell me about {subject}. The {predicate} is",
)
# Training on reworded object questions uses these wordings, where no others are given (wordings.py).
REWORDINGS = ("{predicate} of {subject}:", "For {subject}, give the {predicate}:")


def read_questions(path: str | Path, fields: tuple[str, ...], limit: int | None, flag: str) -> list[dict]:
    """The first `limit` questions of JSON Lines, a JSON array (both also packed), parquet or a folder; None: all.

    The answer of a multiple choice becomes its letter, that of a statement "yes" or "no", however the file has it.

    Args:
        fields: what every question must have.  flag: the command-line flag that named the file.
    Raises:
        FileNotFoundError, ValueError: the file is missing, malformed, or has no questions; the message names the line.
    """
    return [row for _, row in placed_questions(path, fields, limit, flag)]


def placed_questions(path: str | Path, fields: tuple[str, ...], limit: int | None, flag: str) -> list[tuple[str, dict]]:
    """(place, question) of each: its file and line, for messages. All else as `read_questions`."""
    rows = []
    for place, row in question_values(require_data(path, flag)):
        if len(rows) == limit:
            break
        missing = [name for name in fields if not isinstance(row, dict) or name not in row]
        if missing:
            raise ValueError(f"{place}: no field {missing[0]!r}")
        if not isinstance(row, dict):
            raise ValueError(f"{place}: a question must be a JSON object")
        rows.append((place, normalised(row, fields, place)))
    if not rows:
        raise ValueError(f"{path} has no questions: give another --{flag}")
    return rows


def question_values(path: Path) -> Iterator[tuple[str, object]]:
    """The value of each line, row, or element of a JSON array, with its place.

    Raises:
        ValueError: a file cannot be read, or holds no JSON; the place is named.
    """
    for file in data_files(path):
        is_text = file.suffix != ".parquet"
        start = next((line for _, line in read_lines(file) if not line.isspace()), "") if is_text else ""
        if start.lstrip().startswith("["):
            yield from ((f"{file}, line {number}", value) for number, value in read_values(file))
        else:
            yield from read_records(file)


def read_named(path: str | Path, kind: str, names: tuple[str, ...], limit: int | None, flag: str) -> list[dict] | None:
    """The questions of a kind, if every one of them has these fields as well; else None."""
    rows = read_questions(path, FIELDS[kind], limit, flag)
    if not all(name in row for row in rows for name in names):
        return None
    return read_questions(path, tuple(dict.fromkeys((*FIELDS[kind], *names))), limit, flag)


def chance_of(rows: list[dict]) -> float:
    """The accuracy of guessing, over questions that may have different numbers of choices."""
    return mean(1 / len(row["choices"]) for row in rows)


def normalised(row: dict, fields: tuple[str, ...], place: str) -> dict:
    """A question with texts for texts, and its answer in the one form that tasks use.

    Raises:
        ValueError: a field has another type, the blank is missing, or the answer is none that is known.
    """
    row = {name: value for name, value in row.items() if name not in ("uuid", "part") or value not in (None, "")}
    for name in (*fields, "uuid", "part"):
        if name in row and name not in ("choices", "answer"):
            if type(row[name]) not in (str, int, float):
                raise ValueError(f"{place}: {name!r} must be a text, got {row[name]!r:.40}")
            row[name] = require_text(str(row[name]), place)
    if "question" in fields and BLANK not in row["question"]:
        raise ValueError(f"{place}: the question has no blank {BLANK} where its answer goes")
    if "choices" in fields:
        choices, labels = row["choices"], []
        if isinstance(choices, dict):  # {"text": [...], "label": [...]}, as ARC and CommonsenseQA have it
            choices, labels = choices.get("text"), choices.get("label")
        choices, labels = (x if isinstance(x, list) else [] for x in (choices, labels))
        if not 2 <= len(choices) <= len(LETTERS) or any(type(choice) not in (str, int, float) for choice in choices):
            raise ValueError(f"{place}: 'choices' must be a list of 2 to {len(LETTERS)} texts")
        row["choices"] = [require_text(str(choice), place) for choice in choices]
        if "answer" in fields and labels.count(row["answer"]) == 1 and len(labels) == len(choices):
            row["answer"] = LETTERS[labels.index(row["answer"])]
        elif "answer" in fields:
            row["answer"] = LETTERS[choice_of(row["answer"], row["choices"], place)]
    elif "answer" in fields:
        row["answer"] = verdict_of(row["answer"], place)
    return row


def choice_of(answer, choices: list[str], place: str, letters_first: bool = False) -> int:
    """The index of the right choice, which the answer names by letter, by index from 0, or by its text.

    Args:
        letters_first: a letter is read as a letter even where a choice has that name, as the language C does.

    Raises:
        ValueError: it names none, or two by two of these ways.
    """
    text = str(answer).strip() if type(answer) in (str, int) else ""
    named = {i for i, choice in enumerate(choices) if text and choice.strip() == text}
    named = set() if len(named) > 1 else named
    if letters_first and len(text) == 1 and text in LETTERS[: len(choices)]:
        return LETTERS.index(text)
    letter = text.strip("().:[]").upper()  # "(B)" and "b." are B
    if len(letter) == 1 and letter in LETTERS[: len(choices)]:
        named.add(LETTERS.index(letter))
    if text.isdecimal() and int(text) < len(choices):
        named.add(int(text))
    if len(named) != 1:
        found, last = "two choices" if named else "no choice", len(choices) - 1
        raise ValueError(
            f"{place}: the answer {answer!r:.40} names {found}: write its letter (A to {LETTERS[last]}), its index "
            f"(0 to {last}) or its text"
        )
    return named.pop()


def verdict_of(answer, place: str) -> str:
    """Answer "yes" or "no", from the usual words for a true and a false statement.

    Raises:
        ValueError: it is another word.
    """
    word = str(answer).strip().casefold() if type(answer) in (str, int, bool) else ""
    for verdict, words in VERDICTS.items():
        if word in words:
            return verdict
    raise ValueError(f"{place}: the answer {answer!r:.40} is neither true nor false: write yes or no")


def answer_index(row: dict) -> int:
    """The index of the right choice, from the answer's letter."""
    return LETTERS.index(row["answer"])


def counterfactual_index(row: dict) -> int:
    """The index of the wrong choice that the counterfactual bank states."""
    return 1 if row["answer"] == "A" else 0


def split_question(question: str, choices: list[str]) -> tuple[str, list[str]]:
    """The text before the blank, and each choice followed by the text after it. The space belongs to the choice."""
    before, after = question.split(BLANK, 1)
    space = " " if before.endswith(" ") else ""
    return before.rstrip(" "), [space + choice + after for choice in choices]


def relation_pair(row: dict) -> tuple[str, str]:
    """Prompt and answer of a relation question."""
    return RELATION_PROMPT.format(**row), " " + row["choices"][answer_index(row)]


def verification_pair(row: dict) -> tuple[str, str]:
    """Prompt and answer of a statement."""
    return VERIFICATION_PROMPT.format(**row), YES if row["answer"] == "yes" else NO


def main() -> None:
    parser = CommandParser(description=__doc__)
    for kind in TRAINED:
        parser.add_argument(f"--{kind}", type=Path, help=f"file of {kind} questions with their answers")
    parser.add_argument("--limit", type=positive_int, help="questions of each file, at most; default: all")
    parser.add_argument("--wordings", type=Path, help="JSON: other wordings of each predicate (dataset/wordings.json)")
    parser.add_argument(
        "--reworded", type=float, default=0.0,
        help="share of the object questions in one of the --wordings, or that name the relation; with --wordings also "
        "of the verification questions",
    )  # fmt: skip
    parser.add_argument(
        "--kept_back", type=float, default=0.0,
        help="share of the --wordings of each predicate that are not used here, so that evaluation.calibrate can ask "
        "in them",
    )  # fmt: skip
    parser.add_argument(
        "--shortened", type=float, default=0.0,
        help="share of the statements among them that become the subject with a clause, or with its last words alone",
    )  # fmt: skip
    parser.add_argument(
        "--scrambled", type=float, default=0.0,
        help="share of the object questions in other words that become some words of their wording in any order, so "
        "that words alone tell the relation",
    )  # fmt: skip
    parser.add_argument(
        "--preceded", type=float, default=0.0,
        help="share of all questions with a sentence about another subject before them",
    )  # fmt: skip
    parser.add_argument(
        "--preceded_by", type=Path, help="running text (lines with a `text`): half of those sentences come from it"
    )  # fmt: skip
    own = parser.add_argument_group("your own facts")
    own.add_argument("facts", nargs="?", type=Path, help="TSV or CSV: subject, predicate, object; .gz and .zst too")
    own.add_argument("--templates", type=Path, help="JSON: the wordings of each predicate")
    own.add_argument("--held_out", type=float, default=0.2, help="share of the facts that only the bank states")
    parser.add_argument("--seed", type=int, default=0, help="seed of the order and of the wrong choices")
    parser.add_argument("--out", type=Path, required=True, help="file to write; of your own facts the folder")
    args = parser.parse_args()
    if (args.facts is None) != (args.templates is None):
        raise ValueError("your own facts need both: facts.tsv and --templates templates.json")
    if args.facts:
        if not 0 < args.held_out < 1:
            raise ValueError(f"--held_out must lie between 0 and 1, got {args.held_out}")
        from .own import write_own

        return write_own(args.facts, args.templates, args.out, args.held_out, args.seed)
    from .wordings import write_questions

    write_questions(args)


if __name__ == "__main__":
    run_command(main)
