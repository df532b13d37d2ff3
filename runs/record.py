"""The Markdown record of an experiment: measured values are filled in, all other text belongs to its authors.

    python -m experiment fill out/experiment_1_4_8

A marker follows each measured value and is invisible once rendered: `2.4713`<!--FINAL_LOSS:1c9a7f02-->. After a fenced
block it is the next line. Its digits are the checksum of the value that was filled in. Filling again replaces the value
only if the checksum still fits, so changes by a person stay. A marker without digits is filled only if a placeholder
such as `[FINAL_LOSS]` precedes it.
"""

import re
import zlib
from collections.abc import Callable
from pathlib import Path

from common.files import atomic

from .plots import draw_run
from .record_values import value_of
from .run import Run

TEMPLATE = Path(__file__).parents[1] / "experiment" / "TEMPLATE.md"
INLINE = re.compile(r"`([^`\n]*)`<!--([\w:.]+?)(?::([0-9a-f]{8}))?-->")
BLOCK = re.compile(r"```(\w*)\n((?:(?!```).*\n)*?)```\n<!--([\w:.]+?)(?::([0-9a-f]{8}))?-->")


def checksum(text: str) -> str:
    return f"{zlib.crc32(text.encode()):08x}"


def written_by_hand(text: str, filled: str | None) -> bool:
    """Whether a person wrote the text at a marker: it is neither the filled value nor a [PLACEHOLDER]."""
    return checksum(text) != filled if filled else not re.fullmatch(r"\[\w+\]\s*", text)


def fill_text(text: str, value: Callable[[str], str | None]) -> str:
    """The record with the value of every marker filled in, unless a person changed it or the value is None."""

    def inline(match: re.Match) -> str:
        old, name, filled = match.groups()
        if written_by_hand(old, filled) or (new := value(name)) is None:
            return match[0]
        new = " ".join(new.split()).replace("`", "'").replace("|", "/")
        return f"`{new}`<!--{name}:{checksum(new)}-->"

    def block(match: re.Match) -> str:
        language, old, name, filled = match.groups()
        if written_by_hand(old, filled) or (new := value(name)) is None:
            return match[0]
        new = new.replace("```", "'''") + "\n"
        return f"```{language}\n{new}```\n<!--{name}:{checksum(new)}-->"

    return BLOCK.sub(block, INLINE.sub(inline, text))


def record_path(experiment: str, directory: str | Path) -> Path:
    return Path(directory) / f"EXPERIMENT_{experiment}.md"


def write_record(path: Path, value: Callable[[str], str | None]) -> None:
    """Fill a record, which starts as a copy of the template, in one atomic step."""
    source = path if path.exists() else TEMPLATE
    text = fill_text(source.read_text(encoding="utf-8"), value)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def fill_record(run_dir: str | Path, experiment_dir: str | Path | None = None) -> Path:
    """Fill in the measured values of a run's record, and draw the run's curves in its folder.

    The record is created from the template if there is none.

    Raises:
        FileNotFoundError: the folder has no run.json, or there is no template.
    """
    run = Run(run_dir)
    if not run.info:
        raise FileNotFoundError(f"{run_dir} has no run.json: it is not the folder of a run")
    path = record_path(run.info["experiment"], experiment_dir or run.flag("experiment_dir"))
    write_record(path, lambda name: value_of(name, run))
    draw_run(run)
    return path
