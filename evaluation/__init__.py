"""One task, one file, one function(model, tokenizer, settings) -> dict, or None where its data is not given."""

from .edits import edits
from .exact_match import exact_match
from .frequency import frequency
from .generation import generation
from .language import language
from .lookup import lookup
from .object import object_prediction
from .relation import relation_prediction
from .retrieval import retrieval
from .reworded import reworded
from .settings import Settings
from .usage import bank_usage
from .verification import fact_verification

TASKS = {
    "language": language,
    "object": object_prediction,
    "reworded": reworded,
    "exact_match": exact_match,
    "relation": relation_prediction,
    "verification": fact_verification,
    "frequency": frequency,
    "lookup": lookup,
    "retrieval": retrieval,
    "edits": edits,
    "usage": bank_usage,
    "generation": generation,
}

__all__ = ["TASKS", "Settings"]
