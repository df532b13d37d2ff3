"""Nothing that was measured is lost: results merge, are stored one by one, and what cannot work is refused before."""

import json
import os
import sys

import pytest

import eval_model
from dataset.knowledge import load_bank
from dataset.tokenizer import load_tokenizer
from editing.store import MemoryStore
from evaluation.results import ResultFile
from tests.conftest import tiny_model

FACTS = [f"Town {n} lies in land {n % 3}." for n in range(9)]
CHOICES = ["land 0", "land 1", "land 2"]


@pytest.fixture
def run(tmp_path):
    """A run of an untrained memory model with questions about its entries."""
    import torch

    tokenizer, folder = load_tokenizer("dataset/tokenizer"), tmp_path / "run"
    knowledge = [{"sentence": fact, "uuid": str(n), "object": CHOICES[n % 3]} for n, fact in enumerate(FACTS)]
    (tmp_path / "facts.json").write_text(json.dumps(knowledge))
    bank = load_bank(tmp_path / "facts.json", tokenizer, 9, 12, tmp_path / "cache")
    model = tiny_model(vocab_size=6400, knowledge_num=9, knowledge_length=12, num_candidates=3)
    model.bank.fill(torch.tensor(bank.tokens))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    write(tmp_path / "val.jsonl", [{"text": fact} for fact in FACTS])
    shared = [{"uuid": str(n), "subject": f"Town {n}", "predicate": "land"} for n in range(9)]
    ask = [{"question": f"Town {n} lies in ___.", "choices": CHOICES, "answer": n % 3} for n in range(9)]
    write(tmp_path / "object.jsonl", [a | b for a, b in zip(shared, ask, strict=True)])
    write(tmp_path / "verification.jsonl", [{"statement": FACTS[n], "answer": n % 2 == 0} for n in range(9)])
    data = {
        "val_path": str(tmp_path / "val.jsonl"), "object_path": str(tmp_path / "object.jsonl"),
        "verification_path": str(tmp_path / "verification.jsonl"), "cache_dir": str(tmp_path / "cache"),
        "database_init_path": str(tmp_path / "facts.json"), "data_path": "", "val_fraction": 0.0,
    }  # fmt: skip
    flags = {"data": data, "optim": {"dtype": "float32"}, "model": {"knowledge_num": 9, "knowledge_length": 12}}
    (folder / "flags.json").write_text(json.dumps(flags | {"run": {"experiment_dir": str(tmp_path / "records")}}))
    (folder / "run.json").write_text(json.dumps({"state": "finished", "data": {"knowledge": bank.report}}))
    (folder / "metrics.jsonl").write_text('{"step": 7, "loss": 1.0}\n')
    return folder


def write(path, rows) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def evaluate(run, monkeypatch):
    """evaluate(flags): the command line; returns eval.json."""
    monkeypatch.setattr(eval_model, "fill_record", lambda *args: "no record")

    def evaluate_run(*flags):
        monkeypatch.setattr(sys, "argv", ["eval_model.py", "--run", str(run), "--device", "cpu", *flags])
        eval_model.main()
        return json.loads((run / "eval.json").read_text())

    return evaluate_run


def test_a_partial_evaluation_leaves_the_larger_results(run, evaluate, capsys):
    whole = evaluate("--tasks", "language", "object", "verification", "--arms", "bank shuffled")
    assert whole["object"]["n"] == 9 and whole["object"]["limit"] is None
    part = evaluate("--tasks", "object", "--arms", "bank shuffled", "--limit", "5")
    printed = capsys.readouterr().out
    assert "eval.json keeps results with more questions than --limit 5: object; object, bank shuffled" in printed
    for name in ("language", "object", "verification"):
        assert part[name] == whole[name] and part["arms"]["bank shuffled"][name] == whole["arms"]["bank shuffled"][name]
    again = evaluate("--tasks", "object", "--arms", "bank zeroed")
    assert set(again["arms"]) == {"bank shuffled", "bank zeroed"} and again["language"] == whole["language"]
    lines = [json.loads(line) for line in (run / "evaluations.jsonl").read_text().splitlines()]
    assert [(line["task"], line["control"], line["limit"]) for line in lines][6:9] == [
        ("object", "", 5), ("object", "bank shuffled", 5), ("object", "", None),
    ]  # fmt: skip


def test_a_larger_evaluation_replaces_a_smaller_one_and_one_of_other_weights_stands_apart(run, evaluate):
    assert evaluate("--tasks", "object", "--arms", "--limit", "3")["object"]["n"] == 3
    assert evaluate("--tasks", "object", "--arms", "--limit", "6")["object"]["n"] == 6
    assert evaluate("--tasks", "object", "--arms")["object"]["n"] == 9
    (run / "metrics.jsonl").write_text('{"step": 7}\n{"step": 9}\n')
    later = evaluate("--tasks", "object", "--arms", "--limit", "2")
    assert later["object"]["n"] == 2 and later["about"]["step"] == 9
    assert json.loads((run / "eval_step7.json").read_text())["object"]["n"] == 9


