"""Which entry of the bank states the fact that a question asks for (the gold entry)."""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from common.constants import NO_ENTRY
from dataset.edit_cases import read_cases
from dataset.formats import require_data
from dataset.knowledge import Bank, Fact, read_knowledge
from dataset.language_sets import read_sets
from dataset.public_questions import read_inserts, read_pararel
from dataset.questions import FIELDS, read_questions
from runs.load import load_run_bank

from .config import EvalConfig
from .lookup import LookUp

CASE_FILES = ("counterfact_path", "zsre_path")
QUESTION_FILES = (
    "object_path",
    "relation_path",
    "verification_path",
    "edit_path",
    "pararel_path",
    "insert_path",
    *CASE_FILES,
)


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

    @cached_property
    def look_up(self) -> LookUp:
        """The look-up without a model over all entries; built once."""
        return LookUp.of(self.every())

    @cached_property
    def frequency(self) -> Counter:
        """How often each (predicate, object) stands in the entries; counted once."""
        return Counter((fact.predicate, fact.object) for _, fact in self.every())

    def row(self, question: dict) -> int:
        """The row of the fact; NO_ENTRY if the bank does not state it."""
        return self.rows.get(question.get("uuid"), NO_ENTRY)

    def fact(self, question: dict) -> Fact | None:
        """The fact; None if the knowledge file does not have it."""
        return self.facts.get(question.get("uuid"))


def require_questions(config: EvalConfig) -> None:
    """Read every file of questions and find the validation text, before any task runs.

    Raises:
        FileNotFoundError, ValueError: a file is missing or malformed.
    """
    if config.val_path:
        require_data(config.val_path, "val_path")
    read_sets(config.language_sets, config.limit)
    for kind in ("object", "relation", "verification", "edit"):
        if path := getattr(config, f"{kind}_path"):
            read_questions(path, FIELDS[kind], config.limit, f"{kind}_path")
    if config.pararel_path:
        read_pararel(config.pararel_path, config.limit)
    if config.insert_path:
        read_inserts(config.insert_path, config.limit)
    for name in CASE_FILES:
        if path := getattr(config, name):
            read_cases(path, config.limit, name)


def find_gold(
    run_dir: Path, model, tokenizer, config: EvalConfig, default_path: str, knowledge_path: str | None = None,
    bank: Bank | None = None,
) -> Gold | None:  # fmt: skip
    """The gold entries of all questions that name a fact by its uuid; None where no question does.

    Args:
        default_path: the knowledge file in the flags of the run.  knowledge_path: another place of the same file.
        bank: another bank, which the model reads in place of the one of its training.
    Raises:
        FileNotFoundError, ValueError: a file of questions or of knowledge is missing, malformed, or another one than
            in the training.
    """
    uuids, path = set(), knowledge_path or default_path
    for name in QUESTION_FILES:
        if questions := getattr(config, name):
            is_insert = name == "insert_path"  # it may be a table
            rows = (read_inserts(questions, config.limit) if is_insert
                    else read_questions(questions, (), config.limit, name))  # fmt: skip
            uuids |= {row["uuid"] for row in rows if "uuid" in row}
            if name in CASE_FILES:
                uuids |= {one["uuid"] for row in rows for one in row.get("neighbours") or () if one.get("uuid")}
    if not uuids:
        return None
    if model.settings.reads_bank:
        bank = bank or load_run_bank(run_dir, model, tokenizer, knowledge_path, config.cache_dir)
        asked = [(row, fact) for row, fact in bank.facts() if fact.uuid in uuids]
        return Gold({fact.uuid: row for row, fact in asked}, {fact.uuid: fact for _, fact in asked}, bank.facts)
    # The knowledge file of a plain run may be a default that does not exist. Then there is no oracle in the prompt.
    if not knowledge_path and not (path and Path(path).exists()):
        return None
    return Gold({}, {fact.uuid: fact for fact in read_knowledge(path) if fact.uuid in uuids}, lambda: iter(()))
