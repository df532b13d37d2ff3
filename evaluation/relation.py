"""Relation prediction: which of five predicates links subject and object. Chance 20 %."""

from .likelihood import multiple_choice, read_questions
from .settings import Settings

TASK_VERSION = 2
FIELDS = ("subject", "object", "choices", "answer")
PROMPT = "Subject: {subject}\nObject: {object}\nRelation:"


def relation_prediction(model, tokenizer, settings: Settings) -> dict | None:
    if settings.relation_path is None:
        return None
    rows = read_questions(settings.relation_path, FIELDS, settings.limit, "relation_path")
    questions = [(PROMPT.format(**row), [f" {choice}" for choice in row["choices"]]) for row in rows]
    return multiple_choice(model, tokenizer, rows, questions, settings, TASK_VERSION)[1]
