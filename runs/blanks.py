"""The blanks of a record that an analysis fills: their ids, what each asks for, and how an answer gets into its place.

An answer carries a mark: `text`<!--ai:FINDING_1:1c9a7f02-->, or draft: where rules wrote it. The digits are the
checksum of the answer, so that an answer that a person changed afterwards counts as that person's text.
"""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass

from common.files import parse_json

from .record import BLOCK, INLINE, checksum, inline_text

OPEN_INLINE = re.compile(r"`(experiment_)?\[([A-Z][A-Z_0-9]*)\]`(?!<!--)")
OPEN_BLOCK = re.compile(r"```(\w*)\n\[([A-Z][A-Z_0-9]*)\]\n```(?!\n<!--)")
AI, DRAFT = "ai", "draft"
DRAFTED = " (由规则起草)"  # at the end of what rules wrote
TEXT, PLAN, SCORE, VERSION = "text", "plan", "score", "version"


@dataclass(frozen=True)
class Blank:
    """A blank: the part of the record, what it asks for, and what its answer may be.

    kind: TEXT states what the data say. PLAN proposes: it may give new values to flags. SCORE is 0 to 10. VERSION is
    the number of an experiment.
    """

    id: str
    part: str
    asks: str
    kind: str = TEXT


def several(part: str, numbers: range, kind: str = TEXT, **asks: str) -> list[Blank]:
    """Numbered blanks: FINDING_1, FINDING_2, ..."""
    return [Blank(f"{name}_{i}", part, text.format(i), kind) for i in numbers for name, text in asks.items()]


DESIGN, CODE = "🤖 [AI构建] 实验设计思路与决策", "🤖 [AI构建] Git变更记录"
FOUND, TROUBLE, ADVICE = "✅ [AI完成] 实验发现", "✅ [AI完成] 问题诊断", "✅ [AI完成] 改进建议"
TESTED, JUDGED, NEXT = "✅ [AI完成] 假设验证", "✅ [AI完成] 实验评价", "✅ [AI完成] 后续行动"
BLANKS: dict[str, Blank] = {blank.id: blank for blank in [
    Blank("PROBLEM_ANALYSIS", DESIGN, "问题分析: 基础实验留下的问题, 关键挑战, 解决思路"),
    Blank("PARAMETER_LOGIC", DESIGN, "参数选择逻辑: 为什么是这些参数"),
    Blank("EXPECTED_IMPACT", DESIGN, "预期影响评估: 性能, 资源, 潜在风险"),
    Blank("DECISION", DESIGN, "关键决策点: 一句话"),
    Blank("DECISION_OPTIONS", DESIGN, "该决策的选项"),
    Blank("DECISION_CHOICE", DESIGN, "该决策的选择"),
    Blank("DECISION_REASON", DESIGN, "该决策的理由"),
    Blank("TRADE_OFFS", DESIGN, "权衡考量: 性能与资源, 稳定性与速度, 创新性与风险"),
    Blank("CHANGE_TYPE", CODE, "修改类型, 如 架构重构, 参数调整"),
    Blank("CHANGE_REASON", CODE, "修改原因: 一句话"),
    Blank("KEY_CODE", CODE, "关键代码片段; 没有修改代码则写 无"),
    Blank("FUNCTION_CHANGE", CODE, "功能变化: 与上一版本相比"),
    Blank("PERFORMANCE_IMPACT", CODE, "性能影响: 吞吐与显存的变化"),
    Blank("COMPATIBILITY", CODE, "兼容性: 与上一版本的数据和权重"),
    Blank("DEPENDENCY_CHANGE", CODE, "依赖变更; 没有则写 无"),
    *several(FOUND, range(1, 4), FINDING="主要发现 {}: 由数值得出, 写明数值、区间与对照"),
    *several(TROUBLE, range(1, 3), PROBLEM="问题 {}", SYMPTOM="问题 {} 的表现, 写明数值",
             CAUSE="问题 {} 的可能原因, 分清推断与证据"),
    *several(TROUBLE, range(1, 3), PLAN, SOLUTION="问题 {} 的建议方案"),
    *several(ADVICE, range(1, 3), PLAN, SHORT_TERM="短期优化 {} (下个实验)"),
    *several(ADVICE, range(1, 3), PLAN, MEDIUM_TERM="中期改进 {} (未来3-5个实验)"),
    *several(ADVICE, range(1, 3), PLAN, LONG_TERM="长期研究方向 {}"),
    *several(TESTED, range(1, 3), HYPOTHESIS="假设 {}: 取自 研究假设, 没有则取自实验脚本的问题",
             RESULT="假设 {} 的验证结果: 成立, 不成立, 或无法判断", EVIDENCE="假设 {} 的支撑证据, 写明数值",
             CONFIDENCE="假设 {} 的置信度: 高, 中, 低, 及种子数"),
    Blank("GOAL_ACHIEVEMENT", JUDGED, "目标达成情况: 0 到 10 分", SCORE),
    Blank("SUCCESS_RATE", JUDGED, "实验成功度: 0 到 10 分", SCORE),
    Blank("DATA_RELIABILITY", JUDGED, "数据可信度: 0 到 10 分", SCORE),
    Blank("OVERALL_CONCLUSION", JUDGED, "总体结论: 两三句话"),
    *several(JUDGED, range(1, 4), KEY_LEARNING="关键收获 {}"),
    *several(NEXT, range(1, 3), PLAN, IMMEDIATE_ACTION="立即行动 {}"),
    Blank("NEXT_VERSION", NEXT, "下个实验的编号, 如 1.4.9", VERSION),
    Blank("NEXT_EXPERIMENT_CHANGES", NEXT, "下个实验的主要改动", PLAN),
    Blank("NEXT_EXPERIMENT_EXPECTATIONS", NEXT, "下个实验的预期改进", PLAN),
]}  # fmt: skip


