"""The record of an experiment that has rows of results but no run folder: `fill NUMBER --rows PROTOCOL`.

Every number comes from a row. What no row holds is said to be not recorded. A later run fills these places again; rows
of another protocol then have a table of their own, below the summary of the run.
"""

import json
import re
import shlex
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from trainer.bank_size import without_auto
from trainer.config import Flags, parse_cli

from . import record_tables as tables
from .blanks import AI, write_answers
from .documents.leaderboard import ALIASES, plain_of
from .documents.rows import Row, Rows
from .evidence import OWN, Evidence, Number
from .known import Known
from .metrics import METRICS, metric
from .new import script_flags
from .notes import require_known
from .record import AREA, INLINE, OF_ROWS, RECORDS, fill_text, record_path, text_of_record, write_text
from .record_text import MISSING, MORE_IS_WORSE, change, missing
from .scripts import ARCHIVE, base_of, find_script

ROOT = Path(__file__).parents[1]
NO_FOLDER = "没有运行文件夹"
ORIGIN = "运行文件夹没有保留, 数值取自 `results.jsonl` 的行。"
CHANGED_FLAGS = "改了参数:"
HEAD = re.compile(rf"\*\*另一协议的结果: (.+?)(?:; {CHANGED_FLAGS} (.+))?\*\*")
NOT_MEASURED = "未测(该协议的行中没有这一项)"
# A command that starts an experiment's script, and the flags that it adds.
STARTED = re.compile(r"\brun_file/experiment_(\w+)\.sh\b([^;]*)")
# A setting before run_file/asked.sh, which starts such a script, and the flags that it then adds.
SETTING = re.compile(r"\b([A-Z_]+)=(\S+)")
# What such a command says of more seeds: `--seed 42 (1, 2)`.
MORE_SEEDS = re.compile(r"\s\(\d[\d, ]*\)")
# Rows of runs on a GPU may name the peak as the GPU does.
SAME = {"peak_gpu_mib": "peak_mib"}
# Benchmarks of edits have a measure for each number of edits, "all" for every case.
EDITS, EDIT_NUMBER = tables.OPTIONAL["公开编辑题"], re.compile(r"_(?:\d+|all)$")
SCORES = {
    "TEXT_GENERATION_SAMPLES", "COHERENCE_SCORE", "FLUENCY_SCORE", "DIVERSITY_SCORE", "CURRENT_QUALITY",
    "BASELINE_QUALITY", "QUALITY_IMPROVEMENT",
}  # fmt: skip


def numbers_of(rows: list[Row]) -> dict[tuple[str, str], Number]:
    """(arm, measure) -> the number of the newest row, of all measures that a record knows."""
    known, found = {m.name for m in METRICS}, {}
    for row in sorted(rows, key=lambda row: row.date):
        name = SAME.get(row.measure, row.measure)
        of = name if name in known or not name.startswith(EDITS) else EDIT_NUMBER.sub("_*", name)
        if of in known:
            found[row.arm, name] = Number(metric(of), name, tuple(row.values or [row.value]), row.n)
    return found


def started_by(row: Row) -> re.Match | None:
    """The experiment's script in the command of a row, with the flags that the command or run_file/asked.sh adds."""
    started, (_, asked, more) = STARTED.search(row.command), row.command.partition("bash run_file/asked.sh")
    if started or not asked:
        return started
    settings = dict(SETTING.findall(row.command))
    number = row.experiment.partition(",")[0].replace(".", "_")
    added = f"--data_path TEXT QUESTIONS --max_steps {settings.get('STEPS', 3000)} --epochs 1000"
    if row.arm != "plain":
        passages = " PASSAGES" if settings.get("PASSAGES") == "1" else ""
        added += f" --database_init_path KEPT INVENTED{passages} --knowledge_num auto --reserve_entries 1000"
        script = script_flags(find_script(number, ROOT))
        if float(settings.get("KEPT_BACK", 0)) and "--bm25_also_words" in script:
            added += " --bm25_also_words ALSO=WORDS"
    return STARTED.search(f"run_file/experiment_{number}.sh {added} --seed {row.seeds[0]}{more}")


