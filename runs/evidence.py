"""What a run measured, beside its base, its baseline and its controls, with 95 % intervals.

The seeds of one experiment count together. Shares are percentages here, as in rows of results.
"""

import math
from dataclasses import dataclass
from functools import cached_property
from statistics import mean, stdev

from .compare import groups_of, on_scale
from .keep import mean_interval, numbers_of, wilson_interval
from .metrics import Metric
from .run import Run
from .significance import LEVEL, welch, welch_half

ARMS = {
    "plain": "本实验", "memory": "本实验", "shuffled": "打乱知识库", "counterfactual": "反事实知识库",
    "no_memory": "清空知识库", "oracle": "强制读正确条目", "prompt": "正确句子放进提示词",
    "in_context": "检索条目放进提示词", "lookup": "查找(不用模型)", "search_alone": "只用本模型的检索(不用模型)",
    "frequency": "最常见的答案(不用模型)",
}  # fmt: skip
OWN = ("plain", "memory")
# Names of measures in Chinese where the table of metrics has none; * stands for a part of the name.
LABELS = {
    "val_loss_first_*": "验证 Loss, 前 {} 行", "bits_per_byte_first_*": "每字节比特数, 前 {} 行",
    "val_loss_*": "Loss, {}", "planted": "答出反事实对象", "gold_read_*": "读到正确条目, {}",
    "gold_among_1_*": "正确条目排第一, {}", "gold_among_4_*": "正确条目在前 4, {}",
    "gold_among_16_*": "正确条目在前 16, {}", "gold_among_64_*": "正确条目在前 64, {}",
    "pararel_own": "ParaRel 准确率 (库中措辞)", "pararel_consistent": "ParaRel 各措辞一致",
    "absent_auroc_*": "库中没有的事实 AUROC, {}", "absent_right": "库中没有的事实, 答对",
    "absent_same": "库中没有的事实, 回答不变",
    "pararel_read_*": "ParaRel 读到正确条目, {}",
    **{f"insert_{name}{end}": f"新插入的事实 {name}, {label}" for name in ("popqa", "zsre", "own") for end, label in (
        ("", "选项"), ("_before", "插入前"), ("_exact", "精确匹配"), ("_found", "查到"), ("_read_*", "读到, {}"))},
    **{f"{task}_{name}": f"{title} {label}" for task, title in (("counterfact", "CounterFact"), ("zsre", "zsRE"))
       for name, label in (
           ("es_*", "编辑成功 ES, {} 次编辑"), ("ps_made_*", "换措辞 PS (自制), {} 次编辑"),
           ("ps_paraphrase_*", "换措辞 PS (原始), {} 次编辑"), ("ns_entry_*", "邻近事实 NS (有条目), {} 次编辑"),
           ("ns_no_entry_*", "邻近事实 NS (无条目), {} 次编辑"), ("free_es_*", "自由生成 ES, {} 次编辑"),
           ("free_ps_made_*", "自由生成 PS (自制), {} 次编辑"),
           ("free_ps_paraphrase_*", "自由生成 PS (原始), {} 次编辑"),
           ("deleted", "删除后如同从未有过"))},
    "edit_success": "编辑成功 ES", "edit_paraphrase": "换措辞 PS", "edit_neighbourhood": "邻近事实 NS",
    "edit_neighbourhood_0": "编辑前的邻近事实 NS", "edit_success_0": "编辑前的 ES",
    "edit_paraphrase_0": "编辑前的 PS", "edit_ms": "每次编辑 (ms)", "bank_used": "评估文本读到的条目占比",
    "prompt_tokens": "提示词 token 数", "answer_ms": "每题用时 (批量, ms)", "answer_ms_alone": "每题用时 (单题, ms)",
    "first_token_ms": "首个 token 用时 (批量, ms)", "first_token_ms_alone": "首个 token 用时 (单题, ms)",
    "overlap_loss_*": "Loss, 共有 {}", "overlap_gain_*": "比空知识库低, 共有 {}",
    "overlap_plain_*": "比无记忆运行低, 共有 {}", "overlap_helped_*": "比无记忆运行好 0.1 nat 以上的 token, 共有 {}",
    "overlap_hurt_*": "比无记忆运行差 0.1 nat 以上的 token, 共有 {}",
    "set_characters_*": "{}, 按字符平均",
    "set_perplexity_*": "{}, 困惑度", "set_words_*": "{}, 每词 nat",
    "set_bytes_*": "{}, 每字节比特数", "set_*": "{}", "train_s": "训练时间", "mfu": "MFU (模型 FLOP 利用率)",
}  # fmt: skip


