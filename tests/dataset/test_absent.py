"""A bank without a share of the asked facts: python -m dataset.absent."""

import json

import pytest

from dataset.absent import write_bank
from dataset.convert import write_knowledge
from dataset.knowledge import Fact, read_knowledge


@pytest.fixture
def files(tmp_path):
    facts = [Fact(f"Town {i} is in Land {i}.", f"Town {i}", "country", f"Land {i}", f"u{i}") for i in range(20)]
    write_knowledge(tmp_path / "k.json", facts)
    rows = [{"uuid": f.uuid, "question": "Town is in ___", "choices": ["x", "y"], "answer": "A"} for f in facts[:10]]
    (tmp_path / "q.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path / "k.json", tmp_path / "q.jsonl", tmp_path / "bank.json"


def test_a_share_of_the_asked_facts_is_left_out_and_no_other(files):
    knowledge, questions, out = files
    write_bank(knowledge, questions, 0.3, out, 0)
    kept = {fact.uuid for fact in read_knowledge(out)}
    assert len(kept) == 17 and {f"u{i}" for i in range(10, 20)} < kept
    write_bank(knowledge, questions, 0.3, out, 1)
    assert {fact.uuid for fact in read_knowledge(out)} != kept  # another seed, others


@pytest.mark.parametrize("share", [0, 1.5, -0.1])
def test_a_share_that_is_none_is_refused(files, share):
    with pytest.raises(ValueError, match="--share must lie in"):
        write_bank(*files[:2], share, files[2], 0)


def test_questions_about_other_facts_are_refused(files):
    knowledge, questions, out = files
    questions.write_text(questions.read_text().replace(': "u', ': "v'))
    with pytest.raises(ValueError, match="has none of the 5 facts"):
        write_bank(knowledge, questions, 0.5, out, 0)
    assert not out.exists()
