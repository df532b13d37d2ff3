"""A run that goes on, or takes the weights of another, has the inputs that belong to them, or says what differs."""

import json
import shutil

import pytest

from dataset.tokenizer import load_tokenizer
from editing.store import MemoryStore

pytestmark = pytest.mark.fault("other inputs or flags of a run that goes on")
SHORT, MORE = ("--max_steps", "4"), ("--max_steps", "8")
WORDS = ("--model_type", "model_memory", "--retrieval", "ngram", "--fusion", "words", "--keep_ffn")


def other_tokenizer(folder) -> str:
    """One of the same size and the same special ids, which gives two pieces of text each other's ids."""
    load_tokenizer("dataset/tokenizer").save_pretrained(folder)
    spec = json.loads((folder / "tokenizer.json").read_text())
    vocab = spec["model"]["vocab"]
    first, second = sorted(vocab, key=vocab.get)[300:302]
    vocab[first], vocab[second] = vocab[second], vocab[first]
    (folder / "tokenizer.json").write_text(json.dumps(spec))
    return str(folder)


def flags_of(run) -> dict:
    sections = json.loads((run / "flags.json").read_text()).values()
    return {name: value for section in sections for name, value in section.items()}


@pytest.fixture
def others(runs):
    """Other inputs: a text of as many documents, facts, a tokenizer; and the same inputs under new names."""
    text, facts = runs.data / "text.jsonl", runs.data / "facts.json"
    paths = {name: runs.folder / name for name in ("other_text", "other_facts", "moved_text.jsonl", "moved_facts.json")}
    paths["other_text"].write_text(text.read_text().replace("wells", "farms"))
    paths["other_facts"].write_text(json.dumps(["A new village lies here.", *json.loads(facts.read_text())]))
    shutil.copy(text, paths["moved_text.jsonl"])
    shutil.copy(facts, paths["moved_facts.json"])
    return {name: str(path) for name, path in paths.items()} | {"tokenizer": other_tokenizer(runs.folder / "tok")}


def test_a_run_does_not_go_on_with_other_inputs(runs, others):
    assert runs.start("run", *SHORT).code == 0
    out = runs.folder / "run"
    before = (out / "flags.json").read_bytes()
    for flag, value, name in (
        ("--database_init_path", others["other_facts"], "--database_init_path file"),
        ("--data_path", others["other_text"], "--data_path file"),
        ("--tokenizer_path", others["tokenizer"], "tokenizer"),
    ):
        ended = runs.start("run", *MORE, flag, value)
        assert ended.code == 1, ended.output
        assert f"was written with another content of the {name}: put it back" in ended.output
        assert (out / "flags.json").read_bytes() == before
    moved = ("--data_path", others["moved_text.jsonl"], "--database_init_path", others["moved_facts.json"])
    ended = runs.start("run", *MORE, *moved)
    assert ended.code == 0 and "data_path" not in ended.output
    assert "goes on from step 4 to step 8 instead of 4: the learning rate follows the cosine schedule" in ended.output
    assert flags_of(out)["data_path"] == others["moved_text.jsonl"]


@pytest.mark.slow
def test_a_run_does_not_go_on_with_other_special_tokens_or_another_order_of_its_bank(runs):
    assert runs.start("run", *SHORT).code == 0
    folder = runs.folder / "other_end"
    load_tokenizer("dataset/tokenizer").save_pretrained(folder)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(config | {"eos_token": config["bos_token"]}))
    ended = runs.start("run", *MORE, "--tokenizer_path", str(folder))
    assert ended.code == 1 and "with another content of the tokenizer's special ids: put it back" in ended.output
    ended = runs.start("run", *MORE, "--cluster_cache_path", str(runs.folder / "order.npz"))
    assert ended.code == 1 and "was begun with its bank in another order: give the --cluster_cache_path" in ended.output
    assert not (runs.folder / "run/bank_rows.npy").exists()
    assert runs.start("run", *MORE, "--tokenizer_path", str(runs.folder / "run")).code == 0


def test_edits_of_a_run_that_goes_on_are_said_to_be_left_out_of_its_training(runs):
    assert runs.start("run", *SHORT).code == 0
    MemoryStore(runs.folder / "run").delete(3)
    ended = runs.start("run", *MORE)
    assert ended.code == 0 and "as it was trained, without the 1 edited or frozen entries" in ended.output
    assert MemoryStore(runs.folder / "run").text(3) == ""


def test_other_flags_of_a_run_that_goes_on_are_listed_and_each_session_has_its_own(runs):
    assert runs.start("run", *SHORT).code == 0
    ended = runs.start("run", *MORE, "--learning_rate", "0.01", "--dropout", "0.2", "--log_interval", "2")
    assert ended.code == 0
    told = "of 8 steps, 0.0065 at this step instead of 2e-05"
    assert told in ended.output
    changed = "--dropout 0.2 (before 0.0), --learning_rate 0.01 (before 0.0002)"
    assert f"the run goes on with other flags: {changed}; give the old ones" in ended.output
    assert flags_of(runs.folder / "run")["learning_rate"] == 0.01
    sessions = json.loads((runs.folder / "run/run.json").read_text())["earlier_sessions"]
    assert [session["flags"]["learning_rate"] for session in sessions] == [0.0002]


def test_a_finished_run_keeps_the_flags_that_it_was_trained_with(runs):
    assert runs.start("run", *SHORT).code == 0
    ended = runs.start("run", *SHORT, "--learning_rate", "0.01")
    assert ended.code == 0
    assert "the run is finished, so other flags change nothing: --learning_rate 0.01 (before 0.0002)" in ended.output
    assert flags_of(runs.folder / "run")["learning_rate"] == 0.0002
    again = runs.start("run", *SHORT)
    assert again.code == 0 and "other flags" not in again.output
    told = "already finished: 4 of 4 steps; a larger --max_steps makes it longer"
    assert again.output.count(told) == 1 and (runs.folder / "run/train.log").read_text().count(told) == 2


def test_weights_are_not_taken_for_another_tokenizer_or_another_bank_of_product_keys(runs, others):
    assert runs.start("old", *SHORT).code == 0
    init = ("--init_path", str(runs.folder / "old"))
    ended = runs.start("new", *SHORT, *init, "--tokenizer_path", others["tokenizer"])
    assert ended.code == 1 and "was trained with another tokenizer" in ended.output
    assert f"pass --tokenizer_path {runs.folder / 'old'}" in ended.output
    ended = runs.start("new", *SHORT, *init, "--database_init_path", others["other_facts"])
    assert ended.code == 1 and "was trained with another bank" in ended.output
    assert runs.start("new", *SHORT, *init, "--tokenizer_path", str(runs.folder / "old")).code == 0


@pytest.mark.slow
def test_edits_of_the_run_that_the_weights_come_from_are_said_to_be_left_out(runs, others):
    assert runs.start("old", *WORDS, *SHORT, "--knowledge_length", "12").code == 0
    MemoryStore(runs.folder / "old").edit(3, "Village 3 is gone.")
    init = (*WORDS, *SHORT, "--knowledge_length", "12", "--init_path", str(runs.folder / "old"))
    ended = runs.start("new", *init)
    assert ended.code == 0, ended.output
    assert (
        "the 1 edited or frozen entries of --init_path" in ended.output
        and "import them here after training" in ended.output
    )
    assert MemoryStore(runs.folder / "new").text(3) != "Village 3 is gone."
    assert runs.start("another", *init, "--database_init_path", others["other_facts"]).code == 0  # n-grams fit any bank
