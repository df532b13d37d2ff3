"""How much of a GPU's arithmetic a training uses: model-FLOP utilisation, MFU.

Source: Chowdhery et al. 2022, arXiv:2204.02311, appendix B.

FLOPs a token, forward and backward: 6 N + 12 L T D. N counts each matrix that a token passes through: projections,
feed-forward, the experts that a token uses, sub-keys, the output layer. Tables that are looked up count nothing: token
and value embeddings, the n-gram table, vectors of words, the bank. 12 L T D is attention to all T positions, though a
causal one needs half. What is done for each entry that is read, or again in the backward pass, is not counted. So the
figure compares one model on several machines; between models it is a lower bound.
"""

import re

import torch

# Dense FLOP/s of one GPU with bf16 or fp16 inputs and float32 sums, without sparsity, by a part of its name. Sources:
# NVIDIA's data sheets of A10, A100, L4, L40S, H100, H200 and B200, and the white papers of GA102, Ada and Blackwell.
# A longer name stands before its beginning.
PEAKS = {
    "H100 PCIe": 756e12, "H100 NVL": 835e12, "H100": 989e12, "H200": 989e12, "B200": 2250e12, "A100": 312e12,
    "L40S": 362e12, "L4": 121e12, "A10": 125e12, "RTX 5090": 209.5e12, "RTX 4090": 165.2e12, "RTX 3090": 71e12,
}  # fmt: skip
LOOKED_UP = ("embedding.weight", "ngram_table.rows.weight", "finder.vectors.weight")


def flops_per_token(model) -> float:
    """See the module's docstring; `model` is a `Transformer`, not wrapped."""
    config, matrices = model.settings, 0.0
    for name, parameter in model.named_parameters():
        if parameter.ndim < 2 or name.endswith(LOOKED_UP):
            continue
        is_routed = ".experts." in name
        matrices += parameter.numel() * (config.n_experts_per_tok / config.n_experts if is_routed else 1.0)
    if config.tie_embeddings:
        matrices += config.vocab_size * config.dim  # the output layer
    return 6 * matrices + 12 * config.n_layers * config.max_seq_len * config.dim


def peak_flops(device: torch.device, dtype: str) -> float | None:
    """The dense FLOP/s of a device in a precision; None on a CPU, in float32, and where they are not known."""
    if device.type != "cuda" or dtype == "float32":
        return None
    name = torch.cuda.get_device_name(device)
    if re.search(r"Laptop| D\b", name):  # another chip of the same name
        return None
    return next((peak for known, peak in PEAKS.items() if re.search(rf"\b{known}\b", name)), None)


def mfu_per_speed(model, accelerator, dtype: str) -> float | None:
    """What a speed in tokens/s over all processes is multiplied by to give the MFU; None where no peak is known."""
    peak = peak_flops(accelerator.device, dtype)
    return flops_per_token(model) / (peak * accelerator.num_processes) if peak else None
