"""The one table of numbers: what a run measures, and how log, record, plots, dashboard and tables show it.

A new metric is one line of METRICS. Where it then appears:

    logged       the producer's name is a key of metrics.jsonl: dashboard, and the panel of the curves if it names one
    path         the keys that lead to a score in eval.json: dashboard, comparison, rows of results
    chinese      the record lists it under this label
    is_compared  `python -m experiment compare` shows it
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from statistics import median

from .analysis import last_unless_broken
from .run import Run

Number = Callable[[Run], float | None]


def digits(n: int) -> Callable[[float], str]:
    return lambda value: f"{value:.{n}f}"


def whole(value: float) -> str:
    return f"{value:,.0f}"


def percent(value: float) -> str:
    return f"{value:.1%}"


def span(seconds: float) -> str:
    """A duration in its two largest units."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    return f"{days} d {hours} h" if days else f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


@dataclass(frozen=True)
class Metric:
    """A number of a run.

    Attributes:
        name: the producer's name, and the measure of a row of results. A * at its end matches any name.
        label: its name in tables. {} is replaced by the key that * matches in a score's path.
        unit: of rows of results. Shares lie in [0, 1] everywhere else; their unit is %.
        better: min or max; None: neither wins.
        text: how people see it.
        group: its folder on the dashboard, for logged metrics.
        panel, style: title of its panel of the curves, and how it is drawn there.
        path: keys of eval.json, for scores.
        is_exponential: e to the power of a loss; seeds are compared by its logarithm, so that both tell the same.
        get: the number of a whole run, for those that are neither a score nor the last value that was logged.
        is_chart: False where the dashboard would only show a straight line; nor does it draw an exponential.
    """

    name: str
    label: str = ""
    unit: str = ""
    better: Callable | None = None
    text: Callable[[float], str] = digits(4)
    group: str = ""
    panel: str = ""
    style: str = "-"
    path: tuple[str, ...] = ()
    get: Number | None = None
    chinese: str = ""
    is_compared: bool = False
    is_exponential: bool = False
    in_log: str = ""
    is_chart: bool = True

    def value(self, run: Run) -> float | None:
        """The number of a run; None where it has none."""
        if self.get:
            return self.get(run)
        return run.score(*self.path) if self.path else run.last(self.name)

    def scores(self, results: dict) -> Iterator[tuple[str, dict, float]]:
        """(the key that * matches, the results around the score, the score) for every match of the path."""
        found = [("", {}, results)]
        for key in self.path:
            found = [
                (name if key == "*" else star, value, value[name])
                for star, _, value in found
                if isinstance(value, dict)
                for name in (list(value) if key == "*" else [key])
                if name in value
            ]
        yield from ((star, around, value) for star, around, value in found if type(value) in (int, float))


# The panels of the curves, in their order; others follow.
LOSS = "loss, nats a token (thick: running mean, dots: validation)"
RATE, SPEED, NORM = "learning rate", "tokens/s", "gradient norm"
READ = "memory: share of the bank read in a window of --log_interval steps"
USES = "memory: entries by how often they were read in a window (the last)"
ASKED = "questions while it trains"
MEMORY = "MiB in use (solid: GPU now, dashed: GPU peak, dotted: host)"
PANELS = (LOSS, ASKED, RATE, SPEED, NORM, READ, USES, MEMORY)
QUESTIONS = {"object": "对象", "relation": "关系", "verification": "真伪"}
PARTS = {"": "", "seen": " (训练文本与库中)", "bank_only": " (仅库中)"}
NATS = "nats/token"
EDITED = {"ES": "edit_success", "PS": "edit_paraphrase", "NS": "edit_neighbourhood"}
SETS = ("language_sets", "sets", "*")


def share(name: str, label: str, *path: str, **more) -> Metric:
    """A share of questions of the evaluation."""
    return Metric(name, label, "%", max, percent, path=path, **more)


def answers(task: str, part: str) -> Metric:
    """The accuracy of a question set, or of one part of it."""
    path = (task, *(("parts", part) if part else ()), "accuracy")
    chinese = f"{QUESTIONS[task]}准确率{PARTS[part]}"
    return share(f"{task}_{part}".strip("_"), f"{task} {part}".strip(), *path, chinese=chinese, is_compared=True)


