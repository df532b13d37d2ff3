"""The pointer's scale is chosen by questions in other words, and written where a run is loaded from."""

import json

import pytest
import torch

from evaluation import calibrate
from evaluation.gold import Gold
from evaluation.results import ResultFile, about_evaluation
from tests.conftest import tiny_model
from tests.model.variants import BM25


@pytest.fixture
def run(model, tokenizer, tmp_path, monkeypatch):
    """run(*flags): calibrates a run folder with results of its own; the folder."""
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"pointer_scale": 1.0, "dim": 32}))
    (folder / "flags.json").write_text(
        json.dumps(
            {
                "data": {"val_path": None, "cache_dir": str(tmp_path), "database_init_path": "knowledge.json"}
                | {"object_path": str(tmp_path / "dev.jsonl")},
                "model": {"knowledge_num": 49, "knowledge_length": 5},
                "optim": {"dtype": "float32"},
            }
        )
    )
    monkeypatch.setattr(calibrate, "load_run", lambda *_: model)
    monkeypatch.setattr(calibrate, "load_tokenizer", lambda *_: tokenizer)
    row = {"subject": "Oslo", "predicate": "country", "question": "Oslo lies in ___.", "answer": "A"}
    questions = tmp_path / "q.jsonl"
    questions.write_text(json.dumps(row | {"choices": ["Norway", "Peru"]}))

    def start(*flags):
        monkeypatch.setattr("sys.argv", ["calibrate", "--run", str(folder), "--object_path", str(questions), *flags])
        calibrate.main()
        return folder

    return start


def scale_of(folder) -> float:
    return json.loads((folder / "config.json").read_text())["pointer_scale"]


def test_the_scale_with_the_least_loss_is_written_and_taken_back(run, model, monkeypatch, capsys):
    # As if the answers were likeliest at a scale of 2.
    scored = lambda *_: [type("Score", (), {"log_p": -abs(model.pointer.scale - 2), "is_greedy": True})()]  # noqa: E731
    monkeypatch.setattr(calibrate, "score_sequences", scored)
    folder = run()
    assert scale_of(folder) == 2.0 and json.loads((folder / "config.json").read_text())["dim"] == 32
    assert "scale 4: 2.0000 nats an answer" in (said := capsys.readouterr().out) and "2, before 1" in said
    assert scale_of(run("--scales", "1")) == 1.0


def test_a_scale_that_costs_the_text_too_much_is_not_chosen():
    loss, text_loss = {1.0: 3.0, 2.0: 2.0, 3.0: 1.0}, {1.0: 4.0, 2.0: 4.005, 3.0: 4.02}
    assert [calibrate.chosen(loss, text_loss, cost) for cost in (0.0, 0.01, 0.05)] == [1.0, 2.0, 3.0]
    assert calibrate.chosen(loss | {2.0: 1.01}, text_loss, 0.05) == 2.0  # nearly the least


def test_facts_that_the_bank_lacks_are_left_out(run, monkeypatch, tokenizer, tmp_path):
    row = {"predicate": "country", "question": "{0} lies in ___.", "answer": "A", "choices": ["Norway", "Peru"]}
    rows = [row | {"subject": name, "uuid": name} for name in ("Oslo", "Bergen", "Cusco")]
    (path := tmp_path / "q.jsonl").write_text("\n".join(map(json.dumps, rows)))
    gold = Gold({"Bergen": 3}, {}, lambda: iter(()))
    everything, held = (calibrate.right_answers(tokenizer, str(path), 9, known) for known in (None, gold))
    assert len(everything) == 3 * len(held) and held[0] == everything[1]
    monkeypatch.setattr(calibrate, "find_gold", lambda *_: Gold({"Lima": 0}, {}, lambda: iter(())))
    with pytest.raises(ValueError, match="the bank holds no fact"):
        run()


def test_questions_that_name_no_fact_are_asked_beside_those_that_do(tokenizer, tmp_path, capsys):
    row = {"predicate": "country", "question": "{0} lies in ___.", "answer": "A", "choices": ["Norway", "Peru"]}
    rows = [
        row | {"subject": "Oslo"},
        row | {"subject": "Bergen", "uuid": "1"},
        row | {"subject": "Cusco", "uuid": "2"},
    ]
    (path := tmp_path / "q.jsonl").write_text("\n".join(map(json.dumps, rows)))
    everything = calibrate.right_answers(tokenizer, str(path), 9, None)
    held = calibrate.right_answers(tokenizer, str(path), 9, Gold({"2": 3}, {}, lambda: iter(())))
    assert held[:2] == [everything[0], everything[2]] and len(held) == len(everything) * 2 / 3
    assert "2 of 3 questions are asked: the bank lacks the facts of the others" in capsys.readouterr().out


def test_a_knowledge_file_that_was_moved_is_asked_for(run, tmp_path):
    questions = tmp_path / "q.jsonl"
    questions.write_text(json.dumps(json.loads(questions.read_text()) | {"uuid": "1"}))
    for given, missing in ((), "knowledge.json"), (("--database_init_path", "moved.json"), "moved.json"):
        with pytest.raises(FileNotFoundError, match=f"{missing}: give another --database_init_path"):
            run(*given)


def test_the_scale_changes_what_is_copied(run, model, capsys):
    run("--scales", "1", "3")
    first, second = (line.split()[2] for line in capsys.readouterr().out.splitlines()[:2])
    assert first != second


def test_a_run_without_a_pointer_and_a_scale_of_nothing_are_refused(run, model, monkeypatch):
    with pytest.raises(ValueError, match="--scales must be above 0"):
        run("--scales", "0")
    with pytest.raises(ValueError, match="--text_cost must be at least 0, got -1"):
        run("--text_cost", "-1")
    monkeypatch.setattr(
        calibrate, "load_run", lambda *_: type("Plain", (), {"settings": type("S", (), {"pointer": False})})()
    )
    with pytest.raises(ValueError, match="has no pointer"):
        run()


def test_questions_that_test_the_run_are_refused(run, tmp_path):
    with pytest.raises(ValueError, match="tests this run"):
        run("--object_path", str(tmp_path / "dev.jsonl"))


@pytest.mark.parametrize(
    "flag, name, values",
    [
        ("pointer_scale", "scale", (1.0, 3.0)), ("pointer_edited", "edited", (1.0, 3.0)),
        ("pointer_edited_said", "edited_said", (False, True)),
    ],
)  # fmt: skip
def test_a_model_reads_its_scale_and_results_of_another_one_are_set_aside(tmp_path, flag, name, values):
    for accuracy, value in zip((0.25, 0.75), values, strict=True):
        flags = BM25 | {"pointer": True, "unsaid_tokens": True, "pointer_edited": 2.0, flag: value}
        assert getattr(tiny_model(**flags).pointer, name) == value
        (tmp_path / "config.json").write_text(json.dumps({flag: value}))
        about = about_evaluation(tmp_path, torch.device("cpu"), None)
        ResultFile(tmp_path, about).add("object", "", {"accuracy": accuracy, "n": 1})
    assert json.loads((tmp_path / "eval.json").read_text())["object"]["accuracy"] == 0.75
    assert json.loads((tmp_path / "eval_stepNone.json").read_text())["object"]["accuracy"] == 0.25
