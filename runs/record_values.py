"""The values of a record: VALUES maps the name of each marker to a function of the run."""

from collections.abc import Callable

from . import record_text as text
from .analysis import last_unless_broken
from .run import Run

STAGES = {"INIT": "env", "DATA": "data", "MODEL": "model", "TRAIN": "train"}

VALUES: dict[str, Callable[[Run], str]] = {
    "EXPERIMENT": lambda run: f"experiment_{run.number or run.info.get('experiment', '')}",
    "VERSION": lambda run: run.info.get("experiment", ""),
    "CREATED": lambda run: (run.start_time or "")[:10],
    "STATE": lambda run: text.STATES.get(run.state, run.state),
    "SCRIPT": text.script,
    "OUT_DIR": lambda run: str(run.flag("out_dir")),
    "BASE_EXPERIMENT": lambda run: f"experiment_{run.info['base']}" if run.info.get("base") else "无",
    "ENVIRONMENT": text.short_environment,
    "GPU": lambda run: run.info.get("environment", {}).get("gpu") or "无 (CPU 运行)",
    "PROCESSES": lambda run: str(run.info.get("processes", 1)),
    "CHANGED_FILES": text.of_changes(lambda changes: str(len(changes))),
    "LINES_ADDED": text.of_changes(lambda changes: f"+{sum(added for _, added, _ in changes)}"),
    "LINES_DELETED": text.of_changes(lambda changes: f"-{sum(deleted for _, _, deleted in changes)}"),
    "GIT_DIFF": text.of_changes(text.change_list),
    "START_TIME": lambda run: run.start_time or text.missing("没有 run.json"),
    "COMMAND_LINE": lambda run: run.info.get("command", text.missing("没有 run.json")),
    **{f"{key}_START": lambda run, s=s: run.stage(s).get("start") or "未开始" for key, s in STAGES.items()},
    **{f"{key}_END": lambda run, s=s: run.stage(s).get("end") or "未结束" for key, s in STAGES.items()},
    **{f"{key}_STATUS": lambda run, s=s: text.stage_state(run, s) for key, s in STAGES.items()},
    **{f"{key}_NOTES": lambda run, s=s: run.stage(s).get("notes") or "-" for key, s in STAGES.items()},
    "TRAIN_NOTES": text.train_notes,
    "ERROR_LOGS": lambda run: (run.info.get("error") or "无").strip(),
    "FINAL_LOSS": lambda run: text.final_text(run, "val_loss", 4),
    "BEST_LOSS": lambda run: text.of_best(run, "val_loss", 4),
    "BEST_LOSS_EPOCH": text.best_place,
    "TARGET_LOSS": lambda run: text.number(run.info["target_loss"]) if run.info.get("target_loss") else "未设目标",
    "LOSS_ACHIEVED": text.achieved,
    "FINAL_PPL": lambda run: text.final_text(run, "val_ppl", 2),
    "BEST_PPL": lambda run: text.of_best(run, "val_ppl", 2),
    "BEST_PPL_EPOCH": text.best_place,
    "TARGET_PPL": lambda run: text.number(text.target_ppl(run), 2) if text.target_ppl(run) else "未设目标",
    "PPL_ACHIEVED": text.achieved,
    "FINAL_LR": lambda run: f"{run.last('lr'):.3g}" if run.last("lr") is not None else text.missing("没有训练步"),
    "FINAL_GPU_MEM": lambda run: text.mib(run.last(run.memory[0]), run),
    "PEAK_GPU_MEM": lambda run: text.mib(run.peak_memory, run),
    "GPU_WITHIN_LIMIT": text.within_limit,
    "LOSS_CONVERGENCE_ANALYSIS": text.convergence,
    "MEMORY_USAGE_ANALYSIS": text.memory_usage,
    "TRAINING_STABILITY_ANALYSIS": text.stability,
    "TEXT_GENERATION_SAMPLES": text.samples,
    "COHERENCE_SCORE": text.generation_score("coherence_pmi", "{coherence_pmi:.3f} nat/token (续写与提示的点互信息)"),
    "FLUENCY_SCORE": text.generation_score("fluency_ppl", "困惑度 {fluency_ppl:.2f}, 4-gram 重复率 {repetition:.1%}"),
    "DIVERSITY_SCORE": text.diversity,
    "CURRENT_LOSS": lambda run: VALUES["FINAL_LOSS"](run),
    "CURRENT_PPL": lambda run: VALUES["FINAL_PPL"](run),
    "CURRENT_QUALITY": text.quality,
    "CURRENT_TIME": text.duration,
    "CURRENT_MEM": lambda run: VALUES["PEAK_GPU_MEM"](run),
    "BASELINE_LOSS": text.of_baseline(lambda run: VALUES["FINAL_LOSS"](run)),
    "BASELINE_PPL": text.of_baseline(lambda run: VALUES["FINAL_PPL"](run)),
    "BASELINE_QUALITY": text.of_baseline(text.quality),
    "BASELINE_TIME": text.of_baseline(text.duration),
    "BASELINE_MEM": text.of_baseline(lambda run: VALUES["PEAK_GPU_MEM"](run)),
    "LOSS_IMPROVEMENT": text.against(lambda run: last_unless_broken(run, "val_loss"), text.MORE_IS_WORSE),
    "PPL_IMPROVEMENT": text.against(lambda run: last_unless_broken(run, "val_ppl"), text.MORE_IS_WORSE),
    "QUALITY_IMPROVEMENT": text.against(text.pmi, text.LESS_IS_WORSE),
    "TIME_CHANGE": text.against_time,
    "MEM_CHANGE": text.against(lambda run: run.peak_memory, text.MORE_IS_WORSE),
    "BOTTLENECK_1": text.item(text.bottlenecks, 0),
    "BOTTLENECK_2": text.item(text.bottlenecks, 1),
    "ANOMALY_1": text.item(text.anomalies, 0),
    "ANOMALY_2": text.item(text.anomalies, 1, rest=True),
    "SWANLAB_URL": lambda run: run.info.get("swanlab_url") or "未启用",
    "ENVIRONMENT_SNAPSHOT": text.environment,
    "COMPLETION_TIME": text.completion,
    "COMMIT_HASH": lambda run: (run.info.get("git_commit") or text.missing("不在 git 仓库中"))
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
