"""What must hold for every variant of the model (the invariants of the design)."""

import pytest
import torch
import torch._dynamo
from transformers import AutoModelForCausalLM, DynamicCache

from model import build_model, model_memory
from model.static_cache import StaticCache
from tests.conftest import tiny_config, tiny_model
from tests.model.variants import MEMORY_VARIANTS, VARIANTS, each

T = 16
all_variants, memory_variants = each(VARIANTS), each(MEMORY_VARIANTS)


def random_ids(*shape: int) -> torch.Tensor:
    return torch.randint(3, 61, shape)


@all_variants
def test_the_future_never_changes_the_past(variant):
    model, a = tiny_model(**variant), random_ids(2, T)
    b = a.clone()
    b[:, 9:] = random_ids(2, T - 9)
    logits_a, logits_b = model(a).logits, model(b).logits
    torch.testing.assert_close(logits_a[:, :9], logits_b[:, :9])
    assert not torch.allclose(logits_a[:, 9:], logits_b[:, 9:])


@all_variants
def test_the_future_gives_no_gradient_to_the_past(variant):
    """Sharper than comparing logits: a leak through a soft path shows as a gradient even where values agree."""
    model = tiny_model(**variant)
    vectors = {}
    model.embedding.register_forward_hook(lambda module, args, out: vectors.update(out=out) or out.retain_grad())
    model(random_ids(1, T)).logits[0, 8].sum().backward()
    gradient_T = vectors["out"].grad[0].abs().sum(dim=-1)
    assert gradient_T[9:].max() == 0
    assert gradient_T[:9].min() > 0


@all_variants
def test_decoding_with_a_cache_equals_the_full_pass(variant):
    model, ids = tiny_model(**variant), random_ids(2, T)
    full, cache, steps = model(ids).logits, DynamicCache(config=model.config), []
    for piece in ids.split([7, 1, 1, 4, 1, 2], dim=1):  # prompt, single tokens, and several tokens at once
        steps.append(model(piece, cache=cache).logits)
    torch.testing.assert_close(torch.cat(steps, dim=1), full, rtol=1e-4, atol=1e-5)


