"""The questions of a validation have the evaluation's own numbers, and asking them changes nothing of the training."""

import json
from pathlib import Path

import pytest

from dataset.tokenizer import load_tokenizer
from evaluation.config import EvalConfig
from evaluation.controls import shuffled
from evaluation.facts import ask_objects
from evaluation.gold import find_gold
from evaluation.retrieval import retrieval
from runs.load import load_run
from runs.run import Run
from tests.tiny_runs import metrics

WORDS = (
    "--retrieval", "ngram", "--fusion", "words", "--keep_ffn", "--pointer", "--knowledge_num", "50",
    "--knowledge_length", "12", "--ngram_lengths", "2", "3", "--num_candidates", "4", "--learning_rate", "0.02",
)  # fmt: skip
RIVERS = ["Ahr", "Bode", "Ems", "Lahn", "Nahe"]


def write_questions(folder: Path) -> tuple[str, str]:
    facts, questions = [], []
    for n in range(50):
        river = RIVERS[n * 7 % 5]
        fact = {"subject": f"Village {n}", "predicate": "river", "object": river, "uuid": f"u{n}"}
        facts.append({"target": [fact | {"sentence": f"Village {n} lies by {river}."}]})
        question = {"question": f"Village {n} lies by ___.", "choices": RIVERS, "answer": "ABCDE"[RIVERS.index(river)]}
        questions.append(fact | question if n else question)  # the first names no fact
    (folder / "facts.json").write_text(json.dumps(facts))
    (folder / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in questions))
    return str(folder / "facts.json"), str(folder / "questions.jsonl")


def assert_asked_as_evaluated(out: Path, knowledge: str, questions: str, cache_dir: str, device: str = "cpu") -> None:
    """The last validation of a run and the evaluation of its weights have the same numbers."""
    model, tokenizer, last = load_run(out, device), load_tokenizer(out), Run(out).last
    config = EvalConfig(object_path=questions, cache_dir=cache_dir)
    config = EvalConfig(**vars(config) | {"gold": find_gold(out, model, tokenizer, config, knowledge)})
    assert last("questions/right") == ask_objects(model, tokenizer, config)[2]["accuracy"]
    with shuffled(model, tokenizer, config):
        assert last("questions/shuffled") == ask_objects(model, tokenizer, config)[2]["accuracy"]
    layers = retrieval(model, tokenizer, config)["layers"]
    assert set(layers) == {"block 0", "block 1", "pointer"}
    for name, shares in layers.items():
        assert last(f"questions/read/{name.replace(' ', '_')}") == shares["selected"]["accuracy"] > 0.5


@pytest.mark.slow
def test_a_validation_asks_what_the_evaluation_asks(runs, tmp_path):
    knowledge, questions = write_questions(tmp_path)
    flags = (*WORDS, "--database_init_path", knowledge, "--max_steps", "8", "--eval_interval", "4")
    assert runs.start("plain", *flags).code == 0
    assert runs.start("asked", *flags, "--val_questions", questions).code == 0
    out = tmp_path / "asked"
    assert metrics(out, "loss") == metrics(tmp_path / "plain", "loss")  # asking changes nothing
    assert [step for step, _ in metrics(out, "questions/right")] == [4, 8]

    assert_asked_as_evaluated(out, knowledge, questions, str(runs.data / "cache"))
    assert "questions: right " in (out / "train.log").read_text()


@pytest.mark.slow
def test_one_of_two_processes_asks_and_both_learn_the_same(runs, tmp_path):
    knowledge, questions = write_questions(tmp_path)
    flags = (*WORDS, "--database_init_path", knowledge, "--max_steps", "4", "--batch_size", "2", "--eval_interval", "2")
    for out, more in (("plain", ()), ("asked", ("--val_questions", questions))):
        assert [ended.code for ended in runs.start_ranks(out, *flags, *more)] == [0, 0]
    assert metrics(tmp_path / "asked", "loss") == metrics(tmp_path / "plain", "loss")
    assert len(metrics(tmp_path / "asked", "questions/right")) == 2


def test_a_file_without_questions_is_refused_before_training(runs, tmp_path):
    (tmp_path / "q.jsonl").write_text('{"question": "It is in ___."}\n')
    ended = runs.start("run", "--val_questions", str(tmp_path / "q.jsonl"))
    assert ended.code == 1 and "line 1: no field 'choices'" in ended.output
    assert not (tmp_path / "run").exists()