def flags_of(row: Row) -> tuple[Flags, dict]:
    """The flags of the command that made a row, and what it says in words alone, such as `--knowledge_num auto`."""
    if started := started_by(row):
        given = MORE_SEEDS.sub("", started[2])
        # Files without a name here stand in capitals, and several are one folder; the size of that bank is in no row.
        words, auto = without_auto(shlex.split(re.sub(r"\b([A-Z]+) (?=[A-Z]+\b)", r"\1+", given)))
        flags = parse_cli([*script_flags(find_script(started[1], ROOT)), *words])
        return flags, {"knowledge_num": "auto"} if auto else {}
    words = shlex.split(row.command)
    return parse_cli(words[next(i for i, word in enumerate(words) if word.endswith(".py")) + 1 :]), {}


def flat_and_idle(flags: Flags, told: dict | None = None) -> tuple[dict, list[str]]:
    """All flags by name, `told` in place of their values, and the names of those that do nothing."""
    flat = {name: value for part in flags.as_dict().values() for name, value in part.items()}
    return flat | (told or {}), sorted(flags.idle(every=True))


def own_loss(rows: list[Row]) -> Row | None:
    """The newest row of the loss of the model itself, under no control."""
    return next((row for row in reversed(rows) if row.measure == "val_loss" and row.arm in OWN), None)


class RowEvidence(Evidence):
    """The numbers of an experiment in rows of one protocol, beside those of its base and of its plain model.

    It is named by its number, or as rows name it with other flags: "1.6.1, dropout 0.1".

    Attributes:
        variants: rows of the experiment, its base and the plain model with other flags, whose names begin with their
            numbers, and in protocols that add to this one, such as "asked-74M, more wordings".
        loss: the row of its own loss, or None.  head: that row, else the newest that names its script, or None.

    Raises:
        FileNotFoundError: the experiment has no script.
        ValueError: the protocol has no row of it.
    """

    def __init__(self, number: str, protocol: str, rows: Rows, root: Path = ROOT):
        name, _, variant = number.partition(",")
        self.experiment, self.script, self.variant = name, find_script(name, root), variant.strip()
        if self.script is None:
            raise FileNotFoundError(f"{number} has no script in run_file/: give the number of an experiment")
        held = [row for row in rows.results if row.protocol == protocol]
        base, self.plain = base_of(self.script), plain_of(rows, name)
        self.base_number = base and base.replace("_", ".")
        self.rows = [row for row in held if row.experiment == number]
        of = [other for other in (name, self.base_number, self.plain) if other]
        self.variants = [row for row in held if row.experiment.startswith(tuple(f"{other}," for other in of))]
        added = [row for row in rows.results if row.protocol.startswith(f"{protocol}, ")]
        self.variants += [row for row in added if row.experiment in (number, *of)]
        if not self.rows:
            raise ValueError(f"no row of the protocol {protocol!r} is of {number}: name another protocol")
        self.protocol = protocol
        self.loss = own_loss(self.rows)
        self.head = self.loss or next((row for row in reversed(self.rows) if STARTED.search(row.command)), None)
        self.base_rows = [row for row in held if row.experiment == self.base_number]
        self.results, self.base = numbers_of(self.rows), numbers_of(self.base_rows)
        plain = ALIASES.get((protocol, self.plain), self.plain)
        self.plain_rows = [row for row in held if row.experiment == plain]
        self.baseline = numbers_of(self.plain_rows)

    @property
    def references(self) -> list[tuple[str, str]]:
        found = [(f"experiment_{self.base_number}", "base")] if self.base else []
        return found + ([(self.plain, "baseline")] if self.baseline and self.plain != self.base_number else [])


class RowKnown(Known):
    """What a text about such an experiment may state: numbers of rows, of their names and notes, and of the flags."""

    def __init__(self, found: RowEvidence, flags: Flags):
        self.flags, self.by_step, self.of_flags = flat_and_idle(flags)[0], {}, {}
        self.start_pools()
        rows = [*found.rows, *found.variants, *found.base_rows, *found.plain_rows]
        self.text = json.dumps([row.as_line() for row in rows], ensure_ascii=False)
        base = found.base_number and find_script(found.base_number, ROOT)
        self.take_flags({"与基础实验不同的参数": flat_and_idle(parse_cli(script_flags(base)))[0] if base else {}})
        self.put(self.anywhere, [[row.experiment.partition(",")[2], row.note, row.n, row.seeds] for row in rows])
        self.take_results(found)
        for row in rows:
            self.take_interval(row.measure, row.interval, row.unit == "%")
            for value in (row.value, *row.values):
                for pool in self.pools_of(row.measure):
                    pool.add(value, row.unit == "%")


