"""Decoding in a cache of fixed size equals decoding in one that grows."""

import gc
import weakref

import pytest
import torch
from transformers import DynamicCache

from model.decoding import ALIGNMENT, CACHE, FixedCache
from tests.conftest import tiny_model
from tests.model.variants import VARIANTS

all_variants = pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)
T = 16


def random_ids(*shape: int) -> torch.Tensor:
    return torch.randint(3, 61, shape)


@all_variants
@torch.no_grad()
def test_steps_equal_the_full_pass(variant):
    model, ids = tiny_model(**variant), random_ids(2, T)
    full, cache, steps = model(ids).logits, FixedCache(T), []
    for piece in ids.split([7, 1, 1, 4, 1, 2], dim=1):
        steps.append(model(piece, cache=cache).logits)
    torch.testing.assert_close(torch.cat(steps, dim=1), full, rtol=1e-4, atol=1e-5)


@all_variants
@torch.no_grad()
def test_steps_after_padding_equal_the_full_pass_of_each_row(variant):
    model, ids = tiny_model(**variant), random_ids(2, T)
    ids[0, :4] = 0
    mask, cache, steps, begin = (ids != 0).long(), FixedCache(T), [], 0
    for end in range(9, T + 1):
        steps.append(model(ids[:, begin:end], attention_mask=mask[:, :end], cache=cache).logits)
        begin = end
    padded, whole = torch.cat(steps, dim=1)
    torch.testing.assert_close(padded[4:], model(ids[:1, 4:]).logits[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(whole, model(ids[1:]).logits[0], rtol=1e-4, atol=1e-5)


@all_variants
@pytest.mark.parametrize("beams", [1, 2])
def test_generate_writes_the_same_as_without_a_cache(variant, beams):
    model, ids = tiny_model(**variant), random_ids(3, 6)
    ids[0, :3] = 0
    options = {"max_new_tokens": 8, "num_beams": beams, "do_sample": False, "pad_token_id": 0, "eos_token_id": 2}
    cache, options["attention_mask"] = FixedCache(14), (ids != 0).long()
    without = model.generate(ids, use_cache=False, **options)
    assert torch.equal(model.generate(ids, **options, **{CACHE: cache}), without)
    assert torch.equal(model.generate(ids, **options), without)
    assert cache.get_seq_length() == 13  # the last token is not read any more


@torch.no_grad()
def test_a_cache_goes_back_and_starts_anew():
    model, ids, cache = tiny_model(), random_ids(2, T), FixedCache(T)
    full = model(ids).logits
    model(ids[:, :8], cache=cache)
    model(random_ids(2, 1), cache=cache)
    cache.crop(-1)
    torch.testing.assert_close(model(ids[:, 8:9], cache=cache).logits, full[:, 8:9], rtol=1e-4, atol=1e-5)
    cache.reset()
    torch.testing.assert_close(model(ids[:, :5], cache=cache).logits, full[:, :5], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(model(ids[:, 5:6], cache=cache).logits, full[:, 5:6], rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_what_a_step_cannot_do_is_refused():
    model, cache = tiny_model(), FixedCache(3)
    assert cache.capacity == ALIGNMENT
    model(random_ids(1, ALIGNMENT - 1), cache=cache)
    with pytest.raises(ValueError, match="takes no labels"):
        model(random_ids(1, 1), labels=random_ids(1, 1), cache=cache)
    model(random_ids(1, 1), cache=cache)
    with pytest.raises(ValueError, match="16 places is full"):
        model(random_ids(1, 1), cache=cache)
    with pytest.raises(ValueError, match="16 places is full"):
        model(random_ids(1, 2), cache=cache)


@torch.no_grad()
def test_a_cache_is_freed_at_once():
    """One in a circle of references would be freed by chance: also during another's capture, which that ends."""
    model, cache = tiny_model(), FixedCache(T)
    for _ in range(4):
        out = model(random_ids(1, 1), cache=cache)
    freed, alive = weakref.ref(cache), gc.isenabled()
    gc.disable()
    try:
        del cache, out
        assert freed() is None
    finally:
        if alive:
            gc.enable()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("padded", [True, False])
@all_variants
@torch.no_grad()
def test_replayed_steps_equal_eager_ones(variant, dtype, padded):
    if variant.get("use_moe"):
        pytest.skip("experts are chosen on the host, so their step is not captured")
    model, ids = tiny_model(**variant).cuda(), random_ids(2, T).cuda()
    if padded:
        ids[0, :4] = 0
    mask, caches, logits = (ids != 0).long(), (FixedCache(T), DynamicCache(config=model.config)), ([], [])
    tolerance = {"rtol": 1e-4, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 0.05, "atol": 0.02}
    with torch.autocast("cuda", dtype, enabled=dtype != torch.float32):
        for begin, end in [(0, 9), *((t, t + 1) for t in range(9, T))]:
            for cache, seen in zip(caches, logits, strict=True):
                out = model(ids[:, begin:end], attention_mask=mask[:, :end], cache=cache)
                seen.append(out.logits.clone())
            # What the graph reads stays, whatever else the model does meanwhile.
            model.embedding.weight.add_(0)
            model(random_ids(3, 5).cuda())
        assert caches[0].step.graph is not None
    replayed, eager = (torch.cat(parts, dim=1)[:, 4:] for parts in logits)
    torch.testing.assert_close(replayed, eager, **tolerance)
