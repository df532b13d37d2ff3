"""Fixtures that several tests of runs share."""

import pytest


@pytest.fixture
def no_login(monkeypatch, tmp_path):
    monkeypatch.delenv("SWANLAB_API_KEY", raising=False)
    monkeypatch.delenv("SWANLAB_MODE", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
