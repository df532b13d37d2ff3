"""Models with the Triton kernels against models without; only where there is a GPU."""

import pytest
import torch

from model.layers import attend, textbook_attention
from model.visibility import Visibility
from tests.conftest import tiny_config
from tests.model.variants import VARIANTS

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.mark.parametrize("fusion", ["cross_attention", "gated_mlp"])
@pytest.mark.parametrize("scope", ["token", "sequence"])
def test_a_model_trains_the_same_with_the_kernels_of_the_fusion(fusion, scope, monkeypatch):
    import model.memory.entry_vectors
    from model.ops import unit_entries
    from tests.conftest import tiny_model

    def gradients(compiled, **changes):
        quiet = {"attention_dropout": 0.0, "fusion_dropout": 0.0}
        model = tiny_model(fusion=fusion, fusion_scope=scope, **quiet, **changes).cuda().train()
        if compiled:
            model.compile_parts()
        ids = torch.arange(3, 51, device="cuda").view(3, 16)
        out = model(input_ids=ids, labels=ids)
        out.loss.backward()
        return {"loss": out.loss.detach()} | {name: parameter.grad for name, parameter in model.named_parameters()}

    with monkeypatch.context() as patch:
        patch.setattr(model.memory.entry_vectors, "unit_entries", unit_entries.op.reference)
        expected = gradients(compiled=False, use_flash_attn=False)
    for compiled in (False, True):
        for name, gradient in gradients(compiled).items():
            assert (gradient - expected[name]).norm() <= 1e-4 * expected[name].norm() + 1e-7, name


@pytest.mark.parametrize("fusion", ["cross_attention", "gated_mlp"])
def test_gradients_go_through_a_pass_that_fills_a_cache(fusion):
    from tests.conftest import tiny_model

    model, ids = tiny_model(fusion=fusion).cuda(), torch.arange(3, 19, device="cuda").view(2, 8)
    losses, grads = [], []
    for use_cache in (False, True):
        model.zero_grad()
        losses.append(model(input_ids=ids, labels=ids, use_cache=use_cache).loss)
        losses[-1].backward()
        grads.append(torch.cat([parameter.grad.flatten() for parameter in model.parameters()]))
    torch.testing.assert_close(*losses)
    torch.testing.assert_close(*grads)


NO_DROPOUT = {"residual_scalars": True, "fusion_dropout": 0.0}


@pytest.mark.parametrize(
    "design, compiled",
    [
        ({"fusion": "words", "retrieval": "ngram", "pointer": True}, False),
        ({"fusion": "continuations", "retrieval": "suffix"} | NO_DROPOUT, True),
        (VARIANTS["bm25-and-suffix"] | NO_DROPOUT, True),
        (VARIANTS["bm25-and-suffix"] | {"n_layers": 8, "memory_layers": [5], "memory_every": 2} | NO_DROPOUT, True),
    ],
    ids=["words", "continuations in a stretch", "two searches in a stretch", "facts laid out beside a stretch"],
)
def test_a_replayed_step_equals_an_eager_one(design, compiled):
    from contextlib import nullcontext

    from tests.conftest import tiny_model
    from trainer.step import EAGER_CALLS, MicroStep

    def train(graphed):
        torch.manual_seed(0)
        model = tiny_model(**design | {"keep_ffn": True}).cuda().train()
        if graphed and compiled:
            model.compile_parts()
            assert model.stretches
        step = MicroStep(
            lambda batch: model(**batch, return_logits=False), lambda loss: loss.backward(), model.refresh, graphed
        )
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        generator, losses = torch.Generator().manual_seed(1), []
        for _ in range(EAGER_CALLS + 4):
            ids = torch.randint(3, 61, (4, 16), generator=generator).cuda()
            batch = {"input_ids": ids, "labels": ids} | model.search_text(ids)  # found ahead, as in training
            out = step(batch, torch.ones((), device="cuda"), 1.0, lambda part: nullcontext())
            optimizer.step()
            optimizer.zero_grad(set_to_none=False)
            losses.append(out.lm_loss.item())
        return losses

    assert train(graphed=True) == pytest.approx(train(graphed=False), rel=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("width", [16, 64, 128])
def test_fused_attention_equals_the_textbook(width, dtype):
    torch.compiler.reset()  # each shape is a compilation, and of one function there may be eight
    T, config = 256, tiny_config(use_flash_attn=True)
    document_BT = (torch.arange(T, device="cuda") * 3 // T).expand(2, T).contiguous()
    visible = Visibility(0, T, document_BT, document_BT.device)
    torch.manual_seed(0)
    inputs = [torch.randn(2, 2, T, width, device="cuda").to(dtype) for _ in range(3)]
    wanted = torch.randn(2, 2, T, width, device="cuda", dtype=torch.float64)

    def run(attention, mask, dtype):
        leaves = [x.to(dtype).requires_grad_() for x in inputs]
        out = attention(*leaves, mask)
        return [out, *torch.autograd.grad((out.double() * wanted).sum(), leaves)]

    truth = run(textbook_attention, visible.mask(fused=False), torch.float64)
    fused = run(lambda q, k, v, mask: attend(q, k, v, mask, config), visible.mask(), dtype)
    for f, t in zip(fused, truth, strict=True):
        assert (f - t).norm() < (1e-2 if dtype == torch.bfloat16 else 3e-3) * t.norm()
