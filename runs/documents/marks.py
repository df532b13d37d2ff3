"""The marked places of a document: generated tables and single values."""

import re

from .leaderboard import leaderboard
from .page import Page
from .rows import Rows
from .speed_tables import SPEED_TABLES
from .tables import RESULT_TABLES

TABLES = {make.__name__.replace("_", "-"): make for make in (*RESULT_TABLES, *SPEED_TABLES, leaderboard)}

BLOCK = re.compile(r"(<!-- begin:([\w.-]+) -->\n)(.*?)(<!-- end:([\w.-]+) -->)", re.DOTALL)
VALUE = re.compile(r"(<!--v:([^>]+?)-->)(.*?)(<!--/v-->)")


def fill(text: str, rows: Rows, language: str, name: str) -> str:
    """The document with every table and value as the rows give them.

    Raises:
        ValueError: a mark is not closed, or it names a table or a value that does not exist.
    """
    begins, ends = text.count("<!-- begin:"), text.count("<!-- end:")
    opened, closed = text.count("<!--v:"), text.count("<!--/v-->")
    if begins != ends or begins != len(BLOCK.findall(text)):
        raise ValueError(f"{name}: {begins} tables begin and {ends} end; a mark is damaged or not closed")
    if opened != closed or opened != len(VALUE.findall(text)):
        raise ValueError(f"{name}: {opened} values begin and {closed} end; a mark is damaged or not closed")

    def block(match: re.Match) -> str:
        begin, table, _, end, closing = match.groups()
        if table not in TABLES or closing != table:
            known = ", ".join(sorted(TABLES))
            raise ValueError(f"{name}: there is no table {table} ... {closing}; the tables are {known}")
        return begin + TABLES[table](Page(rows, language)) + "\n" + end

    return VALUE.sub(lambda match: match[1] + rows.value(match[2]) + match[4], BLOCK.sub(block, text))


def without_generated(text: str) -> str:
    """The document with generated tables and values blanked; line numbers stay."""
    text = BLOCK.sub(lambda match: "\n" * match[0].count("\n"), text)
    return VALUE.sub("", text)
