"""MFU counts the matrices that a token passes through, and is absent where no peak is known."""

from types import SimpleNamespace

import pytest
import torch

from tests.conftest import tiny_model
from trainer.flops import PEAKS, flops_per_token, mfu_per_speed, peak_flops
from trainer.meters import Meter

ATTENTION = 12 * 2 * 32 * 32  # layers, positions, width of the tiny model


def matrices(model) -> int:
    return sum(p.numel() for p in model.parameters() if p.ndim > 1)


def test_every_matrix_of_a_plain_model_counts_once():
    model = tiny_model(model_type="model_original")
    assert flops_per_token(model) == 6 * matrices(model) + ATTENTION
    untied = tiny_model(model_type="model_original", tie_embeddings=False)
    assert flops_per_token(untied) == flops_per_token(model)


def test_tables_and_experts_that_a_token_does_not_use_count_nothing():
    table = tiny_model(model_type="model_original", ngram_table_rows=50, ngram_table_layers=[1])
    larger = tiny_model(model_type="model_original", ngram_table_rows=500, ngram_table_layers=[1])
    assert flops_per_token(table) == flops_per_token(larger)
    two, four = (tiny_model(model_type="model_original", use_moe=True, n_experts_per_tok=n) for n in (2, 4))
    routed = sum(p.numel() for name, p in four.named_parameters() if ".experts." in name)
    assert flops_per_token(four) == 6 * matrices(four) + ATTENTION
    assert flops_per_token(four) - flops_per_token(two) == 6 * routed / 2
    assert flops_per_token(tiny_model(knowledge_num=100)) > flops_per_token(tiny_model())  # more sub-keys


def test_a_cpu_float32_and_an_unknown_gpu_have_no_mfu(monkeypatch):
    on = {"cpu": torch.device("cpu"), "cuda": torch.device("cuda")}
    assert peak_flops(on["cpu"], "bfloat16") is None and peak_flops(on["cuda"], "float32") is None
    for name, peak in (("NVIDIA H100 80GB HBM3", 989e12), ("NVIDIA H100 PCIe", 756e12), ("NVIDIA L40", None),
                       ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
                       ("NVIDIA GeForce RTX 4090", 165.2e12)):  # fmt: skip
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device, name=name: name)
        assert peak_flops(on["cuda"], "bfloat16") == peak


@pytest.mark.parametrize("n", [1, 2])
def test_the_mfu_is_that_of_all_processes(monkeypatch, n):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H200")
    model = tiny_model()
    factor = mfu_per_speed(model, SimpleNamespace(device=torch.device("cuda"), num_processes=n), "bfloat16")
    speed = PEAKS["H200"] / flops_per_token(model)  # one GPU that does nothing else
    assert factor * speed == pytest.approx(1 / n)


@pytest.mark.parametrize("factor", [None, 2e-6])
def test_a_log_line_has_the_mfu_of_its_speed(factor):
    state = SimpleNamespace(
        total_steps=1, step=1, tokens_per_step=10, skipped=0, skipped_at_log=0, loss_steps=1, loss_sum=1.0, epoch=0.1,
        start_interval=lambda: None,
    )  # fmt: skip
    meter = Meter(state, SimpleNamespace(is_main_process=False), lambda metrics: "", factor)
    meter.add(SimpleNamespace(grad_norm=1.0, lr=0.1, aux_losses={}, time_shares={}))
    line = meter.read()
    assert ("mfu" in line) == (factor is not None)
    assert factor is None or line["mfu"] == pytest.approx(factor * line["tokens_per_s"])