def edits(number: int) -> list[Metric]:
    """The scores after a number of edits, without which they stand after one."""
    after, label = ("" if number == 1 else f"_{number}"), f"edits: {number}"
    time = Metric(
        f"edit_ms{after}", f"ms an edit, {label}", "ms", min, digits(3), path=("edits", str(number), "ms_per_edit")
    )
    return [*(share(name + after, f"{key}, {label}", "edits", str(number), key) for key, name in EDITED.items()), time]


def many_edits(task: str, title: str) -> list[Metric]:
    """The scores of an editing benchmark after each number of edits ("0": before them, "all")."""
    keys = {"es": "ES", "ps_made": "PS_made", "ps_paraphrase": "PS_paraphrase"}
    parts = {"": keys | {"ns_entry": "NS", "ns_no_entry": "NS_no_entry"}, "free": keys}
    return [
        share(f"{task}_{free and 'free_'}{name}_*", f"{title} {key}{free and ' written freely'}, edits: {{}}",
              task, "numbers", "*", *filter(None, [free]), key, "accuracy")
        for free, own in parts.items() for name, key in own.items()
    ] + [share(f"{task}_deleted", f"{title}, deleted as never there", task, "deletion", "chosen", "same")]  # fmt: skip


def costs() -> list[Metric]:
    """Tokens and milliseconds of a question, in batches and alone."""
    times = [
        Metric(name + end, f"ms a question, {what}{alone}", "ms", min, digits(3), path=("cost", part, name))
        for name, what in (("first_token_ms", "first token"), ("answer_ms", "answer"))
        for part, end, alone in (("batched", "", ""), ("alone", "_alone", ", alone"))
    ]
    return [
        Metric("prompt_tokens", "tokens of a prompt", "tokens", min, digits(1), path=("cost", "prompt_tokens")),
        *times,
    ]


def overlaps() -> list[Metric]:
    """By the run of tokens that a position shares with what it reads: loss, gain, and the tokens helped and hurt."""
    path, shared = ("overlap", "groups", "*"), ", tokens shared: {}"
    plain = (*path, "against", "plain")

    def measure(name: str, label: str, *keys: str, unit: str = NATS, better: Callable = max) -> Metric:
        return Metric(
            f"overlap_{name}_*", label + shared, unit, better, percent if unit == "%" else digits(4), path=keys
        )

    return [
        measure("loss", "loss", *path, "loss", "mean", better=min),
        measure("gain", "gain over an empty bank", *path, "against", "bank zeroed", "gain", "mean"),
        measure("plain", "gain over the plain run", *plain, "gain", "mean"),
        measure("helped", "helped, against the plain run", *plain, "helped", "mean", unit="%"),
        measure("hurt", "hurt, against the plain run", *plain, "hurt", "mean", unit="%", better=min),
    ]


def inserted(name: str) -> list[Metric]:
    """The scores of the inserted facts of a set."""
    paths = {
        "": ("parts", name), "before": ("before", "parts", name), "exact": ("written", name), "found": ("found", name),
        "read_*": ("read", name, "*", "selected"),
    }  # fmt: skip
    labels = {"": "", "before": ", before", "exact": ", exact match", "found": ", found", "read_*": ", read, {}"}
    return [
        share(f"insert_{name}_{end}".strip("_"), f"inserted, {name}{labels[end]}", "insertion", *path, "accuracy")
        for end, path in paths.items()
    ]


def best(run: Run) -> float | None:
    return run.best and run.best["val_loss"]


def median_of(name: str) -> Number:
    """The median over the log lines of a run."""

    def get(run: Run) -> float | None:
        points = run.curve(name)
        return median(value for _, value in points) if points else None

    return get


def last_validation(name: str) -> Number:
    return lambda run: last_unless_broken(run, name)


