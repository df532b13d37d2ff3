"""The rows of results, and how one of them is named and written.

A KEY is EXPERIMENT/ARM/MEASURE/SPLIT/PROTOCOL for `experiment/results.jsonl`, such as
1.5.0/memory/object/held-out/knowledge-10k, where * stands for any experiment; and BENCHMARK/FIELD=VALUE,.../FIELD for
`benchmark/results/`, such as step/model=1_5_2,batch_size=48/ratio_to_plain. Of rows with one key the newest counts, and
of equally new ones the last in its file.
"""

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from common.files import parse_json, read_lines
from runs.record import record_path
from runs.results import Row, read_rows
from runs.scripts import ARCHIVE, base_of, comments_of, number_of, order_of, scripts

MISSING = "–"
# How a value is written, by its unit; fields of benchmark rows have theirs in FIELDS.
UNITS = {
    "%": "{:.1f} %",
    "nats/token": "{:.3f}",
    "tokens/s": "{:,.0f}",
    "of plain": "{:.2f}",
    "of four": "{:.2f}",
    "GiB": "{:.1f} GiB",
    "MiB": "{:,.0f} MiB",
}
FIELDS = {
    "step_ms": "{:.1f} ms", "token_ms": "{:.2f} ms", "ms": "{:.2f} ms", "floor_ms": "{:.2f} ms",
    "ratio_to_plain": "{:.2f}", "ratio_to_ours": "{:.1f}", "peak_gib": "{:.1f} GiB", "growth": "{:.3f}",
    "first_step_s": "{:.0f} s", "mb_per_s": "{:.1f} MB/s", "waited_share": "{:.1%}", "mfu": "{:.1%}",
    "plain_mfu": "{:.1%}",
}  # fmt: skip


def read_objects(path: Path) -> list[dict]:
    """The objects of a JSON Lines file; none if it does not exist.

    Raises:
        ValueError: a line is not valid JSON; file and line are named.
    """
    if not path.exists():
        return []
    return [parse_json(line, f"{path}, line {number}") for number, line in read_lines(path)]


def tree_of_scripts(root: Path) -> list[dict]:
    """Every experiment that has a script, in the order of the numbers; `record` is relative to experiment/."""
    found = []
    for path in sorted(scripts(root), key=order_of):
        told, number, base = comments_of(path), number_of(path), base_of(path)
        record = record_path(number, root / "experiment")
        found.append({
            "number": number.replace("_", "."), "base": base and base.replace("_", "."),
            "question": told.get("Question", ""), "change": told.get("Change", ""),
            "archived": path.parent.name == ARCHIVE,
            "record": record.relative_to(root / "experiment").as_posix() if record.exists() else None,
        })  # fmt: skip
    return found


@dataclass(frozen=True)
class Rows:
    """All rows of a project: results, benchmarks, history of speed, curves of losses, and what a sentence read."""

    results: list[Row]
    benchmarks: list[dict]
    log: list[dict]
    curves: list[dict]
    readings: list[dict]
    tree: list[dict] = field(default_factory=list)  # the experiments: number, base, question, change, archived, record

    @classmethod
    def load(cls, root: Path) -> "Rows":
        folder = root / "experiment"
        return cls(
            read_rows(folder / "results.jsonl"),
            [row for path in sorted((root / "benchmark/results").glob("*.jsonl")) for row in read_objects(path)],
            *(read_objects(folder / f"{name}.jsonl") for name in ("log", "curves", "readings")),
            tree_of_scripts(root),
        )

    def result(self, *key: str) -> Row | None:
        """The newest row of experiment, arm, measure, split and protocol; the experiment * is any."""
        return self.newest_results.get("/".join(key))

    @cached_property
    def newest_results(self) -> dict[str, Row]:
        """The newest row of each key, also of keys with * for the experiment."""
        found: dict[str, Row] = {}
        for row in self.results:
            for key in (row.key, row.key.replace(row.experiment, "*", 1)):
                if key not in found or row.date >= found[key].date:
                    found[key] = row
        return found

    def benchmark(self, benchmark: str, **fields) -> dict | None:
        return newest(self.benchmarks, {"benchmark": benchmark} | fields)

    def value(self, key: str) -> str:
        """The text of a KEY.

        Raises:
            ValueError: no row has this key.
        """
        parts = key.split("/")
        if len(parts) == 5 and (row := self.result(*parts)):
            return text_of(row.value, row.unit)
        if len(parts) == 3 and "=" in parts[1]:
            fields = dict(word.split("=", 1) for word in parts[1].split(","))
            row = self.benchmark(parts[0], **{name: number_or_text(text) for name, text in fields.items()})
            if row and parts[2] in row:
                return field_text(parts[2], row[parts[2]])
        raise ValueError(f"no row has the key {key}")


def newest(rows: list[dict], wanted: dict) -> dict | None:
    """Of the rows with these values the one with the latest date, and of equal dates the last."""
    found = [row for row in rows if all(row.get(name) == value for name, value in wanted.items())]
    return max(reversed(found), key=lambda row: row.get("date", "")) if found else None


def field_text(name: str, value: float) -> str:
    """A field of a benchmark's row, as documents show it; speeds to the thousand, where there are thousands."""
    if name == "tokens_per_s":
        return f"{round(value, -3 if value >= 1e5 else 0):,.0f}"
    return FIELDS[name].format(value)


def number_or_text(text: str) -> int | float | str:
    if "_" in text:  # Python would read 1_5_2 as a number
        return text
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def text_of(value: float, unit: str) -> str:
    """A value with its unit, as documents show it."""
    if unit in UNITS:
        return ("{:.0f} %" if unit == "%" and isinstance(value, int) else UNITS[unit]).format(value)
    return f"{value:,} {unit}".strip()
