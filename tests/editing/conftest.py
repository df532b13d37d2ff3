"""A tiny run with four facts in its memory, and two empty entries."""

import json

import pytest
import torch

from dataset.tokenizer import load_tokenizer
from tests.conftest import tiny_model

FACTS = ["Paris is in France.", "Rome is in Italy.", "Oslo is in Norway.", "Lima is in Peru."]


@pytest.fixture
def run(tmp_path):
    tokenizer = load_tokenizer("dataset/tokenizer")
    model = tiny_model(
        vocab_size=6400, retrieval="ngram", ngram_lengths=[1, 2], fusion="words", pointer=True, keep_ffn=True,
        knowledge_num=6, knowledge_length=8, freeze_ratio=0.0,
    )  # fmt: skip
    ids = [tokenizer(text, add_special_tokens=False).input_ids for text in FACTS] + [[], []]
    model.bank.fill(torch.tensor([row + [0] * (8 - len(row)) for row in ids]))
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    data = {"database_init_path": str(tmp_path / "gone.json"), "cache_dir": str(tmp_path)}
    flags = {"data": data, "model": {"knowledge_num": 6, "knowledge_length": 8}}
    (tmp_path / "flags.json").write_text(json.dumps(flags))
    return tmp_path
