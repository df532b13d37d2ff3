"""The files of the local SwanLab dashboard: what `swanlab` cannot set, or sets wrongly, in its local mode.

The dashboard keeps runs, charts and their places in a SQLite file, and each chart's points in a folder of the run.
`requirements.txt` fixes its version as tightly as `swanlab` does, and a test looks at the page in a browser.
"""

import colorsys
import os
import re
import sqlite3
import zlib
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

from .metrics import METRICS, dashboard_name

# The sections of a run's page, in their order. A chart's section is its name up to the "/".
SECTIONS = ("results", "val", "questions", "train", "memory", "speed", "system", "eval")
CLOSED = {"system", "eval"}  # one sees them after a click
DATABASE = "runs.swanlab"


def group_of(name: str, out_dir: str = "") -> str:
    """What the seeds of one experiment share: the run's name without its seed, else the name of its folder."""
    parent = Path(out_dir).parent.name
    rest = re.sub(r"[_-]*seed[_-]?[0-9]+", "", name)
    inside = "" if parent in ("", "out", "..") else parent
    return "/".join(filter(None, [inside, rest])) or name


def color_of(group: str) -> str:
    """A colour for all seeds of an experiment, dark enough for white paper and light enough for black."""
    hue = zlib.crc32(group.encode()) % 360 / 360
    return "#" + "".join(f"{round(255 * part):02x}" for part in colorsys.hls_to_rgb(hue, 0.48, 0.6))


def delete(swanlog: Path, folder: str) -> None:
    """Delete a run and its charts. `folder`: its name below `swanlog`."""
    os.environ["SWANLAB_LOG_DIR"] = str(swanlog.resolve())
    if not (swanlog / DATABASE).exists():
        return
    from swanboard.db import connect
    from swanboard.db.models import Chart, Experiment

    connect(path=os.environ["SWANLAB_LOG_DIR"], autocreate=True)
    if Experiment.select().where(Experiment.run_id == folder).exists():
        Experiment.purely_delete(folder)
        for chart in Chart.select():  # a chart over several runs outlives the last of them
            if chart.sources.count() == 0:
                chart.delete_instance()


def rank(name: str) -> tuple[int, int]:
    """Where a chart stands: its section, and its metric's place in the table of metrics."""
    section = name.partition("/")[0]
    shown = [dashboard_name(metric.name) for metric in METRICS]
    return (
        SECTIONS.index(section) if section in SECTIONS else len(SECTIONS),
        shown.index(name) if name in shown else len(shown),
    )


def arrange(swanlog: Path, folder: str) -> None:
    """Put the charts of a run, and those over all runs, into their sections, results first."""
    with closing(sqlite3.connect(swanlog / DATABASE, timeout=10)) as base, base:
        for number, project in base.execute("SELECT id, project_id FROM experiment WHERE run_id = ?", [folder]):
            for owner, key in (("experiment_id", number), ("project_id", project)):
                place(base, owner, key)


def place(base: sqlite3.Connection, owner: str, key: int) -> None:
    """Write the sections of one page and its charts in their order: the dashboard shows rows as they were written."""
    charts = base.execute(f"SELECT id, name FROM chart WHERE {owner} = ?", [key]).fetchall()
    time, sections = datetime.now(UTC).isoformat(), {}
    for sort, section in enumerate((*SECTIONS, "default")):
        found = base.execute(f"SELECT id FROM namespace WHERE {owner} = ? AND name = ?", [key, section]).fetchone()
        if found is None:
            values = [key, section, sort + 1, int(section not in CLOSED), time, time]
            columns = f"{owner}, name, sort, opened, create_time, update_time"
            found = [base.execute(f"INSERT INTO namespace ({columns}) VALUES (?, ?, ?, ?, ?, ?)", values).lastrowid]
        sections[section] = found[0]
    for sort, (chart, name) in enumerate(sorted(charts, key=lambda chart: rank(chart[1]))):
        section = sections.get(name.partition("/")[0], sections["default"])
        base.execute("DELETE FROM display WHERE chart_id = ?", [chart])
        columns = "chart_id, namespace_id, sort, create_time, update_time"
        base.execute(f"INSERT INTO display ({columns}) VALUES (?, ?, ?, ?, ?)", [chart, section, sort, time, time])


def close(swanlog: Path, folder: str, start: str | None, end: str | None) -> None:
    """Give a run that has ended its true times, and the tables of runs their right columns, scores first.

    Those tables read the points of column n from folder n, counted from 0, where the local mode counts from 1.
    """
    arrange(swanlog, folder)
    with closing(sqlite3.connect(swanlog / DATABASE, timeout=10)) as base, base:
        for column, time in (("create_time", start), ("finish_time", end)):
            if time:
                utc = datetime.fromisoformat(time).astimezone(UTC).isoformat()
                base.execute(f"UPDATE experiment SET {column} = ? WHERE run_id = ?", [utc, folder])
        run = "experiment_id = (SELECT id FROM experiment WHERE run_id = ?)"
        tags = base.execute(f"SELECT id, name, folder FROM tag WHERE {run}", [folder]).fetchall()
        tags.sort(key=lambda tag: (not tag[1].startswith("eval/"), tag[1].startswith("results/"), rank(tag[1])))
        parts = [(swanlog / folder / "logs"), (swanlog / folder / "media")]
        for sort, (number, _, own) in enumerate(tags):
            base.execute("UPDATE tag SET sort = ?, folder = ? WHERE id = ?", [sort, str(sort), number])
            for part in filter(lambda part: (part / own).exists(), parts):
                (part / own).rename(part / f"_{sort}")
        for path in (path for part in parts for path in part.glob("_*")):
            path.rename(path.with_name(path.name[1:]))
