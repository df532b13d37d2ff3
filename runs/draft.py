"""Findings that follow from numbers alone, in Chinese: `python -m experiment draft RUN`.

A rule states what was measured and nothing that it cannot know: causes and plans stay with people.
"""

from .analysis import spikes, time_shares
from .evidence import ARMS, Difference, Evidence, own
from .record_tables import changed_flags
from .record_text import PARTS, STATES, anomalies, places
from .run import Run

QUESTIONS = ("object", "object_reworded", "exact_match", "verification", "relation")
BOUND = 0.5  # a part that takes this share of the time bounds the speed


def conclusion_of(difference: Difference) -> str:
    if difference.p is None:
        return f"不是每边都有多个种子, {difference.word}, 不能下结论"
    return f"区间{'不' if difference.is_clear else ''}含 0, {difference.word}"


def gain(found: Evidence, measure: str) -> str | None:
    """A measure against model_original, or else against the base experiment."""
    for other, name in (("baseline", "model_original"), ("base", "基础实验")):
        if difference := found.against(measure, other):
            new, old = difference.new, difference.old
            return (
                f"{new.label}: {new.write(new.value)}, {name} {old.write(old.value)}, 差 {difference.text}"
                f"; {conclusion_of(difference)}"
            ).replace(", 波动未知;", ";")
    return None


def bank_use(found: Evidence) -> str | None:
    """Whether the bank is read: the answers under the controls against the model's own."""
    if found.run.flag("model_type") != "model_memory":
        return None
    for measure in (*QUESTIONS, "val_loss"):
        gaps = {arm: found.against(measure, "control", arm) for arm in ("shuffled", "counterfactual", "no_memory")}
        gaps = {arm: gap for arm, gap in gaps.items() if gap}
        if not gaps:
            continue
        first = next(iter(gaps.values())).new
        told = [f"{ARMS[arm]} {gap.old.write(gap.old.value)} (差 {gap.text})" for arm, gap in gaps.items()]
        lead = next(iter(gaps.values()))
        if lead.interval is None:
            word = "同一权重、同一文本, 没有区间"
        else:
            word = "记忆被读取" if lead.excludes_zero and lead.is_better else "看不出记忆被读取"
        return f"{word}: {first.label} {first.write(first.value)}, {', '.join(told)}"
    return "没有对照 (打乱知识库), 不能判断记忆是否被读取"


def speed_bound(run: Run) -> list[str]:
    """What bounds the speed, in words; the shares stand in the record's own lines."""
    shares = list(time_shares(run).items())
    if not shares:
        return []
    name, share = shares[0]
    part = PARTS.get(name, "").strip(" ()") or name
    word = "速度受限于" if share >= BOUND else "用时最多的是"
    found = [f"{word}{part} ({share:.0%})"]
    if (waited := dict(shares).get("data", 0)) >= 0.1:
        found.append(f"等待数据占 {waited:.0%}")
    return found


def findings(found: Evidence) -> list[str]:
    made = [gain(found, "val_loss"), bank_use(found)]
    made += [gain(found, measure) for measure in ("object", "object_reworded")]
    if speed := gain(found, "tokens_per_s"):
        made.append("; ".join([speed, *speed_bound(found.run)]))
    else:
        made += speed_bound(found.run)
    if edits := [own(found.results, f"edit_{name}") for name in ("success", "paraphrase", "neighbourhood")]:
        made.append("编辑: " + ", ".join(f"{n.label} {n.text}" for n in edits if n) if any(edits) else None)
    return list(dict.fromkeys(filter(None, made)))


def problems(found: Evidence) -> list[tuple[str, str]]:
    """(problem, how it shows)."""
    run, made = found.run, []
    if run.state != "finished":
        made.append(("运行没有完成", f"状态: {STATES.get(run.state, run.state)}"))
    loss = found.against("val_loss", "baseline")
    if loss and loss.word == "更差":
        made.append(("验证 Loss 不如 model_original", f"差 {loss.text}; {conclusion_of(loss)}"))
    if found.run.flag("model_type") == "model_memory" and (use := bank_use(found)) and use.startswith("看不出"):
        made.append(("记忆没有被读取", use))
    if where := spikes(run.curve("loss")):
        made.append(("训练 Loss 有尖峰", places(where)))
    if len(found.runs) == 1:
        made.append(("只有一个种子", f"种子 {run.flag('seed')}: Loss 的波动未知"))
    if not run.eval:
        made.append(("没有评估", "没有 eval.json: 没有知识题和对照"))
    return made


def draft(run: Run) -> dict[str, str]:
    """By the id of a blank: what the rules say; blanks that numbers alone cannot answer are not in it."""
    found = Evidence(run)
    answers = dict(zip(("FINDING_1", "FINDING_2", "FINDING_3"), findings(found), strict=False))
    for i, (problem, symptom) in enumerate(problems(found)[:2], 1):
        answers |= {f"PROBLEM_{i}": problem, f"SYMPTOM_{i}": symptom}
    if not run.info.get("git_dirty") and not run.info.get("git_untracked"):
        answers["KEY_CODE"] = "无: 没有未提交的修改"
    if changes := changed_flags(run):
        told = [f"{name}: {old} -> {new}" for name, (old, new) in list(changes.items())[:8]]
        answers["FUNCTION_CHANGE"] = "参数 " + ", ".join(told) + (" 等" if len(changes) > 8 else "")
    against_base = [found.against(measure, "base") for measure in ("tokens_per_s", "peak_mib")]
    if any(against_base):
        told = [f"{gap.new.label} {gap.text}" for gap in against_base if gap]
        answers["PERFORMANCE_IMPACT"] = "; ".join(told)
    told = [*findings(found)[:2], *speed_bound(run)[:1]]
    if run.state == "finished" and told:
        state = "有异常, 见 异常情况" if anomalies(run) else "没有异常"
        answers["OVERALL_CONCLUSION"] = f"运行完成, {state}。{'。'.join(told)}。"
    return answers
