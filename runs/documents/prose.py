"""What can be wrong with a document's own text: links, unmarked numbers, length."""

import re
from pathlib import Path

from .marks import without_generated

LONGEST_LINE = 120
# Lines of a document at most; of those not named here 120. The log has no limit.
LINES = {"README.md": 150, "README.zh-CN.md": 150, "log.md": None}
GROWS = re.compile(r"<!-- begin:leaderboard -->.*?<!-- end:leaderboard -->", re.DOTALL)  # a line for each experiment
FENCE = re.compile(r"^(```|~~~).*?^\1[^\n]*$", re.DOTALL | re.MULTILINE)
CODE = re.compile(r"`[^`\n]*`")
LINK = re.compile(r"\[[^\]\n]*\]\(([^)\s]+)\)|(?:src|srcset|href)=\"([^\"]+)\"")
# A measurement, as prose writes one: a decimal, a percentage, or a whole number before one of these units.
# 1.4.8 and 1.4.x are names, and 48 x 512 is a shape.
UNIT = r"(?:(?:x|×)(?! \d)|ms|GiB|MiB|MB/s|tokens/s|nats|times|倍|毫秒)"
DECIMAL, SHARE, COUNT = r"\d[\d,]*\.\d+(?!\w|\.\w)", r"\d[\d,]*(?:\.\d+)? ?%", rf"\d[\d,]* ?{UNIT}(?![\w-])"
NUMBER = re.compile(rf"(?<![\w.:/-])(?:{DECIMAL}|{SHARE}|{COUNT})")


def problems_of_text(text: str, path: Path, root: Path) -> list[str]:
    return [*long_lines(text, path), *unmarked_numbers(text), *broken_links(text, path, root)]


def long_lines(text: str, path: Path) -> list[str]:
    """Lines over 120 characters outside tables, lines that begin with a mark, and a document of too many lines."""
    lines, most, n = text.splitlines(), LINES.get(path.name, 120), len(GROWS.sub("", text).splitlines())
    found = [] if most is None or n <= most else [f"{n} lines; at most {most}"]
    for number, line in enumerate(lines, 1):
        if line.lstrip().startswith("<!--v:"):
            found.append(f"line {number} begins with a mark, which ends the paragraph: put a word before it")
        if len(line) > LONGEST_LINE and not line.lstrip().startswith("|") and "<!--v:" not in line:
            found.append(f"line {number} has {len(line)} characters; at most {LONGEST_LINE}")
    return found


def blanked(pattern: re.Pattern, text: str) -> str:
    return pattern.sub(lambda match: "\n" * match[0].count("\n"), text)


def unmarked_numbers(text: str) -> list[str]:
    """Measured numbers outside code, generated tables and marks: they need a row."""
    plain = LINK.sub("", blanked(CODE, blanked(FENCE, without_generated(text))))
    plain = re.sub(r"<!--.*?-->", "", plain, flags=re.DOTALL)
    return [
        f"line {number}: {match[0]} is a measured number without a mark <!--v:KEY-->"
        for number, line in enumerate(plain.splitlines(), 1)
        for match in NUMBER.finditer(line)
    ]


def anchors_of(text: str) -> set[str]:
    """The anchors that GitHub gives the headings of a document."""
    headings = re.findall(r"^#+ (.+)$", blanked(FENCE, text), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.replace("`", "")).strip().lower().replace(" ", "-") for heading in headings}


def broken_links(text: str, path: Path, root: Path) -> list[str]:
    """Relative links to files or headings that do not exist."""
    found = []
    for match in LINK.finditer(blanked(CODE, blanked(FENCE, text))):
        target = match[1] or match[2]
        if re.match(r"[a-z]+:", target):
            continue
        file, _, anchor = target.partition("#")
        goal = (path.parent / file).resolve() if file else path
        if not goal.exists() or not goal.is_relative_to(root.resolve()):
            found.append(f"broken link: {target}")
        elif anchor and goal.suffix == ".md" and anchor not in anchors_of(goal.read_text(encoding="utf-8")):
            found.append(f"broken link: {file or path.name} has no heading #{anchor}")
    return found
