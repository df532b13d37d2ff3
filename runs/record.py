"""The Markdown record of an experiment: measured values are filled in, all other text belongs to its authors.

    python -m experiment fill out/experiment_1_4_8

A marker follows each measured value and is invisible once rendered: `2.4713`<!--FINAL_LOSS:1c9a7f02-->. After a fenced
block it is the next line; a generated table stands between <!--begin:SUMMARY--> and <!--end:SUMMARY:1c9a7f02-->. The
digits are the checksum of what was filled in. Filling again replaces it only if the checksum still fits, so changes by
a person stay. A marker without digits is filled only if a placeholder such as `[FINAL_LOSS]` stands there. The marks
<!--ai:NAME:...--> and <!--draft:NAME:...--> belong to `blanks.py`.

The seeds of one experiment share a record. A run without a number has its record in its own folder.
"""

import re
import shutil
import zlib
from collections.abc import Callable
from pathlib import Path

from common.files import atomic

from . import record_tables as tables
from .evidence import Evidence, own
from .plots import draw, draw_run
from .record_text import MORE_IS_WORSE, change, of_seed
from .record_values import value_of
from .run import Run
from .scripts import ARCHIVE

TEMPLATE = Path(__file__).parents[1] / "experiment" / "TEMPLATE.md"
INLINE = re.compile(r"`([^`\n]*)`<!--((?!begin:|end:)[\w:.]+?)(?::([0-9a-f]{8}))?-->")
BLOCK = re.compile(r"```(\w*)\n((?:(?!```).*\n)*?)```\n<!--((?!begin:|end:)[\w:.]+?)(?::([0-9a-f]{8}))?-->")
AREA = re.compile(r"<!--begin:(\w+)-->\n(.*?)<!--end:\1(?::([0-9a-f]{8}))?-->", re.DOTALL)
RECORDS = "experiment"  # the folder of the records, unless --experiment_dir names another
# A table that an older record lacks: what it stands before, and what stands above it.
NEWER = {
    "SUMMARY": ("## 🧠 AI思考过程", "## 📌 结果摘要\n\n{}\n\n---\n\n"),
    "KNOWLEDGE": ("### ✅ **[AI完成]** 训练曲线分析", "### ✅ **[AI完成]** 知识测评\n\n{}\n\n"),
    "CURVE": ("**Loss收敛情况**:", "{}\n\n"),
    "CHANGED_FLAGS": ("### 🤖 **[AI构建]** 硬件配置", "### 🤖 **[AI构建]** 与基础实验不同的参数\n\n{}\n\n"),
}
OF_ROWS = "ROWS_"  # begins the name of a table whose numbers come from rows of another protocol (`rows_record.py`)
OF_BASELINE = {"BASELINE_LOSS": "val_loss", "BASELINE_PPL": "val_ppl"}
OF_SEEDS = {"FINAL_LOSS": "val_loss", "CURRENT_LOSS": "val_loss", "FINAL_PPL": "val_ppl", "CURRENT_PPL": "val_ppl"}
OF_ONE_SEED = ("BEST_LOSS", "BEST_PPL")  # of the lowest seed
IMPROVEMENTS = {"LOSS_IMPROVEMENT": "val_loss", "PPL_IMPROVEMENT": "val_ppl"}


def checksum(text: str) -> str:
    return f"{zlib.crc32(text.encode()):08x}"


def written_by_hand(text: str, filled: str | None) -> bool:
    """Whether a person wrote the text at a marker: it is neither the filled value nor a [PLACEHOLDER]."""
    return checksum(text) != filled if filled else not re.fullmatch(r"\s*\[\w+\]\s*", text)


def inline_text(text: str) -> str:
    """A value as it can stand in a cell of a table."""
    return " ".join(text.split()).replace("`", "'").replace("|", "/")


def fill_text(text: str, value: Callable[[str], str | None]) -> str:
    """The record with the value of every marker filled in, unless a person changed it or the value is None."""

    def new_value(old: str, name: str, filled: str | None) -> str | None:
        is_note = ":" in name and not name.startswith("flag:")
        return None if is_note or written_by_hand(old, filled) else value(name)

    def inline(match: re.Match) -> str:
        old, name, filled = match.groups()
        if (new := new_value(old, name, filled)) is None:
            return match[0]
        new = inline_text(new)
        return f"`{new}`<!--{name}:{checksum(new)}-->"

    def block(match: re.Match) -> str:
        language, old, name, filled = match.groups()
        if (new := new_value(old, name, filled)) is None:
            return match[0]
        new = new.replace("```", "'''") + "\n"
        return f"```{language}\n{new}```\n<!--{name}:{checksum(new)}-->"

    def area(match: re.Match) -> str:
        name, old, filled = match.groups()
        if (new := new_value(old, name, filled)) is None:
            return match[0]
        new = f"\n{new}\n\n"
        return f"<!--begin:{name}-->\n{new}<!--end:{name}:{checksum(new)}-->"

    return AREA.sub(area, BLOCK.sub(block, INLINE.sub(inline, text)))


