"""A published product-key layer against the memory block of 1.4.8: forward and backward.

pip install product-key-memory
python -m benchmark.peers
python -m benchmark.peers --batch_size 2 --seq_len 32 --dim 64 --knowledge_num 256 --repeats 2 --no_compile

Both take the same states (batch_size, seq_len, dim) under bf16 autocast (float32 on a CPU), norm them, find the best 16
of the same grid, and return what is added to the stream. Gradients go to the states and to every parameter.
The peer is Phil Wang's PKM: with one head over the whole width, as in our block, and with its default of four heads of
128. It sums trainable vectors of width dim, one an entry, whose gradient is dense. Our block reads the texts of 4
entries a position and attends to those of all earlier positions of the document; its balance loss is included.
Three ways to run: eager, compiled, and replayed as a CUDA graph, as in training. ratio: median time of this layer over
that of our block, run in the same way.
"""

import gc
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn

from common.cli import run_command
from model import build_model
from model.config import ModelConfig
from model.visibility import Visibility

from .harness import Cases, make_parser, poison, quartiles, script_config, set_up, sizes_of, timings_ms

OURS = "memory block of 1.4.8"


class OurMemory(nn.Module):
    """The memory half of a block, without its self-attention: norm, query, retrieve, select, read, fuse.

    As in training, the mask and the table of embeddings are made outside the compiled part.
    """

    def __init__(self, config: ModelConfig, compiled: bool, batch_size: int, device: torch.device):
        super().__init__()
        self.model = build_model(replace(config, n_layers=1)).to(device).train()
        self.block = self.model.blocks[0]
        T = config.max_seq_len
        nobody = torch.zeros(batch_size, T, dtype=torch.int64, device=device)
        document_BT = (torch.arange(T, device=device) * 4 // T).expand(batch_size, T).contiguous()
        visible = Visibility(0, T, document_BT, device)
        self.context = self.model.make_context(
            nobody, None, None, None, visible=visible, cache=None, cos_T1E=None, sin_T1E=None, attention_mask=None,
            needs_losses=True, token_BT=nobody, embedded_BTD=None, ngram_BTU=None,
        )  # fmt: skip
        self.read = torch.compile(self.norm_and_read) if compiled else self.norm_and_read

    def norm_and_read(self, x_BTD: Tensor, context) -> tuple[Tensor, dict[str, Tensor]]:
        m_BTD = self.block.memory_norm(x_BTD)
        found, aux = self.block.retrieval(m_BTD, context)
        return self.block.fusion(m_BTD, found, context)[0], aux

    def forward(self, x_BTD: Tensor) -> list[Tensor]:
        embedding_VD = self.model.embedding.weight
        if torch.is_autocast_enabled(x_BTD.device.type):
            embedding_VD = embedding_VD.to(torch.get_autocast_dtype(x_BTD.device.type))
        memory_BTD, aux = self.read(x_BTD, replace(self.context, embedding_VD=embedding_VD))
        return [memory_BTD, *aux.values()]


class Peer(nn.Module):
    """A product-key memory of another package, as a layer."""

    def __init__(self, config: ModelConfig, compiled: bool, device: torch.device, **heads):
        super().__init__()
        # An optional dependency.
        from product_key_memory import PKM

        layer = PKM(config.dim, num_keys=config.grid_side, topk=config.num_candidates, pre_layernorm=True, **heads)
        # Its table is float32 and takes no other weights; under autocast its gate gives bfloat16.
        layer.attn_dropout.register_forward_hook(lambda module, inputs, weight: weight.float())
        self.layer = layer.to(device).train()
        self.read = torch.compile(self.layer) if compiled else self.layer

    def forward(self, x_BTD: Tensor) -> list[Tensor]:
        return [self.read(x_BTD)]


def call(layer: nn.Module, grad_BTD: Tensor, x_BTD: Tensor) -> tuple[Tensor, Tensor]:
    """Forward and backward; the output and the gradient of the states."""
    x_BTD.grad = None
    layer.zero_grad(set_to_none=True)
    with torch.autocast(x_BTD.device.type, torch.bfloat16, enabled=x_BTD.is_cuda):
        out_BTD, *losses = layer(x_BTD)
    torch.autograd.backward([out_BTD, *losses], [grad_BTD.to(out_BTD.dtype), *(None for _ in losses)])
    return out_BTD.detach(), x_BTD.grad


def as_graph(layer: nn.Module, grad_BTD: Tensor, x_BTD: Tensor):
    """`call` captured once: a function of the states that replays it."""
    state_BTD = x_BTD.detach().clone().requires_grad_()
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            call(layer, grad_BTD, state_BTD)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        written = call(layer, grad_BTD, state_BTD)

    def replay(x_BTD: Tensor) -> tuple[Tensor, Tensor]:
        state_BTD.detach().copy_(x_BTD.detach())
        graph.replay()
        return written

    return replay


def measure(
    make_layer, graphed: bool, states: list[Tensor], grad_BTD: Tensor, repeats: int, device: torch.device
) -> dict:
    """Build one layer, check what it writes, and time it."""
    gc.collect()  # a compiled layer refers to itself; else the one before goes at any time, and the peak with it
    before = torch.cuda.memory_allocated() if device.type == "cuda" else 0
    torch.manual_seed(0)
    layer = make_layer()
    poison(device)
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()  # before a capture: a replay allocates nothing
    run = as_graph(layer, grad_BTD, states[0]) if graphed else partial(call, layer, grad_BTD)
    for written in run(states[0]):
        if not written.isfinite().all():
            raise ValueError("its output or gradient holds NaN or infinity")
    times = timings_ms(run, states, repeats, device)
    peak = torch.cuda.max_memory_allocated() - before if device.type == "cuda" else 0
    low, middle, high = quartiles(times)
    parameters = {id(p): p.numel() for p in layer.parameters() if p.grad is not None}
    return {
        "ms": middle, "ms_quartiles": [low, high], "peak_gib": peak / 2**30, "steps": len(times),
        "trained_parameters": sum(parameters.values()),
    }  # fmt: skip


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--batch_size", type=int, default=48)
    parser.add_argument("--knowledge_num", type=int)
    args = parser.parse_args()
    try:
        import product_key_memory  # noqa: F401
    except ImportError as problem:
        raise ValueError(
            f"this needs the package product-key-memory ({problem}): pip install product-key-memory"
        ) from None
    device = set_up()
    cases = Cases("peers", args, device)
    config = script_config("1_4_8", knowledge_num=args.knowledge_num, **sizes_of(args))

    states = [torch.randn(args.batch_size, args.seq_len, config.dim, device=device) for _ in range(4)]
    states = [state.requires_grad_() for state in states]
    grad_BTD = torch.randn_like(states[0]).detach()
    ways = ["eager"] if args.no_compile else ["eager", "compiled"]
    if device.type == "cuda" and not args.no_compile:
        ways.append("replayed")
    for way in ways:
        compiled, graphed = way != "eager", way == "replayed"
        layers = {
            OURS: partial(OurMemory, config, compiled, args.batch_size, device),
            "PKM, 1 head": partial(Peer, config, compiled, device, heads=1, dim_head=config.dim // 2),
            "PKM, 4 heads": partial(Peer, config, compiled, device, heads=4),
        }
        ours_ms = None
        for name, make_layer in layers.items():
            case = {"layer": name, "run": way}
            timed = partial(measure, make_layer, graphed, states, grad_BTD, args.repeats, device)
            measured = cases.attempt(case, timed)
            if measured is None:
                continue
            if name == OURS:
                ours_ms = measured["ms"]
            ratio = measured["ms"] / ours_ms if ours_ms else None
            shape = {"batch_size": args.batch_size, "seq_len": args.seq_len, "dim": config.dim}
            cases.add(case, **measured, ratio_to_ours=ratio, knowledge_num=config.knowledge_num, **shape)
    columns = {"layer": "", "run": "", "ms": ".2f", "ratio_to_ours": ".2f", "peak_gib": ".2f"}
    print(cases.table(columns | {"trained_parameters": ",d"}))


if __name__ == "__main__":
    run_command(main)
