"""What a user of `generate` asks for works as in transformers, or is refused in one sentence."""

import pytest
import torch
from transformers import GenerationConfig

from dataset.tokenizer import load_tokenizer
from tests.conftest import tiny_model

pytestmark = pytest.mark.fault("an option of generate")
VARIANTS = {
    "plain": {"model_type": "model_original"},
    "product keys": {"retrieval": "product_key"},
    "suffixes": {"retrieval": "suffix", "fusion": "continuations", "keep_ffn": True},
    "words": {"retrieval": "ngram", "fusion": "words", "pointer": True, "keep_ffn": True},
}


@pytest.fixture(params=VARIANTS.values(), ids=VARIANTS, scope="module")
def model(request):
    model = tiny_model(vocab_size=6400, **request.param)
    model.generation_config.eos_token_id = None
    return model


@pytest.fixture
def ids():
    return torch.randint(3, 6400, (2, 5))


def test_generation_stops_at_a_string(model, ids):
    tokenizer = load_tokenizer("dataset/tokenizer")
    whole = model.generate(ids[:1], max_new_tokens=8, do_sample=False)[0]
    word = tokenizer.decode([int(whole[7])]).strip() or tokenizer.decode([int(whole[7])])
    stopped = model.generate(ids[:1], max_new_tokens=8, do_sample=False, stop_strings=[word], tokenizer=tokenizer)[0]
    assert 5 < len(stopped) <= 8 and torch.equal(stopped, whole[: len(stopped)])


@pytest.mark.parametrize(
    "options",
    [
        {"cache_implementation": "static"},
        {"cache_implementation": "static", "num_beams": 2},
        {"generation_config": GenerationConfig(cache_implementation="static", max_new_tokens=6)},
        {"cache_implementation": "dynamic"},
    ],
)
def test_every_cache_gives_the_same_tokens(model, ids, options):
    length = {} if "generation_config" in options else {"max_new_tokens": 6}
    beams = {"num_beams": options["num_beams"]} if "num_beams" in options else {}
    pad = {"pad_token_id": 0}
    expected = model.generate(ids, max_new_tokens=6, do_sample=False, **beams, **pad)
    assert torch.equal(model.generate(ids, do_sample=False, **length, **options, **pad), expected)


def test_hidden_states_are_those_of_the_stream(model, ids):
    seen = []
    hooks = [block.register_forward_hook(lambda _, __, output: seen.append(output[0])) for block in model.blocks]
    out = model(ids, output_hidden_states=True)
    for hook in hooks:
        hook.remove()
    assert len(out.hidden_states) == 1 + len(model.blocks)
    assert torch.equal(out.hidden_states[0], model.embedding(ids)) and torch.equal(out.hidden_states[1], seen[0])
    assert torch.equal(out.hidden_states[-1], model.norm(seen[-1]))
    assert torch.equal(model(ids).logits, out.logits) and model(ids).hidden_states is None
    made = model.generate(
        ids, max_new_tokens=3, do_sample=False, output_hidden_states=True, return_dict_in_generate=True
    )
    assert len(made.hidden_states) == 3 and made.hidden_states[1][-1].shape == (2, 1, model.settings.dim)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"output_attentions": True, "return_dict_in_generate": True}, "cannot return attentions"),
        ({"cache_implementation": "quantized"}, "cache_implementation='quantized' is not supported: leave it out"),
        ({"cache_implementation": "offloaded"}, "cache_implementation='offloaded' is not supported"),
        (
            {"cache_implementation": "static", "output_hidden_states": True, "return_dict_in_generate": True},
            "a StaticCache step takes no .*hidden states",
        ),
    ],
)
def test_what_is_not_supported_is_refused_in_one_sentence(model, ids, options, message):
    with pytest.raises(ValueError, match=message):
        model.generate(ids, max_new_tokens=3, do_sample=False, **options)
