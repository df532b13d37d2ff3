"""What the search of a memory answers without its model."""

import json

import pytest

from evaluation.config import EvalConfig
from evaluation.in_context import EntryFinder
from evaluation.search_alone import search_alone
from tests.conftest import tiny_model

from .conftest import FACTS

LANDS = ["France", "Italy", "Norway", "Peru", "Chile"]


@pytest.fixture
def config(tmp_path):
    rows = [
        {"question": f"{fact.subject} is in ___.", "choices": LANDS, "answer": "ABCDE"[LANDS.index(fact.object)]}
        for fact in FACTS
    ]
    (tmp_path / "object.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return EvalConfig(object_path=str(tmp_path / "object.jsonl"))


def test_it_answers_from_the_bank_as_it_is(model, tokenizer, config):
    finder = EntryFinder(model, tokenizer)
    assert finder.entries(["Rome is in"])[0][0] == "Rome is in Italy."
    assert search_alone(model, tokenizer, config)["object"]["accuracy"] == 1
    model.bank.fill(model.bank.tokens.roll(1, 0))  # each in another row
    assert search_alone(model, tokenizer, config)["object"]["accuracy"] == 1
    model.bank.fill(model.bank.tokens * 0)
    assert search_alone(model, tokenizer, config)["object"]["accuracy"] == pytest.approx(0.2)  # it guesses


@pytest.mark.parametrize("flags", [{"model_type": "model_original"}, {"retrieval": "product_key"}])
def test_it_is_left_out_where_no_index_ranks_entries(tokenizer, config, flags):
    assert search_alone(tiny_model(vocab_size=6400, **flags), tokenizer, config) is None
