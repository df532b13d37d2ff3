"""The search of a memory without its model: the choice that stands in the best of the entries that it finds.

The model reads the same entries, as many of them. Where it is not above this rule, reading them has added nothing to
finding them. Only indexes that rank entries (`--retrieval ngram`, `bm25`) can be asked alone.
"""

from dataset.questions import split_question

from .config import EvalConfig
from .in_context import EntryFinder
from .lookup import answered_by


def finder_of(model, tokenizer) -> EntryFinder | None:
    """Finds what the model's own search finds at the end of a prompt; None where that cannot be asked alone."""
    kind = model.settings.index_class if model.settings.reads_bank else None
    return EntryFinder(model, tokenizer) if kind is not None and kind.keeps_matches else None


def search_alone(model, tokenizer, config: EvalConfig) -> dict | None:
    """The answers of the look-up's rule from the entries that the model's own search finds."""
    finder = finder_of(model, tokenizer)
    return finder and answered_by(
        finder.entries, config, lambda row: split_question(row["question"], row["choices"])[0]
    )
