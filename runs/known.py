"""The numbers that a text about a run may state, by what they are numbers of.

A text that names a measure, such as 对象 or Loss, may state in the same sentence that measure's numbers: under every
arm, of base and baseline, with intervals, differences and ratios. Whole numbers may stand anywhere, and a fraction of a
flag where the sentence names the flag.
"""

import json
import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass, field
from statistics import stdev

from .brief import named_curves
from .evidence import Difference, Evidence, Number
from .numerals import HASH, Numeral, numerals
from .record_tables import MODEL_FLAGS, TRAIN_FLAGS
from .run import Run

# Name of a family -> how a text names it, and the beginnings of its measures and curves.
FAMILIES: dict[str, tuple[str, tuple[str, ...]]] = {
    "object": (r"对象|[Oo]bject", ("object", "planted", "exact_match", "questions/")),
    "relation": (r"关系|[Rr]elation", ("relation",)),
    "verification": (r"真伪|[Vv]erification", ("verification",)),
    "wordings": (r"换措辞|措辞|[Rr]eworded|\bPS\b", ("object_reworded", "edit_paraphrase")),
    "edits": (r"编辑|邻近|\bES\b|\bNS\b", ("edit_",)),
    "free": (r"自由|精确匹配", ("exact_match",)),
    "entries": (r"条目|检索|[Rr]etriev|[Gg]old", ("gold_", "bank_used", "memory/used_share", "questions/read")),
    "loss": (r"[Ll]oss|损失|收敛|每字节", ("val_loss", "best_val_loss", "loss", "bits_per_byte")),
    "ppl": (r"困惑度|[Pp]pl|PPL", ("val_ppl", "ppl", "fluency_ppl")),
    "quality": (r"连贯|流畅|多样|PMI|distinct|BLEU|生成质量", ("coherence", "fluency", "distinct")),
    "speed": (r"吞吐|速度|[Tt]okens?/s|MFU|利用率", ("tokens_per_s", "mfu")),
    "memory": (r"内存|显存|[MG]i?B", ("peak_mib", "host_mib", "gpu_mib", "peak_gpu_mib")),
    "time": (r"用时|时间|耗时|瓶颈|反向|前向|优化器|等待|占比|backward|forward", ("train_s", "eval_s", "time")),
    "gradient": (r"梯度", ("grad_norm",)),
    "rate": (r"学习率", ("lr",)),
    "entropy": (r"熵", ("memory/selection_entropy",)),
}  # fmt: skip
# What the lines of the brief that analyse the curves are about.
ANALYSIS = ("loss", "memory", "loss")
# How a sentence says that it states an interval.
OF_INTERVAL = re.compile(r"区间|上限|下限|±|\[|\binterval|\bCI\b")
# Flag -> its name in the record, without what stands in brackets.
FLAG_LABELS = {name: re.sub(r"\s*\(.*", "", label) for _, name, label in (*MODEL_FLAGS, *TRAIN_FLAGS)}


@dataclass
class Pool:
    """Numbers: plain ones, and percentages."""

    values: list[float] = field(default_factory=list)
    shares: list[float] = field(default_factory=list)

    def add(self, value: float, is_share: bool = False) -> None:
        (self.shares if is_share else self.values).append(value)

    def holds(self, numeral: Numeral) -> bool:
        if numeral.is_percent:
            return numeral.is_one_of(self.shares)
        return numeral.is_one_of([*self.values, *self.shares, *(share / 100 for share in self.shares)])


def normal(text: str) -> str:
    """Full-width digits and signs as plain ones; the minus sign as a hyphen."""
    return unicodedata.normalize("NFKC", text).replace("−", "-")


