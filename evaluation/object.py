"""Object prediction: which of five objects completes the sentence. Chance 20 %."""

from .likelihood import multiple_choice, read_questions
from .settings import Settings, accuracy

TASK_VERSION = 2
FIELDS = ("question", "choices", "answer")
BLANK = "___"


def split_question(question: str, choices: list[str]) -> tuple[str, list[str]]:
    """The words before the blank, and each choice with the words after it. The space stays with the choice."""
    before, after = question.split(BLANK, 1)
    space = " " if before.endswith(" ") else ""
    return before.rstrip(" "), [space + choice + after for choice in choices]


def planted_choice(row: dict) -> int:
    """The place of the wrong choice that the counterfactual bank states."""
    return 1 if row["answer"] == "A" else 0


def ask_objects(model, tokenizer, settings: Settings) -> tuple[list[dict], list[int], dict]:
    """The questions, the choices made, and the result."""
    rows = read_questions(settings.object_path, FIELDS, settings.limit, "object_path")
    questions = [split_question(row["question"], row["choices"]) for row in rows]
    chosen, result = multiple_choice(model, tokenizer, rows, questions, settings, TASK_VERSION)
    return rows, chosen, result


def object_prediction(model, tokenizer, settings: Settings) -> dict | None:
    """Accuracy, and as `planted` the share of answers that the counterfactual bank would give."""
    if settings.object_path is None:
        return None
    rows, chosen, result = ask_objects(model, tokenizer, settings)
    planted = [choice == planted_choice(row) for row, choice in zip(rows, chosen, strict=True)]
    return result | {"planted": accuracy(planted, result["chance"], settings, TASK_VERSION)}
