"""Which entry of the bank states the fact that a question asks for (the gold entry)."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from common.constants import NO_ENTRY
from dataset.knowledge import Fact, load_run_bank, read_knowledge
from dataset.questions import read_questions

from .config import EvalConfig

QUESTION_FILES = ("object_path", "relation_path", "verification_path", "edit_path")


@dataclass(frozen=True)
class Gold:
    """The facts that questions ask for, by uuid.

    Attributes:
        rows: the row of the bank that states each fact.
        facts: the facts themselves.
        every: yields (row, fact) for all entries of the bank.
    """

    rows: dict[str, int]
    facts: dict[str, Fact]
    every: Callable[[], Iterator[tuple[int, Fact]]]

    def row(self, question: dict) -> int:
        """The row of the fact; NO_ENTRY if the bank does not state it."""
        return self.rows.get(question.get("uuid"), NO_ENTRY)

    def fact(self, question: dict) -> Fact | None:
        """The fact; None if the knowledge file does not have it."""
        return self.facts.get(question.get("uuid"))


def gold_of_run(run_dir: Path, flags: dict, model, tokenizer, config: EvalConfig) -> Gold | None:
    """The gold entries of all questions that name a fact; None where no question does.

    Raises:
        FileNotFoundError, ValueError: a file of questions or of knowledge is missing or malformed.
    """
    uuids = set()
    for name in QUESTION_FILES:
        if path := getattr(config, name):
            uuids |= {row["uuid"] for row in read_questions(path, (), config.limit, name) if "uuid" in row}
    knowledge, reads_bank = flags["data"]["database_init_path"], model.settings.reads_bank
    # The knowledge file of a plain run may be a default that does not exist. Then there is no oracle in the prompt.
    if not uuids or not knowledge or not (reads_bank or Path(knowledge).is_file()):
        return None
    return find_gold(run_dir, knowledge, tokenizer, uuids, reads_bank)


def find_gold(run_dir: Path, knowledge_path: str, tokenizer, uuids: set[str], reads_bank: bool) -> Gold:
    """Look up facts in the knowledge file of a run by their uuid. A model without a memory has no rows.

    Raises:
        FileNotFoundError, ValueError: the knowledge file is missing, or differs from the one of the training.
    """
    if not reads_bank:
        known = {fact.uuid: fact for fact in read_knowledge(knowledge_path) if fact.uuid in uuids}
        return Gold({}, known, lambda: iter(()))
    bank = load_run_bank(run_dir, tokenizer)
    asked = [(row, fact) for row, fact in bank.facts() if fact.uuid in uuids]
    return Gold({fact.uuid: row for row, fact in asked}, {fact.uuid: fact for _, fact in asked}, bank.facts)
