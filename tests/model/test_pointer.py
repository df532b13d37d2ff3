"""What a pointer predicts is a distribution."""

import pytest
import torch

from common.constants import PADDING
from model.losses import NEVER
from tests.conftest import tiny_model
from tests.model.variants import MEMORY_VARIANTS

POINTERS = {name: variant for name, variant in MEMORY_VARIANTS.items() if variant.get("pointer")}


@torch.no_grad()
@pytest.mark.parametrize("copies", ["as it starts", "always", "never"])
@pytest.mark.parametrize("vocab_size", [61, 6400])
@pytest.mark.parametrize("variant", POINTERS.values(), ids=POINTERS)
def test_drawing_and_copying_together_have_probability_one_at_every_position(variant, vocab_size, copies):
    model = tiny_model(**variant | {"vocab_size": vocab_size})
    token_NL = torch.randint(8, 61, model.bank.tokens.shape)
    token_NL[0] = 7  # one token many times: its copies add up
    model.bank.fill(token_NL)
    model.pointer.gate.bias.fill_({"as it starts": 0.0, "always": 30.0, "never": -30.0}[copies])
    if copies == "always":
        model.pointer.attention.nothing.bias.fill_(-30.0)
    ids = torch.randint(3, 61, (3, 24))
    ids[0, 10:] = 7
    ids[1] = PADDING  # no entry is found for it
    documents = torch.arange(24).expand(3, 24) // 9
    for options in ({}, {"document_ids": documents}):
        out = model(ids, **options)
        assert out.logits.dtype == torch.float32
        total_BT = out.logits.exp().sum(dim=-1)
        assert (total_BT - 1).abs().max() < 1e-6 + 1.1 * vocab_size * NEVER  # no token has less than NEVER
        copied_BT = out.readings[-1].weight_BTS.sum(dim=-1)
        assert float(copied_BT[1].max()) == 0
        if copies == "always":
            assert float(copied_BT[0, 16]) > 0.99
