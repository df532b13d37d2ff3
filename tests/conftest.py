"""Tiny models that every test shares."""

from pathlib import Path

import pytest
import torch

from model import ModelConfig, build_model

from .runs import Runs, write_data

TINY = {
    "dim": 32, "n_layers": 2, "n_heads": 4, "vocab_size": 61, "max_seq_len": 32,
    "knowledge_num": 49, "knowledge_length": 5, "num_candidates": 6, "num_selected": 3, "fusion_heads": 4,
}  # fmt: skip


def tiny_config(**changes) -> ModelConfig:
    return ModelConfig(**{**TINY, **changes})


def tiny_model(seed: int = 0, **changes):
    """A tiny model in evaluation mode; equal arguments give equal weights."""
    torch.manual_seed(seed)
    return build_model(tiny_config(**changes), seed=seed).eval()


@pytest.fixture(autouse=True)
def fixed_seed():
    torch.manual_seed(0)
    torch.set_num_threads(2)


@pytest.fixture(scope="session")
def run_data(tmp_path_factory) -> Path:
    return write_data(tmp_path_factory.mktemp("run_data"))


@pytest.fixture
def runs(run_data, tmp_path) -> Runs:
    return Runs(run_data, tmp_path)
