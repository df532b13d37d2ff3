"""`--knowledge_num auto` and `--reserve_entries`: the bank has room for every sentence, and for more."""

import json

import numpy as np
import pytest

from dataset import knowledge
from dataset.knowledge import count_sentences, load_bank
from dataset.tokenizer import load_tokenizer
from editing.store import MemoryStore
from trainer.bank_size import without_auto
from trainer.config import parse_cli

NGRAM = ("--retrieval", "ngram", "--fusion", "words", "--keep_ffn")


@pytest.fixture
def facts(tmp_path):
    """Ten different sentences, one of them twice, and an empty one."""
    texts = [f"Village {n} is small." for n in range(10)]
    (tmp_path / "k.json").write_text(json.dumps([*texts, texts[0], ""]))
    return ["--database_init_path", str(tmp_path / "k.json"), "--cache_dir", str(tmp_path / "cache")]


@pytest.mark.parametrize(
    "words, rest, auto",
    [
        ("--a 1 --knowledge_num auto --b", "--a 1 --b", True),
        ("--knowledge_num=auto", "", True),
        ("--knowledge-num auto", "", True),
        ("--knowledge_num 9 --knowledge_num auto", "--knowledge_num 9", True),
        ("--knowledge_num auto --knowledge_num 9", "--knowledge_num 9", False),
        ("--knowledge_num", "--knowledge_num", False),
        ("--out_dir auto", "--out_dir auto", False),
    ],
)
def test_the_last_knowledge_num_counts(words, rest, auto):
    assert without_auto(words.split()) == (rest.split(), auto)


@pytest.mark.parametrize(
    "flags, number, reserve",
    [
        (["--num_candidates", "4"], 16, 6),
        (["--num_candidates", "4", "--reserve_entries", "7"], 25, 15),
        (NGRAM, 10, 0),
        ([*NGRAM, "--reserve_entries", "5"], 15, 5),
    ],
)
def test_auto_takes_every_sentence_and_the_reserve(facts, flags, number, reserve):
    found = parse_cli(["--knowledge_num", "auto", "--num_selected", "2", *facts, *flags])
    assert (found.model.knowledge_num, found.data.reserve_entries) == (number, reserve)


def test_auto_may_stand_in_a_file_of_flags(facts, tmp_path):
    (tmp_path / "flags.yaml").write_text("knowledge_num: auto\nreserve_entries: 2\nretrieval: ngram\n")
    config = ["--config", str(tmp_path / "flags.yaml"), "--fusion", "words", "--keep_ffn", *facts]
    assert parse_cli(config).model.knowledge_num == 12
    assert parse_cli([*config, "--knowledge_num", "9"]).model.knowledge_num == 9


def test_a_model_without_a_bank_needs_no_file(tmp_path):
    nowhere = ["--database_init_path", str(tmp_path / "gone"), "--knowledge_num", "auto"]
    assert parse_cli(["--model_type", "model_original", *nowhere]).model.knowledge_num == 1048576
    with pytest.raises(FileNotFoundError, match="gone: give another --database_init_path"):
        parse_cli(nowhere)


def test_sentences_are_counted_once(facts, monkeypatch):
    assert count_sentences(facts[1], facts[3]) == 10
    monkeypatch.delattr(knowledge, "different_facts")
    assert count_sentences(facts[1], facts[3]) == 10


def test_a_bank_ends_in_empty_entries(facts):
    tokenizer = load_tokenizer("dataset/tokenizer")
    bank = load_bank(facts[1], tokenizer, 12, 6, facts[3], reserve_entries=3)
    assert (bank.tokens[:9].any(axis=1)).all() and not bank.tokens[9:].any() and bank.tokens.shape == (12, 6)
    assert bank.fact(8).sentence == "Village 8 is small." and bank.fact(9) is None and bank.report["unused"] == 1
    assert [row for row, _ in bank.facts()] == list(range(9))
    with pytest.raises(
        ValueError, match="fewer than --knowledge_num 14 less --reserve_entries 3: give --knowledge_num auto"
    ):
        load_bank(facts[1], tokenizer, 14, 6, facts[3], reserve_entries=3)


def test_a_reserve_of_the_whole_bank_is_refused():
    with pytest.raises(ValueError, match="--reserve_entries 9 leaves no entry of --knowledge_num 9"):
        parse_cli(["--knowledge_num", "9", "--num_candidates", "3", "--num_selected", "2", "--reserve_entries", "9"])


@pytest.mark.slow
def test_a_run_of_ordered_product_keys_learns_with_a_reserve_and_takes_facts_into_it(runs):
    order = ["--cluster_cache_path", str(runs.folder / "order.npz"), "--cluster_words", "4"]
    flags = ("--knowledge_num", "auto", "--reserve_entries", "2", *order)
    ended = runs.start("run", *flags, "--max_steps", "2")
    assert ended.code == 0, ended.output
    store = MemoryStore(runs.folder / "run")
    empty = [row for row in range(64) if not store.text(row)]
    assert len(store.bank.tokens) == 64 and len(empty) == 4
    assert store.show(empty[0]).fact is None and store.origin_problem == ""
    assert store.add("Village x.") == empty[0]
    lines = [json.loads(line) for line in (runs.folder / "run/metrics.jsonl").read_text().splitlines()]
    values = [value for line in lines for value in line.values() if isinstance(value, (int, float))]
    assert len(values) > 10 and np.isfinite(values).all()
    again = runs.start("run", *flags, "--max_steps", "4")
    assert again.code == 0 and "--knowledge_num" not in again.output, again.output
