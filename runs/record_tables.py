"""The generated tables of a record, in Chinese: results first, knowledge, the curve, flags, changed files."""

import re
from collections.abc import Callable
from statistics import mean

from .evidence import ARMS, OWN, Difference, Evidence, Number, own, results_of
from .metrics import METRICS
from .record_text import changed_files, missing
from .run import NOT_IDENTITY, Run

SUMMARY = (
    "val_loss", "val_ppl", "object", "relation", "verification", "object_reworded", "exact_match", "edit_success",
    "edit_paraphrase", "edit_neighbourhood", "bits_per_byte", "tokens_per_s", "mfu", "train_s", "peak_mib",
    "parameters",
)  # fmt: skip
QUESTIONS = ("object", "relation", "verification", "object_reworded", "exact_match", "val_loss")
# Shown where they were measured: their beginnings of names.
OPTIONAL = {
    "按与所读条目共有的 token 数": ("overlap_",), "公开语言题": ("set_",), "公开编辑题": ("counterfact_", "zsre_"),
}  # fmt: skip
# 参数类别, 参数名, 说明: the rows of the template. A flag that the run does not use is left out.
MODEL_FLAGS = (
    ("模型架构", "dim", "模型维度"), ("模型架构", "n_layers", "Transformer层数"), ("模型架构", "n_heads", "注意力头数"),
    ("模型架构", "max_seq_len", "最大序列长度"), ("模型架构", "model_type", "模型类型"),
    ("模型架构", "use_moe", "是否使用专家混合"), ("知识库", "knowledge_num", "知识条目数量"),
    ("知识库", "knowledge_length", "单条知识长度 (token数)"), ("知识库", "freeze_ratio", "冻结条目比例"),
    ("知识库", "retrieval", "检索方式 (product_key: 乘积键; ngram: 共有的 n-gram; bm25: 罕见词)"),
    ("知识库", "memory_layers", "读取记忆的层, 从 0 数起 (None: 全部; -1: 无)"),
    ("知识库", "num_candidates", "候选条目数 C"), ("知识库", "num_selected", "读取条目数 S"),
    ("知识库", "selection", "选择方式"), ("融合机制", "fusion", "融合方式"),
    ("融合机制", "fusion_scope", "融合范围 (sequence: 因果可见的全部位置; token: 仅本位置)"),
    ("融合机制", "fusion_heads", "交叉注意力头数"), ("融合机制", "attention_dropout", "注意力Dropout"),
    ("融合机制", "fusion_dropout", "融合Dropout"), ("融合机制", "pointer", "指针: 直接复制条目中的 token"),
)  # fmt: skip
TRAIN_FLAGS = (
    ("训练设置", "epochs", "训练轮次"), ("训练设置", "max_steps", "最多步数 (None: 由轮次决定)"),
    ("训练设置", "batch_size", "批次大小"), ("训练设置", "accumulation_steps", "梯度累积步数"),
    ("训练设置", "optimizer", "优化器"), ("训练设置", "learning_rate", "学习率"), ("训练设置", "dtype", "数据类型"),
    ("训练设置", "grad_clip", "梯度裁剪"), ("训练设置", "balance_loss_coef", "平衡损失系数"),
    ("训练设置", "seed", "随机种子"), ("数据路径", "data_path", "训练数据路径"),
    ("数据路径", "database_init_path", "知识库初始化路径"),
    ("数据路径", "cluster_cache_path", "聚类缓存路径 (None: 禁用)"),
    ("数据路径", "init_path", "初始权重的运行 (None: 随机)"),
)  # fmt: skip
OF_MEMORY = {
    "database_init_path", "cluster_cache_path", "balance_loss_coef",
    *(name for category, name, _ in MODEL_FLAGS if category != "模型架构"),
}  # fmt: skip
UNSET = ("max_steps", "memory_layers", "init_path", "cluster_cache_path")  # shown though they are None
DRAWN = 12  # points of a curve in numbers
LONGEST = 300  # characters of a flag's value; of a longer list the beginning is shown, and its length


