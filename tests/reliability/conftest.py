"""Faults that a test tries; `tests/conftest.py` prints their table at the end."""

from contextlib import contextmanager

import pytest


@pytest.fixture
def survives(record_property):
    """with survives(what, number): counts so many faults as tried and, if the block ends well, as survived."""

    @contextmanager
    def count(what: str, number: int = 1):
        record_property("tried", (what, number))
        yield
        record_property("survived", (what, number))

    return count
