"""Decoding in a cache of fixed size equals decoding in one that grows."""

import gc
import weakref

import pytest
import torch
from transformers import DynamicCache

from model.static_cache import ALIGNMENT, CACHE, StaticCache
from tests.conftest import tiny_model
from tests.model.variants import VARIANTS, each

all_variants = each(VARIANTS)
devices = pytest.mark.parametrize(
    "device",
    [
        "cpu",
        pytest.param(
            "cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device, and replays")
        ),
    ],
)
T = 16


def random_ids(*shape: int) -> torch.Tensor:
    return torch.randint(3, 61, shape)


@all_variants
@torch.no_grad()
def test_steps_equal_the_full_pass(variant):
    model, ids = tiny_model(**variant), random_ids(2, T)
    full, cache, steps = model(ids).logits, StaticCache(T), []
    for piece in ids.split([7, 1, 1, 4, 1, 2], dim=1):
        steps.append(model(piece, cache=cache).logits)
    torch.testing.assert_close(torch.cat(steps, dim=1), full, rtol=1e-4, atol=1e-5)


@all_variants
@torch.no_grad()
def test_steps_after_padding_equal_the_full_pass_of_each_row(variant):
    model, ids = tiny_model(**variant), random_ids(2, T)
    ids[0, :4] = 0
    mask, cache, steps, begin = (ids != 0).long(), StaticCache(T), [], 0
    for end in range(9, T + 1):
        steps.append(model(ids[:, begin:end], attention_mask=mask[:, :end], cache=cache).logits)
        begin = end
    padded, whole = torch.cat(steps, dim=1)
    torch.testing.assert_close(padded[4:], model(ids[:1, 4:]).logits[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(whole, model(ids[1:]).logits[0], rtol=1e-4, atol=1e-5)


@devices
@all_variants
@pytest.mark.parametrize("beams", [pytest.param(1, marks=pytest.mark.slow), 2])  # one is two without reordering
def test_generate_writes_the_same_as_without_a_cache(variant, beams, device):
    model, ids = tiny_model(**variant).to(device), random_ids(3, 6).to(device)
    ids[0, :3] = 0
    options = {"max_new_tokens": 8, "num_beams": beams, "do_sample": False, "pad_token_id": 0, "eos_token_id": 2}
    cache, options["attention_mask"] = StaticCache(14), (ids != 0).long()
    without = model.generate(ids, use_cache=False, **options)
    assert torch.equal(model.generate(ids, **options, **{CACHE: cache}), without)
    assert torch.equal(model.generate(ids, **options), without)
    assert cache.get_seq_length() == 13  # the last token is not read any more


@torch.no_grad()
def test_a_cache_goes_back_and_starts_anew():
    model, ids, cache = tiny_model(), random_ids(2, T), StaticCache(T)
    full, padded = model(ids).logits, ids.clone()
    padded[0, :4] = 0
    mask = (padded != 0).long()
    model(padded[:, :8], attention_mask=mask[:, :8], cache=cache)
    model(padded[:, 8:9], attention_mask=mask[:, :9], cache=cache)
    for again in (lambda: cache.crop(-9), cache.reset):
        again()
        begin = [model(ids[:, :8], cache=cache).logits, model(random_ids(2, 1), cache=cache).logits]
        cache.crop(-1)
        steps = torch.cat([begin[0], *(model(ids[:, t : t + 1], cache=cache).logits for t in range(8, 11))], dim=1)
        torch.testing.assert_close(steps, full[:, :11], rtol=1e-4, atol=1e-5)
    cache.reset()
    steps = [model(piece, cache=cache).logits for piece in ids[:1].split([8, 1, 1, 6], dim=1)]  # another batch size
    torch.testing.assert_close(torch.cat(steps, dim=1), full[:1], rtol=1e-4, atol=1e-5)


@devices
@torch.no_grad()
def test_what_a_step_cannot_do_is_refused(device):
    model, cache = tiny_model().to(device), StaticCache(3)
    assert cache.capacity == ALIGNMENT
    model(random_ids(1, ALIGNMENT - 4).to(device), cache=cache)
    with pytest.raises(ValueError, match="takes no labels"):
        model(random_ids(1, 1).to(device), labels=random_ids(1, 1).to(device), cache=cache)
    with pytest.raises(ValueError, match="a cache of 1 texts takes as many tokens, got 2"):
        model(random_ids(2, 1).to(device), cache=cache)
    for _ in range(4):
        model(random_ids(1, 1).to(device), cache=cache)
    for n in (1, 2):
        with pytest.raises(ValueError, match="16 positions is full"):
            model(random_ids(1, n).to(device), cache=cache)


@torch.no_grad()
def test_a_cache_is_freed_at_once():
    """One in a circle of references would be freed by chance: also during another's capture, which that ends."""
    model, cache = tiny_model(), StaticCache(T)
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
    mask, caches, logits = (ids != 0).long(), (StaticCache(T), DynamicCache(config=model.config)), ([], [])
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


@pytest.mark.parametrize("kind", [None, "cross_attention", "gated_mlp", "concat", "words", "continuations"])
@torch.no_grad()
def test_steps_take_the_weights_that_the_prompt_has_made_and_the_embeddings_as_they_are(kind):
    model = tiny_model(fusion=kind) if kind else tiny_model(model_type="model_original")
    cache, keepers = StaticCache(T), [module.derived for module in model.modules() if hasattr(module, "derived")]
    with torch.autocast("cpu", torch.bfloat16):
        model(random_ids(1, 5), cache=cache)
        made = [keeper.stored[-1] for keeper in keepers]
        for _ in range(2):
            model(random_ids(1, 1), cache=cache)
    assert bool(keepers) == bool(kind)
    assert all(keeper.stored[-1] is before for keeper, before in zip(keepers, made, strict=True))
    assert "embedding.weight" not in cache.step.weights  # the stream begins in their precision