def table(head: list[str], rows: list[list[str]]) -> str:
    """A Markdown table; a | of a cell becomes a /."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "/") for cell in line) + " |" for line in lines)


def cell(number: Number | None) -> str:
    return number.text if number else "未测"


def summary(run: Run) -> str:
    """What came out, beside the base and model_original, before all else."""
    found = Evidence(run)
    base = f"experiment_{run.info['base']}"
    shown = results_table(found, [base if which == "base" else name for name, which in found.references])
    if shown is None:
        return "没有结果: 运行未到第一次验证。"
    seeds = ", ".join(str(other.flag("seed")) for other in found.runs)
    many = len(found.runs) > 1
    about = f"种子: {seeds}" + (
        " (均值 ± 标准差)" if many else "; [ ] 内是 95% 区间, 只含题目的波动; 单个种子的 Loss 波动未知"
    )
    return shown + f"\n\n{about}" + per_seed(found)


def results_table(found: Evidence, names: list[str]) -> str | None:
    """The main results beside those of the references, which have these names; None where there are none."""
    references, rows = found.references, []
    for measure in SUMMARY:
        new = own(found.results, measure)
        if not new:
            continue
        gaps = [found.against(measure, which) for _, which in references]
        told = [verdict(gap) if gap and measure != "parameters" else "-" for gap in gaps]
        rows.append([new.label, cell(new), *(cell(gap and gap.old) for gap in gaps), *told])
    head = ["指标", "本实验", *names, *(f"相对 {name}" for name in names)]
    return table(head, rows) if rows else None


def per_seed(found: Evidence) -> str:
    """The main numbers of each seed, where there are several."""
    if len(found.runs) < 2:
        return ""
    measures = [m for m in ("val_loss", "object", "relation", "verification", "tokens_per_s") if own(found.results, m)]
    single = [results_of([run]) for run in found.runs]
    rows = [
        [str(run.flag("seed")), run.path, *(cell_of_one(own(results, measure)) for measure in measures)]
        for run, results in zip(found.runs, single, strict=True)
    ]
    return "\n\n" + table(["种子", "运行", *(own(found.results, m).label for m in measures)], rows)


def cell_of_one(number: Number | None) -> str:
    return number.write(number.value) if number else "未测"


def verdict(difference: Difference) -> str:
    """The difference, and whether it is better, worse or within the noise over seeds."""
    return f"{difference.text.removesuffix(', 波动未知')} ({difference.word})"


def knowledge(run: Run) -> str:
    """What was measured of knowledge: questions under every control, edits, entries that were read."""
    found = Evidence(run)
    if not run.eval:
        return missing("运行 eval_model.py 后填写")
    parts = [questions] if (questions := question_table(found)) else []
    for title, names in (("编辑", ("edit_",)), ("读取的条目", ("gold_", "bank_used")), *OPTIONAL.items()):
        own_numbers = [number for (arm, m), number in found.results.items() if arm in OWN and m.startswith(names)]
        lines = [[n.label, str(n.n or "-"), n.text] for n in own_numbers if not reader_of(n.measure)]
        if lines:
            parts.append(table([title, "题数", "本实验"], lines))
        if by_reader := [number for number in own_numbers if reader_of(number.measure)]:
            parts.append(reader_table({reader_of(n.measure): n.text for n in by_reader}, by_reader[0].n))
        elif not own_numbers and title not in OPTIONAL:
            parts.append(f"{title}: 未测")
    return "\n\n".join(parts) or missing("评估没有知识题")


def question_table(found: Evidence) -> str:
    """A row for each kind of question, a column for each control; empty where nothing was asked."""
    rows = []
    measures = [*QUESTIONS, *(measure for measure in found.measures if measure.startswith("val_loss_first_"))]
    arms = [arm for arm in found.controls if any((arm, measure) in found.results for measure in measures)]
    for measure in measures:
        cells = [own(found.results, measure), *(found.results.get((arm, measure)) for arm in arms)]
        if any(cells):
            n = next((str(number.n) for number in cells if number and number.n), "-")
            rows.append([next(filter(None, cells)).label, n, *map(cell, cells)])
    return table(["题型", "题数", "本实验", *(ARMS[arm] for arm in arms)], rows) if rows else ""


def reader_of(measure: str) -> tuple[str, str] | None:
    """(what is measured, reader) of a measure that each reader of the memory has, such as gold_read_block_1."""
    match = re.fullmatch(r"(gold_read|gold_among_\d+)_(.+)", measure)
    reader = match and re.sub(r"block_(\d+)", r"第 \1 层", match[2]).replace("pointer", "指针").replace("_", " ")
    return (match[1], reader) if match else None


def reader_table(cells: dict[tuple[str, str], str], n: int | None, unit: str = "") -> str:
    """A row for each reader of the memory, a column for each rank up to which the right entry counts as found.

    Args:
        cells: (what is measured, reader), as `reader_of` gives them -> the number as text.
    """
    what = {"gold_read": "读到正确条目", "gold_among_1": "正确条目排第一"}
    columns, readers = (list(dict.fromkeys(key[side] for key in cells)) for side in (0, 1))
    head = [(what.get(name) or f"正确条目在前 {name.rpartition('_')[2]}") + unit for name in columns]
    rows = [[reader, *(cells.get((name, reader), "-") for name in columns)] for reader in readers]
    return table([f"读记忆之处 ({n} 题)", *head], rows)


def all_metrics(found: Evidence) -> str:
    """Every metric with a Chinese label, one a line: over seeds mean and standard deviation, of one its interval."""
    names = [m.name for m in METRICS if m.chinese]
    parts = {re.sub(r"_first_\d+$", "", measure): measure for measure in found.measures}  # of the first rows alone
    numbers = [found.number(name) or found.number(parts.get(name, name)) for name in names]
    return "\n".join(f"{number.label}: {number.text}" for number in numbers if number) or "无"


def curve_points(run: Run, name: str, most: int = DRAWN) -> list[tuple[int, float]]:
    """A curve in at most so many points: each is the mean of its stretch, at the stretch's last step."""
    points = run.curve(name)
    if len(points) <= most:
        return points
    ends = [round(len(points) * (i + 1) / most) for i in range(most)]
    stretches = [points[first:last] for first, last in zip([0, *ends], ends, strict=False)]
    return [(part[-1][0], mean(value for _, value in part)) for part in stretches]