def with_newer_tables(text: str) -> str:
    """A record from before there were generated tables, with those that it lacks, still blank."""
    for name, (before, frame) in NEWER.items():
        if f"<!--begin:{name}-->" not in text and text.count(before) == 1:
            blank = f"<!--begin:{name}-->\n[{name}]\n<!--end:{name}-->"
            text = text.replace(before, frame.format(blank) + before)
    return text


def record_path(experiment: str, directory: str | Path) -> Path:
    """Where a record is: in the folder, or in its archive if it was moved there."""
    name = f"EXPERIMENT_{experiment}.md"
    archived = Path(directory) / ARCHIVE / name
    return archived if archived.exists() else Path(directory) / name


def record_of(run: Run, directory: str | Path | None = None) -> Path:
    """The record of a run: in the folder that is named, else by its flags, else that of the run if it has no number."""
    directory = directory or run.flag("experiment_dir") or RECORDS
    if str(directory) == RECORDS and not run.is_numbered:
        directory = run.path
    return record_path(run.number or run.name, directory)


def write_text(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def text_of_record(path: Path) -> str:
    """The record, which starts as a copy of the template."""
    return with_newer_tables((path if path.exists() else TEMPLATE).read_text(encoding="utf-8"))


def write_record(path: Path, value: Callable[[str], str | None]) -> None:
    """Fill a record in one atomic step."""
    write_text(path, fill_text(text_of_record(path), value))


def picture_of(run: Run, path: Path) -> Path:
    """The picture of the curves that a record shows: the run's own, or one beside the records."""
    beside_run = path.parent.resolve() == run.path.resolve()
    return run.path / "curves.png" if beside_run else path.parent / "curves" / f"{path.stem}.png"


def values_for(run: Run, path: Path) -> Callable[[str], str | None]:
    """The value of each marker of a run's record: losses of all seeds, the rest of the lowest seed."""
    evidence = Evidence(run)
    lead, many = evidence.runs[0], len(evidence.runs) > 1
    generated = {
        "SUMMARY": lambda: tables.summary(lead), "KNOWLEDGE": lambda: tables.knowledge(lead),
        "CURVE": lambda: tables.curve(lead, picture_of(lead, path).relative_to(path.parent).as_posix()),
        "CHANGED_FLAGS": lambda: tables.changed_flag_table(lead), "CHANGED_FILE_TABLE": lambda: tables.file_table(lead),
        "ALL_METRICS": lambda: tables.all_metrics(evidence),
    } | {
        name: lambda rows=rows: tables.flag_table(rows, lead.flag, lead.info.get("idle_flags"))
        for name, rows in (("MODEL_FLAGS", tables.MODEL_FLAGS), ("TRAIN_FLAGS", tables.TRAIN_FLAGS))
    }  # fmt: skip

    def value(name: str) -> str | None:
        if name.startswith(OF_ROWS):
            return None
        if name in generated:
            return generated[name]()
        if many and name in OF_SEEDS and (found := evidence.number(OF_SEEDS[name])):
            return f"{found.text} ({len(found.values)} 个种子)"
        if name in OF_BASELINE and (found := own(evidence.baseline, OF_BASELINE[name])) and len(found.values) > 1:
            return f"{found.text} ({len(found.values)} 个种子)"
        if name in IMPROVEMENTS and (found := evidence.against(IMPROVEMENTS[name], "baseline")):
            return change(found.new.value, found.old.value, MORE_IS_WORSE)
        text = value_of(name, lead)
        return of_seed(text, lead) if many and name in OF_ONE_SEED and lead.best else text

    return value


def draw_curves(run: Run, path: Path) -> None:
    """The curves of a run in its folder, and those of all its seeds where the record shows them."""
    drawn, picture = draw_run(run), picture_of(run, path)
    if picture == drawn:
        return
    picture.parent.mkdir(parents=True, exist_ok=True)
    seeds = Evidence(run).runs
    if len(seeds) > 1:
        draw({f"seed {other.flag('seed')}": [other] for other in seeds}, picture)
    else:
        shutil.copyfile(drawn, picture)


def require_run(run_dir: str | Path) -> Run:
    """The run of a folder.

    Raises:
        FileNotFoundError: the folder has no run.json.
    """
    run = Run(run_dir)
    if not run.info:
        raise FileNotFoundError(f"{run_dir} has no run.json: it is not the folder of a run")
    return run


def fill_record(run_dir: str | Path, experiment_dir: str | Path | None = None) -> Path:
    """Fill in the measured values of a run's record, and draw the run's curves in its folder.

    The record is created from the template if there is none.

    Raises:
        FileNotFoundError: the folder has no run.json, or there is no template.
    """
    run = require_run(run_dir)
    path = record_of(run, experiment_dir)
    write_record(path, values_for(run, path))
    draw_curves(run, path)
    return path
