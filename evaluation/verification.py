"""Fact verification: is the statement true. Chance 50 %."""

from statistics import median

from .likelihood import read_questions, score_options
from .settings import Settings, accuracy, by_part

TASK_VERSION = 1
FIELDS = ("statement", "answer")
PROMPT = "{statement}\nIs this true?"
YES, NO = " yes", " no"


def fact_verification(model, tokenizer, settings: Settings) -> dict | None:
    """Accuracy of "yes" being likelier than "no"; and as `calibrated`, of yes for the half of the statements that lean
    to it most, because a model that was never asked prefers one word whatever the statement."""
    if settings.verification_path is None:
        return None
    rows = read_questions(settings.verification_path, FIELDS, settings.limit, "verification_path")
    questions = [(PROMPT.format(**row), [YES, NO]) for row in rows]
    lean = [yes - no for (yes, _), (no, _) in score_options(model, tokenizer, rows, questions, settings)]
    truth = [row["answer"] == "yes" for row in rows]
    result = by_part(
        rows, [(margin > 0) == true for margin, true in zip(lean, truth, strict=True)], 0.5, settings, TASK_VERSION
    )
    middle = median(lean)
    calibrated = [(margin > middle) == true for margin, true in zip(lean, truth, strict=True)]
    return result | {"calibrated": accuracy(calibrated, 0.5, settings, TASK_VERSION)}