def values_of_rows(found: RowEvidence) -> Callable[[str], str]:
    """The value of each marker of a record, or why there is none."""
    head, (flat, idle) = found.head, flat_and_idle(*flags_of(found.head))
    against = found.against("val_loss", "baseline")
    peak, memory = found.number("peak_mib"), found.against("peak_mib", "baseline")
    plain = f" ({found.plain})"
    known = {
        "EXPERIMENT": f"experiment_{found.experiment.replace('.', '_')}", "CREATED": head.date, "GPU": head.machine,
        "SCRIPT": found.script.relative_to(ROOT).as_posix(), "COMMAND_LINE": head.command, "COMMIT_HASH": head.commit,
        "BASE_EXPERIMENT": f"experiment_{found.base_number}", "ENVIRONMENT": head.machine,
        "STATE": "✅ 完成", "ALL_METRICS": tables.all_metrics(found), "KNOWLEDGE": knowledge(found),
        "SUMMARY": summary(found),
        "MODEL_FLAGS": tables.flag_table(tables.MODEL_FLAGS, flat.get, idle),
        "TRAIN_FLAGS": tables.flag_table(tables.TRAIN_FLAGS, flat.get, idle),
        "CHANGED_FLAGS": changed(found), "TARGET_LOSS": "未设目标", "LOSS_ACHIEVED": "未设目标",
        "TARGET_PPL": "未设目标", "PPL_ACHIEVED": "未设目标",
    }  # fmt: skip
    if found.loss:
        known |= dict.fromkeys(("FINAL_LOSS", "CURRENT_LOSS"), found.number("val_loss").text)
    if peak:
        known |= dict.fromkeys(("PEAK_GPU_MEM", "CURRENT_MEM"), f"{peak.text} MiB")
    if against:
        known |= {"BASELINE_LOSS": against.old.text + plain}
        known |= {"LOSS_IMPROVEMENT": change(against.new.value, against.old.value, MORE_IS_WORSE)}
    if memory:
        known |= {"BASELINE_MEM": f"{memory.old.text} MiB{plain}"}
        known |= {"MEM_CHANGE": change(memory.new.value, memory.old.value, MORE_IS_WORSE)}

    def value(name: str) -> str:
        if name.startswith("flag:"):
            return str(flat[name.removeprefix("flag:")])
        return known.get(name) or (NOT_MEASURED if name in SCORES else missing(NO_FOLDER))

    return value


def summary(found: RowEvidence, is_whole: bool = True) -> str:
    """The main results beside those of base and plain model, and their origin. `is_whole`: no run stands above."""
    names = [name for name, _ in found.references]
    head, shown = found.head, tables.results_table(found, names) or edit_table(found, "_all")
    told = (
        f"脚本没有照原样运行过, 数值是改了参数的 ({found.variant}), 见 与基础实验不同的参数。"
        if found.variant and is_whole
        else ""
    )
    noise = "; 单个种子的 Loss 波动未知" if found.loss and len(head.seeds) < 2 else ""
    return f"{shown}\n\n协议: {head.protocol}; 种子: {', '.join(map(str, head.seeds))}{noise}。{told}{ORIGIN}"


def knowledge(found: RowEvidence) -> str:
    """The questions, and the edits of benchmarks, under every control, where rows hold any."""
    asked = any(measure in tables.QUESTIONS and measure != "val_loss" for _, measure in found.results)
    parts = [tables.question_table(found) if asked else "", edit_table(found)]
    return "\n\n".join(filter(None, parts)) or NOT_MEASURED


def edit_table(found: RowEvidence, end: str = "") -> str:
    """The measures of benchmarks of edits whose names have this end, under every control; empty where none is."""
    rows = []
    for measure in found.measures:
        if measure.startswith(EDITS) and measure.endswith(end):
            own, *others = (found.results.get((arm, measure)) for arm in ("memory", *found.controls))
            label = own.label.replace("all 次编辑", "全部编辑")
            rows.append([label, str(own.n or "-"), *map(tables.cell, (own, *others))])
    head = ["公开编辑题", "题数", "本实验", *(tables.ARMS[arm] for arm in found.controls)]
    return tables.table(head, rows) if rows else ""


