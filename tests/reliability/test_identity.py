"""What a run was trained with may change afterwards: the rows of its bank keep their facts, or the run says so."""

import json
import shutil
import sys
from types import SimpleNamespace

import pytest
import torch

from dataset.knowledge import load_bank
from dataset.tokenizer import load_tokenizer
from editing.__main__ import main as editing_main
from editing.store import MemoryStore
from evaluation.config import EvalConfig
from evaluation.gold import find_gold
from model import load_run
from runs.load import load_run_bank
from tests.conftest import tiny_model

pytestmark = pytest.mark.fault("the facts behind a bank changed")
FACTS = [{"sentence": f"Town {n} lies in land {n % 3}.", "object": f"land {n % 3}", "uuid": f"u{n}"} for n in range(9)]
ORDER = [3, 1, 4, 0, 5, 8, 2, 6, 7]


def write_facts(path, facts) -> None:
    path.write_text(json.dumps(facts, indent=1))


@pytest.fixture(params=["as in the file", "ordered by content"])
def trained(tmp_path, request):
    """A run whose bank was filled from a knowledge file, in the order of the file or in its own."""
    import numpy as np

    tokenizer, run, path = load_tokenizer("dataset/tokenizer"), tmp_path / "run", tmp_path / "facts.json"
    write_facts(path, FACTS)
    bank = load_bank(path, tokenizer, 9, 12, tmp_path / "cache")
    model = tiny_model(vocab_size=6400, knowledge_num=9, knowledge_length=12, num_candidates=3)
    tokens = torch.tensor(bank.tokens)
    run.mkdir()
    if request.param == "ordered by content":
        np.save(run / "bank_rows.npy", np.array(ORDER))
        tokens = tokens[ORDER]
    model.bank.fill(tokens)
    model.save_pretrained(run)
    tokenizer.save_pretrained(run)
    data = {"database_init_path": str(path), "cache_dir": str(tmp_path / "cache")}
    (run / "flags.json").write_text(json.dumps({"data": data, "model": {"knowledge_num": 9, "knowledge_length": 12}}))
    (run / "run.json").write_text(json.dumps({"data": {"knowledge": bank.report}}))
    (tmp_path / "questions.jsonl").write_text("".join(json.dumps({"uuid": fact["uuid"]}) + "\n" for fact in FACTS))
    config = EvalConfig(object_path=str(tmp_path / "questions.jsonl"), cache_dir=str(tmp_path / "cache"))
    return SimpleNamespace(run=run, path=path, cache=tmp_path / "cache", config=config, tokenizer=tokenizer)


def gold_of(trained, knowledge_path=None):
    model = load_run(trained.run)
    return find_gold(trained.run, model, trained.tokenizer, trained.config, str(trained.path), knowledge_path)


def assert_facts_fit_their_rows(trained, store) -> None:
    gold = gold_of(trained, store.places.get("knowledge_path"))
    assert len(gold.rows) == 9
    for row in range(9):
        entry = store.show(row)
        assert entry.fact.sentence == entry.text == store.text(gold.rows[entry.fact.uuid]), store.origin_problem


def change_file(trained) -> None:
    """One fact at the top of the file, as a person adds it: every row of the file moves by one."""
    write_facts(trained.path, [{"sentence": "A new town lies in land 7.", "uuid": "new"}, *FACTS])


def test_a_fact_put_at_the_top_of_the_file_moves_no_row(trained):
    change_file(trained)
    assert_facts_fit_their_rows(trained, MemoryStore(trained.run))
    trained.path.unlink()
    assert_facts_fit_their_rows(trained, MemoryStore(trained.run))


@pytest.mark.parametrize("has_fingerprint", [True, False], ids=["fingerprint", "run of an earlier version"])
def test_without_the_cache_a_changed_file_is_refused_and_the_old_one_taken(
    trained, capsys, monkeypatch, has_fingerprint
):
    shutil.rmtree(trained.cache)
    if not has_fingerprint:
        (trained.run / "run.json").unlink()
    old = trained.path.with_name("old.json")
    shutil.copy(trained.path, old)
    for change in (
        change_file,
        lambda t: write_facts(t.path, FACTS[::-1]),
        lambda t: write_facts(t.path, [*FACTS[:8], FACTS[8] | {"sentence": "Town 8 lies in land 9."}]),
    ):
        change(trained)
        with pytest.raises(
            ValueError, match="not the knowledge file that .*: put that file back.*--database_init_path"
        ):
            gold_of(trained)
        monkeypatch.setattr(sys, "argv", ["editing", "--run", str(trained.run), "show", "3"])
        editing_main()
        printed = capsys.readouterr()
        assert "Town" in printed.out and "sentence:" not in printed.out
        assert "origin of entries is unknown" in printed.err and "put that file back" in printed.err
    # A moved file with the same content is the same file.
    assert_facts_fit_their_rows(trained, MemoryStore(trained.run, knowledge_path=str(old)))
    with pytest.raises(ValueError, match="not the knowledge file"):
        gold_of(trained, str(trained.path))
    write_facts(trained.path, [*FACTS, {"sentence": "A new town lies in land 7."}])  # no row of the bank moves
    assert_facts_fit_their_rows(trained, MemoryStore(trained.run))


def test_edited_rows_and_rows_that_training_rewrites_do_not_count_as_another_file(trained):
    shutil.rmtree(trained.cache)
    (trained.run / "run.json").unlink()
    MemoryStore(trained.run).edit(2, "Town 2 is gone.")
    model = load_run(trained.run)
    assert len(list(load_run_bank(trained.run, model, trained.tokenizer).facts())) == 9
    tokens = model.bank.tokens.clone()
    model = tiny_model(
        vocab_size=6400, knowledge_num=9, knowledge_length=12, num_candidates=3, ema_interval=5, freeze_ratio=0.5
    )
    model.bank.fill(tokens)
    model.bank.tokens[model.bank.unfrozen_rows()] = 7
    assert len(list(load_run_bank(trained.run, model, trained.tokenizer).facts())) == 9
    model.bank.tokens[torch.where(model.bank.frozen)[0][0]] = 7
    with pytest.raises(ValueError, match="not the knowledge file"):
        load_run_bank(trained.run, model, trained.tokenizer)
