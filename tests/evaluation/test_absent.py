"""Facts that a bank does not hold: areas that can be counted by hand, and a model that knows by what it finds."""

import json
from itertools import product

import numpy as np
import pytest
import torch

from evaluation.absent import absent, auroc
from evaluation.config import EvalConfig, wilson_interval
from evaluation.gold import Gold
from evaluation.report import table
from tests.conftest import tiny_model

from .conftest import FACTS

LANDS = ["France", "Italy", "Norway", "Peru", "Chile"]


def test_an_area_is_the_share_of_pairs_in_the_right_order():
    rng = np.random.default_rng(0)
    held, lacking = rng.integers(2, 9, 40).astype(float), rng.integers(0, 7, 30).astype(float)
    pairs = [(a > b) + (a == b) / 2 for a, b in product(held, lacking)]
    area, (low, high) = auroc(held, lacking)
    assert area == pytest.approx(np.mean(pairs)) and auroc(lacking, held)[0] == pytest.approx(1 - area)
    drawn = [auroc(rng.choice(held, 40), rng.choice(lacking, 30))[0] for _ in range(2000)]
    assert (high - low) / 2 == pytest.approx(1.96 * np.std(drawn), rel=0.1)
    assert auroc(np.ones(3), np.zeros(2)) == (1.0, wilson_interval(2, 2)) and auroc(np.ones(4), np.ones(4))[0] == 0.5


@pytest.fixture
def settings(tmp_path):
    rows = [
        {"uuid": f.uuid, "subject": f.subject, "predicate": f.predicate, "object": f.object, "choices": LANDS}
        | {"question": f"{f.subject} is in ___.", "answer": "ABCDE"[LANDS.index(f.object)]}
        for f in FACTS
    ]
    (tmp_path / "o.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    rows = {fact.uuid: row for row, fact in enumerate(FACTS)}
    gold = Gold(rows, {f.uuid: f for f in FACTS}, lambda: enumerate(FACTS))
    return EvalConfig(object_path=str(tmp_path / "o.jsonl"), gold=gold, batch_size=4, seed=1)


def test_a_model_that_copies_knows_what_it_finds(model, tokenizer, settings):
    tokens = model.bank.tokens.clone()
    result = absent(model, tokenizer, settings)
    assert torch.equal(model.bank.tokens, tokens) and result["undo_exact"]
    assert (result["before"]["accuracy"], result["held"]["accuracy"], result["held"]["same"]["accuracy"]) == (1, 1, 1)
    assert result["emptied"]["n"] == 4 and result["emptied"]["same"]["accuracy"] == result["emptied"]["accuracy"] < 1
    known = {name: own["auroc"] for name, own in result["knowing"].items()}
    assert known["match"] == known["look-up"] == 1  # " is in" alone finds no entry of its own
    assert known["choice"] > 0.9 and "absent, AUROC of look-up" in table({"run": {"absent": result}})


def test_a_bank_that_is_not_read_tells_nothing(model, tokenizer, settings):
    torch.nn.init.constant_(model.pointer.gate.bias, -40.0)  # it copies nothing
    known = absent(model, tokenizer, settings)["knowing"]["choice"]
    assert 0 < known["auroc"] < 1 and known["ci95"][0] < 0.5 < known["ci95"][1]


def test_product_keys_have_a_score_of_each_block(tokenizer, settings):
    model = tiny_model(vocab_size=6400, knowledge_length=8)
    model.bank.fill_random()
    result = absent(model, tokenizer, settings)
    readers = [f"{kind}, block {layer}" for layer in (0, 1) for kind in ("match", "read")]
    assert list(result["knowing"]) == ["choice", "choice as text", *readers, "look-up"] and result["undo_exact"]
