"""The Markdown record of an experiment: measured values are filled in, everything else is left to its authors.

    python -m trainer.record out/experiment_1_4_8

A measured value stands before a marker, invisible once rendered: `2.4713`<!--FINAL_LOSS:1c9a7f02-->. For a fenced block
the marker is the line after it. The digits are a checksum of the value as it was filled in: filling again replaces it,
unless a person has changed it since, and no other text is ever touched. A marker without digits is not filled yet:
it is filled if a placeholder such as `[FINAL_LOSS]` stands before it.
"""

import json
import math
import re
import shutil
import sys
import zlib
from collections.abc import Callable
from datetime import datetime
from functools import cached_property
from pathlib import Path

from .curves import at_fractions, last_tenth, slope, spikes

INLINE = re.compile(r"`([^`\n]*)`<!--([\w:.]+?)(?::([0-9a-f]{8}))?-->")
BLOCK = re.compile(r"```(\w*)\n((?:(?!```).*\n)*?)```\n<!--([\w:.]+?)(?::([0-9a-f]{8}))?-->")
MISSING = "未记录"


def missing(reason: str) -> str:
    return f"{MISSING}({reason})"


class Run:
    """A run folder, read from its files."""

    def __init__(self, path: Path):
        self.path = path
        self.info = self._read("run.json") or {}
        self.flags = self._read("flags.json") or {}
        self.eval = self._read("eval.json") or {}

    def _read(self, name: str):
        path = self.path / name
        return json.loads(path.read_text()) if path.exists() else None

    @cached_property
    def metrics(self) -> list[dict]:
        path = self.path / "metrics.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        return [json.loads(line) for line in lines if line.endswith("}")]  # a killed run may end in half a line

    def curve(self, name: str) -> list[tuple[float, float]]:
        return [(line["step"], line[name]) for line in self.metrics if line.get(name) is not None]

    def last(self, name: str) -> float | None:
        points = self.curve(name)
        return points[-1][1] if points else None

    def flag(self, name: str):
        return next((section[name] for section in self.flags.values() if name in section), None)

    @property
    def best(self) -> dict | None:
        """The metrics line of the best validation."""
        lines = [line for line in self.metrics if line.get("val_loss") is not None]
        return min(lines, key=lambda line: line["val_loss"]) if lines else None

    def stage(self, name: str) -> dict:
        return next((stage for stage in self.info.get("stages", []) if stage["name"] == name), {})

    @property
    def seconds(self) -> float | None:
        stage = self.stage("train")
        if not stage.get("end"):
            return None
        return (datetime.fromisoformat(stage["end"]) - datetime.fromisoformat(stage["start"])).total_seconds()

    @property
    def on_gpu(self) -> bool:
        return bool(self.info.get("environment", {}).get("gpu"))

    @property
    def memory(self) -> tuple[str, str]:
        """The metrics of present and highest memory: of the GPU, or of the host in a CPU run."""
        return ("gpu_mib", "peak_gpu_mib") if self.on_gpu else ("host_mib", "host_mib")

    @property
    def peak_memory(self) -> float | None:
        points = self.curve(self.memory[1])
        return max(value for _, value in points) if points else None

    @cached_property
    def baseline(self) -> "Run | None":
        """The run of model_original to compare with: the one named, else the newest nearby of equal data and tokens."""
        if self.info.get("baseline"):
            return Run(Path(self.info["baseline"]))
        found = []
        for path in sorted(self.path.parent.glob("*/run.json")):
            other = Run(path.parent)
            same = all(other.flag(name) == self.flag(name) for name in ("data_path", "max_seq_len", "batch_size"))
            is_baseline = other.flag("model_type") == "model_original" and path.parent != self.path
            if is_baseline and same and other.last("tokens") == self.last("tokens"):
                found.append(other)
        return max(found, key=lambda run: run.info.get("start_time", "")) if found else None


def number(value: float | None, digits: int = 4, reason: str = "没有数据") -> str:
    return missing(reason) if value is None else f"{value:.{digits}f}"


def mib(value: float | None, run: Run) -> str:
    if value is None:
        return missing("没有读数")
    return f"{value:.0f} MiB" + ("" if run.on_gpu else "(CPU 运行: 主机内存)")


def duration(seconds: float | None) -> str:
    if seconds is None:
        return missing("未结束")
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}"


def change(new: float | None, old: float | None) -> str:
    if new is None or not old:
        return missing("没有可比的值")
    return f"{100 * (new - old) / old:+.1f}%"


def of_best(run: Run, name: str, digits: int) -> str:
    return number(run.best and run.best[name], digits, "没有验证")


def best_place(run: Run) -> str:
    return f"{run.best['epoch']:.2f} (步 {run.best['step']})" if run.best else missing("没有验证")


