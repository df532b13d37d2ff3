"""Passages of the training text as entries, and the refusals of a bank that holds them."""

import json
import sys

import numpy as np
import pytest

from dataset.knowledge import read_knowledge
from dataset.passages import LONGEST, main, passages

from ..tiny_runs import metrics

SUFFIX = (
    "--model_type model_memory --retrieval suffix --fusion continuations --keep_ffn --suffix_tokens 1 "
    "--num_candidates 6 --num_selected 3 --freeze_ratio 1.0 --knowledge_num 300 --fusion_dropout 0"
).split()  # fmt: skip


def test_passages_hold_all_words_in_order_and_end_with_sentences():
    text = "One is short. " * 30 + "\n" + "A sentence without any end " * 20 + "\n\nLast."
    found = list(passages(text))
    assert " ".join(found).split() == text.split()
    assert all(len(passage) <= LONGEST for passage in found)
    assert found[0].endswith("short.") and found[-1] == "Last."


@pytest.mark.parametrize(
    "text",
    [
        "Dr. No  is a film. It ran\u00a0long.\tVery long. " * 9,
        "我们去了北京。天气很好。“真的吗？”是的。" * 30,
        "x" * 450,
    ],
)
def test_passages_are_pieces_of_the_text_as_it_stands(text):
    found, begin = list(passages(text)), 0
    for passage in found:
        begin = text.index(passage, begin) + len(passage)
    assert len(found) > 1 and sum(map(len, found)) > 0.95 * len(text) and max(map(len, found)) <= LONGEST


def test_conversations_and_questions_are_counted_and_give_no_passages(tmp_path, monkeypatch):
    turns = [{"role": role, "content": "A long enough turn of a talk."} for role in ("user", "assistant") * 2]
    question = {"prompt": "Where does the river Aare begin?", "answer": "In the Alps, at a glacier."}
    lines = [{"conversations": turns}, question, {"text": "A text that is long enough for a passage."}]
    (tmp_path / "mixed.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    out = tmp_path / "out.jsonl"
    monkeypatch.setattr(sys, "argv", ["passages", str(tmp_path / "mixed.jsonl"), "--out", str(out)])
    main()
    assert [json.loads(line) for line in out.read_text().splitlines()] == [
        {"sentence": lines[2]["text"], "document": "3"}  # after two turns and a question
    ]


def test_files_that_give_no_passages_are_counted_all_the_same(tmp_path, monkeypatch):
    text = {name: f"A text of the file {name} that is long enough to be cut." for name in "abc"}
    for name, line in text.items():
        (tmp_path / f"{name}.jsonl").write_text(json.dumps({"text": line}) + "\n")
    out = tmp_path.parent / "out.jsonl"
    words = ["passages", str(tmp_path), "--longest", "30", "--out", str(out), "--only"]
    monkeypatch.setattr(sys, "argv", [*words, "b.jsonl", "c.jsonl"])
    main()
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert {row["document"] for row in rows} == {"1", "2"} and max(len(row["sentence"]) for row in rows) <= 30
    for number, name in ((1, "b"), (2, "c")):
        assert " ".join(row["sentence"] for row in rows if row["document"] == str(number)) == text[name]
    monkeypatch.setattr(sys, "argv", [*words, "d.jsonl"])
    with pytest.raises(ValueError, match="--only d.jsonl: .* has no file of this name"):
        main()


@pytest.fixture
def own_text(run_data, tmp_path, monkeypatch):
    """A knowledge file made of the training text."""
    out = tmp_path / "passages.jsonl"
    monkeypatch.setattr(sys, "argv", ["passages", str(run_data / "text.jsonl"), "--out", str(out)])
    main()
    return out


def tell_what_is_left_out() -> None:
    from model.ops.own_places import Own

    places = Own.places

    def told(own, place_XY):
        is_own_XY = places(own, place_XY)
        if is_own_XY.any():
            print("places of the own document are left out")
        return is_own_XY

    Own.places = told


@pytest.mark.slow
def test_a_run_learns_with_its_own_text_in_the_bank(runs, run_data, own_text):
    val = run_data / "other.jsonl"
    val.write_text(json.dumps({"text": "The village of number 999 has 3 houses, 4 wells and a bridge. " * 40}) + "\n")
    bank = ("--database_init_path", str(own_text))
    ended = runs.start("own", *SUFFIX, *bank, "--val_path", str(val), fault=tell_what_is_left_out)
    assert ended.code == 0 and "are left out" in ended.output, ended.output
    assert np.isfinite([loss for _, loss in metrics(runs.folder / "own", "val/loss")]).all()

    held_out = runs.start("held_out", *SUFFIX, *bank)
    assert held_out.code == 1 and "give a --val_path" in held_out.output
    padded = runs.start("padded", *SUFFIX, *bank, "--val_path", str(val), "--data_mode", "padded")
    assert padded.code == 1 and "take --data_mode packed" in padded.output
    keys = runs.start("keys", "--model_type", "model_memory", *bank, "--val_path", str(val))
    assert keys.code == 1 and "take --retrieval suffix" in keys.output
    other = runs.start("other", *SUFFIX, *bank, "--val_path", str(run_data / "text.jsonl"), "--data_path", str(val))
    assert other.code == 1 and "write the passages anew" in other.output


@pytest.mark.parametrize("document, known", [(0, "0"), ("0", "0"), (7, "7"), (None, "")])
def test_the_document_of_an_entry_may_be_a_number(tmp_path, document, known):
    path = tmp_path / "facts.jsonl"
    path.write_text(json.dumps({"sentence": "A sentence.", "document": document}) + "\n")
    assert [fact.document for fact in read_knowledge(path)] == [known]
