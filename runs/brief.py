"""Everything that an analysis of a run needs, compact, in one text: `python -m experiment brief RUN`.

The text is in the template's language, names no file that the reader would have to open, and ends with the open blanks
of the record and how to hand in the answers. Pasted into any assistant, it needs nothing else.
"""

import re
from pathlib import Path

from .analysis import divergence, plateaus, spikes, time_shares
from .blanks import BLANKS, open_blanks
from .evidence import ARMS, OWN, Difference, Evidence, Number, own
from .record import fill_text, record_of, record_path, text_of_record, values_for
from .record_tables import changed_flags, curve_points, picked, reader_of, reader_table, table
from .record_text import STATES, anomalies, convergence, duration, memory_usage, short_environment, stability
from .run import Run
from .scripts import comments_of, find_script

ROOT = Path(__file__).parents[1]
CURVES = {
    "loss": "训练 Loss (每段均值)", "val_loss": "验证 Loss", "lr": "学习率", "grad_norm": "梯度范数",
    "tokens_per_s": "吞吐 (token/s)", "mfu": "MFU", "memory/used_share*": "读到的条目占比",
    "memory/selection_entropy": "读取权重的熵 (nat)", "questions/right": "训练中答对的比例",
    "questions/shuffled": "训练中答对的比例, 打乱知识库", "questions/read/*": "训练中读到正确条目的比例,",
}  # fmt: skip  # a * stands for the rest of a name, such as the reader of a memory
COMMENT = {"Question": "问题", "Change": "改变"}
LONGEST_RECORD = 2500  # characters of the base's record
HOW = (
    "写成 JSON 对象 {\"编号\": \"回答\"}, 存为文件, 然后: python -m experiment fill {run} --notes 文件。"
    "只写上文里有的数值 (可四舍五入, 可写成 % 或 k/M); 引用某一步的原始值时写明 步 N。"
    "要提议新的参数值, 写成 --参数名 值。没有证据的空白不要填。"
)  # fmt: skip


def number_entry(number: Number) -> dict:
    """A number with what says how sure it is."""
    digits = (lambda value: round(value, 2)) if number.is_share else (lambda value: float(f"{value:.6g}"))
    entry = {"值": digits(number.value), "单位": number.metric.unit, "题数": number.n}
    if number.interval:
        entry["95% 区间"] = [digits(side) for side in number.interval]
    if len(number.values) > 1:
        entry["各种子"] = [digits(value) for value in number.values]
    return {name: value for name, value in entry.items() if value not in (None, "")}


def difference_entry(difference: Difference) -> dict:
    return {"差": difference.text, "结论": difference.word}


def results(found: Evidence) -> list[dict]:
    """Every measure of the model: its number, those of the base and of model_original, those under the controls."""
    made = []
    for measure in found.measures:
        number = own(found.results, measure)
        entry = {"指标": number.label, "名称": measure, "本实验": number_entry(number)}
        for name, other in found.references:
            if difference := found.against(measure, other):
                entry[name] = number_entry(difference.old)
                if number.metric.better:
                    entry[f"相对{name}"] = difference_entry(difference)
        controls = {ARMS[arm]: found.results[arm, measure] for arm in found.controls if (arm, measure) in found.results}
        if controls:
            entry["对照"] = {name: number_entry(control) for name, control in controls.items()}
        made.append(entry)
    for arm, measure in found.results:  # measured under controls only
        if arm not in OWN and measure not in found.measures:
            number = found.results[arm, measure]
            made.append({"指标": number.label, "名称": measure, "对照": {ARMS[arm]: number_entry(number)}})
    return made


def curves(run: Run) -> dict[str, list]:
    """The curves in numbers: [step, value] at a few places; the training loss is the mean of each stretch."""
    found = {}
    for name, label in named_curves(run).items():
        points = curve_points(run, name) if name == "loss" else picked(run.curve(name))
        if points:
            found[label] = [[step, float(f"{value:.5g}")] for step, value in points]
    return found


def named_curves(run: Run) -> dict[str, str]:
    """Names of logged metrics -> their labels."""
    logged, found = dict.fromkeys(name for line in run.metrics for name in line), {}
    for pattern, label in CURVES.items():
        head = pattern.removesuffix("*")
        for name in logged if pattern != head else [pattern]:
            if name.startswith(head):
                found[name] = f"{label} {name.removeprefix(head).strip('/').replace('_', ' ')}".strip()
    return found


