"""Nothing that was measured is lost: results merge, are stored one by one, and what cannot work is refused before."""

import json
import os
import shutil
import sys
from types import SimpleNamespace

import pytest
import torch

import eval_model
from dataset.knowledge import load_bank
from dataset.tokenizer import load_tokenizer
from editing.store import MemoryStore
from evaluation.results import ResultFile
from tests.conftest import tiny_model

pytestmark = pytest.mark.fault("an evaluation that is partial, or cannot be stored")
FACTS = [f"Town {n} lies in land {n % 3}." for n in range(9)]
CHOICES = ["land 0", "land 1", "land 2"]


@pytest.fixture
def run(tmp_path):
    """A run of an untrained memory model with questions about its entries."""
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
    assert "eval.json keeps its results of more questions: object; object, bank shuffled; delete it to" in printed
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


def test_fewer_questions_of_another_file_replace_nothing_either(run, evaluate, capsys):
    assert evaluate("--tasks", "object", "--arms")["object"]["n"] == 9
    few = run.parent / "few.jsonl"
    few.write_text("".join((run.parent / "object.jsonl").read_text().splitlines(keepends=True)[:4]))
    assert evaluate("--tasks", "object", "--arms", "--object_path", str(few))["object"]["n"] == 9
    assert "keeps its results of more questions: object" in capsys.readouterr().out
    line = json.loads((run / "evaluations.jsonl").read_text().splitlines()[-1])
    assert line["result"]["n"] == 4 and line["files"]["object_path"] == str(few)


def test_results_of_an_edited_bank_stand_apart_and_an_undone_edit_is_none(run, evaluate, capsys):
    def apart() -> dict:
        found = [json.loads(path.read_text()) for path in run.glob("eval_bank_*.json")]
        return {(result["about"]["edits"], result["object"]["n"]) for result in found}

    flags = "--tasks", "object", "--arms", "--limit"
    trained = evaluate(*flags, "5")
    assert trained["about"]["edits"] == 0
    store = MemoryStore(run)
    store.freeze(3)  # its text is still the one of the training
    store.edit(2, "Town 2 lies in land 0.")
    assert evaluate(*flags, "9") == trained and apart() == {(1, 9)}
    assert "the bank was edited, so these results stand apart from eval.json, in eval_bank" in capsys.readouterr().out
    store.edit(2, "Town 2 lies in land 1.")
    assert evaluate(*flags, "4") == trained and apart() == {(1, 9), (1, 4)}
    for _ in range(3):
        store.undo()
    again = evaluate(*flags, "2")
    assert again["object"] == trained["object"] and again["about"]["bank"] is None  # the larger result stays


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


def test_tasks_do_not_ask_for_files_that_only_others_need(run, evaluate, capsys):
    for name in ("val.jsonl", "verification.jsonl"):
        (run.parent / name).unlink()
    assert evaluate("--tasks", "object", "frequency", "--arms")["object"]["n"] == 9
    assert "left out, for no task needs it: there is no file" in capsys.readouterr().err
    with pytest.raises(FileNotFoundError, match="give another --verification_path"):
        evaluate("--tasks", "verification")
    write(run.parent / "val.jsonl", [{"text": fact} for fact in FACTS])
    for path in (run.parent / "facts.json", run.parent / "object.jsonl"):
        path.unlink()
    shutil.rmtree(run.parent / "cache")
    assert "loss" in evaluate("--tasks", "language", "--arms")["language"]


def test_language_sets_are_kept_one_by_one(run, evaluate, capsys):
    row = {"context": "Town 1 lies", "choices": [" in", " on"], "answer": "A"}
    for name, n in (("a", 4), ("b", 3)):
        write(run.parent / f"{name}.jsonl", [row] * n)
    flags = "--tasks", "language_sets", "--arms", "bank zeroed", "--language_sets"
    assert evaluate(*flags, str(run.parent / "b.jsonl"), "--limit", "1")["language_sets"]["n"] == 1
    evaluate(*flags, str(run.parent / "a.jsonl"))
    found = evaluate(*flags, str(run.parent / "b.jsonl"), "--limit", "2")
    for own in (found["language_sets"], found["arms"]["bank zeroed"]["language_sets"]):
        assert {name: share["n"] for name, share in own["sets"].items()} == {"a": 4, "b": 2}
        assert (own["n"], own["limit"]) == (6, 2)
    found = evaluate(*flags, str(run.parent / "a.jsonl"), str(run.parent / "b.jsonl"), "--limit", "3")
    assert {name: share["n"] for name, share in found["language_sets"]["sets"].items()} == {"a": 4, "b": 3}
    assert "keeps its results of more questions: a; a, bank zeroed; delete" in capsys.readouterr().out


def test_what_was_measured_before_a_failure_is_stored_and_printed(run, evaluate, monkeypatch, capsys):
    def fail(*args):
        raise OSError("the GPU fell off")

    monkeypatch.setitem(eval_model.TASKS, "verification", fail)
    with pytest.raises(OSError, match="fell off"):
        evaluate("--tasks", "language", "object", "verification", "--arms")
    assert json.loads((run / "eval.json").read_text())["object"]["n"] == 9
    printed = capsys.readouterr().out
    assert "val loss" in printed and "object" in printed