def target_ppl(run: Run) -> float | None:
    target = run.info.get("target_loss")
    return math.exp(target) if target else None


def achieved(run: Run) -> str:
    target, best = run.info.get("target_loss"), run.best
    if not target or not best:
        return "未设目标" if not target else missing("没有验证")
    return "是" if best["val_loss"] <= target else "否"


def within_limit(run: Run) -> str:
    limit = run.info.get("environment", {}).get("gpu_mib")
    if not limit or run.peak_memory is None:
        return missing("CPU 运行" if not run.on_gpu else "没有读数")
    return f"{'是' if run.peak_memory <= limit else '否'} ({run.peak_memory:.0f} / {limit} MiB)"


def convergence(run: Run) -> str:
    points = run.curve("loss")
    if len(points) < 2:
        return missing("训练步数太少")
    shares = ", ".join(f"{value:.4f}" for value in at_fractions([value for _, value in points]))
    lines = [
        f"训练 Loss 在 10/25/50/75/100% 处: {shares}",
        f"最后十分之一的斜率: {1000 * slope(last_tenth(points)):+.4f} / 千步",
    ]
    if run.best:
        final, best = run.last("val_loss"), run.best
        lines.append(f"验证 Loss: 最终 {final:.4f}, 最佳 {best['val_loss']:.4f} (步 {best['step']})")
    return "\n".join(lines)


def memory_usage(run: Run) -> str:
    points = run.curve(run.memory[0])
    if not points:
        return missing("没有读数")
    host = run.curve("host_mib")
    return (
        f"{'GPU' if run.on_gpu else '主机(CPU 运行)'} 峰值 {run.peak_memory:.0f} MiB, 最后 {points[-1][1]:.0f} MiB\n"
        f"主机内存: {host[0][1]:.0f} MiB -> {host[-1][1]:.0f} MiB (步 {host[0][0]} -> {host[-1][0]})"
    )


def stability(run: Run) -> str:
    points, norms = run.curve("loss"), [value for _, value in run.curve("grad_norm")]
    if not points:
        return missing("没有训练步")
    jumps = spikes(points)
    bad = [line["step"] for line in run.metrics if "loss" in line and line["loss"] is None]
    lines = [
        f"Loss 尖峰: {len(jumps)} 次" + (f" (步 {', '.join(map(str, jumps[:8]))})" if jumps else ""),
        f"非有限 Loss: {len(bad)} 次" + (f" (步 {', '.join(map(str, bad[:8]))})" if bad else ""),
    ]
    if norms:
        lines.append(f"梯度范数: 中位 {sorted(norms)[len(norms) // 2]:.3f}, 最大 {max(norms):.3f}")
    return "\n".join(lines)


def samples(run: Run) -> str:
    made = run.eval.get("generation", {}).get("samples")
    if not made:
        return missing("运行 eval_model.py 后填写")
    return "\n".join(f"{sample['prompt']!r} -> {sample['first_10_tokens']!r}" for sample in made)


def generation_score(name: str, text: str) -> Callable[[Run], str]:
    def fill(run: Run) -> str:
        made = run.eval.get("generation")
        return text.format(**made) if made and name in made else missing("运行 eval_model.py 后填写")

    return fill


def quality(run: Run | None) -> str:
    made = run and run.eval.get("generation")
    return f"PMI {made['coherence_pmi']:.3f}, distinct-2 {made['distinct2']:.3f}" if made else missing("没有评估")


def pmi(run: Run) -> float | None:
    return run.eval.get("generation", {}).get("coherence_pmi")


def bottlenecks(run: Run) -> list[str]:
    shares = {
        name.removeprefix("time_share/"): value
        for line in run.metrics
        for name, value in line.items()
        if name.startswith("time_share/")
    }
    ordered = sorted(shares.items(), key=lambda item: -item[1])
    return [f"{name}: 占一步时间的 {share:.0%}" for name, share in ordered]


def anomalies(run: Run) -> list[str]:
    found = []
    if run.info.get("state") == "failed":
        found.append("运行失败, 见错误日志")
    if run.info.get("state") == "stopped":
        found.append("运行被信号停止, 可用同一命令继续")
    found += [f"步 {step}: Loss 尖峰" for step in spikes(run.curve("loss"))]
    found += [f"步 {line['step']}: Loss 非有限" for line in run.metrics if "loss" in line and line["loss"] is None]
    return found


def item(items: Callable[[Run], list[str]], place: int) -> Callable[[Run], str]:
    def fill(run: Run) -> str:
        found = items(run)
        return found[place] if place < len(found) else "无"

    return fill


