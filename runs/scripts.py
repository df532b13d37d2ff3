"""The scripts of all experiments: where they are, what their comments say, which builds on which.

Scripts that nobody needs any more stand in run_file/archive, their records in experiment/archive; both still work.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

FOLDERS = ("run_file", "run_file/archive")
ARCHIVE = "archive"
WORDS = ("Question", "Builds on", "Change")


def scripts(root: Path) -> list[Path]:
    """Every script of an experiment, those of the archive last."""
    return [path for folder in FOLDERS for path in sorted((root / folder).glob("experiment_*.sh"), key=order_of)]


def order_of(path: Path) -> list:
    """Numbers by value: 1.5.9 before 1.5.10."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"[_.]", path.stem)]


def number_of(path: Path) -> str:
    """The number of a script, as file names write it: 1_4_8_concat."""
    return path.stem.removeprefix("experiment_")


def find_script(number: str, root: Path) -> Path | None:
    """The script of an experiment, given with dots or underscores; None where there is none."""
    name = f"experiment_{number.replace('.', '_')}.sh"
    return next((path for folder in FOLDERS if (path := root / folder / name).is_file()), None)


def comments_of(path: Path) -> dict[str, str]:
    """Question, Builds on and Change, as the script's comment states them; each may go on in the next line."""
    found = {}
    for word in WORDS:
        if match := re.search(rf"^# {word}:[ \t]*(.+(?:\n#  +.+)*)", path.read_text(encoding="utf-8"), re.MULTILINE):
            found[word] = " ".join(line.lstrip("# ").strip() for line in match[1].splitlines())
    return found


def base_of(path: Path) -> str | None:
    """The number that a script builds on, with underscores; None for a first one."""
    match = re.search(r"^builds_on (\S+)", path.read_text(encoding="utf-8"), re.MULTILINE)
    return match[1].replace(".", "_") if match else None


@dataclass
class Node:
    """An experiment in the tree: its script, what it changes, and what builds on it."""

    number: str
    script: Path
    question: str = ""
    change: str = ""
    children: list["Node"] = field(default_factory=list)

    @property
    def dotted(self) -> str:
        return self.number.replace("_", ".")

    @property
    def is_archived(self) -> bool:
        return self.script.parent.name == ARCHIVE

    def as_dict(self) -> dict:
        """The experiment and all that builds on it, for JSON."""
        told = {"number": self.dotted, "question": self.question, "change": self.change, "archived": self.is_archived}
        return told | {"children": [child.as_dict() for child in self.children]}


def tree_of(root: Path) -> list[Node]:
    """The experiments that build on none, each with those that build on it, in the order of their numbers.

    Raises:
        ValueError: a script builds on one that does not exist.
    """
    nodes = {}
    for path in sorted(scripts(root), key=order_of):
        told = comments_of(path)
        nodes[number_of(path)] = Node(number_of(path), path, told.get("Question", ""), told.get("Change", ""))
    first = []
    for node in nodes.values():
        base = base_of(node.script)
        if base is None:
            first.append(node)
        elif base not in nodes:
            raise ValueError(f"{node.script} builds on {base}, and there is no such script: correct its builds_on")
        else:
            nodes[base].children.append(node)
    return first


def tree_lines(nodes: list[Node], describe: Callable[[Node], str]) -> list[str]:
    """A tree as text; `describe(node)` is what stands in its line."""
    lines = []
    for node in nodes:
        lines.append(describe(node))
        for child in node.children:
            is_last = child is node.children[-1]
            first, *more = tree_lines([child], describe)
            lines.append(("└─ " if is_last else "├─ ") + first)
            lines += [("   " if is_last else "│  ") + line for line in more]
    return lines
