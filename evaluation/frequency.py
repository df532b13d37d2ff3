"""What guessing by frequency would reach: the answers that the bank's other facts make likely, without the asked fact.

A model has learnt something about the asked facts themselves only where it is above this, not merely above chance.
"""

from collections import Counter
from statistics import median

from . import object as object_task
from . import relation, verification
from .likelihood import letter, read_questions
from .settings import Settings, accuracy

TASK_VERSION = 1


def frequency(model, tokenizer, settings: Settings) -> dict | None:
    """For each question set, the accuracy of the choice whose predicate and object meet most often in the bank.

    A statement counts as true if they meet more often than in the median statement. None where the bank is unknown.
    """
    if settings.gold is None:
        return None
    counts = Counter((fact.predicate, fact.object) for _, fact in settings.gold.every())
    if not counts:
        return None
    asked = {(fact.subject, fact.predicate, fact.object) for fact in settings.gold.facts.values()}

    def often(subject: str, predicate: str, object: str) -> int:
        return counts[predicate, object] - ((subject, predicate, object) in asked)

    result = {}
    if settings.object_path:
        rows = read_questions(
            settings.object_path, ("subject", "predicate", *object_task.FIELDS), settings.limit, "object_path"
        )
        right = [
            letter(row) == best([often(row["subject"], row["predicate"], choice) for choice in row["choices"]])
            for row in rows
        ]
        result["object"] = accuracy(right, 1 / len(rows[0]["choices"]), settings, TASK_VERSION)
    if settings.relation_path:
        rows = read_questions(settings.relation_path, relation.FIELDS, settings.limit, "relation_path")
        right = [
            letter(row) == best([often(row["subject"], choice, row["object"]) for choice in row["choices"]])
            for row in rows
        ]
        result["relation"] = accuracy(right, 1 / len(rows[0]["choices"]), settings, TASK_VERSION)
    if settings.verification_path:
        fields = ("subject", "predicate", "object", *verification.FIELDS)
        rows = read_questions(settings.verification_path, fields, settings.limit, "verification_path")
        lean = [often(row["subject"], row["predicate"], row["object"]) for row in rows]
        middle = median(lean)
        right = [(count > middle) == (row["answer"] == "yes") for row, count in zip(rows, lean, strict=True)]
        result["verification"] = accuracy(right, 0.5, settings, TASK_VERSION)
    return result


def best(counts: list[int]) -> int:
    return max(range(len(counts)), key=lambda i: counts[i])
