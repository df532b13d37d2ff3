"""What every generated table shares: cells from rows, Markdown, and the line that says where the numbers come from."""

import re
import textwrap
from collections.abc import Iterable

from .rows import MISSING, Row, Rows, field_text, text_of

CHINESE = {
    "loss on Wikipedia": "Wikipedia 的 Loss",
    "object questions, %": "object 题, %",
    "in other wordings, %": "换一种问法, %",
    "written freely, %": "自由写出, %",
    "statements judged, %": "判断真伪, %",
    "all 5,239 edits: ES / PS / NS, %": "5,239 条编辑同时: ES / PS / NS, %",
    "training speed, of plain": "训练速度, 与普通模型之比",
    "a rule over the entries found, no model": "对检索到的条目用规则, 不用模型",
    "plain model (1.6.0)": "普通模型 (1.6.0)",
    "plain, the same entries in its prompt": "普通模型, 同样的条目写进提示",
    "a memory of facts (1.6.35)": "事实的记忆 (1.6.35)",
    "a memory of facts and text (1.6.41)": "事实和文本的记忆 (1.6.41)",
    "on mixed text": "混合文本的 Loss",
    "question": "题型",
    "plain": "普通模型",
    "memory": "记忆模型",
    "bank shuffled": "打乱知识库",
    "bank counterfactual": "反事实知识库",
    "object, facts of the bank only": "object, 只在知识库中的事实",
    "object, all facts": "object, 全部事实",
    "object, written freely": "object, 自由作答",
    "validation loss": "验证 Loss",
    "benchmark `{}`": "基准 `{}`",
    "seed": "种子",
    "on": "机器",
    "CPU cores": "个 CPU 核心",
    "dev": "开发集",
    "val": "验证集",
    "train": "训练集",
    "held-out": "留出集",
}
NUMBERS = re.compile(r"[\d.,±%/()– ]*")
EDITS = ("edit_success", "edit_paraphrase", "edit_neighbourhood")


class Page:
    """Collects the rows that a table uses, for the line below it that says where its numbers come from."""

    def __init__(self, rows: Rows, language: str):
        self.rows, self.language, self.used = rows, language, []

    def say(self, text: str) -> str:
        return CHINESE.get(text, text) if self.language == "zh" else text

    def result(self, where: tuple[str, str], experiment: str, arm: str, measure: str) -> Row | None:
        """The newest row; `where` is split and protocol."""
        row = self.rows.result(experiment, arm, measure, *where)
        self.used += [row] if row else []
        return row

    def benchmark(self, benchmark: str, **fields) -> dict | None:
        row = self.rows.benchmark(benchmark, **fields)
        self.used += [row] if row else []
        return row

    def cell(self, where: tuple[str, str], experiment: str, arm: str, measure: str, interval: bool = True) -> str:
        """A value without its unit, ± half of its 95 % interval; a dash where there is no row."""
        row = self.result(where, experiment, arm, measure)
        if row is None:
            return MISSING
        text = text_of(row.value, row.unit).removesuffix(f" {row.unit}")
        if not (interval and row.interval):
            return text
        half = (row.interval[1] - row.interval[0]) / 2
        return f"{text} ± {half:.3f}" if row.unit == "nats/token" else f"{text} ± {half:.1f}"

    def cells(self, where: tuple[str, str], experiment: str, arm: str, *measures: str) -> list[str]:
        return [self.cell(where, experiment, arm, measure) for measure in measures]

    def edits(self, where: tuple[str, str], experiment: str, arm: str) -> str:
        cells = [self.cell(where, experiment, arm, measure, interval=False) for measure in EDITS]
        return MISSING if set(cells) == {MISSING} else " / ".join(cells)

    def field(self, name: str, benchmark: str, **fields) -> str:
        row = self.benchmark(benchmark, **fields)
        return MISSING if row is None or row.get(name) is None else field_text(name, row[name]).split(" ")[0]

    def table(self, head: Iterable[str], lines: Iterable[Iterable[str]], source: bool = True) -> str:
        head = [self.say(word) for word in head]
        body = [[self.say(line[0]), *line[1:]] for line in map(list, lines)]
        is_number = [all(map(NUMBERS.fullmatch, column)) for column in zip(*body, strict=True)]
        rule = ["---", *("---:" if number else "---" for number in is_number[1:])]
        text = "\n".join("| " + " | ".join(cells) + " |" for cells in (head, rule, *body))
        return text + ("\n\n" + self.sources() if source else "")

    def sources(self) -> str:
        """Where the numbers come from: protocol or benchmark, n, seeds, machine, date; commits stand in the rows."""
        by_protocol: dict[str, dict[str, set]] = {}
        for row in self.used:
            name, facts = self.facts_of(row)
            known = by_protocol.setdefault(name, {})
            for key, values in facts.items():
                known.setdefault(key, set()).update(values)
        lines = []
        for name, facts in by_protocol.items():
            words = [f"{key} {', '.join(map(str, sorted(found)))}".strip() for key, found in facts.items() if found]
            end = "。" if self.language == "zh" else "."
            lines += textwrap.wrap(f"{name}: {'; '.join(words)}{end}", 108, break_on_hyphens=False)
        return "<sub>" + "\n".join(lines) + "</sub>"

    def facts_of(self, row: Row | dict) -> tuple[str, dict[str, set]]:
        """The protocol or benchmark of a row, and what stands beside its number."""
        say = self.say
        if isinstance(row, dict):
            facts = {say("on"): {row["device"].removesuffix(" HBM3")}, "": {row["date"]}}
            return say("benchmark `{}`").format(row["benchmark"]), facts
        seeds = {"n": {row.n} - {None}, say("seed"): set(row.seeds)}
        return f"`{row.protocol}`, {say(row.split)}", seeds | {
            say("on"): {row.machine.replace("CPU cores", say("CPU cores"))},
            "": {row.date},
        }
