"""Object questions in other words than the bank's: the wordings of the paraphrase score of edits. Chance 20 %."""

from .edits import PARAPHRASES
from .likelihood import multiple_choice, read_questions
from .object import FIELDS
from .settings import Settings

TASK_VERSION = 1


def reworded(model, tokenizer, settings: Settings) -> dict | None:
    """Accuracy over all wordings, and of each of them; the choices are those of the object questions."""
    if settings.object_path is None:
        return None
    fields = ("subject", "predicate", *FIELDS)
    rows = read_questions(settings.object_path, fields, settings.limit, "object_path")
    every_row, questions = [], []
    for wording in PARAPHRASES:
        every_row += [row | {"part": wording.format(subject="X", predicate="Y")} for row in rows]
        questions += [(wording.format(**row), [f" {choice}" for choice in row["choices"]]) for row in rows]
    return multiple_choice(model, tokenizer, every_row, questions, settings, TASK_VERSION)[1]
