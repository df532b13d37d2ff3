"""Optimizer steps as the training script makes them, replayed from CUDA graphs and not."""

from contextlib import nullcontext

import pytest
import torch

from tests.conftest import tiny_model
from tests.model.variants import RECIPE
from trainer.config import OptimConfig
from trainer.optim import make_optimizer
from trainer.step import EAGER_CALLS, MicroStep, step_if_finite

DESIGNS = {
    "1.4.8": {},
    "token scope": {"fusion_scope": "token"},
    "gated MLP": {"fusion": "gated_mlp"},
    "taught words": {
        "fusion": "words",
        "keep_ffn": True,
        "retrieval_loss_coef": 0.3,
        "ngram_lengths": [1, 2],
        "teacher_forcing": 1.0,
    },
    "suffixes": {"retrieval": "suffix", "fusion": "continuations", "keep_ffn": True, "suffix_length": 3},
    "words in every second row": {
        "retrieval": "bm25",
        "fusion": "coverage",
        "token_places": True,
        "pointer": True,
        "keep_ffn": True,
        "memory_every": 2,
    },
    "plain": {"model_type": "model_original"},
}
RECIPE_1_6 = {"model_type": "model_original", **RECIPE, "value_embeddings": None, "tie_embeddings": True}
WEIGHTS = (0.2, 0.3, 0.5)  # of the micro-batches of a step
ONE = (1.0,)
BAD_STEP = 4


def batch_of(generator: torch.Generator, device) -> dict[str, torch.Tensor]:
    """Rows of few different tokens, which differ from batch to batch: a loss of another batch is far off."""
    first = int(torch.randint(3, 50, (), generator=generator))
    ids = torch.randint(first, first + 8, (2, 128), generator=generator)
    document_ids = (torch.arange(128) // 50).expand(2, -1).contiguous()
    batch = {"input_ids": ids, "labels": ids.clone(), "document_ids": document_ids}
    return {name: value.to(device) for name, value in batch.items()}


def train(
    design: dict, device: str, graphed=False, compiled=False, dtype=torch.float32, validates=True, weights=WEIGHTS
):
    """(weighted losses and gradient norms of each step but the bad one, steps skipped, validation losses)."""
    torch._dynamo.reset()
    # Compiled attention needs heads at least 16 wide. No dropout: a replay draws other numbers.
    sizes = {"dim": 64, "max_seq_len": 128, "dropout": 0.0, "attention_dropout": 0.0, "fusion_dropout": 0.0}
    model = tiny_model(**sizes, **design).to(device).train()
    optimizer = make_optimizer(model, OptimConfig(learning_rate=3e-3), torch.device(device))
    optimizer.optimizer = optimizer  # step_if_finite expects accelerate's wrapper
    skipped = torch.zeros((), device=device)
    if compiled:
        model.compile_parts()

    def forward(batch):
        with torch.autocast(device, torch.bfloat16, enabled=dtype == torch.bfloat16):
            return model(**batch, return_logits=False)

    stores = len(weights) == 1
    micro_step = MicroStep(forward, lambda loss: loss.backward(), model.refresh, graphed, stores)
    generator, steps, validation, given = torch.Generator().manual_seed(1), [], [], []
    held_out = batch_of(generator, device)
    for step in range(EAGER_CALLS + 6):
        loss = torch.zeros((), device=device)
        for share in weights:
            weight = torch.tensor(float("nan") if step == BAD_STEP else share, device=device)
            batch = batch_of(generator, device)
            if model.settings.searches_text:  # as the loop does, ahead of the step
                batch |= model.search_text(**batch)
            given.append((batch, {name: value.clone() for name, value in batch.items()}))
            out = micro_step(batch, weight, 1 / len(weights), lambda part: nullcontext())
            loss += out.lm_loss.detach() * weight
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        skipped += step_if_finite(optimizer, loss, norm)
        micro_step.clear_gradients(optimizer)
        if step != BAD_STEP:
            steps.append([float(loss), float(norm)])
        if validates:
            model.eval()
            with torch.no_grad():
                validation.append(float(forward(held_out).lm_loss))
            model.train()
    for batch, as_given in given:
        assert all(torch.equal(batch[name], value) for name, value in as_given.items())
    return torch.tensor(steps), int(skipped), torch.tensor(validation)


@pytest.mark.parametrize(
    "design",
    [pytest.param(d, marks=pytest.mark.slow) if d in ("token scope", "gated MLP") else d for d in DESIGNS],
)
def test_a_validation_pass_and_a_skipped_step_leave_training_as_it_is(design):
    steps, skipped, validation = train(DESIGNS[design], "cpu")
    alone, _, _ = train(DESIGNS[design], "cpu", validates=False)
    assert torch.equal(steps, alone) and steps.isfinite().all()
    assert skipped == 1 and validation[BAD_STEP] == validation[BAD_STEP - 1] != validation[BAD_STEP + 1]


@pytest.mark.parametrize(
    "stores, graphed, captured, left",
    [(True, True, True, 1.0), (True, True, False, None), (False, True, True, 0.0), (False, False, False, None)],
)
def test_gradients_that_a_replay_overwrites_stay_and_others_are_cleared(stores, graphed, captured, left):
    parameter = torch.nn.Parameter(torch.ones(()))
    parameter.grad = torch.ones(())
    micro_step = MicroStep(None, None, None, graphed=False, stores=stores)
    micro_step.graphed, micro_step.graphs = graphed, ("forward", "backward") if captured else None
    micro_step.clear_gradients(torch.optim.SGD([parameter]))
    assert (None if parameter.grad is None else float(parameter.grad)) == left


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype, rtol", [(torch.float32, 1e-2), (torch.bfloat16, 5e-2)], ids=["float32", "bfloat16"])
@pytest.mark.parametrize(
    "design, weights",
    [*((design, WEIGHTS) for design in DESIGNS.values()), (DESIGNS["1.4.8"], ONE), (RECIPE_1_6, ONE)],
    ids=[*DESIGNS, "1.4.8, one micro-batch", "recipe, one micro-batch"],
)
def test_replayed_steps_equal_eager_ones(design, weights, dtype, rtol):
    """Both are the same compiled kernels, but sums by atomics come in any order, and AdamW, whose first steps are
    as long for a small gradient as for a large one, spreads that. Another batch's loss is off by far more."""
    replayed, eager = (
        train(design, "cuda", graphed=graphed, compiled=True, dtype=dtype, weights=weights) for graphed in (True, False)
    )
    assert replayed[1] == eager[1] == 1
    torch.testing.assert_close(replayed[0][:, 0], eager[0][:, 0], rtol=rtol, atol=0)
    torch.testing.assert_close(replayed[0][:, 1], eager[0][:, 1], rtol=4 * rtol, atol=0)
    torch.testing.assert_close(replayed[2], eager[2], rtol=rtol, atol=0)