@all_variants
def test_a_cache_goes_back_to_an_earlier_position(variant):
    model, ids = tiny_model(**variant), random_ids(2, T)
    full, cache = model(ids).logits, DynamicCache(config=model.config)
    model(ids[:, :9], cache=cache)
    model(random_ids(2, 3), cache=cache)
    cache.crop(-3)  # as assisted decoding does with tokens that it does not accept
    torch.testing.assert_close(model(ids[:, 9:], cache=cache).logits, full[:, 9:], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("make_cache", [DynamicCache, lambda config: StaticCache(T)], ids=["dynamic", "fixed"])
def test_a_cache_keeps_the_words_that_entries_of_product_keys_continue(make_cache, monkeypatch):
    """A bank and a text of three words, which agree with the text's last two everywhere, and a model that minds."""
    model = tiny_model(fusion="words", keep_ffn=True)
    model.bank.fill(torch.randint(3, 6, (49, 5)))
    with torch.no_grad():
        for block in model.blocks:
            block.fusion.attention.follows_bias.copy_(torch.tensor([0.0, 6.0]))
            block.fusion.out_proj.weight *= 30
    ids = torch.randint(3, 6, (2, T))
    full, close = model(ids).logits, {"rtol": 1e-4, "atol": 1e-5}

    def decode(ids, ends, mask=None, cache=None) -> torch.Tensor:
        cache, steps, begin = make_cache(config=model.config) if cache is None else cache, [], 0
        for end in ends:
            masked = {} if mask is None else {"attention_mask": mask[:, :end]}
            steps.append(model(ids[:, begin:end], cache=cache, **masked).logits)
            begin = end
        return torch.cat(steps, dim=1)

    torch.testing.assert_close(decode(ids, range(1, T + 1)), full, **close)
    torch.testing.assert_close(decode(ids, (7, 8, 9, 13, T)), full, **close)
    cache = make_cache(config=model.config)
    decode(ids, (9, 10, T), cache=cache)
    cache.crop(-5)
    torch.testing.assert_close(model(ids[:, 11:], cache=cache).logits, full[:, 11:], **close)
    padded = ids.clone()
    padded[0, :4] = 0
    out = decode(padded, (5, 6, 9, 15, T), mask=(padded != 0).long())
    torch.testing.assert_close(out[0, 4:], model(ids[:1, 4:]).logits[0], **close)
    torch.testing.assert_close(out[1], full[1], **close)
    forgotten = model_memory.previous_tokens
    monkeypatch.setattr(model_memory, "previous_tokens", lambda *arguments: forgotten(*arguments) * 0)
    assert not torch.allclose(model(ids).logits, full, atol=1e-2)


@all_variants
def test_packing_changes_no_logit_of_a_document(variant):
    model, a, b = tiny_model(**variant), random_ids(1, 9), random_ids(1, 7)
    document_ids = torch.tensor([[0] * 9 + [1] * 7])
    packed = model(torch.cat([a, b], dim=1), document_ids=document_ids).logits
    torch.testing.assert_close(packed[:, :9], model(a).logits, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(packed[:, 9:], model(b).logits, rtol=1e-4, atol=1e-5)


@all_variants
def test_left_padding_changes_no_logit(variant):
    model, ids = tiny_model(**variant), random_ids(1, 9)
    padded = torch.cat([torch.zeros(1, 4, dtype=torch.long), ids], dim=1)
    mask = (torch.arange(13) >= 4).long()[None]
    torch.testing.assert_close(
        model(padded, attention_mask=mask).logits[:, 4:], model(ids).logits, rtol=1e-4, atol=1e-5
    )


@all_variants
def test_decoding_a_padded_batch_equals_the_full_pass_of_each_row(variant):
    model, ids = tiny_model(**variant), random_ids(2, T)
    ids[0, :4] = 0
    mask, cache, steps, begin = (ids != 0).long(), DynamicCache(config=model.config), [], 0
    for end in (9, 10, 11, T):
        steps.append(model(ids[:, begin:end], attention_mask=mask[:, :end], cache=cache).logits)
        begin = end
    padded, whole = torch.cat(steps, dim=1)
    torch.testing.assert_close(padded[4:], model(ids[:1, 4:]).logits[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(whole, model(ids[1:]).logits[0], rtol=1e-4, atol=1e-5)


@all_variants
def test_the_language_model_loss_alone_trains_every_parameter(variant):
    terms = ("balance", "similarity", "diversity", "retrieval", "moe")
    off = {f"{name}_loss_coef": 0.0 for name in terms} | {"teacher_forcing": 0.0}
    model, ids = tiny_model(**{**variant, **off}).train(), random_ids(8, 32)
    model(ids, labels=ids).lm_loss.backward()
    without = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert [name for name in without if not name.startswith("finder.")] == []  # which has a loss of its own


@all_variants
def test_the_loss_starts_near_a_uniform_guess(variant):
    model, ids = tiny_model(**variant), random_ids(4, 32)
    # A pointer starts by trusting the entries, which know nothing about random tokens.
    assert abs(float(model(ids, labels=ids).lm_loss) - torch.log(torch.tensor(61.0))) < (
        0.7 if "pointer" in variant else 0.3
    )


@all_variants
def test_a_model_in_bfloat16_gives_nearly_the_same_loss(variant):
    model, ids = tiny_model(**variant), random_ids(4, 32)
    loss = model(ids, labels=ids).lm_loss
    torch.testing.assert_close(
        model.to(torch.bfloat16)(ids, labels=ids).lm_loss, loss, rtol=0.02, atol=0, check_dtype=False
    )


@all_variants
@pytest.mark.parametrize("in_fp32, dtype", [(True, torch.float32), (False, torch.bfloat16)])
def test_the_residual_stream_has_the_precision_asked_for(variant, in_fp32, dtype):
    model, ids = tiny_model(**variant, residual_in_fp32=in_fp32), random_ids(4, 32)
    seen = []
    for block in model.blocks:
        block.register_forward_hook(lambda _, given, out: seen.extend([given[0].dtype, out[0].dtype]))
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(ids, labels=ids).lm_loss
    assert set(seen) == {dtype}
    torch.testing.assert_close(loss, model(ids, labels=ids).lm_loss, rtol=0.01, atol=0)


@all_variants
def test_saving_and_loading_keeps_every_bit(variant, tmp_path):
    model, ids = tiny_model(**variant), random_ids(2, T)
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert type(loaded) is type(model)
    assert loaded.settings == model.settings
    assert torch.equal(loaded(ids).logits, model(ids).logits)
    assert (loaded.lm_head.weight is loaded.embedding.weight) == model.settings.tie_embeddings
    if model.settings.reads_bank:
        assert torch.equal(loaded.bank.tokens, model.bank.tokens)
        assert torch.equal(loaded.bank.frozen, model.bank.frozen)


@all_variants
def test_a_few_steps_learn_one_batch(variant):
    model, ids = tiny_model(**variant).train(), random_ids(2, T)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    first = None
    for _ in range(40):
        out = model(ids, labels=ids)
        first = first or float(out.lm_loss)
        out.loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if float(out.lm_loss) < first / 2:
            return
    pytest.fail(f"40 steps brought the loss from {first:.2f} to {float(out.lm_loss):.2f}")


@memory_variants
def test_without_memory_layers_the_model_is_the_baseline(variant):
    nothing = {"memory_layers": [], "suffix_layers": None, "pointer": False, "block_selected": None}
    off = tiny_model(**{**variant, **nothing})
    baseline = tiny_model(**{**variant, "model_type": "model_original"})
    ids = random_ids(2, T)
    assert torch.equal(off(ids).logits, baseline(ids).logits)


@memory_variants
def test_the_bank_changes_the_output_only_through_the_memory(variant):
    model, ids = tiny_model(**variant), random_ids(2, T)
    before = model(ids).logits
    tokens = model.bank.tokens.clone()
    model.bank.tokens.zero_()
    assert not torch.allclose(model(ids).logits, before)
    if model.settings.pointer:
        torch.nn.init.constant_(model.pointer.gate.bias, -1e4)
    for layer in model.settings.reading_layers:
        torch.nn.init.zeros_(model.blocks[layer].fusion.out_proj.weight)
    deaf = model(ids).logits
    model.bank.tokens.copy_(tokens)
    assert torch.equal(model(ids).logits, deaf)


@memory_variants
def test_an_edited_entry_changes_only_what_reads_it_and_undo_is_exact(variant):
    if variant.get("retrieval") in ("ngram", "bm25", "suffix", "word_keys"):  # then every found entry is read
        variant = variant | {"num_candidates": 128, "num_selected": 64}
        variant |= {"suffix_candidates": 128, "suffix_selected": 64}
    model, ids = tiny_model(**variant), random_ids(12, 8)
    N = len(model.bank.tokens)

    def reads(out):
        """(rows, N): which sequences read which entries."""
        read_BN = torch.zeros(len(ids), N, dtype=torch.bool)
        for reading in filter(None, out.readings):
            entry_BX, used_BX = reading.entry_BTS.flatten(1), reading.weight_BTS.flatten(1) > 0
            read_BN |= torch.zeros(len(ids), N).scatter_add(1, entry_BX, used_BX.float()) > 0
        return read_BN

    before = model(ids)
    counts = reads(before).sum(dim=0)
    entry = torch.where(counts > 0, counts, len(ids) + 1).argmin()[None]  # read, but by as few as any
    old = model.bank.write(entry, (model.bank.tokens[entry] + 7) % 61)
    after = model(ids)
    touched = reads(before)[:, entry[0]] | reads(after)[:, entry[0]]
    if not model.settings.needs_cosine():  # else an unread candidate may become read
        assert not touched.all()
        # With more hints to add up, a sum may be rounded otherwise.
        torch.testing.assert_close(after.logits[~touched], before.logits[~touched], rtol=1e-5, atol=1e-6)
    assert not torch.equal(after.logits[touched], before.logits[touched])
    model.bank.write(entry, old)
    assert torch.equal(model(ids).logits, before.logits)


def test_equal_seeds_give_equal_models():
    ids = random_ids(1, T)
    assert torch.equal(build_model_twice()[0](ids).logits, build_model_twice()[1](ids).logits)


def build_model_twice():
    models = []
    for _ in range(2):
        torch.manual_seed(3)
        models.append(build_model(tiny_config(), seed=3).eval())
    return models


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        "original",
        "original-table",
        "cross_attention-sequence-product_key",
        "ngram-words-pointer",
        "words-cosine",
        "memory-recipe",
    ],  # fmt: skip
)
def test_compiled_parts_have_no_graph_break_and_the_same_gradients(name):
    quiet = {"fusion_dropout": 0.0, "attention_dropout": 0.0}
    eager, compiled = (tiny_model(**VARIANTS[name], **quiet).train() for _ in range(2))
    compiled.compile_parts()
    torch._dynamo.utils.counters.clear()
    ids, documents = random_ids(2, 32), (torch.arange(32) // 11).expand(2, -1).contiguous()
    for model in (eager, compiled):
        model(ids, labels=ids, document_ids=documents, return_logits=False).loss.backward()
    assert not torch._dynamo.utils.counters["graph_break"]
    for (parameter, a), b in zip(eager.named_parameters(), compiled.parameters(), strict=True):
        torch.testing.assert_close(b.grad, a.grad, rtol=1e-4, atol=1e-6, msg=parameter)