@dataclass(frozen=True)
class Number:
    """One measure of one or several seeds. `interval` is that of the mean; None where nothing gives one."""

    metric: Metric
    measure: str
    values: tuple[float, ...]
    n: int | None

    @property
    def value(self) -> float:
        return mean(self.values)

    @property
    def is_share(self) -> bool:
        return self.metric.unit == "%"

    @cached_property
    def interval(self) -> list[float] | None:
        if len(self.values) > 1:
            found = mean_interval(list(self.values))
        elif self.is_share and self.n:
            found = [100 * side for side in wilson_interval(self.value / 100, self.n)]
        else:
            return None
        return [max(0.0, found[0]), min(100.0, found[1])] if self.is_share else found

    def write(self, value: float) -> str:
        """A value of this measure for people."""
        return f"{value:.1f}%" if self.is_share else self.metric.text(value)

    @property
    def text(self) -> str:
        """The mean, with its standard deviation over seeds, else with its interval."""
        if len(self.values) > 1:
            spread = stdev(self.values)
            return f"{self.write(self.value)} ± {self.write(spread)}"
        if self.interval:
            return f"{self.write(self.value)} [{', '.join(map(self.write, self.interval))}]"
        return self.write(self.value)

    @property
    def label(self) -> str:
        return label_of(self.metric, self.measure)


def label_of(metric: Metric, measure: str) -> str:
    """The Chinese name of a measure; what a * of the metric's name stands for is kept."""
    for name, label in LABELS.items():
        head = name.removesuffix("*")
        if measure == name or name.endswith("*") and measure.startswith(head):
            return label.format(measure.removeprefix(head).replace("_", " "))
    if measure.startswith(("edit_success_", "edit_paraphrase_", "edit_neighbourhood_", "edit_ms_")):
        head, _, number = measure.rpartition("_")
        return f"{LABELS[head]}, {number} 次编辑"
    return metric.chinese or metric.label.format(measure) or measure


def seeds_of(run: Run) -> list[Run]:
    """The run and those that differ from it by their seed alone, lowest seed first; one run of each seed, the newest.

    A run that is not finished stands alone.
    """
    if run.state != "finished":
        return [run]
    group = next(group for group in groups_of([run, *run.neighbours]).values() if run in group)
    by_seed = {other.flag("seed"): other for other in group if other.state == "finished"}
    by_seed[run.flag("seed")] = run
    return sorted(by_seed.values(), key=lambda other: other.flag("seed") or 0)


def results_of(runs: list[Run]) -> dict[tuple[str, str], Number]:
    """(arm, measure) -> the number of these seeds, of all that have it."""
    found: dict[tuple[str, str], list] = {}
    for run in runs:
        for key, (metric, value, n, _) in numbers_of(run).items():
            found.setdefault(key, [metric, [], n])[1].append(value)
    return {key: Number(metric, key[1], tuple(values), n) for key, (metric, values, n) in found.items()}


def own(results: dict[tuple[str, str], Number], measure: str) -> Number | None:
    """The number of the model itself, under no control."""
    return next((results[arm, measure] for arm in OWN if (arm, measure) in results), None)


