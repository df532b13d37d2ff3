"""Neighbouring blocks in one compilation: which they are, how often they are compiled, and that they change nothing."""

import pytest
import torch

from model import model_original, stretches
from model.stretches import begin_stream, end_stream, make_stretches, run_stretch
from tests.conftest import tiny_model

PLAIN = {"model_type": "model_original"}
MEMORY = {
    "retrieval": "suffix", "fusion": "continuations", "keep_ffn": True, "suffix_length": 2, "suffix_tokens": 2,
    "memory_layers": [1, 3, 5], "fusion_dropout": 0.0,
}  # fmt: skip


@pytest.mark.parametrize(
    "design, lengths",
    [
        ({**PLAIN, "n_layers": 8}, [4, 4]),
        ({**PLAIN, "n_layers": 6}, [3, 3]),
        ({**PLAIN, "n_layers": 3}, [3]),
        ({**PLAIN, "n_layers": 7}, [1] * 7),
        ({**PLAIN, "n_layers": 8, "value_embeddings": [1]}, [4, 4]),
        ({**PLAIN, "n_layers": 4, "use_moe": True}, [1] * 4),
        ({"n_layers": 8, "memory_layers": [2, 5], "keep_ffn": True}, [4, 4]),
        ({"n_layers": 4, "memory_layers": [1], "keep_ffn": True, "use_moe": True}, [1] * 4),
    ],
    ids=str,
)
def test_neighbours_of_any_kind_stand_together(design, lengths):
    blocks = tiny_model(**design).blocks
    found = make_stretches(blocks)
    assert [len(stretch) for stretch in found] == lengths
    assert [block for stretch in found for block in stretch] == list(blocks)


@pytest.fixture(params=[PLAIN, MEMORY], ids=["plain", "memory"])
def compiled(request, monkeypatch):
    """A model whose stretches are of two blocks and traced, not turned into kernels; and the stretches that ran."""
    calls, traced = [], torch.compile(run_stretch, backend="eager", fullgraph=True)

    def counted(blocks, *rest):
        calls.append(len(blocks))
        return traced(blocks, *rest)

    monkeypatch.setattr(stretches, "LONGEST_STRETCH", 2)
    monkeypatch.setattr(model_original, "compiled_stretch", counted)
    for name, function in (("compiled_begin", begin_stream), ("compiled_end", end_stream)):
        monkeypatch.setattr(model_original, name, torch.compile(function, backend="eager", fullgraph=True))
    torch._dynamo.reset()
    model = tiny_model(**request.param, n_layers=6, residual_scalars=True).train()
    model.stretches = make_stretches(model.blocks)
    return model, calls


