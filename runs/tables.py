"""Tables that are printed for people (rich), for documents (Markdown) or for programs (JSON)."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field

from rich import box
from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

FORMATS = ("table", "markdown", "json")
WIDE = 160  # columns, if the output is not a terminal


@dataclass(frozen=True)
class Table:
    """Rows of raw values. `formats` writes a column's values for people; a dict brings its own `text`."""

    title: str
    rows: list[dict]
    formats: dict[str, Callable] = field(default_factory=dict)

    @property
    def columns(self) -> list[str]:
        return list(dict.fromkeys(name for row in self.rows for name in row))

    def cells(self, row: dict) -> list[str]:
        return [self.cell(name, row.get(name)) for name in self.columns]

    def cell(self, name: str, value) -> str:
        if value is None:
            return "-"
        if isinstance(value, dict):
            return value["text"]
        return self.formats[name](value) if name in self.formats else str(value)

    def is_numeric(self, name: str) -> bool:
        values = [row[name] for row in self.rows if row.get(name) is not None]
        return bool(values) and all(isinstance(value, (int, float, dict)) for value in values)


def rich_table(table: Table) -> RichTable:
    made = RichTable(title=table.title, title_justify="left", box=box.SIMPLE_HEAD)
    for name in table.columns:
        made.add_column(name, justify="right" if table.is_numeric(name) else "left", overflow="fold")
    for row in table.rows:
        made.add_row(*map(Text, table.cells(row)))  # Text: rich would read brackets in a path as markup
    return made


def markdown_table(table: Table) -> str:
    def line(cells) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", "<br>") for cell in cells) + " |"

    rule = ["---:" if table.is_numeric(name) else "---" for name in table.columns]
    rows = [line(table.columns), line(rule), *(line(table.cells(row)) for row in table.rows)]
    return "\n".join([f"**{table.title}**", "", *rows, ""])


def show(tables: list[Table], format: str) -> None:
    """Print tables; a program gets one JSON object, with the rows of each table under its title."""
    if format == "json":
        print(json.dumps({table.title: table.rows for table in tables}, ensure_ascii=False, indent=1))
        return
    for table in tables:
        if not table.rows:
            print(f"{table.title}: none")
        elif format == "markdown":
            print(markdown_table(table))
        else:
            console = Console()
            Console(width=console.width if console.is_terminal else WIDE).print(rich_table(table))
