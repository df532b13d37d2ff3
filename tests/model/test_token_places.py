"""What readers know of an entry's tokens: the distance from its end, and what of the entry the recent text has said."""

import pytest
import torch

from common.constants import PADDING
from model.config import ModelConfig
from model.memory.entry_tokens import lay_out_tokens, looked_up, unsaid_before
from model.memory.text import starts
from model.ops.entry_layout import PLACES, place_of_tokens, stands_in_text
from tests.conftest import tiny_model
from tests.model.variants import VARIANTS


@pytest.mark.parametrize("new", [1, 5, 20])
@pytest.mark.parametrize("window", [1, 4, 40])
def test_a_token_stands_in_the_text_if_it_is_one_of_the_last_of_its_document(new, window):
    text_BX, document_BX = torch.randint(0, 9, (3, 20)), (torch.arange(20) // 7).expand(3, 20)
    token_BTX = torch.randint(0, 12, (3, new, 6))
    found = stands_in_text(token_BTX, text_BX, starts(text_BX, document_BX), window)
    for b, t, x in torch.cartesian_prod(*map(torch.arange, token_BTX.shape)).tolist():
        place = 20 - new + t
        recent = [i for i in range(max(place - window + 1, 0), place + 1) if document_BX[b, i] == document_BX[b, place]]
        assert found[b, t, x] == (token_BTX[b, t, x] in text_BX[b, recent])


def test_a_place_tells_the_end_of_the_entry_and_what_was_said():
    entry_BTSL = torch.tensor([[[[11, 12, 13, PADDING], [14, PADDING, PADDING, PADDING]]]])
    tokens = lay_out_tokens(entry_BTSL, torch.tensor([[[0, 1]]]), torch.tensor([[11]]), torch.tensor([[12]]))
    stands_BTW = torch.tensor([[[True, True, False, False, False, False, False, False]]])
    place_W = place_of_tokens(tokens.length_BTS, stands_BTW)[0, 0].tolist()
    assert place_W[:3] == [2 * 4 + 2, 1 * 4 + 3, 0 * 4 + 1] and place_W[4] == 0 and max(place_W) < PLACES
    long_BTSL = torch.full((1, 1, 1, 40), 5)
    tokens = lay_out_tokens(long_BTSL, torch.tensor([[[0]]]), torch.tensor([[1]]), torch.tensor([[1]]))
    # Far from the end is as far as told.
    assert place_of_tokens(tokens.length_BTS, long_BTSL.flatten(-2) > 9).max() == PLACES - 4


def test_a_token_bears_the_weight_of_what_its_entry_says_before_it_and_the_text_has_not_said():
    entry_BTSL = torch.tensor([[[[11, 12, 13, 14], [15, 11, PADDING, PADDING]]]])
    tokens = lay_out_tokens(entry_BTSL, torch.tensor([[[0, 1]]]), torch.tensor([[11]]), torch.tensor([[12]]))
    tokens = tokens._replace(stands_BTW=(tokens.token_BTW == 11) | (tokens.token_BTW == 13))
    weight_V = torch.arange(20.0, requires_grad=True)
    unsaid_W = unsaid_before(weight_V, tokens)[0, 0]
    assert unsaid_W.tolist() == [0, 0, 12, 12, 0, 15, 15, 15]
    unsaid_W[tokens.token_BTW[0, 0] != PADDING].sum().backward()
    assert weight_V.grad.tolist() == [0] * 12 + [2, 0, 0, 1, 0, 0, 0, 0]
    torch.use_deterministic_algorithms(True)
    try:
        assert unsaid_before(weight_V, tokens)[0, 0].tolist() == unsaid_W.tolist()
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("n_copies", [1, 3, 64])
def test_weights_read_from_copies_have_the_values_and_gradients_of_one(n_copies):
    weight_V, index_BTW = torch.rand(9, requires_grad=True), torch.randint(0, 9, (2, 7, 5))
    read_BTW, gradient_BTW = looked_up(weight_V, index_BTW, n_copies), torch.randint(-5, 6, index_BTW.shape).float()
    assert torch.equal(read_BTW, weight_V[index_BTW])
    read_BTW.backward(gradient_BTW)
    assert torch.equal(weight_V.grad, torch.zeros(9).index_add(0, index_BTW.flatten(), gradient_BTW.flatten()))


@pytest.mark.parametrize("name", ["bm25-pointer", "ngram-pointer"])
def test_the_places_change_what_is_read_and_are_learned(name):
    ids, model = torch.randint(3, 61, (2, 24)), tiny_model(**VARIANTS[name])
    before = model(ids).logits
    for key, parameter in model.named_parameters():
        if "place_" in key or "unsaid" in key:
            parameter.data.normal_()
    out = model(ids, labels=ids)
    assert not torch.equal(out.logits, before)
    out.loss.backward()
    grads = [parameter.grad for key, parameter in model.named_parameters() if "place_" in key or "unsaid" in key]
    parts = 2 * (model.settings.token_places + model.settings.unsaid_tokens)
    assert len(grads) == parts * (1 + sum(layer >= 0 for layer in model.settings.reading_layers))
    assert all(grad.abs().sum() > 0 for grad in grads)


@torch.no_grad()
@pytest.mark.parametrize("name", ["bm25-pointer", "ngram-pointer"])
def test_places_after_a_cache_are_those_of_the_whole_text(name):
    model, ids = tiny_model(**VARIANTS[name]), torch.randint(3, 61, (2, 30))
    for key, parameter in model.named_parameters():
        if "place_" in key or "unsaid" in key:
            parameter.normal_(std=2.0)
    whole, cache, steps = model(ids).logits, None, []
    for part in (ids[:, :17], *ids[:, 17:].split(1, dim=1)):
        out = model(part, past_key_values=cache, use_cache=True)
        cache, steps = out.past_key_values, [*steps, out.logits]
    torch.testing.assert_close(torch.cat(steps, dim=1), whole, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("flags", [{"retrieval": "suffix", "fusion": "continuations"}, {"retrieval": "product_key"}])
def test_a_retrieval_that_does_not_read_the_text_has_no_places(flags):
    with pytest.raises(ValueError, match="--token_places"):
        ModelConfig(**flags | {"pointer": flags["retrieval"] == "suffix", "keep_ffn": True, "token_places": True})
