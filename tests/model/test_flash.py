"""The flash-attn package on packed rows: with a stand-in in plain torch here, with the package itself on a GPU."""

import copy
import importlib.util
import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from model.flash import computes, document_starts, flash_attention, takes_documents
from model.layers import attend, textbook_attention
from tests.conftest import tiny_config, tiny_model
from tests.tiny_runs import TINY
from trainer.config import parse_cli
from trainer.step import graphable

DOCUMENTS = torch.tensor([[0, 0, 0, 1, 1, 1, 1, 2], [5, 5, 5, 5, 5, 5, 5, 5], [0, 1, 1, 0, 0, 0, 0, 0]])


def visible(document_BT: torch.Tensor) -> torch.Tensor:
    """(B, 1, T, T) bool: causal, and inside the run of equal numbers."""
    run_BT = (document_BT.diff(dim=1, prepend=document_BT[:, :1]) != 0).cumsum(dim=1)
    same_BTT = run_BT[:, :, None] == run_BT[:, None, :]
    return (same_BTT & torch.ones_like(same_BTT).tril())[:, None]


def attention_of(q_XHE, k_XGE, v_XGE, causal):
    q_1HXE, k_1GXE, v_1GXE = (x.transpose(0, 1)[None] for x in (q_XHE, k_XGE, v_XGE))
    return F.scaled_dot_product_attention(q_1HXE, k_1GXE, v_1GXE, is_causal=causal, enable_gqa=True)[0].transpose(0, 1)


def stand_in() -> ModuleType:
    """The package's two functions, sequence by sequence."""

    def flash_attn_func(q, k, v, causal):
        return torch.stack([attention_of(*each, causal) for each in zip(q, k, v, strict=True)])

    def flash_attn_varlen_func(q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, causal):
        assert cu_seqlens_q.dtype == torch.int32 and torch.equal(cu_seqlens_q, cu_seqlens_k)
        lengths = cu_seqlens_q.diff().tolist()
        assert max(lengths) <= max_seqlen_q == max_seqlen_k and sum(lengths) == len(q)
        parts = zip(*(x.split(lengths) for x in (q, k, v)), strict=True)
        return torch.cat([attention_of(*part, causal) for part in parts])

    module = ModuleType("flash_attn")
    module.flash_attn_func, module.flash_attn_varlen_func = flash_attn_func, flash_attn_varlen_func
    return module


def test_documents_start_where_their_number_changes_and_at_each_row():
    starts = document_starts(DOCUMENTS)
    assert starts.start_Y.tolist() == [0, 3, 7, 8, 16, 17, 19, 24] and starts.longest == 8


@pytest.mark.parametrize("groups", [4, 2])
def test_packed_rows_equal_the_textbook_with_the_stand_in(groups, monkeypatch):
    monkeypatch.setitem(sys.modules, "flash_attn", stand_in())
    q_BHTE, k_BGTE, v_BGTE = torch.randn(3, 4, 8, 16), torch.randn(3, groups, 8, 16), torch.randn(3, groups, 8, 16)
    expected = textbook_attention(q_BHTE, k_BGTE, v_BGTE, visible(DOCUMENTS))
    out = attend(q_BHTE, k_BGTE, v_BGTE, document_starts(DOCUMENTS), tiny_config(flash_backend="flash_attn"))
    torch.testing.assert_close(out, expected)
    whole = textbook_attention(q_BHTE, k_BGTE, v_BGTE, visible(torch.zeros(3, 8)))
    torch.testing.assert_close(flash_attention(q_BHTE, k_BGTE, v_BGTE, None), whole)


