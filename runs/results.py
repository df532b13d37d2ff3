"""Rows of results: every number that a document states, with its evidence, one JSON object a line.

    python -m experiment keep out/knowledge_1_5_0_10000_seed*

`read_rows` checks the file, `find` picks the one row that is asked for, `append_rows` adds rows and refuses duplicates.
`runs.keep` makes rows of finished runs.
"""

import json
import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, fields
from datetime import date
from pathlib import Path

from common.files import atomic, parse_json, read_lines

PATH = Path(__file__).parents[1] / "experiment" / "results.jsonl"
ARMS = {
    "plain": "the model without a memory",
    "memory": "the model with its memory",
    "shuffled": "every entry of the bank is in another entry's row",
    "counterfactual": "the entry of every asked fact states a wrong object",
    "oracle": "every position reads the entry that holds the answer",
    "prompt": "the prompt holds the sentence with the answer",
    "in_context": "the prompt holds the entries that a retrieval finds",
    "lookup": "no model: a word index reads the answer from the best entries of the bank",
    "search_alone": "no model: the same rule over the entries that the memory's own search finds",
    "no_memory": "every entry of the bank is padding, which is not read",
    "frequency": "no model: the answer that is most frequent in the bank's other facts",
    "chance": "no model: a guess",
}
# Two rows that agree in all of these are duplicates.
IDENTITY = ("experiment", "arm", "measure", "split", "protocol", "seeds", "commit", "machine")


@dataclass(frozen=True)
class Row:
    """One number and its evidence.

    Raises:
        ValueError: a field has a value that it cannot have.
    """

    experiment: str  # such as 1.5.0
    arm: str  # one of ARMS
    measure: str  # the name of a metric in runs.metrics, or one that the note explains
    value: float  # the mean over the seeds
    unit: str  # such as %, nats/token, tokens/s, MiB; empty for a plain number
    n: int | None  # questions or tokens of one seed's evaluation
    seeds: list[int]  # empty where a run has none or the source does not say
    values: list[float]  # one for each seed; empty where the source does not say
    interval: list[float] | None  # 95 %: [low, high]; None needs a note
    split: str  # dev, val or train
    protocol: str  # such as knowledge-10k, pretraining, quickstart
    commit: str
    machine: str
    date: str  # such as 2026-11-26
    command: str
    source: str  # "run", or "README of <commit>"
    note: str = field(default="")

    def __post_init__(self):
        for name in ("experiment", "measure", "split", "protocol", "commit", "machine", "source"):
            value = getattr(self, name)
            require(isinstance(value, str) and value.strip(), f"{name} must be a text, got {value!r}")
        require(self.arm in ARMS, f"arm {self.arm!r} is not one of {', '.join(ARMS)}")
        require(is_number(self.value), f"value must be a finite number, got {self.value!r}")
        require(self.n is None or type(self.n) is int and self.n > 0, f"n must be a positive count, got {self.n!r}")
        require(all(type(seed) is int for seed in self.seeds), f"seeds must be whole numbers, got {self.seeds!r}")
        require(all(map(is_number, self.values)), f"values must be finite numbers, got {self.values!r}")
        require(
            not self.values or len(self.values) == max(1, len(self.seeds)),
            f"{len(self.values)} values for {len(self.seeds)} seeds",
        )
        if self.interval is None:
            require(bool(self.note), "an interval of null needs a note that says why")
        else:
            require(
                len(self.interval) == 2 and all(map(is_number, self.interval)), f"interval {self.interval!r} is no pair"
            )
            low, high = self.interval
            require(low <= self.value <= high, f"value {self.value} lies outside its interval {self.interval}")
        try:
            date.fromisoformat(self.date)
        except (TypeError, ValueError):
            raise ValueError(f"date must look like 2026-11-26, got {self.date!r}") from None

    @property
    def key(self) -> str:
        """`experiment/arm/measure/split/protocol`: what `find` and the marks of documents name a row by."""
        return "/".join((self.experiment, self.arm, self.measure, self.split, self.protocol))

    @property
    def identity(self) -> tuple:
        return tuple(str(getattr(self, name)) for name in IDENTITY)

    def as_line(self) -> str:
        return json.dumps({k: v for k, v in asdict(self).items() if k != "note" or v}, ensure_ascii=False)


def require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


def is_number(value) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def row_from(value: dict) -> Row:
    """A row from its JSON object.

    Raises:
        ValueError: a field is missing, unknown or wrong.
    """
    require(isinstance(value, dict), "a row must be a JSON object")
    known = [f.name for f in fields(Row)]
    if unknown := sorted(set(value) - set(known)):
        raise ValueError(f"unknown field {unknown[0]!r}: the fields are {', '.join(known)}")
    if missing := [name for name in known if name not in value and name != "note"]:
        raise ValueError(f"no field {missing[0]!r}")
    for name in ("seeds", "values"):
        require(isinstance(value[name], list), f"{name} must be a list, got {value[name]!r}")
    require(value["interval"] is None or isinstance(value["interval"], list), "interval must be [low, high] or null")
    return Row(**value)


def read_rows(path: str | Path = PATH) -> list[Row]:
    """All rows of a file, in its order; none where there is no file yet.

    Raises:
        ValueError: a line is not a row, or states what another line states; file and line are named.
    """
    path, rows, seen = Path(path), [], {}
    if not path.exists():
        return []
    for number, line in read_lines(path):
        if line.isspace():
            continue
        where = f"{path}, line {number}"
        try:
            row = row_from(parse_json(line, where))
        except ValueError as problem:
            text = str(problem)
            raise ValueError(text if text.startswith(where) else f"{where}: {text}") from None
        if row.identity in seen:
            raise ValueError(
                f"{where}: {row.key} of these seeds and this commit is in line {seen[row.identity]} already"
            )
        seen[row.identity] = number
        rows.append(row)
    return rows


def find(rows: Iterable[Row], **wanted) -> Row:
    """The one row with these fields, such as `find(rows, experiment="1.5.0", arm="memory", measure="object")`.

    Raises:
        ValueError: there is none, or several.
    """
    found = [row for row in rows if all(getattr(row, name) == value for name, value in wanted.items())]
    if len(found) == 1:
        return found[0]
    described = ", ".join(f"{name} {value}" for name, value in wanted.items())
    if not found:
        raise ValueError(f"results.jsonl has no row with {described}")
    raise ValueError(
        f"results.jsonl has {len(found)} rows with {described}: {', '.join(row.key for row in found[:4])}, ..."
    )


def append_rows(new: list[Row], path: str | Path = PATH) -> None:
    """Add rows at the end of the file, all of them or none.

    Raises:
        ValueError: a row is in the file already, or twice among the new ones.
    """
    path = Path(path)
    known = {row.identity for row in read_rows(path)}
    for row in new:
        if row.identity in known:
            raise ValueError(f"{path} has {row.key} of these seeds and this commit already: remove its line first")
        known.add(row.identity)
    old = path.read_text(encoding="utf-8") if path.exists() else ""
    if old and not old.endswith("\n"):
        old += "\n"
    with atomic(path) as temporary:
        temporary.write_text(old + "".join(row.as_line() + "\n" for row in new), encoding="utf-8")