METRICS: list[Metric] = [
    Metric("epoch", "epochs", group="train", is_chart=False),
    Metric("loss", "training loss", NATS, min, group="train", panel=LOSS, in_log="loss {:.4f}"),
    Metric("ppl", "training perplexity", "", min, digits(2), "train", is_exponential=True),
    Metric("val_loss", "val loss", NATS, min, group="val", panel=LOSS, style="o", path=("language", "loss"),
           get=last_validation("val_loss"), chinese="验证 Loss", is_compared=True),
    Metric("best_val_loss", "best val loss", NATS, min, get=best, chinese="最佳验证 Loss", is_compared=True),
    Metric("val_ppl", "perplexity", "", min, digits(2), "val", path=("language", "perplexity"),
           get=last_validation("val_ppl"), chinese="验证困惑度", is_compared=True, is_exponential=True),
    Metric("lr", "learning rate", group="train", panel=RATE, in_log="lr {:.3g}"),
    Metric("grad_norm", "gradient norm", group="train", panel=NORM),
    Metric("skipped_steps", "skipped steps", "steps", min, whole, "train", is_chart=False),
    Metric("aux/*", "auxiliary loss: {}", group="train/aux_"),
    # Questions that are asked at each validation (--val_questions).
    share("questions/right", "right", group="questions", panel=ASKED),
    share("questions/shuffled", "right, bank shuffled", group="questions", panel=ASKED),
    share("questions/read/*", "entry read, {}", group="questions/read_", panel=ASKED),
    Metric("val_loss_*", "loss, {}", NATS, min, path=("language", "sources", "*", "loss")),
    Metric("bits_per_byte", "bits/byte", "bits/byte", min, path=("language", "bits_per_byte"), chinese="每字节比特数",
           is_compared=True),
    *(answers(task, part) for task in QUESTIONS for part in PARTS),
    share("planted", "object planted", "object", "planted", "accuracy"),
    share("object_reworded", "object, reworded", "reworded", "accuracy", chinese="对象准确率 (换措辞)",
          is_compared=True),
    share("exact_match", "object, written freely", "exact_match", "accuracy", chinese="自由生成精确匹配",
          is_compared=True),
    share("gold_read_*", "gold entry read, {}", "retrieval", "layers", "*", "selected", "accuracy"),
    *(share(f"gold_among_{n}_*", f"among {n}, {{}}", "retrieval", "layers", "*", f"candidate_{n}", "accuracy")
      for n in (1, 4, 16, 64)),
    share("gold_reworded_read_*", "read in other words, {}", "retrieval", "reworded", "layers", "*", "selected",
          "accuracy"),
    *costs(),
    share("pararel_own", "ParaRel, own wording", "pararel", "parts", "own wording", "accuracy"),
    share("pararel_other", "ParaRel, other wordings", "pararel", "parts", "other wordings", "accuracy",
          chinese="ParaRel 准确率 (其他措辞)", is_compared=True),
    share("pararel_consistent", "ParaRel, all wordings agree", "pararel", "consistent", "accuracy"),
    share("pararel_all_right", "ParaRel, all wordings right", "pararel", "all_right", "accuracy",
          chinese="ParaRel 各措辞全对", is_compared=True),
    *(own for name in ("popqa", "zsre", "own") for own in inserted(name)),
    Metric("absent_auroc_*", "AUROC of absent facts, {}", "", max, digits(3), path=("absent", "knowing", "*", "auroc")),
    share("absent_right", "right, facts absent", "absent", "emptied", "accuracy"),
    share("absent_same", "answer as before, facts absent", "absent", "emptied", "same", "accuracy"),
    share("pararel_read_*", "ParaRel read, {}", "pararel", "read", "other wordings", "*", "selected", "accuracy"),
    *(score for number in (1, 100, 10_000) for score in edits(number)),
    *(own for task, title in (("counterfact", "CounterFact"), ("zsre", "zsRE")) for own in many_edits(task, title)),
    *(share(f"{name}_0", f"{key}, edits: 0", "edits", "0", key) for key, name in EDITED.items()),
    *overlaps(),
    # Files of --language_sets, by name.
    share("set_*", "{}", *SETS, "accuracy", is_compared=True),
    share("set_characters_*", "{}, per character", *SETS, "per_character", "accuracy", is_compared=True),
    Metric("set_perplexity_*", "{}, perplexity", "", min, digits(2), is_exponential=True, is_compared=True,
           path=(*SETS, "word", "perplexity")),
    Metric("set_words_*", "{}, nats a word", "nats/word", min, path=(*SETS, "nats_per_word"), is_compared=True),
    Metric("set_bytes_*", "{}, bits/byte", "bits/byte", min, path=(*SETS, "bits_per_byte"), is_compared=True),
    Metric("bank_used", "bank read in held-out text", "%", None, percent, path=("usage", "used_share")),
    Metric("coherence_pmi", "coherence (PMI)", NATS, max, digits(3), path=("generation", "coherence_pmi"),
           chinese="连贯性 (PMI)", is_compared=True),
    Metric("fluency_ppl", "fluency (perplexity)", "", min, digits(2), path=("generation", "fluency_ppl"),
           chinese="流畅度 (困惑度)", is_compared=True, is_exponential=True),
    Metric("distinct2", "diversity (distinct-2)", "", max, digits(3), path=("generation", "distinct2"),
           chinese="多样性 (distinct-2)", is_compared=True),
    # Time, memory of the machine, use of the bank in training.
    Metric("tokens_per_s", "tokens/s", "tokens/s", max, whole, "speed", SPEED, get=median_of("tokens_per_s"),
           chinese="训练吞吐 (token/s)", is_compared=True, in_log="{:.0f} tokens/s"),
    Metric("mfu", "MFU", "%", max, percent, "speed", get=median_of("mfu"), chinese="MFU (模型 FLOP 利用率)",
           is_compared=True),
    Metric("time_share/*", "share of a step: {}", group="speed/share_"),
    Metric("eval_s", "time of a validation", "s", min, span, "speed"),
    Metric("memory/used_share*", "bank read, {}", "%", None, percent, "memory/used_share", READ),
    Metric("memory/uses*", "entries, {}", panel=USES, style="bars"),
    Metric("gpu_mib", "GPU memory, MiB", "MiB", min, whole, "system", MEMORY),
    Metric("peak_gpu_mib", "peak GPU memory, MiB", "MiB", min, whole, "system", MEMORY, "--"),
    Metric("other_gpu_mib", "GPU memory of other processes, MiB", "MiB", None, whole, "system"),
    Metric("host_mib", "host memory, MiB", "MiB", min, whole, "system", MEMORY, ":"),
    Metric("peak_mib", "peak memory, MiB", "MiB", min, whole, get=lambda run: run.peak_memory, chinese="内存峰值 (MiB)",
           is_compared=True),
    Metric("train_s", "time in training", "s", min, span, get=lambda run: run.seconds, is_compared=True),
    Metric("tokens", "tokens learnt", "tokens", None, whole, "train", chinese="训练 token 数", is_compared=True,
           is_chart=False),
    Metric("parameters", "parameters", text=whole, get=lambda run: run.info.get("parameters"), chinese="参数量",
           is_compared=True),
]  # fmt: skip