def anomaly_facts(run: Run) -> dict:
    """What was not as it should be, with steps and counts."""
    points = run.curve("loss")
    facts = {
        "Loss 尖峰 (步)": spikes(points), "Loss 为 NaN/Inf (步)": run.not_finite("loss"),
        "平台期 (步)": [list(stretch) for stretch in plateaus(points)], "跳过的步数": run.last("skipped_steps"),
        "发散幅度": round(divergence(points), 4), "会话数": run.sessions, "已知异常": anomalies(run),
    }  # fmt: skip
    return {name: value for name, value in facts.items() if value is not None}


def script_comment(experiment: str) -> dict[str, str]:
    """Question and change, as the experiment's script states them; the question in Chinese where there is one."""
    from .documents.leaderboard import ASKED  # not above, for it imports modules that import this one

    path = find_script(experiment, ROOT)
    told = comments_of(path) if path else {}
    if told and (question := ASKED.get(experiment.replace("_", "."))):
        told |= {"Question": question}
    return {label: told[word] for word, label in COMMENT.items() if word in told}


def base_record(run: Run, directory: Path) -> str:
    """What the base's record says in its analysis and its conclusion, without marks and open blanks."""
    number = str(run.info.get("base") or "").replace(".", "_")
    folders = (directory, ROOT / "experiment")
    path = next((p for f in folders if number and (p := record_path(number, f)).exists()), None)
    if path is None:
        return ""
    text = re.sub(r"<!--.*?-->", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
    start, end = text.find("## 📈 深度分析"), text.find("## 📁 文件清单")
    lines = [line for line in text[start:end].splitlines() if start >= 0 and line.strip() not in ("", "```", "---")]
    told = [line for line in lines if not re.search(r"\[[A-Z][A-Z_0-9]*\]", line)]
    return "\n".join(without_empty_headings(told))[:LONGEST_RECORD]


def without_empty_headings(lines: list[str]) -> list[str]:
    """The lines without headings that nothing follows."""
    kept: list[str] = []
    for line in reversed(lines):
        is_heading = line.startswith(("#", "**")) and line.rstrip(" :").endswith(("**", "**:")) or line.startswith("#")
        if not is_heading or kept and not kept[-1].startswith("#"):
            kept.append(line)
    return kept[::-1]


def human_aims(text: str) -> dict[str, str]:
    """The aims that a person wrote into the record."""
    names = ("实验目的", "研究假设", "预期结果", "实验重点")
    found = {name: re.search(rf"^\*\*{name}\*\*:[ \t]*(.+)$", text, re.MULTILINE) for name in names}
    return {name: match[1] for name, match in found.items() if match and "[待填写]" not in match[1]}


def brief(run: Run, experiment_dir: str | Path | None = None) -> dict:
    """All of it as one object, for JSON; `as_markdown` writes it as text."""
    found = Evidence(run)
    lead, path = found.runs[0], record_of(run, experiment_dir)
    text = fill_text(text_of_record(path), values_for(run, path))
    experiment = {
        "编号": f"experiment_{lead.number or lead.name}", "状态": STATES.get(lead.state, lead.state),
        **script_comment(lead.number), "基础实验": lead.info.get("base"), "运行": str(lead.path),
        "基线": str(lead.baseline.path) if lead.baseline else None,
        "种子": [other.flag("seed") for other in found.runs], "开始": lead.start_time, "结束": lead.end_time,
        "训练时间": duration(lead), "步数": max((line["step"] for line in lead.metrics), default=0),
        "每步批次": lead.flag("batch_size"), "累积步数": lead.flag("accumulation_steps"),
        "提交": (lead.info.get("git_commit") or "")[:7], "未提交的修改": bool(lead.info.get("git_dirty")),
        "环境": short_environment(lead), "命令": lead.info.get("command"), "错误": lead.info.get("error"),
    } | human_aims(text)  # fmt: skip
    flags = {name: {"基础实验": old, "本实验": new} for name, (old, new) in changed_flags(lead).items()}
    return {
        "实验": {name: value for name, value in experiment.items() if value not in (None, "", [])},
        "与基础实验不同的参数": flags, "结果": results(found), "曲线": curves(lead),
        "曲线分析": [convergence(lead), memory_usage(lead), stability(lead)],
        "时间占比": {name: round(share, 4) for name, share in time_shares(lead).items()},
        "异常": anomaly_facts(lead), "基础实验的记录": base_record(lead, path.parent),
        "空白": [
            {"编号": name, "部分": BLANKS[name].part, "要求": BLANKS[name].asks} for name in open_blanks(text)
        ],
        "如何填写": HOW.replace("{run}", str(run.path)),
    }  # fmt: skip


def as_text(value) -> str:
    if isinstance(value, dict):
        return "; ".join(f"{name} {as_text(part)}" for name, part in value.items())
    if isinstance(value, list):
        return ", ".join(f"({as_text(v)})" if isinstance(v, (list, dict)) else as_text(v) for v in value) or "无"
    if isinstance(value, bool):
        return "是" if value else "否"
    return f"{value:g}" if isinstance(value, float) else str(value)


def short(entry: dict | None) -> str:
    """A number's entry in a table: value, interval, questions."""
    if entry is None:
        return "-"
    unit = "%" if entry.get("单位") == "%" else ""
    text = f"{entry['值']:g}{unit}" if abs(entry["值"]) < 1e5 else f"{entry['值']:.0f}"
    text += f" [{', '.join(f'{side:g}' for side in entry['95% 区间'])}]" if "95% 区间" in entry else ""
    return text + (f" 各种子 {as_text(entry['各种子'])}" if "各种子" in entry else "")


def result_table(entries: list[dict]) -> str:
    arms = list(dict.fromkeys(name for entry in entries for name in entry.get("对照", {})))
    head = ["指标", "题数", "本实验", "基础实验", "model_original", "相对基础实验", "相对 model_original", *arms]
    rows = []
    for entry in entries:
        first = entry.get("本实验") or next(iter(entry["对照"].values()))
        gaps = [entry.get(f"相对{name}", {}).get("差", "-") for name in ("基础实验", "model_original")]
        numbers = [short(entry.get(name)) for name in ("本实验", "基础实验", "model_original")]
        controls = [short(entry.get("对照", {}).get(arm)) for arm in arms]
        rows.append([entry["指标"], first.get("题数", "-"), *numbers, *gaps, *controls])
    used = [i for i, name in enumerate(head) if i < 3 or any(row[i] != "-" for row in rows)]
    return table([head[i] for i in used], [[row[i] for i in used] for row in rows])


def as_markdown(made: dict) -> str:
    """The brief as Markdown."""
    parts = [f"# {made['实验']['编号']}: 分析材料"]
    parts.append("\n".join(f"- {name}: {as_text(value)}" for name, value in made["实验"].items()))
    flags = [[name, as_text(v["基础实验"]), as_text(v["本实验"])] for name, v in made["与基础实验不同的参数"].items()]
    told = table(["参数", "基础实验", "本实验"], flags) if flags else "无, 或没有找到基础实验的运行"
    parts.append(f"## 与基础实验不同的参数\n\n{told}")
    of_readers = [entry for entry in made["结果"] if reader_of(entry["名称"])]
    told = [entry for entry in made["结果"] if entry not in of_readers]
    parts.append("## 结果 ([ ] 内是 95% 区间)\n\n" + (result_table(told) if told else "无"))
    if cells := {reader_of(entry["名称"]): entry["本实验"] for entry in of_readers if "本实验" in entry}:
        n = next(iter(cells.values())).get("题数")
        parts.append(reader_table({key: f"{number['值']:g}" for key, number in cells.items()}, n, " (%)"))
    lines = [f"- {name}: " + ", ".join(f"步 {step}: {value:g}" for step, value in points)
             for name, points in made["曲线"].items()]  # fmt: skip
    parts.append("## 曲线\n\n" + ("\n".join(lines) or "无"))
    parts.append("\n".join(f"- {line}" for part in made["曲线分析"] for line in part.splitlines()))
    parts.append("## 时间占比\n\n" + (", ".join(f"{k} {v:.1%}" for k, v in made["时间占比"].items()) or "无"))
    parts.append("## 异常\n\n" + "\n".join(f"- {name}: {as_text(value)}" for name, value in made["异常"].items()))
    parts.append("## 基础实验的记录\n\n" + (made["基础实验的记录"].replace("\n#", "\n###") or "没有"))
    blanks, part = [], None
    for blank in made["空白"]:
        blanks += [f"\n{blank['部分']}"] * (blank["部分"] != part) + [f"- {blank['编号']}: {blank['要求']}"]
        part = blank["部分"]
    parts.append(f"## 空白 ({len(made['空白'])} 处)\n" + "\n".join(blanks))
    parts.append(f"## 如何填写\n\n{made['如何填写']}")
    return "\n\n".join(parts) + "\n"
