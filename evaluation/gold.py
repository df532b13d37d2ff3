"""Which entry of the bank holds the fact that a question asks for."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dataset.memory_init import Fact, load_bank, read_knowledge
from model.ngrams import NO_ENTRY


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


def find_gold(run_dir: Path, flags: dict, tokenizer, uuids: set[str], reads_bank: bool) -> Gold:
    """Look up facts by uuid in the knowledge file of a run; a model without a memory has no rows.

    Raises:
        FileNotFoundError, ValueError: the knowledge file is not where the run found it, or has changed.
    """
    data, model = flags["data"], flags["model"]
    if not reads_bank:
        known = {fact.uuid: fact for fact in read_knowledge(data["database_init_path"]) if fact.uuid in uuids}
        return Gold({}, known, lambda: iter(()))
    bank = load_bank(
        data["database_init_path"], tokenizer, model["knowledge_num"], model["knowledge_length"], data["cache_dir"]
    )
    place_N = np.arange(model["knowledge_num"])
    if (run_dir / "bank_rows.npy").exists():  # the bank was ordered by content: place -> row of the file
        place_N = np.argsort(np.load(run_dir / "bank_rows.npy"))

    def every() -> Iterator[tuple[int, Fact]]:
        with open(bank.folder / "facts.jsonl", encoding="utf-8") as file:
            for place, line in zip(place_N.tolist(), file, strict=True):
                yield place, Fact(**json.loads(line))

    asked = [(place, fact) for place, fact in every() if fact.uuid in uuids]
    return Gold({fact.uuid: place for place, fact in asked}, {fact.uuid: fact for _, fact in asked}, every)