@pytest.mark.slow
def test_stretches_share_a_compilation_and_leave_loss_and_gradients_as_they_are(compiled):
    model, calls = compiled
    alone = type(model)(model.config).train()
    alone.load_state_dict(model.state_dict())
    ids, documents = torch.randint(3, 61, (2, 16)), (torch.arange(16) // 7).expand(2, -1)
    torch._dynamo.utils.counters.clear()
    for _ in range(2):
        outs = [each(ids, labels=ids, document_ids=documents, return_logits=False) for each in (model, alone)]
        for out in outs:
            out.loss.backward()
    assert calls == [2] * 6 and torch._dynamo.utils.counters["stats"]["unique_graphs"] == 3
    torch.testing.assert_close(*(out.loss for out in outs), rtol=1e-6, atol=0)
    torch.testing.assert_close(*(out.aux_losses for out in outs), rtol=1e-6, atol=0)
    for reading, expected in zip(*(out.readings for out in outs), strict=True):
        assert (reading is None) == (expected is None)
        if reading is not None:
            assert torch.equal(reading.entry_BTS, expected.entry_BTS) and reading.weight_BTS.any()
            torch.testing.assert_close(reading.weight_BTS, expected.weight_BTS)
    for (name, parameter), other in zip(model.named_parameters(), alone.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad, other.grad, rtol=1e-4, atol=1e-7, msg=name)


def test_loss_terms_of_blocks_in_a_stretch_count(monkeypatch):
    for name, function in (("stretch", run_stretch), ("begin", begin_stream), ("end", end_stream)):
        monkeypatch.setattr(model_original, f"compiled_{name}", function)
    model = tiny_model(keep_ffn=True, n_layers=4, fusion_dropout=0.0, attention_dropout=0.0).train()
    ids = torch.randint(3, 61, (2, 16))
    alone = model(ids, labels=ids).aux_losses
    model.stretches = make_stretches(model.blocks)
    assert [len(stretch) for stretch in model.stretches] == [4] and alone["balance"] > 0
    torch.testing.assert_close(model(ids, labels=ids).aux_losses, alone)


@pytest.mark.slow
def test_more_kinds_of_stretches_than_dynamo_takes_by_itself_are_all_compiled(monkeypatch):
    traced = []

    def backend(graph, inputs):
        traced.append(graph)
        return graph.forward

    monkeypatch.setattr(stretches, "LONGEST_STRETCH", 2)
    monkeypatch.setattr(model_original, "compiled_stretch", torch.compile(run_stretch, backend=backend, fullgraph=True))
    for name, function in (("compiled_begin", begin_stream), ("compiled_end", end_stream)):
        monkeypatch.setattr(model_original, name, function)
    torch._dynamo.reset()
    table = {"ngram_table_rows": 1024, "ngram_table_heads": 1, "ngram_table_dim": 8}
    kinds = [(ve, rows) for ve in ([], [0], [1], [0, 1]) for rows in ([], [0], [1])]  # of a stretch, by its blocks
    places = [[2 * i + n for i, kind in enumerate(kinds) for n in kind[which]] for which in (0, 1)]
    model = tiny_model(
        **PLAIN, **table, n_layers=24, residual_scalars=True, value_embeddings=places[0], ngram_table_layers=places[1],
    ).train()  # fmt: skip
    ids = torch.randint(3, 61, (2, 16))
    with torch._dynamo.config.patch(recompile_limit=8):
        model.compile_parts()
        model.language_model_loss = model_original.language_model_loss
        model.ngram_table._compiled_call_impl = None  # neither is turned into kernels
        model(ids, labels=ids, return_logits=False).loss.backward()
    assert len(model.stretches) == len(traced) == len(kinds) == 12


@pytest.mark.slow
def test_evaluation_caches_and_hidden_states_go_block_by_block(compiled):
    model, calls = compiled
    ids = torch.randint(3, 61, (2, 16))
    assert len(model(ids, labels=ids, output_hidden_states=True).hidden_states) == 7
    model(ids, use_cache=True)
    model.eval()(ids)
    assert not calls
    model.train()(ids)
    assert calls == [2, 2, 2]


@pytest.mark.parametrize(
    "design",
    [
        PLAIN,
        {**PLAIN, "ffn_activation": "relu2", "qk_norm": True},
        {**PLAIN, "use_moe": True},
        {**MEMORY, "memory_layers": [0]},
        {"keep_ffn": True},
    ],
    ids=str,
)
def test_a_gain_in_the_weights_is_the_gain_of_the_norm(design):
    model, ids = tiny_model(**design, n_layers=1), torch.randint(3, 61, (2, 16))
    (block,) = model.blocks
    with torch.no_grad():
        for name, parameter in block.named_parameters():
            if name.endswith("norm.weight"):
                parameter.uniform_(0.5, 2.0)
    x_BTD, context = model.begin(ids, None, None, None, None, None, None)
    outs = [block.forward(x_BTD, context, fold)[0] for fold in (False, True)]
    torch.testing.assert_close(*outs)
    gradients = [torch.autograd.grad(out.square().sum(), list(block.parameters()), retain_graph=True) for out in outs]
    for (name, _), plain, folded in zip(block.named_parameters(), *gradients, strict=True):
        torch.testing.assert_close(folded, plain, rtol=1e-3, atol=1e-4, msg=name)
        assert plain.any() and (not torch.equal(folded, plain) or "norm" not in name)


@torch.no_grad()
def test_queries_and_logits_of_nothing_are_those_of_their_own_projections():
    fusion = tiny_model(**MEMORY | {"memory_layers": [1]}).blocks[1].fusion
    fusion.nothing.weight.normal_()
    x_BTD, gain_D = torch.randn(2, 5, 32), torch.rand(32)
    for gain, scaled_BTD in ((None, x_BTD), (gain_D, gain_D * x_BTD)):
        query_XR, nothing_XGY = fusion.ask(x_BTD, gain)
        torch.testing.assert_close(query_XR, fusion.q_proj(scaled_BTD).flatten(0, 1))
        torch.testing.assert_close(nothing_XGY.flatten(1), fusion.nothing(scaled_BTD).flatten(0, 1))


def test_only_models_with_residual_scalars_are_compiled_in_stretches():
    for scalars in (False, True):
        model = tiny_model(**PLAIN, n_layers=2, residual_scalars=scalars)
        assert not model.stretches
        model.compile_parts()
        assert [len(stretch) for stretch in model.stretches] == ([2] if scalars else [])