def test_too_little_gpu_memory_is_one_sentence_with_the_flag_to_change(evaluate, monkeypatch):
    def fail(*args):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setitem(eval_model.TASKS, "object", fail)
    with pytest.raises(MemoryError, match="give a smaller --batch_size"):
        evaluate("--tasks", "object", "--arms")


def test_questions_that_name_no_relation_cost_only_the_tasks_that_need_it(run, evaluate):
    path = run.parent / "object.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    write(path, [{name: row[name] for name in row if name not in ("subject", "predicate")} for row in rows])
    write(
        run.parent / "verification.jsonl",
        [{"statement": FACTS[n], "answer": n % 2 == 0, "uuid": str(n)} for n in range(9)],
    )
    found = evaluate("--arms", "--tasks", "object", "reworded", "frequency", "lookup", "retrieval")
    assert found["object"]["n"] == 9 and found["retrieval"]["n"] == 9 and list(found["lookup"])[0] == "object"
    assert "reworded" not in found and "frequency" not in found and "verification" not in found["lookup"]


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--arms", "bank shufled"], "--arms 'bank shufled' is not possible .*bank shuffled"),
        (["--edit_path", "nowhere.jsonl"], "there is no file nowhere.jsonl: give another --edit_path"),
        (["--val_path", "nowhere.jsonl"], "there is no file nowhere.jsonl: give another --val_path"),
        (["--plain", "nowhere"], "nowhere holds no model.safetensors"),
        (["--language_sets", "nowhere.jsonl"], "there is no file nowhere.jsonl: give another --language_sets"),
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


def test_the_plain_run_to_compare_with_has_no_memory(run, evaluate):
    with pytest.raises(ValueError, match="--plain .* is a run with a memory: give one without"):
        evaluate("--tasks", "overlap", "--arms", "--plain", str(run))


def refuse_to_write(self):
    raise OSError(30, os.strerror(30))


def test_a_folder_that_cannot_be_written_is_refused_before_anything_is_evaluated(evaluate, monkeypatch):
    monkeypatch.setattr(ResultFile, "_locked", refuse_to_write)
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


class HFLM:
    """What the harness's own class does with a text."""

    def __init__(self, tokenizer, add_bos_token, max_length, **options):
        self.tokenizer, self.add_bos_token, self.max_length = tokenizer, add_bos_token, max_length

    def tok_encode(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=self.add_bos_token)

    def loglikelihood_rolling(self, texts: list[str]) -> list[list[int]]:
        return [[self.tokenizer.bos_token_id, *self.tok_encode(text)] for text in texts]


def test_every_text_of_the_harness_begins_once_with_the_begin_token(run, ask_harness):
    from evaluation.harness import wrapped
    from model import load_run

    tokenizer = load_tokenizer(run)
    expected = [tokenizer.bos_token_id, *tokenizer("Town 1", add_special_tokens=False).input_ids]
    model = wrapped(load_run(run), tokenizer, 2, "cpu")
    assert model.tok_encode("Town 1") == expected == model.loglikelihood_rolling(["Town 1"])[0]
    assert model.tok_encode("Town 1") == expected and model.max_length == 32


@pytest.fixture
def ask_harness(run, monkeypatch):
    """ask_harness(flags): the command line, with a harness that has three tasks; returns harness.json."""
    from evaluation import harness

    def simple_evaluate(model, tasks, limit, **options):
        return {"results": {name: {"acc,none": 0.5, "n": limit or 9} for name in tasks}}

    manager = SimpleNamespace(all_tasks=["a", "b", "c"])
    for name, content in {
        "lm_eval": {"simple_evaluate": simple_evaluate},
        "lm_eval.tasks": {"TaskManager": lambda **options: manager},
        "lm_eval.models.huggingface": {"HFLM": HFLM},
    }.items():
        monkeypatch.setitem(sys.modules, name, SimpleNamespace(**content))

    def ask(*flags):
        monkeypatch.setattr(sys, "argv", ["harness", "--run", str(run), *flags])
        harness.main()
        return json.loads((run / "harness.json").read_text())

    return ask


def test_results_of_the_harness_merge_and_a_partial_one_replaces_nothing(run, ask_harness, capsys):
    assert ask_harness("--tasks", "a", "b")["a"]["n"] == 9
    again = ask_harness("--tasks", "a", "c", "--limit", "2")
    assert [again[name]["n"] for name in "abc"] == [9, 9, 2]
    printed = capsys.readouterr()
    assert "keeps its results of more examples: a" in printed.err and '"n": 2' in printed.out


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--tasks", "a", "nothing"], "the harness has no task 'nothing': give another of --tasks"),
        (["--tasks", "a", "--include_path", "nowhere"], "there is no folder nowhere: give another --include_path"),
    ],
)
def test_the_harness_refuses_what_cannot_work_before_it_evaluates(run, ask_harness, flags, message):
    with pytest.raises(ValueError, match=message):
        ask_harness(*flags)
    assert not (run / "harness.json").exists()


def test_a_folder_that_the_harness_cannot_write_into_is_refused_before(run, ask_harness, monkeypatch):
    monkeypatch.setattr(ResultFile, "_locked", refuse_to_write)
    monkeypatch.setattr("evaluation.harness.load_run", lambda *args: pytest.fail("the model was loaded"))
    with pytest.raises(ValueError, match="cannot be written, and harness.json goes there"):
        ask_harness("--tasks", "a")
