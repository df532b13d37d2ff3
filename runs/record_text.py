"""Texts of a record, in Chinese: each function describes one thing of a run, or says why it is not known."""

import math
from collections.abc import Callable
from pathlib import Path
from statistics import median

from .analysis import (
    at_fractions,
    divergence,
    last_tenth,
    not_finite_at_the_end,
    outliers,
    plateaus,
    self_bleu,
    slope,
    spikes,
    time_shares,
)
from .run import Run, git
from .scripts import find_script

ROOT = Path(__file__).parents[1]
MISSING = "未记录"
LISTED = 8  # places, files or lines of a log that are named at most

PARTS = {
    "backward": " (反向传播)", "forward": " (前向传播)", "data": " (等待数据)", "optimizer": " (优化器)",
    "evaluation": " (验证)",
}  # fmt: skip
MORE_IS_WORSE, LESS_IS_WORSE = "正数为更差", "负数为更差"
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
    notes = [f"{run.sessions} 次会话"] * (run.sessions > 1) + ["与其他进程共用 GPU"] * run.shares_gpu
    return f"{hours}:{minutes:02d}:{rest:02d}" + (f" ({', '.join(notes)})" if notes else "")


def change(new: float | None, old: float | None, worse: str = "") -> str:
    """The change in per cent; `worse` says which sign is bad, as the form calls every change an improvement."""
    if new is None or not old:
        return missing("没有可比的值")
    return f"{100 * (new - old) / old:+.1f}%" + (f" ({worse})" if worse else "")


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


def of_seed(text: str, run: Run) -> str:
    """A value of one run, in a record of several seeds."""
    return f"{text} (种子 {run.flag('seed')})"


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
        f"Loss 为 NaN/Inf: {places(bad)}",
        f"发散: {'以 NaN/Inf 结束' if died else f'是, 结尾比最低处高 {rise:.4f}' if rise else '否'}",
    ]
    if norms:
        lines.append(f"梯度范数: 中位数 {median(norms):.3f}, 最大 {max(norms):.3f}")
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
    shares = {name: share for name, share in time_shares(run).items() if share >= 0.005}
    return [f"{name}{PARTS.get(name, '')}: 占训练时间的 {share:.0%}" for name, share in shares.items()]


def anomalies(run: Run) -> list[str]:
    """What was not as it should be, the gravest first."""
    points, host = run.curve("loss"), run.curve("host_mib")
    speed, norms = run.curve("tokens_per_s")[1:], run.curve("grad_norm")  # the first speed includes the warm-up
    slow = outliers(speed, lambda value, middle: value < middle / 2)
    steep = outliers(norms, lambda value, middle: value > STEEP * middle)
    states = {
        "failed": "运行失败, 见错误日志",
        "killed": f"进程没有留下结束记录就消失了 (如 SIGKILL 或断电), 最后活动 {run.end_time}",
        "stopped": "运行被信号停止, 可用同一命令继续",
    }
    troubles = [line[20:] for line in run.log_lines if line[19:].startswith((" WARNING ", " ERROR "))]
    found = [
        (run.state in states, states.get(run.state)),
        (run.not_finite("loss"), f"Loss 为 NaN/Inf: {places(run.not_finite('loss'))}"),
        (run.not_finite("val_loss"), f"验证 Loss 为 NaN/Inf: {places(run.not_finite('val_loss'))}"),
        (divergence(points), "Loss 发散"),
        (spikes(points), f"Loss 尖峰: {places(spikes(points))}"),
        (steep, f"梯度范数超过中位数的 {STEEP} 倍: {places(steep)}"),
        (slow, f"吞吐不到中位数的一半: {places(slow)}"),
        (host and host[-1][1] > 1.5 * host[0][1] + 500, "主机内存持续增长"),
        (run.shares_gpu, "与其他进程共用 GPU: 吞吐和用时不能与其他运行比较"),
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
    """(path, lines added, lines deleted) since the base experiment's run, code first, or why that is not known."""
    if run.base is None:
        return f"没有找到 experiment_{run.info['base']} 的运行"
    old, new = run.base.info.get("git_commit"), run.info.get("git_commit")
    committed = old and new and git("-C", str(ROOT), "diff", "--numstat", old, new)
    if committed is None or not old or not new:
        return "两次运行的提交不在此 git 仓库中"
    found: dict[str, tuple[int, int]] = {}
    new_files = [f"{file.get('lines', 0)}\t0\t{file['path']}" for file in run.info.get("git_untracked", [])]
    for line in [*committed.splitlines(), *run.info.get("git_uncommitted", []), *new_files]:
        added, deleted, path = line.split("\t", 2)
        before = found.get(path, (0, 0))
        found[path] = (before[0] + int(added.replace("-", "0")), before[1] + int(deleted.replace("-", "0")))
    return [(path, *counts) for path, counts in sorted(found.items(), key=lambda item: (not is_code(item[0]), item[0]))]


def is_code(path: str) -> bool:
    """Whether a file can change a result; a record lists those first, for it names so many files only."""
    return path.endswith((".py", ".sh")) and not path.startswith("tests/")


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


def environment(run: Run) -> str:
    facts = run.info.get("environment", {})
    packages = facts.get("packages", {})
    hardware = {name: value for name, value in facts.items() if name != "packages" and value is not None}
    return "\n".join(f"{name}: {value}" for name, value in {**hardware, **packages}.items()) or missing("没有 run.json")


def short_environment(run: Run) -> str:
    facts = run.info.get("environment", {})
    device = facts.get("gpu") or f"CPU ({facts.get('cpu_cores')} 核)"
    cuda = f"CUDA {facts['cuda']} + " if facts.get("cuda") else ""
    return f"{cuda}PyTorch {facts.get('torch')} + {device}"


def of_baseline(value: Callable[[Run], str]) -> Callable[[Run], str]:
    """A value of the baseline's run, or why there is none."""

    def fill(run: Run) -> str:
        if run.baseline:
            return value(run.baseline)
        return "本实验即 model_original" if run.flag("model_type") == "model_original" else missing("未找到基线")

    return fill


def against(value: Callable[[Run], float | None], worse: str) -> Callable[[Run], str]:
    """The change of a value against the baseline's."""
    return lambda run: of_baseline(lambda base: change(value(run), value(base), worse))(run)


def against_time(run: Run) -> str:
    """The change of the time against the baseline's, unless others worked on the same GPU."""
    if run.shares_gpu or run.baseline and run.baseline.shares_gpu:
        return missing("与其他进程共用 GPU, 用时不可比")
    return against(lambda run: run.seconds, MORE_IS_WORSE)(run)


def script(run: Run) -> str:
    path = find_script(run.number, Path()) if run.number else None
    return path.as_posix() if path else "无 (见命令行)"


def train_notes(run: Run) -> str:
    made = [run.stage("train").get("notes"), run.metrics and f"到第 {run.metrics[-1]['step']} 步"]
    return ", ".join(filter(None, made)) or "-"


def completion(run: Run) -> str:
    if run.state == "killed":
        return f"未完成 (最后活动 {run.end_time})"
    return run.end_time or "未结束"


STATES = {
    "finished": "✅ 完成", "running": "⏳ 运行中", "failed": "❌ 失败", "stopped": "⏸ 停止",
    "killed": "❌ 中断(进程消失)",
}  # fmt: skip


def stage_state(run: Run, name: str) -> str:
    return STATES.get(run.stage(name).get("state"), "未开始")