def environment(run: Run) -> str:
    facts = run.info.get("environment", {})
    packages = facts.get("packages", {})
    hardware = {name: value for name, value in facts.items() if name != "packages" and value is not None}
    return "\n".join(f"{name}: {value}" for name, value in {**hardware, **packages}.items()) or missing("没有 run.json")


def short_environment(run: Run) -> str:
    facts = run.info.get("environment", {})
    device = facts.get("gpu") or f"CPU ({facts.get('cpu_cores')} 核)"
    return f"CUDA {facts.get('cuda')} + PyTorch {facts.get('torch')} + {device}"


def against(run: Run, new: float | None, old: Callable[[Run], float | None]) -> str:
    return change(new, old(run.baseline)) if run.baseline else missing("未找到基线")


def of_baseline(value: Callable[[Run], str]) -> Callable[[Run], str]:
    return lambda run: value(run.baseline) if run.baseline else missing("未找到基线")


STATES = {"finished": "✅ 完成", "running": "⏳ 运行中", "failed": "❌ 失败", "stopped": "⏸ 停止"}
STAGES = {"INIT": "env", "DATA": "data", "MODEL": "model", "TRAIN": "train"}

VALUES: dict[str, Callable[[Run], str]] = {
    "EXPERIMENT": lambda run: f"experiment_{run.info.get('experiment', '')}",
    "VERSION": lambda run: run.info.get("experiment", ""),
    "CREATED": lambda run: run.info.get("start_time", "")[:10],
    "SCRIPT": lambda run: f"run_file/experiment_{run.info.get('experiment', '')}.sh",
    "OUT_DIR": lambda run: str(run.flag("out_dir")),
    "BASE_EXPERIMENT": lambda run: f"experiment_{run.info['base']}" if run.info.get("base") else "无",
    "ENVIRONMENT": short_environment,
    "GPU": lambda run: run.info.get("environment", {}).get("gpu") or "无 (CPU 运行)",
    "PROCESSES": lambda run: str(run.info.get("processes", 1)),
    "START_TIME": lambda run: run.info.get("start_time", missing("没有 run.json")),
    "COMMAND_LINE": lambda run: run.info.get("command", missing("没有 run.json")),
    **{f"{key}_START": lambda run, s=s: run.stage(s).get("start") or "未开始" for key, s in STAGES.items()},
    **{f"{key}_END": lambda run, s=s: run.stage(s).get("end") or "未结束" for key, s in STAGES.items()},
    **{f"{key}_STATUS": lambda run, s=s: STATES.get(run.stage(s).get("state"), "未开始") for key, s in STAGES.items()},
    **{f"{key}_NOTES": lambda run, s=s: run.stage(s).get("notes") or "-" for key, s in STAGES.items()},
    "ERROR_LOGS": lambda run: (run.info.get("error") or "无").strip(),
    "FINAL_LOSS": lambda run: number(run.last("val_loss"), 4, "没有验证"),
    "BEST_LOSS": lambda run: of_best(run, "val_loss", 4),
    "BEST_LOSS_EPOCH": best_place,
    "TARGET_LOSS": lambda run: number(run.info["target_loss"]) if run.info.get("target_loss") else "未设目标",
    "LOSS_ACHIEVED": achieved,
    "FINAL_PPL": lambda run: number(run.last("val_ppl"), 2, "没有验证"),
    "BEST_PPL": lambda run: of_best(run, "val_ppl", 2),
    "BEST_PPL_EPOCH": best_place,
    "TARGET_PPL": lambda run: number(target_ppl(run), 2) if target_ppl(run) else "未设目标",
    "PPL_ACHIEVED": achieved,
    "FINAL_LR": lambda run: f"{run.last('lr'):.3g}" if run.last("lr") is not None else missing("没有训练步"),
    "FINAL_GPU_MEM": lambda run: mib(run.last(run.memory[0]), run),
    "PEAK_GPU_MEM": lambda run: mib(run.peak_memory, run),
    "GPU_WITHIN_LIMIT": within_limit,
    "LOSS_CONVERGENCE_ANALYSIS": convergence,
    "MEMORY_USAGE_ANALYSIS": memory_usage,
    "TRAINING_STABILITY_ANALYSIS": stability,
    "TEXT_GENERATION_SAMPLES": samples,
    "COHERENCE_SCORE": generation_score("coherence_pmi", "{coherence_pmi:.3f} nat/token (续写与提示的点互信息)"),
    "FLUENCY_SCORE": generation_score("fluency_ppl", "困惑度 {fluency_ppl:.2f}, 4-gram 重复率 {repetition:.1%}"),
    "DIVERSITY_SCORE": generation_score("distinct2", "distinct-2 {distinct2:.3f}"),
    "CURRENT_LOSS": lambda run: VALUES["FINAL_LOSS"](run),
    "CURRENT_PPL": lambda run: VALUES["FINAL_PPL"](run),
    "CURRENT_QUALITY": quality,
    "CURRENT_TIME": lambda run: duration(run.seconds),
    "CURRENT_MEM": lambda run: VALUES["PEAK_GPU_MEM"](run),
    "BASELINE_LOSS": of_baseline(lambda run: VALUES["FINAL_LOSS"](run)),
    "BASELINE_PPL": of_baseline(lambda run: VALUES["FINAL_PPL"](run)),
    "BASELINE_QUALITY": of_baseline(quality),
    "BASELINE_TIME": of_baseline(lambda run: duration(run.seconds)),
    "BASELINE_MEM": of_baseline(lambda run: VALUES["PEAK_GPU_MEM"](run)),
    "LOSS_IMPROVEMENT": lambda run: against(run, run.last("val_loss"), lambda base: base.last("val_loss")),
    "PPL_IMPROVEMENT": lambda run: against(run, run.last("val_ppl"), lambda base: base.last("val_ppl")),
    "QUALITY_IMPROVEMENT": lambda run: against(run, pmi(run), pmi),
    "TIME_CHANGE": lambda run: against(run, run.seconds, lambda base: base.seconds),
    "MEM_CHANGE": lambda run: against(run, run.peak_memory, lambda base: base.peak_memory),
    **{f"BOTTLENECK_{i + 1}": item(bottlenecks, i) for i in range(2)},
    **{f"ANOMALY_{i + 1}": item(anomalies, i) for i in range(2)},
    "SWANLAB_URL": lambda run: run.info.get("swanlab_url") or "未启用",
    "ENVIRONMENT_SNAPSHOT": environment,
    "COMPLETION_TIME": lambda run: run.info.get("end_time") or "未结束",
    "COMMIT_HASH": lambda run: (run.info.get("git_commit") or missing("不在 git 仓库中"))
    + (" (有未提交的修改)" if run.info.get("git_dirty") else ""),
}  # fmt: skip


