"""The table at the end of a slow run: faults tried, survived, lost."""

from collections import Counter

import pytest

TRIED, SURVIVED = Counter(), Counter()


@pytest.fixture
def survives():
    """survives(what, number, check): counts `number` faults as tried and, once `check` is done, as survived."""

    def count(what: str, number: int, check) -> None:
        TRIED[what] += number
        check()
        SURVIVED[what] += number

    return count


def pytest_terminal_summary(terminalreporter) -> None:
    if not TRIED:
        return
    width = max(map(len, TRIED))
    terminalreporter.write_line(f"\n{'faults'.ljust(width)}  tried  survived  lost")
    for what, tried in TRIED.items():
        survived = SURVIVED[what]
        terminalreporter.write_line(f"{what.ljust(width)}  {tried:5}  {survived:8}  {tried - survived:4}")