@pytest.mark.parametrize("model_type", ["model_original", "model_memory"])
@torch.no_grad()
def test_a_model_attends_by_the_stand_in_in_every_row_and_decodes_the_same(model_type, monkeypatch):
    module, used = stand_in(), []
    for name, function in list(vars(module).items()):
        if callable(function):
            noted = lambda *x, own=function, **flags: used.append(own.__name__) or own(*x, **flags)  # noqa: E731
            setattr(module, name, noted)
    monkeypatch.setitem(sys.modules, "flash_attn", module)
    for reader in ("model.flash", "model.layers"):
        monkeypatch.setattr(f"{reader}.computes", lambda dtype, device: True)
    ids, spans = torch.randint(3, 61, (3, 8)), DOCUMENTS[:2].repeat(2, 1)[:3]  # a number does not come back
    package, pytorch = (tiny_model(model_type=model_type, flash_backend=name) for name in ("flash_attn", "pytorch"))
    for function, packed in {"flash_attn_func": {}, "flash_attn_varlen_func": {"document_ids": spans}}.items():
        used.clear()
        torch.testing.assert_close(package(ids, **packed).logits, pytorch(ids, **packed).logits)
        assert set(used) == {function}
    start = package(ids[:, :5], use_cache=True)
    for more in (ids[:, 5:], ids[:, 5:6]):  # several tokens after the cached ones, and one
        rest = package(more, past_key_values=copy.deepcopy(start.past_key_values)).logits
        torch.testing.assert_close(rest, pytorch(ids).logits[:, 5 : 5 + more.shape[1]])


@pytest.mark.parametrize("dtype, package", [("float32", False), ("float16", True), ("bfloat16", True)])
def test_the_package_computes_in_16_bits_alone(dtype, package):
    dtype, device = getattr(torch, dtype), torch.device("cuda")
    rows = SimpleNamespace(document_BX=DOCUMENTS, past=0, device=device)
    assert computes(dtype, device) == takes_documents(rows, dtype) == package
    assert not computes(dtype, torch.device("cpu"))


def test_what_does_not_repeat_is_refused_with_deterministic(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    flags = ["--flash_backend", "flash_attn", *TINY, "--dtype", "bfloat16"]
    with pytest.raises(ValueError, match="flash_attn does not repeat bit for bit"):
        parse_cli([*flags, "--deterministic"])
    assert parse_cli([*flags, "--deterministic", "--use_flash_attn", "False"]).run.deterministic


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@torch.no_grad()
def test_a_model_in_float32_attends_by_pytorch():
    ids, documents = torch.randint(3, 61, (3, 8), device="cuda"), DOCUMENTS.to("cuda")
    package, pytorch = (tiny_model(flash_backend=name).to("cuda") for name in ("flash_attn", "pytorch"))
    for packed in ({}, {"document_ids": documents}):
        assert torch.equal(package(ids, **packed).logits, pytorch(ids, **packed).logits)


def test_a_step_with_documents_counted_on_the_host_is_not_captured(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    config, device = parse_cli(["--flash_backend", "flash_attn", *TINY, "--dtype", "bfloat16"]).model, "cuda"
    assert "documents" in graphable(config, torch.device(device), "bfloat16", compiled=True)
    assert graphable(config, torch.device(device), "bfloat16", compiled=True, packed=False) is None


@pytest.mark.gpu
@pytest.mark.skipif(
    not torch.cuda.is_available() or importlib.util.find_spec("flash_attn") is None,
    reason="needs a CUDA device and the flash-attn package",
)
@pytest.mark.parametrize("length, groups", [(512, 8), (384, 2)])
def test_the_package_errs_no_more_than_pytorch_on_packed_rows(length, groups):
    document_BT = (torch.rand(4, length, device="cuda") < 0.02).cumsum(dim=1)
    sizes = (4, 8, length, 64), (4, groups, length, 64), (4, groups, length, 64)
    inputs = [torch.randn(size, device="cuda").bfloat16().requires_grad_() for size in sizes]
    weight_BHTE = torch.randn(sizes[0], device="cuda")
    mask_BTT, made = visible(document_BT), {}
    for name in ("exact", "pytorch", "package"):
        q, k, v = (x.detach().double() if name == "exact" else x.detach() for x in inputs)
        leaves = [x.requires_grad_() for x in (q, k, v)]
        if name == "package":
            out = flash_attention(*leaves, document_starts(document_BT))
        else:
            out = F.scaled_dot_product_attention(*leaves, attn_mask=mask_BTT, enable_gqa=True)
        made[name] = [out, *torch.autograd.grad((out * weight_BHTE).sum(), leaves)]
    for exact, pytorch, package in zip(*made.values(), strict=True):
        errors = [(x.double() - exact).norm() for x in (package, pytorch)]
        assert errors[0] < 2 * errors[1] + 1e-4 * exact.norm()