def changed(found: RowEvidence) -> str:
    """The flags that differ from those of the base experiment's row; without a loss, from its script's."""
    row = own_loss(found.base_rows)
    if found.loss is None and found.base_number:  # trained with the same words
        scripts = [f"experiment_{number.replace('.', '_')}.sh" for number in (found.experiment, found.base_number)]
        row = replace(found.head, command=found.head.command.replace(*scripts))
    if row is None:
        return missing(f"{found.base_number} 在该协议下没有行")
    changes = tables.changed_between(*(flat_and_idle(*flags_of(each)) for each in (row, found.head)))
    return tables.change_table(f"experiment_{found.base_number}", changes)


def is_of_a_run(text: str) -> bool:
    """Whether a run filled a record: then it says when the run began, which neither `new` nor rows know."""
    return any(name == "START_TIME" and digits and MISSING not in value for value, name, digits in INLINE.findall(text))


def table_beside(found: RowEvidence) -> str:
    """The main results of one more protocol, as they stand below the summary of a run."""
    variant = f"; {CHANGED_FLAGS} {found.variant}" if found.variant else ""
    return f"**另一协议的结果: {found.protocol}{variant}**\n\n{summary(found, is_whole=False)}"


def with_table_beside(text: str, found: RowEvidence) -> str:
    """The record that a run filled, with the results of the rows after its summary and the tables already there."""
    name = OF_ROWS + re.sub(r"\W+", "_", f"{found.protocol} {found.variant}").strip("_")
    areas = {match[1]: match for match in AREA.finditer(text)}
    above = [match.end() for own, match in areas.items() if own == "SUMMARY" or own.startswith(OF_ROWS)]
    if name not in areas and above:
        blank = f"\n\n<!--begin:{name}-->\n[{name}]\n<!--end:{name}-->"
        text = text[: max(above)] + blank + text[max(above) :]
    return fill_text(text, lambda asked: table_beside(found) if asked == name else None)


def stale_tables(path: Path, text: str, rows: Rows) -> str | None:
    """What is wrong with the first table of rows that its rows no longer give, or None; a person's text is left."""
    number = path.stem.removeprefix("EXPERIMENT_").replace("_", ".")
    for name, shown, _ in AREA.findall(text):
        head = HEAD.match(shown.strip())
        if not name.startswith(OF_ROWS) or not head:
            continue
        protocol, variant = head.groups()
        of = f"{number}, {variant}" if variant else number
        found = RowEvidence(of, protocol, rows)
        now = {name: table_beside(found)}
        if fill_text(text, now.get) != text:
            again = f"python -m experiment fill {shlex.quote(of)} --rows {protocol!r}"
            return f"its table of {protocol} is not what the rows give: {again}"
    return None


def fill_from_rows(number: str, protocol: str, notes: dict[str, str], experiment_dir: str | Path | None = None) -> Path:
    """Fill a record from rows, and its blanks with answers that state nothing else, in one atomic step.

    A record that a run filled keeps its values. It gets a table of the rows below its summary, and answers may state
    the numbers of both.

    Raises:
        ValueError: an answer is refused, one sentence a line; then nothing is written.
    """
    found = RowEvidence(number, protocol, Rows.load(ROOT))
    archived = found.script.parent.name == ARCHIVE
    folder = Path(experiment_dir or RECORDS) / (ARCHIVE if archived else "")
    path = record_path(found.experiment.replace(".", "_"), folder)
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    if is_of_a_run(text):
        if found.loss and found.loss.command not in text:  # else the rows are those of the run
            text = with_table_beside(text, found)
        known = RowKnown(found, parse_cli(script_flags(found.script)))
        known.put(known.anywhere, text)
    elif found.head is None:
        raise ValueError(f"no row of the protocol {protocol!r} tells how {number} was trained: name another protocol")
    else:
        known, text = RowKnown(found, flags_of(found.head)[0]), fill_text(text_of_record(path), values_of_rows(found))
    require_known(notes, text, known, path)
    write_text(path, write_answers(text, notes, AI))
    return path
