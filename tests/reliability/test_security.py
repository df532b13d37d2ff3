"""Nothing gets in: files of other people are read, never run. Every payload would leave a mark if it ran."""

import json
import os
import pickle
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from dataset.knowledge import load_bank
from dataset.tokenizer import load_tokenizer
from model import load_run
from tests.conftest import tiny_model
from trainer.checkpoint import checkpoint_dirs, file_digest, read_state, write_state
from trainer.start import load_weights

CODE = """
from pathlib import Path
from transformers import {base}
Path({mark!r}).write_text("ran")
class Evil({base}): ...
"""


class Payload:
    """Unpickling it runs a command."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self):
        return os.system, (f"touch {self.mark}",)


@pytest.fixture
def mark(tmp_path) -> Path:
    return tmp_path / "the_payload_ran"


@pytest.fixture
def evil(mark) -> bytes:
    content = pickle.dumps(Payload(mark))
    pickle.loads(content)
    assert mark.exists(), "the payload works"
    mark.unlink()
    return content


@contextmanager
def refused(mark: Path, survives, what: str):
    with survives(f"payload in {what}"):
        with pytest.raises((ValueError, OSError)):
            yield
        assert not mark.exists()


def test_a_checkpoint_that_is_a_pickle_runs_nothing(runs, evil, mark, survives):
    assert runs.start("run").code == 0
    path = checkpoint_dirs(runs.folder / "run")[-1]
    for name in ("model.safetensors", "optimizer.safetensors", "random_0.safetensors"):
        whole, state = (path / name).read_bytes(), read_state(path)
        (path / name).write_bytes(evil)  # as an attacker would, with checksums that fit
        write_state(path / "state.json", state | {"checksums": state["checksums"] | {name: file_digest(path / name)}})
        with survives("payload in a checkpoint"):
            ended = runs.start("run")
            assert ended.code == 1 and f"{name} is not a whole safetensors file" in ended.output
            assert not mark.exists()
        (path / name).write_bytes(whole)
        write_state(path / "state.json", state)
    assert runs.start("run").code == 0


def test_a_model_that_is_a_pickle_runs_nothing(tmp_path, evil, mark, survives):
    model = tiny_model()
    model.save_pretrained(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(evil)
    load_run(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(evil)
    with refused(mark, survives, "the weights of --init_path"):
        load_weights(model, tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with refused(mark, survives, "pytorch_model.bin"):
        load_run(tmp_path)


def test_a_model_folder_with_code_runs_nothing(tmp_path, mark, survives):
    tiny_model().save_pretrained(tmp_path)
    (tmp_path / "evil.py").write_text(CODE.format(mark=str(mark), base="PreTrainedModel"))
    config = json.loads((tmp_path / "config.json").read_text())
    auto_map = {"AutoConfig": "evil.Evil", "AutoModelForCausalLM": "evil.Evil"}
    with survives("payload in the config of a model"):
        (tmp_path / "config.json").write_text(json.dumps(config | {"auto_map": auto_map}))
        load_run(tmp_path)  # the project's own class
        assert not mark.exists()


def test_a_tokenizer_folder_with_code_runs_nothing(tmp_path, mark, survives):
    load_tokenizer("dataset/tokenizer").save_pretrained(tmp_path)
    (tmp_path / "evil.py").write_text(CODE.format(mark=str(mark), base="PreTrainedTokenizerFast"))
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    config |= {"tokenizer_class": "Evil", "auto_map": {"AutoTokenizer": [None, "evil.Evil"]}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    with survives("payload in a tokenizer folder"):
        try:
            load_tokenizer(tmp_path)
        except ValueError as refusal:
            assert "\n" not in str(refusal)
        assert not mark.exists()


def test_a_knowledge_file_that_is_a_pickle_runs_nothing(tmp_path, evil, mark, survives):
    (tmp_path / "facts.json").write_bytes(evil)
    with refused(mark, survives, "a knowledge file"):
        load_bank(tmp_path / "facts.json", load_tokenizer("dataset/tokenizer"), 4, 4, tmp_path / "cache")


def test_a_cache_that_is_a_pickle_runs_nothing(tmp_path, mark, survives):
    tokenizer = load_tokenizer("dataset/tokenizer")
    (tmp_path / "facts.json").write_text(json.dumps([f"Fact {n}." for n in range(4)]))
    bank = load_bank(tmp_path / "facts.json", tokenizer, 4, 4, tmp_path / "cache")
    np.save(bank.folder / "tokens.npy", np.array([Payload(mark)], dtype=object), allow_pickle=True)
    with refused(mark, survives, "a cached array"):
        load_bank(tmp_path / "facts.json", tokenizer, 4, 4, tmp_path / "cache")
