"""Tiny runs whose weights have earlier layouts open, and give the logits that they gave then.

`tests/data/NAME`: config.json and model.safetensors as the training script wrote them, and in expected.safetensors
token ids with the logits and the loss of the code that trained them.
"""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from model import ModelConfig, build_model, load_run
from model.compat import convert_state_dict, earlier_state, is_current
from trainer.start import load_weights

RUNS = ("product_key", "ngram", "before_qkv_proj")
ROOT = Path(__file__).parents[2]
DATA = ROOT / "tests/data"


def fresh(run: Path):
    """An untrained model of the run's configuration, with the run's bank."""
    values = json.loads((run / "config.json").read_text())
    config = ModelConfig(**{name: values[name] for name in ModelConfig.__dataclass_fields__ if name in values})
    return build_model(config, load_file(run / "model.safetensors")["bank.tokens"])


def through_init_path(run: Path):
    model = fresh(run)
    load_weights(model, run)
    return model


def through_state_dict(run: Path):
    model = fresh(run)
    missing, unexpected = model.load_state_dict(convert_state_dict(load_file(run / "model.safetensors")), strict=False)
    assert (missing, unexpected) == (["lm_head.weight"], [])
    model.tie_weights()
    return model


WAYS = {
    "load_run": load_run,
    "from_pretrained": AutoModelForCausalLM.from_pretrained,
    "init_path": through_init_path,
    "state_dict": through_state_dict,
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("run", RUNS)
@torch.no_grad()
def test_a_run_of_an_earlier_layout_gives_the_logits_that_it_gave(run, way):
    expected, model = load_file(DATA / run / "expected.safetensors"), WAYS[way](DATA / run).eval()
    out = model(expected["input_ids"], labels=expected["input_ids"])
    torch.testing.assert_close(out.logits, expected["logits"], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(out.lm_loss, expected["lm_loss"][0], rtol=1e-4, atol=1e-5)
    assert model.lm_head.weight is model.embedding.weight


def test_weights_of_this_layout_or_none_are_left_to_transformers(tmp_path):
    assert earlier_state(tmp_path) is None
    save_file(convert_state_dict(load_file(DATA / "ngram" / "model.safetensors")), tmp_path / "model.safetensors")
    assert earlier_state(tmp_path) is None
    assert is_current(earlier_state(DATA / "ngram"))


@pytest.mark.parametrize("run", RUNS)
def test_only_earlier_layouts_are_converted(run):
    old = load_file(DATA / run / "model.safetensors")
    new = convert_state_dict(old)
    assert not is_current(old) and is_current(new)
    again = convert_state_dict(new)
    assert again.keys() == new.keys() and all(torch.equal(again[name], new[name]) for name in new)
