"""What a record says of a run: one function of the run for each value, all of them in VALUES."""

import math
from collections.abc import Callable
from pathlib import Path
from statistics import median

from .analysis import (
    at_fractions,
    divergence,
    last_tenth,
    last_unless_broken,
    not_finite_at_the_end,
    outliers,
    plateaus,
    self_bleu,
    slope,
    spikes,
    time_shares,
)
from .metrics import METRICS
from .run import Run, git

ROOT = Path(__file__).parents[1]
MISSING = "未记录"
LISTED = 8  # places, files or lines of a log that are named at most

STEEP = 4  # a gradient norm beyond this many medians is told


def missing(reason: str) -> str:
    return f"{MISSING}({reason})"


def number(value: float | None, digits: int = 4, reason: str = "没有数据") -> str:
    return missing(reason) if value is None else f"{value:.{digits}f}"


def mib(value: float | None, run: Run) -> str:
    if value is None:
        return missing("没有读数")
    return f"{value:.0f} MiB" + ("" if run.on_gpu else "(CPU 运行: 主机内存)")


def duration(run: Run) -> str:
    """Time spent in training, over all sessions."""
    if run.seconds is None:
        return missing("未开始训练")
    minutes, rest = divmod(round(run.seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" + (f" ({run.sessions} 次会话)" if run.sessions > 1 else "")


def change(new: float | None, old: float | None) -> str:
    if new is None or not old:
        return missing("没有可比的值")
    return f"{100 * (new - old) / old:+.1f}%"


def places(steps: list) -> str:
    """A count of steps and the first of them."""
    if not steps:
        return "0 次"
    more = ", ..." if len(steps) > LISTED else ""
    return f"{len(steps)} 次 (步 {', '.join(map(str, steps[:LISTED]))}{more})"


def final_text(run: Run, name: str, digits: int) -> str:
    step = not_finite_at_the_end(run)
    return number(run.last(name), digits, "没有验证") if step is None else f"NaN/Inf (步 {step})"


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
    stretches = [f"步 {first}-{last}" for first, last in plateaus(points)]
    lines = [
        f"训练 Loss 在 10/25/50/75/100% 处: {shares}",
        f"最后十分之一的斜率: {1000 * slope(last_tenth(points)):+.4f} / 千步",
        f"平台期: {', '.join(stretches[:LISTED]) or '无'}",
    ]
    if run.best:
        last, best = run.last("val_loss"), run.best
        lines.append(f"验证 Loss: 最终 {last:.4f}, 最佳 {best['val_loss']:.4f} (步 {best['step']})")
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
    bad = run.not_finite("loss")
    if not points and not bad:
        return missing("没有训练步")
    rise, died = divergence(points), not_finite_at_the_end(run) is not None
    lines = [
        f"Loss 尖峰: {places(spikes(points))}",
        f"非有限 Loss: {places(bad)}",
        f"发散: {'以非有限 Loss 结束' if died else f'是, 结尾比最低处高 {rise:.4f}' if rise else '否'}",
    ]
    if norms:
        lines.append(f"梯度范数: 中位 {median(norms):.3f}, 最大 {max(norms):.3f}")
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


def diversity(run: Run) -> str:
    made = run.eval.get("generation")
    if not made:
        return missing("运行 eval_model.py 后填写")
    alike = self_bleu([sample["sampled"].split() for sample in made["samples"]])
    return f"distinct-2 {made['distinct2']:.3f}, self-BLEU {alike:.3f}"


def quality(run: Run) -> str:
    made = run.eval.get("generation")
    return f"PMI {made['coherence_pmi']:.3f}, distinct-2 {made['distinct2']:.3f}" if made else missing("没有评估")


def pmi(run: Run) -> float | None:
    return run.eval.get("generation", {}).get("coherence_pmi")


def bottlenecks(run: Run) -> list[str]:
    return [f"{name}: 占训练时间的 {share:.0%}" for name, share in time_shares(run).items() if share >= 0.005]


def anomalies(run: Run) -> list[str]:
    """What was not as it should be, the gravest first."""
    points, host = run.curve("loss"), run.curve("host_mib")
    speed, norms = run.curve("tokens_per_s")[1:], run.curve("grad_norm")  # the first speed includes the warm-up
    slow = outliers(speed, lambda value, middle: value < middle / 2)
    steep = outliers(norms, lambda value, middle: value > STEEP * middle)
    states = {
        "failed": "运行失败, 见错误日志",
        "killed": f"进程未留下结束记录便消失(如 SIGKILL 或断电), 最后活动 {run.end_time}",
        "stopped": "运行被信号停止, 可用同一命令继续",
    }
    troubles = [line[20:] for line in run.log_lines if line[19:].startswith((" WARNING ", " ERROR "))]
    found = [
        (run.state in states, states.get(run.state)),
        (run.not_finite("loss"), f"Loss 非有限: {places(run.not_finite('loss'))}"),
        (run.not_finite("val_loss"), f"验证 Loss 非有限: {places(run.not_finite('val_loss'))}"),
        (divergence(points), "Loss 发散"),
        (spikes(points), f"Loss 尖峰: {places(spikes(points))}"),
        (steep, f"梯度范数超过中位数的 {STEEP} 倍: {places(steep)}"),
        (slow, f"吞吐不到中位数的一半: {places(slow)}"),
        (host and host[-1][1] > 1.5 * host[0][1] + 500, "主机内存持续增长"),
        (run.sessions > 1, f"共 {run.sessions} 次会话: 曾中断 {run.sessions - 1} 次"),
    ]
    return [text for happened, text in found if happened] + list(dict.fromkeys(troubles))[:LISTED]


def item(items: Callable[[Run], list[str]], place: int, rest: bool = False) -> Callable[[Run], str]:
    """One of a list of texts, or with `rest` this one and all that follow."""

    def fill(run: Run) -> str:
        found = items(run)[place:]
        return ("; ".join(found) if rest else found[0]) if found else "无"

    return fill


def changed_files(run: Run) -> list[tuple[str, int, int]] | str:
    """(path, lines added, lines deleted) since the base experiment's run, or the reason why that is not known."""
    if run.base is None:
        return f"没有找到 experiment_{run.info['base']} 的运行"
    old, new = run.base.info.get("git_commit"), run.info.get("git_commit")
    committed = old and new and git("-C", str(ROOT), "diff", "--numstat", old, new)
    if committed is None or not old or not new:
        return "两次运行的提交不在此 git 仓库中"
    found: dict[str, tuple[int, int]] = {}
    for line in [*committed.splitlines(), *run.info.get("git_uncommitted", [])]:
        added, deleted, path = line.split("\t", 2)
        before = found.get(path, (0, 0))
        found[path] = (before[0] + int(added.replace("-", "0")), before[1] + int(deleted.replace("-", "0")))
    return [(path, *counts) for path, counts in sorted(found.items())]


def of_changes(text: Callable[[list[tuple[str, int, int]]], str]) -> Callable[[Run], str]:
    """A value of the changed files, or why there is none."""

    def fill(run: Run) -> str:
        if not run.info.get("base"):
            return "无基础实验"
        changes = changed_files(run)
        return missing(changes) if isinstance(changes, str) else text(changes)

    return fill


def change_list(changes: list[tuple[str, int, int]]) -> str:
    lines = [f"{path}: +{added}, -{deleted}" for path, added, deleted in changes]
    more = [f"... 另有 {len(lines) - 30} 个文件"] if len(lines) > 30 else []
    return "\n".join([*lines[:30], *more]) or "代码未改变"


def all_metrics(run: Run) -> str:
    """Every metric with a Chinese label, one a line."""
    found = [(m.chinese, m.value(run), m.text) for m in METRICS if m.chinese]
    return "\n".join(f"{label}: {text(value)}" for label, value, text in found if value is not None) or "无"


def environment(run: Run) -> str:
    facts = run.info.get("environment", {})
    packages = facts.get("packages", {})
    hardware = {name: value for name, value in facts.items() if name != "packages" and value is not None}
    return "\n".join(f"{name}: {value}" for name, value in {**hardware, **packages}.items()) or missing("没有 run.json")


def short_environment(run: Run) -> str:
    facts = run.info.get("environment", {})
    device = facts.get("gpu") or f"CPU ({facts.get('cpu_cores')} 核)"
    return f"CUDA {facts.get('cuda')} + PyTorch {facts.get('torch')} + {device}"


def of_baseline(value: Callable[[Run], str]) -> Callable[[Run], str]:
    """A value of the baseline's run, or why there is none."""

    def fill(run: Run) -> str:
        if run.baseline:
            return value(run.baseline)
        return "本实验即 model_original" if run.flag("model_type") == "model_original" else missing("未找到基线")

    return fill


def against(value: Callable[[Run], float | None]) -> Callable[[Run], str]:
    """The change of a value against the baseline's."""
    return lambda run: of_baseline(lambda base: change(value(run), value(base)))(run)


def script(run: Run) -> str:
    path = f"run_file/experiment_{run.info.get('experiment', '')}.sh"
    return path if Path(path).exists() else "无 (见命令行)"


def train_notes(run: Run) -> str:
    made = [run.stage("train").get("notes"), run.metrics and f"到步 {run.metrics[-1]['step']}"]
    return ", ".join(filter(None, made)) or "-"


def completion(run: Run) -> str:
    if run.state == "killed":
        return f"未完成 (最后活动 {run.end_time})"
    return run.end_time or "未结束"


STATES = {
    "finished": "✅ 完成", "running": "⏳ 运行中", "failed": "❌ 失败", "stopped": "⏸ 停止",
    "killed": "❌ 中断(进程消失)",
}  # fmt: skip
STAGES = {"INIT": "env", "DATA": "data", "MODEL": "model", "TRAIN": "train"}

VALUES: dict[str, Callable[[Run], str]] = {
    "EXPERIMENT": lambda run: f"experiment_{run.info.get('experiment', '')}",
    "VERSION": lambda run: run.info.get("experiment", ""),
    "CREATED": lambda run: (run.start_time or "")[:10],
    "STATE": lambda run: STATES.get(run.state, run.state),
    "SCRIPT": script,
    "OUT_DIR": lambda run: str(run.flag("out_dir")),
    "BASE_EXPERIMENT": lambda run: f"experiment_{run.info['base']}" if run.info.get("base") else "无",
    "ENVIRONMENT": short_environment,
    "GPU": lambda run: run.info.get("environment", {}).get("gpu") or "无 (CPU 运行)",
    "PROCESSES": lambda run: str(run.info.get("processes", 1)),
    "CHANGED_FILES": of_changes(lambda changes: str(len(changes))),
    "LINES_ADDED": of_changes(lambda changes: f"+{sum(added for _, added, _ in changes)}"),
    "LINES_DELETED": of_changes(lambda changes: f"-{sum(deleted for _, _, deleted in changes)}"),
    "GIT_DIFF": of_changes(change_list),
    "START_TIME": lambda run: run.start_time or missing("没有 run.json"),
    "COMMAND_LINE": lambda run: run.info.get("command", missing("没有 run.json")),
    **{f"{key}_START": lambda run, s=s: run.stage(s).get("start") or "未开始" for key, s in STAGES.items()},
    **{f"{key}_END": lambda run, s=s: run.stage(s).get("end") or "未结束" for key, s in STAGES.items()},
    **{f"{key}_STATUS": lambda run, s=s: STATES.get(run.stage(s).get("state"), "未开始") for key, s in STAGES.items()},
    **{f"{key}_NOTES": lambda run, s=s: run.stage(s).get("notes") or "-" for key, s in STAGES.items()},
    "TRAIN_NOTES": train_notes,
    "ERROR_LOGS": lambda run: (run.info.get("error") or "无").strip(),
    "FINAL_LOSS": lambda run: final_text(run, "val_loss", 4),
    "BEST_LOSS": lambda run: of_best(run, "val_loss", 4),
    "BEST_LOSS_EPOCH": best_place,
    "TARGET_LOSS": lambda run: number(run.info["target_loss"]) if run.info.get("target_loss") else "未设目标",
    "LOSS_ACHIEVED": achieved,
    "FINAL_PPL": lambda run: final_text(run, "val_ppl", 2),
    "BEST_PPL": lambda run: of_best(run, "val_ppl", 2),
    "BEST_PPL_EPOCH": best_place,
    "TARGET_PPL": lambda run: number(target_ppl(run), 2) if target_ppl(run) else "未设目标",
    "PPL_ACHIEVED": achieved,
    "FINAL_LR": lambda run: f"{run.last('lr'):.3g}" if run.last("lr") is not None else missing("没有训练步"),
    "FINAL_GPU_MEM": lambda run: mib(run.last(run.memory[0]), run),
    "PEAK_GPU_MEM": lambda run: mib(run.peak_memory, run),
    "GPU_WITHIN_LIMIT": within_limit,
    "ALL_METRICS": all_metrics,
    "LOSS_CONVERGENCE_ANALYSIS": convergence,
    "MEMORY_USAGE_ANALYSIS": memory_usage,
    "TRAINING_STABILITY_ANALYSIS": stability,
    "TEXT_GENERATION_SAMPLES": samples,
    "COHERENCE_SCORE": generation_score("coherence_pmi", "{coherence_pmi:.3f} nat/token (续写与提示的点互信息)"),
    "FLUENCY_SCORE": generation_score("fluency_ppl", "困惑度 {fluency_ppl:.2f}, 4-gram 重复率 {repetition:.1%}"),
    "DIVERSITY_SCORE": diversity,
    "CURRENT_LOSS": lambda run: VALUES["FINAL_LOSS"](run),
    "CURRENT_PPL": lambda run: VALUES["FINAL_PPL"](run),
    "CURRENT_QUALITY": quality,
    "CURRENT_TIME": duration,
    "CURRENT_MEM": lambda run: VALUES["PEAK_GPU_MEM"](run),
    "BASELINE_LOSS": of_baseline(lambda run: VALUES["FINAL_LOSS"](run)),
    "BASELINE_PPL": of_baseline(lambda run: VALUES["FINAL_PPL"](run)),
    "BASELINE_QUALITY": of_baseline(quality),
    "BASELINE_TIME": of_baseline(duration),
    "BASELINE_MEM": of_baseline(lambda run: VALUES["PEAK_GPU_MEM"](run)),
    "LOSS_IMPROVEMENT": against(lambda run: last_unless_broken(run, "val_loss")),
    "PPL_IMPROVEMENT": against(lambda run: last_unless_broken(run, "val_ppl")),
    "QUALITY_IMPROVEMENT": against(pmi),
    "TIME_CHANGE": against(lambda run: run.seconds),
    "MEM_CHANGE": against(lambda run: run.peak_memory),
    "BOTTLENECK_1": item(bottlenecks, 0),
    "BOTTLENECK_2": item(bottlenecks, 1),
    "ANOMALY_1": item(anomalies, 0),
    "ANOMALY_2": item(anomalies, 1, rest=True),
    "SWANLAB_URL": lambda run: run.info.get("swanlab_url") or "未启用",
    "ENVIRONMENT_SNAPSHOT": environment,
    "COMPLETION_TIME": completion,
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
