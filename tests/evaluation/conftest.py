"""A made-up bank, and a model whose answers from it can be worked out by hand."""

import pytest
import torch

from dataset.knowledge import Fact
from dataset.tokenizer import load_tokenizer
from tests.conftest import tiny_model

CITIES = {
    "Paris": "France", "Lyon": "France", "Nice": "France", "Rome": "Italy", "Oslo": "Norway", "Lima": "Peru",
    "Bergen": "Norway", "Milan": "Italy",
}  # fmt: skip
FACTS = [Fact(f"{city} is in {land}.", city, "country", land, f"u{i}") for i, (city, land) in enumerate(CITIES.items())]


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer("dataset/tokenizer")


@pytest.fixture
def model(tokenizer):
    """A model that does nothing but copy what continues the text in an entry that the n-grams found."""
    model = tiny_model(
        vocab_size=6400, retrieval="ngram", ngram_lengths=[1, 2], pointer=True, memory_layers=[-1],
        knowledge_num=len(FACTS), knowledge_length=8,
    )  # fmt: skip
    ids = [tokenizer(fact.sentence, add_special_tokens=False).input_ids for fact in FACTS]
    model.bank.fill(torch.tensor([row + [0] * (8 - len(row)) for row in ids]))
    torch.nn.init.constant_(model.pointer.gate.bias, 4.0)
    model.pointer.attention.follows_bias.data.copy_(torch.tensor([12.0, 8.0]))
    model.pointer.score_scale.data.fill_(4.0)
    return model