def value_of(name: str, run: Run) -> str:
    """The text for a marker: a row of VALUES, or `flag:<name>` for a flag of the run.

    Raises:
        ValueError: the template asks for something that nobody measures.
    """
    if name.startswith("flag:"):
        return str(run.flag(name.removeprefix("flag:")))
    if name not in VALUES:
        raise ValueError(f"the record has a marker <!--{name}--> that nothing fills: correct it or remove it")
    return VALUES[name](run)


def checksum(text: str) -> str:
    return f"{zlib.crc32(text.encode()):08x}"


def written_by_hand(text: str, filled: str | None) -> bool:
    """Whether a person wrote the text at a marker: it is neither the value filled in nor a [PLACEHOLDER]."""
    return checksum(text) != filled if filled else not re.fullmatch(r"\[\w+\]\s*", text)


def fill_text(text: str, run: Run) -> str:
    """The record with every marked value replaced by the run's, except those that a person has changed."""

    def inline(match: re.Match) -> str:
        old, name, filled = match.groups()
        if written_by_hand(old, filled):
            return match[0]
        new = " ".join(value_of(name, run).split()).replace("`", "'").replace("|", "/")
        return f"`{new}`<!--{name}:{checksum(new)}-->"

    def block(match: re.Match) -> str:
        language, old, name, filled = match.groups()
        if written_by_hand(old, filled):
            return match[0]
        new = value_of(name, run).replace("```", "'''") + "\n"
        return f"```{language}\n{new}```\n<!--{name}:{checksum(new)}-->"

    return BLOCK.sub(block, INLINE.sub(inline, text))


def fill_record(run_dir: str | Path, experiment_dir: str | Path | None = None) -> Path:
    """Create the record of a run's experiment from the template if there is none, and fill in what was measured.

    Raises:
        FileNotFoundError: the folder has no run.json, or there is no template.
    """
    run = Run(Path(run_dir))
    if not run.info:
        raise FileNotFoundError(f"{run_dir} has no run.json: it is not the folder of a run")
    directory = Path(experiment_dir or run.flag("experiment_dir"))
    path = directory / f"EXPERIMENT_{run.info['experiment']}.md"
    if not path.exists():
        directory.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(Path(__file__).parents[1] / "experiment" / "TEMPLATE.md", path)
    text = fill_text(path.read_text(encoding="utf-8"), run)
    temporary = path.with_name(f".{path.name}")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)
    return path


if __name__ == "__main__":
    try:
        print(fill_record(*sys.argv[1:3]))
    except (ValueError, FileNotFoundError) as problem:
        sys.exit(f"error: {problem}")