def open_blanks(text: str) -> list[str]:
    """The ids of the blanks of a record that nobody has filled, in their order."""
    found = [(match.start(), match[2]) for shape in (OPEN_INLINE, OPEN_BLOCK) for match in shape.finditer(text)]
    return list(dict.fromkeys(name for _, name in sorted(found) if name in BLANKS))


def marked(text: str) -> dict[str, str]:
    """By id: "ai" or "draft" of answers that stand as they were written; "person" where a person changed one."""
    found = {}
    for shape in (INLINE, BLOCK):
        for match in shape.finditer(text):
            answer, mark, digits = match.groups()[-3:]
            author, _, name = mark.partition(":")
            if author in (AI, DRAFT) and name:
                found[name] = author if checksum(answer) == digits else "person"
    return found


def answers_of(text: str) -> dict[str, str]:
    """By id: the answer of every marked blank."""
    matches = [match.groups()[-3:] for shape in (INLINE, BLOCK) for match in shape.finditer(text)]
    return {mark.partition(":")[2]: answer.strip() for answer, mark, _ in matches if mark.startswith((AI, DRAFT))}


def write_answers(text: str, answers: dict[str, str], author: str) -> str:
    """The record with each answer in its blank, or in the place of an earlier answer that nobody changed."""
    # An answer must not pose as a mark.
    answers = {name: answer.replace("<!--", "<! --") for name, answer in answers.items()}

    def new_inline(name: str, before: str = "") -> str:
        answer = inline_text(answers[name])
        answer = before + answer.removeprefix("experiment_") if before else answer
        return f"`{answer}`<!--{author}:{name}:{checksum(answer)}-->"

    def new_block(name: str, language: str) -> str:
        answer = answers[name].strip().replace("```", "'''") + "\n"
        return f"```{language}\n{answer}```\n<!--{author}:{name}:{checksum(answer)}-->"

    def blank_inline(match: re.Match) -> str:
        return new_inline(match[2], match[1] or "") if match[2] in answers else match[0]

    def blank_block(match: re.Match) -> str:
        return new_block(match[2], match[1]) if match[2] in answers else match[0]

    def again(write: Callable[[re.Match, str], str]) -> Callable[[re.Match], str]:
        def replace(match: re.Match) -> str:
            mark, digits = match.groups()[-2:]
            kind, _, name = mark.partition(":")
            mine = kind in (AI, DRAFT) and name in answers and checksum(match.groups()[-3]) == digits
            return write(match, name) if mine else match[0]

        return replace

    # Old answers first: then a new one is not met twice.
    before = "experiment_" if "NEXT_VERSION" in answers else ""
    text = INLINE.sub(again(lambda _, name: new_inline(name, before if name == "NEXT_VERSION" else "")), text)
    text = BLOCK.sub(again(lambda match, name: new_block(name, match[1])), text)
    return OPEN_BLOCK.sub(blank_block, OPEN_INLINE.sub(blank_inline, text))


def read_notes(text: str, name: str) -> dict[str, str]:
    """The answers of a notes file: a JSON object {id: answer}, or Markdown with a heading `## id` above each answer.

    Raises:
        ValueError: it is neither, or an answer is no text, empty, or given twice.
    """
    body = re.sub(r"\A\s*```(?:json)?\s*\n(\{.*\})\s*```\s*\Z", r"\1", text, flags=re.DOTALL)
    if body.lstrip().startswith("{"):
        pairs = unique_pairs(body, name)
    else:
        pieces = re.split(r"^#+[ \t]+`?([A-Za-z_][A-Za-z_0-9]*)`?[ \t]*$", text, flags=re.MULTILINE)
        pairs = list(zip(pieces[1::2], (piece.strip() for piece in pieces[2::2]), strict=True))
    if not pairs:
        raise ValueError(f"{name} has no answers: write a JSON object {{id: answer}}, or a heading ## id above each")
    found: dict[str, str] = {}
    for key, answer in pairs:
        if key in found:
            raise ValueError(f"{name} answers {key} twice: keep one")
        if isinstance(answer, (int, float)) and not isinstance(answer, bool):
            answer = f"{answer:g}"
        if not isinstance(answer, str) or not answer.strip():
            raise ValueError(f"{name}: the answer to {key} must be a text, got {answer!r}")
        found[key] = answer.strip()
    return found


def unique_pairs(body: str, name: str) -> list[tuple[str, object]]:
    """The pairs of a JSON object, a repeated key twice."""
    parse_json(body, name)  # refuses what is not JSON in one sentence
    return json.loads(body, object_pairs_hook=list)