def picked(points: list, most: int = DRAWN) -> list:
    """At most so many points of a curve, evenly spread, the first and the last among them."""
    if len(points) <= most:
        return points
    return [points[round(i * (len(points) - 1) / (most - 1))] for i in range(most)]


def curve(run: Run, picture: str) -> str:
    """The picture of the curves, and the losses in numbers; the training loss is the mean of its stretch."""
    columns = {
        "训练 Loss (该段均值)": dict(curve_points(run, "loss")),
        "验证 Loss": dict(picked(run.curve("val_loss"))),
    }
    asked = {"答对 (训练中的题)": "questions/right", "答对, 打乱知识库": "questions/shuffled"}
    shown = {label: dict(picked(run.curve(name))) for label, name in asked.items()}
    if not any(columns.values()):
        return missing("没有训练步")
    steps = sorted({step for points in (*columns.values(), *shown.values()) for step in points})
    write = {label: "{:.4f}" for label in columns} | {label: "{:.1%}" for label, points in shown.items() if points}
    columns |= shown
    rows = [[step, *(write[label].format(columns[label][step]) if step in columns[label] else "" for label in write)]
            for step in steps]  # fmt: skip
    return f"![训练曲线]({picture})\n\n" + table(["步", *write], rows)


def has_effect(name: str, flags: Callable[[str], object], idle: list[str] | None) -> bool:
    """Whether a flag does anything in a run with these flags; `idle` are those that its model does not use."""
    return name not in (idle or ()) and not (name in OF_MEMORY and flags("model_type") == "model_original")


def flag_table(rows, flags: Callable[[str], object], idle: list[str] | None = None) -> str:
    """The rows of a table of flags that apply; a category is named once."""
    lines, before = [], None
    for category, name, meaning in rows:
        is_set = flags(name) is not None or name in UNSET
        if is_set and has_effect(name, flags, idle):
            lines.append([f"**{category}**" if category != before else "", name, f"`{flags(name)}`", meaning])
            before = category
    return table(["参数类别", "参数名", "值", "说明"], lines)


def changed_flags(run: Run) -> dict[str, tuple]:
    """By name: (value of the base experiment's run, own value) of flags that change the result."""
    if run.base is None:
        return {}
    return changed_between(*((own.flat_flags, own.info.get("idle_flags")) for own in (run.base, run)))


def changed_between(before: tuple[dict, list[str] | None], after: tuple[dict, list[str] | None]) -> dict[str, tuple]:
    """By name: (old value, new value) of flags that change the result, from (flags, those that do nothing).

    A flag of the memory that only one of the two uses counts too, though its value is the same in both.
    """
    old, new = before[0], after[0]
    names = [name for name in new if name in old and name not in NOT_IDENTITY]
    names = [name for name in names if old[name] != new[name] or name in OF_MEMORY and new[name] is not None]

    def shown(name: str, flags: dict, idle: list[str] | None):
        return flags[name] if has_effect(name, flags.get, idle) else "不适用"

    used = {name: (shown(name, *before), shown(name, *after)) for name in names}
    return {name: (a, b) for name, (a, b) in used.items() if a != b}


def changed_flag_table(run: Run) -> str:
    if not run.info.get("base"):
        return "无基础实验"
    if run.base is None:
        return missing(f"没有找到 experiment_{run.info['base']} 的运行")
    return change_table(f"experiment_{run.info['base']}", changed_flags(run))


def change_table(base: str, changes: dict[str, tuple]) -> str:
    def short(value) -> str:
        text = str(value)
        return f"`{text}`" if len(text) <= LONGEST else f"`{text[:LONGEST]}` …, 共 {len(value)} 个"

    rows = [[name, short(old), short(new)] for name, (old, new) in changes.items()]
    return table(["参数名", base, "本实验"], rows) if rows else "参数与基础实验相同"


def file_table(run: Run) -> str:
    """The files that differ from the base experiment's run."""
    changes = changed_files(run) if run.info.get("base") else "无基础实验"
    if isinstance(changes, str):
        return missing(changes) if run.info.get("base") else changes
    new = {file["path"] for file in run.info.get("git_untracked", [])}
    rows = [[f"`{path}`", "新增" if path in new else "修改", f"+{a}, -{d}"] for path, a, d in changes[:30]]
    more = f"\n\n另有 {len(changes) - 30} 个文件" if len(changes) > 30 else ""
    return table(["文件路径", "修改类型", "行数"], rows) + more if rows else "代码未改变"