@dataclass(frozen=True)
class Difference:
    """A number minus another of the same measure. `interval` (95 %) is None where the noise is unknown."""

    new: Number
    old: Number

    @property
    def value(self) -> float:
        return self.new.value - self.old.value

    @property
    def relative(self) -> float | None:
        return self.value / self.old.value if self.old.value else None

    @cached_property
    def interval(self) -> list[float] | None:
        """Welch's over seeds; with one seed on a side the normal one over questions, which seeds widen."""
        if self.p is not None:
            half = welch_half(self.new.values, self.old.values)
        elif self.new.is_share and self.new.n and self.old.n:
            shares = ((number.value / 100, number.n) for number in (self.new, self.old))
            half = 196 * math.sqrt(sum(share * (1 - share) / n for share, n in shares))
        else:
            return None
        return [self.value - half, self.value + half]

    @cached_property
    def p(self) -> float | None:
        """Welch's over seeds, as in `runs.compare`; None with one seed on a side: then nobody knows."""
        samples = [on_scale(list(number.values), number.metric) for number in (self.new, self.old)]
        return welch(*samples)[1] if min(map(len, samples)) > 1 else None

    @property
    def is_clear(self) -> bool:
        """Whether it is more than noise over seeds."""
        return self.p is not None and self.p <= LEVEL

    @property
    def excludes_zero(self) -> bool:
        """Whether the interval does, which with one seed is over questions: enough for two answers of one model."""
        return self.interval is not None and (self.interval[0] > 0 or self.interval[1] < 0)

    @property
    def word(self) -> str:
        """更好 or 更差 over seeds, else why neither is said."""
        if self.p is None:
            return "仅题目波动" if self.interval else "波动未知"
        if not self.is_clear:
            return "在波动之内"
        return {None: "超出波动", True: "更好", False: "更差"}[self.is_better]

    @property
    def is_better(self) -> bool | None:
        better = self.new.metric.better
        return None if better is None or self.value == 0 else (self.value > 0) == (better is max)

    @property
    def text(self) -> str:
        """The difference with its interval; shares differ in percentage points (百分点)."""
        write = (lambda v: f"{v:+.1f}") if self.new.is_share else (lambda v: signed(self.new.write(v), v))
        unit = " 百分点" if self.new.is_share else ""
        relative = "" if self.new.is_share or self.relative is None else f" ({self.relative:+.1%})"
        if self.interval is None:
            return f"{write(self.value)}{unit}{relative}, 波动未知"
        return f"{write(self.value)}{unit}{relative}, 95% 区间 [{', '.join(map(write, self.interval))}]"


def signed(text: str, value: float) -> str:
    return text if value < 0 else f"+{text}"


class Evidence:
    """The numbers of a run with those that it is compared with."""

    def __init__(self, run: Run):
        self.run = run
        self.runs = seeds_of(run)
        self.results = results_of(self.runs)

    @cached_property
    def base(self) -> dict[tuple[str, str], Number]:
        return results_of(seeds_of(self.run.base)) if self.run.base else {}

    @cached_property
    def baseline(self) -> dict[tuple[str, str], Number]:
        return results_of(seeds_of(self.run.baseline)) if self.run.baseline else {}

    @property
    def references(self) -> list[tuple[str, str]]:
        """(name, which) of what the run is compared with; a base that is model_original itself counts once."""
        base, baseline = self.run.base, self.run.baseline
        same = base is not None and baseline is not None and base.path.resolve() == baseline.path.resolve()
        found = [("基础实验", "base")] if base and not same else []
        return found + ([("model_original", "baseline")] if baseline else [])

    def number(self, measure: str) -> Number | None:
        return own(self.results, measure)

    def against(self, measure: str, other: str, arm: str | None = None) -> Difference | None:
        """The model's number minus that of "base", "baseline" or, as "control", of its own under an arm."""
        new = own(self.results, measure)
        old = self.results.get((arm, measure)) if other == "control" else own(getattr(self, other), measure)
        return Difference(new, old) if new and old else None

    @property
    def controls(self) -> list[str]:
        """The arms that were measured besides the model's own, in the order of ARMS."""
        return [arm for arm in ARMS if arm not in OWN and any(known == arm for known, _ in self.results)]

    @property
    def measures(self) -> list[str]:
        """The measures of the model itself, in the order of the table of metrics."""
        return list(dict.fromkeys(measure for arm, measure in self.results if arm in OWN))
