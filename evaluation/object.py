"""Object prediction: which of five objects completes the sentence. Chance 20 %."""

from .options import multiple_choice, read_questions
from .settings import Settings

TASK_VERSION = 1
FIELDS = ("question", "choices", "answer")
BLANK = "___"


def split_question(question: str, choices: list[str]) -> tuple[str, list[str]]:
    """The words before the blank, and each choice with the words after it. The space stays with the choice."""
    before, after = question.split(BLANK, 1)
    space = " " if before.endswith(" ") else ""
    return before.rstrip(" "), [space + choice + after for choice in choices]


def object_prediction(model, tokenizer, settings: Settings) -> dict | None:
    if settings.object_path is None:
        return None
    rows = read_questions(settings.object_path, FIELDS, settings.limit, "object_path")
    questions = [split_question(row["question"], row["choices"]) for row in rows]
    return multiple_choice(model, tokenizer, rows, questions, settings, TASK_VERSION)
