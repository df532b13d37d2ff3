"""The table at the end of a slow run: faults tried, survived, lost."""

from collections import Counter
from contextlib import contextmanager

import pytest

TRIED, SURVIVED = Counter(), Counter()


@pytest.fixture
def survives():
    """with survives(what, number): counts so many faults as tried and, if the block ends well, as survived."""

    @contextmanager
    def count(what: str, number: int = 1):
        TRIED[what] += number
        yield
        SURVIVED[what] += number

    return count


def pytest_terminal_summary(terminalreporter) -> None:
    if not TRIED:
        return
    rows = [(what, tried, SURVIVED[what]) for what, tried in TRIED.items()]
    rows.append(("all", TRIED.total(), SURVIVED.total()))
    width = max(len(what) for what, *_ in rows)
    terminalreporter.write_line(f"\n{'faults'.ljust(width)}  tried  survived  lost")
    for what, tried, survived in rows:
        terminalreporter.write_line(f"{what.ljust(width)}  {tried:5}  {survived:8}  {tried - survived:4}")