def test_results_of_another_bank_stand_apart_and_an_undone_edit_is_none(run, evaluate):
    flags = "--tasks", "object", "--arms", "--limit"
    assert evaluate(*flags, "5")["about"]["edits"] == 0
    store = MemoryStore(run)
    store.edit(2, "Town 2 lies in land 0.")
    store.freeze(3)
    assert evaluate(*flags, "9")["about"]["edits"] == 2
    store.edit(2, "Town 2 lies in land 1.")
    again = evaluate(*flags, "4")
    assert again["object"]["n"] == 4 and again["about"]["edits"] == 2
    for _ in range(3):
        store.undo()
    trained = evaluate(*flags, "2")
    assert trained["object"]["n"] == 2 and trained["about"]["edits"] == 0 and trained["about"]["bank"] is None
    assert evaluate(*flags, "1")["object"]["n"] == 2  # the same bank: the larger result stays
    aside = [json.loads((run / f"eval_step7{end}.json").read_text())["object"]["n"] for end in ("", "_2", "_3")]
    assert aside == [5, 9, 4]


def test_results_of_an_earlier_version_over_an_edited_bank_stand_apart(run, evaluate):
    old = {"object": {"n": 9, "seconds": 1.0}, "about": {"limit": None, "step": 7}}
    for edits, n in ((0, 9), (3, 2)):
        (run / "eval.json").write_text(json.dumps(old | {"about": old["about"] | {"edits": edits}}))
        assert evaluate("--tasks", "object", "--arms", "--limit", "2")["object"]["n"] == n


def test_results_of_an_earlier_version_count_with_the_limit_of_their_file(run, evaluate):
    old = {"object": {"n": 9, "seconds": 1.0}, "arms": {"bank zeroed": {"object": {"n": 9, "seconds": 1.0}}}}
    (run / "eval.json").write_text(json.dumps(old | {"about": {"limit": 8}}))
    part = evaluate("--tasks", "object", "--arms", "bank zeroed", "--limit", "5")
    assert part["object"] == {"n": 9, "seconds": 1.0, "limit": 8} == part["arms"]["bank zeroed"]["object"]
    assert evaluate("--tasks", "verification", "--arms")["object"]["limit"] == 8


def test_what_was_measured_before_a_failure_is_stored(run, evaluate, monkeypatch):
    def fail(*args):
        raise OSError("the GPU fell off")

    monkeypatch.setitem(eval_model.TASKS, "verification", fail)
    with pytest.raises(OSError, match="fell off"):
        evaluate("--tasks", "language", "object", "verification", "--arms")
    assert json.loads((run / "eval.json").read_text())["object"]["n"] == 9


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--arms", "bank shufled"], "--arms 'bank shufled' is not possible .*bank shuffled"),
        (["--edit_path", "nowhere.jsonl"], "there is no file nowhere.jsonl: give another --edit_path"),
        (["--val_path", "nowhere.jsonl"], "there is no file nowhere.jsonl: give another --val_path"),
        (["--database_init_path", "nowhere.json"], "there is no file nowhere.json: give another --database_init_path"),
        (["--device", "cuda:7"], "--device 'cuda:7' is not there"),
        (["--device", "gpu"], "--device 'gpu' is not one that a run can use: give cpu or cuda"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_evaluated(evaluate, monkeypatch, flags, message):
    for task in eval_model.TASKS:
        monkeypatch.setitem(eval_model.TASKS, task, lambda *args: pytest.fail("a task has run"))
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        evaluate(*flags)


def test_a_folder_that_cannot_be_written_is_refused_before_anything_is_evaluated(evaluate, monkeypatch):
    def refuse(self):
        raise OSError(30, os.strerror(30))

    monkeypatch.setattr(ResultFile, "_locked", refuse)
    for task in eval_model.TASKS:
        monkeypatch.setitem(eval_model.TASKS, task, lambda *args: pytest.fail("a task has run"))
    with pytest.raises(ValueError, match="cannot be written, and eval.json goes there.*Read-only file system"):
        evaluate()


def test_results_that_cannot_be_written_are_printed(evaluate, monkeypatch, capsys):
    def refuse(path, value):
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr("evaluation.results.write_json", refuse)
    with pytest.raises(ValueError, match="the results above are not stored in .*No space left"):
        evaluate("--tasks", "language", "object", "--arms")
    assert "val loss" in capsys.readouterr().out


def test_a_terminal_without_unicode_shows_the_table():
    import io

    from common.cli import run_command

    screen, old = io.TextIOWrapper(io.BytesIO(), encoding="ascii"), sys.stdout
    sys.stdout = screen
    try:
        run_command(lambda: print("object 50.0% ±3.0%"))
        screen.flush()
    finally:
        sys.stdout = old
    assert screen.buffer.getvalue() == b"object 50.0% ?3.0%\n"
