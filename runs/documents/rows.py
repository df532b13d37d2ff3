"""The rows of results, and how one of them is named and written.

A KEY is PROTOCOL/SPLIT/EXPERIMENT/ARM/MEASURE for `experiment/results.jsonl`, such as
knowledge-10k/held-out/1.5.0/memory/object; BENCHMARK/FIELD=VALUE,.../FIELD for `benchmark/results/`, such as
step/model=1_5_2,batch_size=48/ratio_to_plain; and log/NAME for `experiment/log.jsonl`. Of rows with one key the newest
counts, and of equally new ones the last in its file.
"""

import json
from dataclasses import dataclass
from pathlib import Path

MISSING = "–"
# How a value is written, by its unit; fields of benchmark rows have theirs in FIELDS.
UNITS = {"%": "{:.1f} %", "nats/token": "{:.3f}", "tokens/s": "{:,.0f}", "of plain": "{:.2f}", "GiB": "{:.1f} GiB"}
FIELDS = {
    "tokens_per_s": "{:,.0f}", "step_ms": "{:.1f} ms", "token_ms": "{:.2f} ms", "ms": "{:.2f} ms", "floor_ms": "{:.2f} ms",
    "ratio_to_plain": "{:.2f}", "ratio_to_ours": "{:.1f}", "peak_gib": "{:.1f} GiB", "growth": "{:.3f}",
    "first_step_s": "{:.0f} s", "mb_per_s": "{:.1f} MB/s", "waited_share": "{:.1%}", "mfu": "{:.1%}",
}  # fmt: skip


def read_rows(path: Path) -> list[dict]:
    """The objects of a JSON Lines file; none if it does not exist.

    Raises:
        ValueError: a line is not a JSON object.
    """
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines() if path.exists() else (), 1):
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError as problem:
            raise ValueError(f"{path}, line {number}: not a JSON object ({problem.msg})") from None
    return rows


@dataclass(frozen=True)
class Rows:
    results: list[dict]
    benchmarks: list[dict]
    log: list[dict]
    curves: list[dict]
    readings: list[dict]

    @classmethod
    def load(cls, root: Path) -> "Rows":
        folder = root / "experiment"
        return cls(
            read_rows(folder / "results.jsonl"),
            [row for path in sorted((root / "benchmark/results").glob("*.jsonl")) for row in read_rows(path)],
            read_rows(folder / "log.jsonl"), read_rows(folder / "curves.jsonl"), read_rows(folder / "readings.jsonl"),
        )  # fmt: skip

    def result(self, protocol: str, split: str, experiment: str, arm: str, measure: str) -> dict | None:
        wanted = {
            "protocol": protocol, "split": split, "experiment": experiment, "arm": arm, "measure": measure,
        }  # fmt: skip
        return newest(self.results, wanted)

    def benchmark(self, benchmark: str, **fields) -> dict | None:
        return newest(self.benchmarks, {"benchmark": benchmark} | fields)

    def value(self, key: str) -> str:
        """The text of a KEY.

        Raises:
            ValueError: no row has this key.
        """
        parts, row = key.split("/"), None
        if parts[0] == "log":
            row = newest(self.log, {"key": "/".join(parts[1:])})
        elif len(parts) == 5:
            row = self.result(*parts)
        elif len(parts) == 3:
            fields = dict(word.split("=", 1) for word in parts[1].split(","))
            row = self.benchmark(parts[0], **{name: number_or_text(text) for name, text in fields.items()})
            if row and parts[2] in row:
                return FIELDS[parts[2]].format(row[parts[2]])
            row = None
        if row is None:
            raise ValueError(f"no row has the key {key}")
        return text_of(row)


def newest(rows: list[dict], wanted: dict) -> dict | None:
    """Of the rows with these values the one with the latest date, and of equal dates the last."""
    best = None
    for row in rows:
        if all(row.get(name) == value for name, value in wanted.items()):
            if best is None or row.get("date", "") >= best.get("date", ""):
                best = row
    return best


def number_or_text(text: str) -> int | float | str:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def text_of(row: dict | None, with_unit: bool = True) -> str:
    """A row's value as documents show it; a dash where there is no row."""
    if row is None:
        return MISSING
    value, unit = row["value"], row["unit"]
    if unit in UNITS:
        form = "{:.0f} %" if unit == "%" and isinstance(value, int) else UNITS[unit]
        text = form.format(value)
        return text if with_unit else text.removesuffix(f" {unit}")
    return f"{value:,}" + (f" {unit}" if with_unit and unit else "")
