"""A model that answers from its bank alone, and the facts of that bank."""

import torch

from dataset.knowledge import Fact
from tests.conftest import tiny_model

CITIES = {
    "Paris": "France", "Lyon": "France", "Nice": "France", "Rome": "Italy", "Oslo": "Norway", "Lima": "Peru",
    "Bergen": "Norway", "Milan": "Italy",
}  # fmt: skip
FACTS = [Fact(f"{city} is in {land}.", city, "country", land, f"u{i}") for i, (city, land) in enumerate(CITIES.items())]
LANDS = ["France", "Italy", "Norway", "Peru", "Chile"]


def copying_model(tokenizer, reserve: int = 0):
    """A model that does nothing but copy what continues the text in an entry that the n-grams found."""
    model = tiny_model(
        vocab_size=6400, retrieval="ngram", ngram_lengths=[1, 2], pointer=True, memory_layers=[-1],
        knowledge_num=len(FACTS) + reserve, knowledge_length=8,
    )  # fmt: skip
    ids = [tokenizer(fact.sentence, add_special_tokens=False).input_ids for fact in FACTS]
    model.bank.fill(torch.tensor([row + [0] * (8 - len(row)) for row in ids + [[]] * reserve]))
    model.pointer.gate.bias.data.fill_(4.0)
    model.pointer.attention.follows_bias.data.copy_(torch.tensor([12.0, 8.0]))
    model.pointer.score_scale.data.fill_(4.0)
    return model