def leaves(value) -> Iterator[float | str]:
    """Every number and text in a JSON value."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        for part in value:
            yield from leaves(part)
    elif isinstance(value, (int, float, str)) and not isinstance(value, bool):
        yield value


def families_of(measure: str) -> list[str]:
    return [name for name, (_, heads) in FAMILIES.items() if measure.startswith(heads)]


def names_flag(sentence: str, flag: str) -> bool:
    """Whether a sentence names a flag, as on the command line or as in the record."""
    label = FLAG_LABELS.get(flag, "").replace(" ", "").lower()
    named = re.search(rf"(?<!\w){flag}(?!\w)", sentence, re.ASCII)
    return bool(named or label and label in sentence.replace(" ", "").lower())


class Known:
    """What a text about a run may state.

    Attributes:
        anywhere: numbers that may stand in any sentence.  families: those of one family.
        ends: the ends of intervals of a family, which only a sentence about an interval may state.
        of_flags: fractions, by the flag that they are values of.
        text: all data as text, for dates and versions.  flags: names of all flags.
    """

    def __init__(self, run: Run, brief: dict):
        self.flags = run.flat_flags
        self.start_pools()
        self.of_flags: dict[str, Pool] = {}
        told = {name: part for name, part in brief.items() if name not in ("空白", "如何填写")}
        self.text = json.dumps([told, run.flags, run.info, run.eval], ensure_ascii=False, default=str)
        self.by_step: dict[int, list[float]] = {}
        for line in run.metrics:
            numbers = [value for value in line.values() if isinstance(value, (int, float))]
            self.by_step.setdefault(line["step"], []).extend(numbers)
        self.take_facts(run, brief)
        self.take_flags(brief)
        self.take_curves(run, brief)
        self.take_results(Evidence(run))

    def start_pools(self) -> None:
        self.anywhere = Pool()
        self.families, self.ends = ({name: Pool() for name in FAMILIES} for _ in range(2))

    def put(self, pool: Pool, value) -> None:
        for leaf in leaves(value):
            if isinstance(leaf, str):
                for numeral in numerals(HASH.sub(" ", normal(leaf))):
                    pool.add(numeral.value, numeral.is_percent)
            else:
                pool.add(float(leaf))

    def take_facts(self, run: Run, brief: dict) -> None:
        told = {name: value for name, value in brief["实验"].items() if name != "命令"}  # its flags are known by name
        for part in (told, brief["异常"], run.info.get("data", {})):
            self.put(self.anywhere, part)
        self.put(self.anywhere, run.info.get("environment", {}))
        self.put(self.anywhere, [run.info.get("parameters"), list(self.by_step)])
        # Whole numbers of the evaluation: counts of questions, seeds, choices.
        self.put(self.anywhere, [leaf for leaf in leaves(run.eval) if isinstance(leaf, int)])
        self.put(self.anywhere, brief["基础实验的记录"])
        for task in ("object", "relation", "verification"):
            if (chance := run.score(task, "chance")) is not None:
                self.families[task].add(100 * chance, is_share=True)

    def take_flags(self, brief: dict) -> None:
        """The values of flags, and those of the base experiment where they differ."""
        for name, value in (*self.flags.items(), *brief["与基础实验不同的参数"].items()):
            for leaf in leaves(value):
                if isinstance(leaf, float) and not leaf.is_integer():
                    pool = self.of_flags.setdefault(name, Pool())
                    pool.add(leaf)
                    pool.add(100 * leaf, is_share=True)
                else:
                    self.put(self.anywhere, leaf)

    def take_curves(self, run: Run, brief: dict) -> None:
        for name, label in named_curves(run).items():
            values = [value for _, value in brief["曲线"].get(label, [])]
            for family in families_of(name):
                pool = self.families[family]
                pool.values += values
                if values:
                    pool.add(values[0] - values[-1])
                if name.startswith(("memory/used_share", "mfu", "questions/")):
                    pool.shares += [100 * value for value in values]
        for family, text in zip(ANALYSIS, brief["曲线分析"], strict=True):
            self.put(self.families[family], text)
            self.put(self.families["gradient"], text)
        for share in brief["时间占比"].values():
            self.families["time"].add(100 * share, is_share=True)
            self.families["speed"].add(100 * share, is_share=True)

    def take_results(self, found: Evidence) -> None:
        for results in (found.results, found.base, found.baseline):
            for (_, measure), number in results.items():
                self.take_number(measure, number)
        for measure in found.measures:
            for _, which in (("", "base"), ("", "baseline")):
                self.take_difference(measure, found.against(measure, which))
            for arm in found.controls:
                self.take_difference(measure, found.against(measure, "control", arm))

    def take_number(self, measure: str, number: Number) -> None:
        sides = [number.value, *number.values]
        if len(number.values) > 1:
            sides.append(stdev(number.values))
        self.take_interval(measure, number.interval, number.is_share)
        for pool in self.pools_of(measure):
            for side in sides:
                pool.add(side, number.is_share)
            if not number.is_share:
                self.put(pool, number.text)  # rounded to a whole number, as the record shows it

    def take_difference(self, measure: str, gap: Difference | None) -> None:
        if gap is None:
            return
        self.take_interval(measure, gap.interval, gap.new.is_share)
        for pool in self.pools_of(measure):
            pool.add(gap.value, gap.new.is_share)
            if not gap.new.is_share:
                self.put(pool, gap.text.replace("95% 区间", ""))  # that 95 is no result
            if gap.relative is not None:
                pool.add(1 + gap.relative)
                if not gap.new.is_share:
                    pool.add(100 * gap.relative, is_share=True)

    def take_interval(self, measure: str, interval: list[float] | None, is_share: bool) -> None:
        """The ends of an interval, and half of its width."""
        pools = [self.ends[name] for name in families_of(measure)] or [self.anywhere]
        for pool in pools if interval else ():
            for side in (*interval, (interval[1] - interval[0]) / 2):
                pool.add(side, is_share)

    def pools_of(self, measure: str) -> list[Pool]:
        return [self.families[name] for name in families_of(measure)] or [self.anywhere]

    def holds(self, numeral: Numeral, sentence: str, at_steps: list[float]) -> bool:
        """Whether a number of a sentence is one of the data; `at_steps` are the values of the steps that it names."""
        if self.anywhere.holds(numeral):
            return True
        if any(pool.holds(numeral) for flag, pool in self.of_flags.items() if names_flag(sentence, flag)):
            return True
        if numeral.is_one_of(at_steps) or numeral.is_percent and numeral.is_one_of([100 * v for v in at_steps]):
            return True
        named = [name for name, (words, _) in FAMILIES.items() if re.search(words, sentence)]
        pools = [self.families, self.ends] if OF_INTERVAL.search(sentence) else [self.families]
        return any(pool[name].holds(numeral) for pool in pools for name in named or FAMILIES)