def metric(name: str) -> Metric:
    """The metric of a name.

    Raises:
        ValueError: the table has none.
    """
    found = next((m for m in METRICS if m.name == name), None)
    if found is None:
        raise ValueError(f"runs/metrics.py has no metric {name!r}: add a line to METRICS")
    return found


def scores_of(run: Run) -> dict[str, float]:
    """The scores of a run's evaluation that runs are compared by, each under its keys of eval.json, joined by _."""
    found = {"_".join(m.path): run.score(*m.path) for m in METRICS if m.path and m.is_compared}
    return {name: value for name, value in found.items() if value is not None}


def results_of(run: Run) -> dict[str, str]:
    """What a run has reached, as people see it: label -> number. The scores come first, how it ended last."""
    found = {m.label: m.text(value) for m in METRICS if m.is_compared and (value := m.value(run)) is not None}
    return found | {"seed": str(run.flag("seed")), "state": run.state}


def dashboard_name(name: str) -> str | None:
    """A logged metric's name on the dashboard, its group first; None: it is no chart there.

    A name that the table lacks goes under `train`.
    """
    for m in METRICS:
        if m.group and m.name.endswith("*") and name.startswith(m.name[:-1]):
            return m.group + name.removeprefix(m.name[:-1])
    found = next((m for m in METRICS if m.name == name and m.group), None)
    if found and (found.is_exponential or not found.is_chart):
        return None
    return name if "/" in name else f"{found.group if found else 'train'}/{name}"


def panels() -> dict[str, dict[str, str]]:
    """Titles of the panels of the curves, in their order -> the metrics in each and how they are drawn."""
    found: dict[str, dict[str, str]] = {title: {} for title in PANELS}
    for m in METRICS:
        if m.panel:
            found.setdefault(m.panel, {})[m.name] = m.style
    return found


def log_text(values: dict[str, float]) -> str:
    """The part of a log line that states the metrics of a step."""
    return " ".join(m.in_log.format(values[m.name]) for m in METRICS if m.in_log and m.name in values)
