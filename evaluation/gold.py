"""Which entry of the bank holds the fact that a question asks for."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from common.constants import NO_ENTRY
from dataset.knowledge import Fact, load_run_bank, read_knowledge


@dataclass(frozen=True)
class Gold:
    """The bank's rows of facts, by the facts' uuid, and the facts themselves."""

    rows: dict[str, int]
    facts: dict[str, Fact]
    every: Callable[[], Iterator[tuple[int, Fact]]]  # all entries of the bank with their facts

    def row(self, question: dict) -> int:
        """NO_ENTRY where the fact is not in the bank."""
        return self.rows.get(question.get("uuid"), NO_ENTRY)

    def fact(self, question: dict) -> Fact | None:
        return self.facts.get(question.get("uuid"))


def find_gold(run_dir: Path, knowledge_path: str, tokenizer, uuids: set[str], reads_bank: bool) -> Gold:
    """Look up facts by uuid in the knowledge file of a run; a model without a memory has no rows.

    Raises:
        FileNotFoundError, ValueError: the knowledge file is not where the run found it, or has changed.
    """
    if not reads_bank:
        known = {fact.uuid: fact for fact in read_knowledge(knowledge_path) if fact.uuid in uuids}
        return Gold({}, known, lambda: iter(()))
    bank = load_run_bank(run_dir, tokenizer)
    asked = [(row, fact) for row, fact in bank.facts() if fact.uuid in uuids]
    return Gold({fact.uuid: row for row, fact in asked}, {fact.uuid: fact for _, fact in asked}, bank.facts)
