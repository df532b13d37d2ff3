"""What is searched ahead of a training step equals what the step would search itself."""

import torch

from common.constants import NO_ENTRY
from tests.conftest import tiny_model
from tests.model.variants import VARIANTS, each

SEARCHING = [name for name in VARIANTS if name.startswith(("ngram", "bm25", "suffix", "taught", "word_keys"))]


@each({name: name for name in VARIANTS}, "name")
def test_matches_found_ahead_change_no_bit_of_loss_and_gradient(name):
    model, results = tiny_model(**VARIANTS[name]).train(), []
    ids, documents = torch.randint(3, 61, (3, 32)), (torch.arange(32) // 11).expand(3, -1).contiguous()
    ids[0, -5:] = 0
    batch = {"input_ids": ids, "labels": ids.masked_fill(torch.rand(3, 32) < 0.3, -100), "document_ids": documents}
    ahead = model.search_text(**batch)
    kinds = ("match", "suffix") if "suffix_layers" in VARIANTS[name] else ("match",)
    expected = {f"{kind}_{of}_BTC" for kind in kinds for of in ("entry", "score")}
    assert set(ahead) == (expected if name in SEARCHING else set())
    learns_to_search = name.startswith("word_keys")  # so its search cannot run ahead of a step
    assert model.settings.searches_text == (name in SEARCHING and not learns_to_search)
    assert all(found.is_contiguous() for found in ahead.values())  # as the copies that a captured step reads
    for found in ({}, ahead):
        torch.manual_seed(1)  # dropout, noise, teacher forcing
        model.zero_grad()
        out = model(**batch, **found, return_logits=False)
        out.loss.backward()
        results.append([out.loss, *(parameter.grad for parameter in model.parameters())])
    assert all(map(torch.equal, *results))


@each({name: name for name in SEARCHING}, "name")
def test_matches_found_ahead_are_used(name):
    model, ids = tiny_model(**VARIANTS[name]).train(), torch.randint(3, 61, (3, 32))
    found = model.search_text(ids)
    labels = ids.clone()
    labels[:, ::2] = -100
    losses = []
    for kind in ("none", "match", *({"suffix"} & {name.partition("_")[0] for name in found})):
        torch.manual_seed(1)
        without = {
            name: torch.full_like(value, NO_ENTRY) if "entry" in name else torch.zeros_like(value)
            for name, value in found.items()
            if name.startswith(kind)
        }
        losses.append(model(ids, labels=labels, **found | without).loss.detach())
    assert losses[0] not in losses[1:]
