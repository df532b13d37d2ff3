"""Tiny models that every test shares. The process that hands out the tests reads this too, and needs no torch."""

from collections import Counter
from pathlib import Path

import pytest

from .tiny_runs import Runs, write_data

TINY = {
    "dim": 32, "n_layers": 2, "n_heads": 4, "vocab_size": 61, "max_seq_len": 32,
    "knowledge_num": 49, "knowledge_length": 5, "num_candidates": 6, "num_selected": 3, "fusion_heads": 4,
}  # fmt: skip


def tiny_config(**changes):
    from model import ModelConfig

    return ModelConfig(**{**TINY, **changes})


def tiny_model(seed: int = 0, **changes):
    """A tiny model in evaluation mode; equal arguments give equal weights."""
    import torch

    from model import build_model

    torch.manual_seed(seed)
    return build_model(tiny_config(**changes), seed=seed).eval()


def pytest_collection_modifyitems(items) -> None:
    """The files that take longest come first: with them last, one worker would have work while the others have none."""
    first = ("reliability", "runs", "evaluation")  # folders
    items.sort(key=lambda item: (*first, item.path.parent.name).index(item.path.parent.name))


@pytest.fixture(autouse=True)
def fixed_seed():
    import torch

    torch.manual_seed(0)
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def run_data(tmp_path_factory) -> Path:
    return write_data(tmp_path_factory.mktemp("run_data"))


@pytest.fixture
def runs(run_data, tmp_path) -> Runs:
    return Runs(run_data, tmp_path)


@pytest.fixture
def no_curves(monkeypatch):
    """Records are filled without a picture: to draw it takes ten times as long."""
    from runs import record

    monkeypatch.setattr(record, "draw_curves", lambda run, path: None)


@pytest.fixture(autouse=True)
def fault_mark(request, record_property):
    """Count a test with the mark `fault`: it tries one fault, and survives it if it passes."""
    for mark in request.node.iter_markers("fault"):
        record_property("fault", mark.args[0])


def pytest_terminal_summary(terminalreporter) -> None:
    """The table of the faults tried, survived and lost."""
    counts = {"tried": Counter(), "survived": Counter()}
    # The reports carry the counts here from whichever process ran the test.
    for report in (r for outcome in ("passed", "failed") for r in terminalreporter.stats.get(outcome, [])):
        for name, value in getattr(report, "user_properties", []):
            if name in counts and report.when == "call":
                counts[name][value[0]] += value[1]
            elif name == "fault" and report.when == "call":
                counts["tried"][value] += 1
                counts["survived"][value] += report.passed
    tried, survived = counts.values()
    if not tried:
        return
    rows = [(what, tried[what], survived[what]) for what in tried]
    rows.append(("all", tried.total(), survived.total()))
    width = max(len(what) for what, *_ in rows)
    terminalreporter.write_line(f"\n{'faults'.ljust(width)}  tried  survived  lost")
    for what, n_tried, n_survived in rows:
        terminalreporter.write_line(f"{what.ljust(width)}  {n_tried:5}  {n_survived:8}  {n_tried - n_survived:4}")
