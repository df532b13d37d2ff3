"""Full training steps of several models, in one process and the same run.

python -m benchmark.step                                   # the record's size; needs a GPU
python -m benchmark.step --experiments 1_4_0 1_5_0 --batch_size 2 --seq_len 64 --knowledge_num 4096 --steps 2

A step is forward, backward, clipping and AdamW on one micro-batch of packed documents. Each model takes turns with the
plain one, a few steps each, so that a drift of the machine's speed meets both; ratio_to_plain is of these turns.
Tokens are random, as frequent as words are, up to a third of them from entries. The most telling models come first, and
the table says which were left out for time.
`--batch_sizes 48 96 192` adds the plain model at these batch sizes, with `--n_heads 8` at 8 heads: its best MFU.

MFU, the field's standard (Chowdhery et al. 2022, arXiv:2204.02311, appendix B): FLOPs of a plain model of the same
sizes, 6 N + 12 L T D a token, over the time and the GPU's dense bf16 peak (989 TFLOP/s for H100 and H200, no figure for
others). N: parameters of the matrix products, the output layer's included; the table of embeddings, which is looked up,
has none. 12 L T D: attention to all T positions, though a causal one needs half. What another model does instead or
besides is not counted: its figure says how much of the machine is left for that.
"""

import argparse
import gc
import sys
import time
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity

from model import build_model
from model.config import ModelConfig
from trainer.config import OptimConfig
from trainer.optim import make_optimizer
from trainer.step import EAGER_CALLS, MicroStep, graphable

from .harness import Cases, peaks, quartiles, random_bank, random_tokens, script_config, set_up, timed_ms
from .reference import build_naive

TWIN_PAIRS = [
    ("fast float32", "naive float32"), ("fast float32", "eager float32"), ("eager float32", "naive float32"),
    ("fast bf16", "naive bf16"), ("fast bf16", "fast float32"), ("naive bf16", "naive float32"),
]  # fmt: skip
EXPERIMENTS = ["1_4_0", "1_5_2", "1_4_8", "1_4_7", "1_5_0", "1_4_10"]  # the most telling first


@dataclass
class Subject:
    """One model under test."""

    name: str
    config: ModelConfig
    naive: bool = False
    compiled: bool = True
    batch_size: int = 48
    batches: list[dict] = field(default_factory=list)
    model: torch.nn.Module | None = None
    optimizer: object = None
    micro_step: MicroStep | None = None
    parameters: int = 0
    first_step_s: float = 0.0
    peak_gib: float = 0.0
    step_ms: list[float] = field(default_factory=list)


def make_batches(config: ModelConfig, bank_NL: torch.Tensor, batch_size: int, n: int, device) -> list[dict]:
    """Random rows of four documents; every third stretch of L tokens is an entry of the bank."""
    T, L, batches = config.max_seq_len, bank_NL.shape[1], []
    generator = torch.Generator().manual_seed(0)
    for _ in range(n):
        ids = random_tokens((batch_size, T), config.vocab_size, generator)
        for place in range(0, T - L, 3 * L):
            entry_BL = bank_NL[torch.randint(len(bank_NL), (batch_size,), generator=generator)].long()
            ids[:, place : place + L] = torch.where(entry_BL > 0, entry_BL, ids[:, place : place + L])
        document_ids = (torch.arange(T) * 4 // T).expand(batch_size, T).contiguous()
        batch = {"input_ids": ids, "labels": ids.clone(), "document_ids": document_ids}
        batches.append({name: value.to(device) for name, value in batch.items()})
    return batches


def flops_per_token(config: ModelConfig) -> float:
    """See the module's docstring."""
    D, kv_width = config.dim, config.kv_heads * config.head_dim
    block = 2 * D * D + 2 * D * kv_width + (3 if config.ffn_activation == "swiglu" else 2) * D * config.hidden_dim
    matrices = config.n_layers * block + config.vocab_size * D
    return 6 * matrices + 12 * config.n_layers * config.max_seq_len * D


def train_step(subject: Subject, batch: dict, device) -> torch.Tensor:
    out = subject.micro_step(batch, torch.ones((), device=device), 1.0, lambda part: nullcontext())
    torch.nn.utils.clip_grad_norm_(subject.model.parameters(), 1.0)
    subject.optimizer.step()
    torch.autograd.graph.increment_version(subject.model.parameters())  # as StepGuard does
    subject.optimizer.zero_grad(set_to_none=False)
    return out.lm_loss.detach().clone()


def make_micro_step(subject: Subject, device, dtype: torch.dtype) -> MicroStep:
    """As the training loop makes it; a model that is not compiled is measured without graphs too."""

    def forward(batch: dict):
        with torch.autocast(device.type, torch.bfloat16, enabled=dtype == torch.bfloat16):
            return subject.model(**batch, return_logits=False)

    graphed = graphable(subject.config, device, 1, "bfloat16", subject.compiled) is None
    return MicroStep(forward, lambda loss: loss.backward(), subject.model.refresh, graphed)


def prepare(subject: Subject, bank_NL: torch.Tensor, batch: dict, device, dtype=torch.bfloat16) -> None:
    """Build, compile, and make the first step."""
    torch.manual_seed(0)
    build = build_naive if subject.naive else build_model
    subject.model = build(subject.config, bank_NL if subject.config.reads_bank else None).to(device).train()
    subject.optimizer = make_optimizer(subject.model, OptimConfig(learning_rate=1e-4), device)
    if subject.compiled:
        subject.model.compile_parts()
    subject.micro_step = make_micro_step(subject, device, dtype)
    subject.parameters = sum(p.numel() for p in subject.model.parameters())
    begin = time.perf_counter()
    float(train_step(subject, batch, device))
    subject.first_step_s = time.perf_counter() - begin


def take_turn(subject: Subject, batches: list[dict], n: int, device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        others = torch.cuda.memory_allocated() - resident_bytes(subject)
    for step in range(n):
        batch = batches[(len(subject.step_ms) + step) % len(batches)]
        subject.step_ms.append(timed_ms(lambda batch=batch: train_step(subject, batch, device), device))
    if device.type == "cuda":
        subject.peak_gib = max(subject.peak_gib, (torch.cuda.max_memory_allocated() - others) / 2**30)


def resident_bytes(subject: Subject) -> int:
    """What a model keeps between steps: parameters, buffers, gradients, and the optimizer's state."""
    state = [
        value for values in subject.optimizer.state.values() for value in values.values() if torch.is_tensor(value)
    ]
    gradients = [p.grad for p in subject.model.parameters() if p.grad is not None]
    kept = [*subject.model.parameters(), *subject.model.buffers(), *gradients, *state]
    return sum(x.numel() * x.element_size() for x in kept)


def release(*subjects: Subject) -> None:
    """Give the memory of measured models back."""
    for subject in subjects:
        subject.model = subject.optimizer = subject.micro_step = None
        subject.batches = []
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def start(subject: Subject, bank_NL: torch.Tensor, device) -> None:
    """Build a model and take it past compilation and capture."""
    subject.batches = make_batches(subject.config, bank_NL, subject.batch_size, 4, device)
    prepare(subject, bank_NL, subject.batches[0], device)
    take_turn(subject, subject.batches, EAGER_CALLS + 2, device)
    subject.step_ms = []  # the peak is that of the warm-up: a replay allocates nothing


def measure(subject: Subject, plain: Subject, bank_NL: torch.Tensor, steps: int, turn: int, device, profile_path=None):
    """Start one model and let it take turns with the plain one, which stays; only those two hold memory at a time."""
    if plain.micro_step is None:
        raise RuntimeError("the plain model has failed, so there is no ratio")
    try:
        if subject is not plain:
            start(subject, bank_NL, device)
        plain.step_ms = []
        while (done := len(subject.step_ms)) < steps:
            for model in (plain, subject) if subject is not plain else (plain,):
                take_turn(model, model.batches, min(turn, steps - done), device)
        measured = numbers(subject, plain)
        if profile_path:
            with open(profile_path, "a") as file:
                file.write(profile(subject, device))
        return measured
    finally:
        if subject is not plain:
            release(subject)


def profile(subject: Subject, device, n_steps: int = 3, n_kernels: int = 25) -> str:
    """The kernels (on a CPU the operations) that a step spends most time in, one a line: ms a step, calls a step."""
    on_gpu = device.type == "cuda"
    kinds = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    with torch.profiler.profile(activities=kinds) as profiler:
        for batch in subject.batches[:n_steps]:
            train_step(subject, batch, device)
        if on_gpu:
            torch.cuda.synchronize()
    wanted = DeviceType.CUDA if on_gpu else DeviceType.CPU
    spent = {}
    for event in profiler.key_averages():
        if event.device_type == wanted:
            ms, calls = spent.get(event.key, (0.0, 0))
            time_us = event.self_device_time_total if on_gpu else event.self_cpu_time_total
            spent[event.key] = (ms + time_us / 1000, calls + event.count)
    lines = [f"{subject.name}: {sum(ms for ms, _ in spent.values()) / n_steps:.2f} ms a step in all"]
    for name, (ms, calls) in sorted(spent.items(), key=lambda item: -item[1][0])[:n_kernels]:
        lines.append(f"{ms / n_steps:10.3f} ms {calls / n_steps:8.1f} x  {name[:100]}")
    return "\n".join(lines) + "\n\n"


def numbers(subject: Subject, plain: Subject) -> dict:
    T, known = subject.config.max_seq_len, peaks()
    low, middle, high = quartiles(subject.step_ms)
    speed, plain_speed = (
        1000 * s.batch_size * T / quartiles(s.step_ms)[1] if s.step_ms else None for s in (subject, plain)
    )
    return {
        "tokens_per_s": speed, "step_ms": middle, "step_ms_quartiles": [low, high],
        "ratio_to_plain": speed / plain_speed if plain_speed else None, "peak_gib": subject.peak_gib,
        "mfu": flops_per_token(subject.config) * speed / known[0] if known else None,
        "first_step_s": subject.first_step_s, "parameters": subject.parameters, "steps": len(subject.step_ms),
    }  # fmt: skip


def losses_of(subject: Subject, weights: dict, bank_NL: torch.Tensor, steps: int, device, dtype) -> list[float]:
    """The losses of `steps` steps from `weights`, on the same batches for every model."""
    subject.batches = make_batches(subject.config, bank_NL, subject.batch_size, 4, device)
    prepare(subject, bank_NL, subject.batches[0], device, dtype)
    subject.model.load_state_dict(weights)
    subject.optimizer = make_optimizer(subject.model, OptimConfig(learning_rate=1e-3), device)
    losses = [float(train_step(subject, subject.batches[i % 4], device)) for i in range(steps)]
    release(subject)
    return losses


def compare_twins(
    quiet: ModelConfig, bank_NL: torch.Tensor, compiled: bool, batch_size: int, steps: int, device
) -> dict:
    """How far apart the losses of 1.4.8 and its naive twin are in float32 and in bf16, and as the scale of the latter
    how far each is in bf16 from itself in float32.

    Same weights, same batches, no dropout; the naive twin runs eagerly. `eager` is the fast model without compilation
    and without a captured step.
    """
    dense = replace(quiet, use_flash_attn=False)
    torch.manual_seed(0)
    weights = build_model(quiet, bank_NL).state_dict()
    losses = {}
    for precision, dtype in (("bf16", torch.bfloat16), ("float32", torch.float32)):
        for twin, config in (("fast", quiet), ("eager", quiet), ("naive", dense)):
            if twin == "eager" and not compiled:
                continue  # as fast is then
            how = {"naive": twin == "naive", "compiled": compiled and twin == "fast"}
            subject = Subject(twin, config, batch_size=batch_size, **how)
            losses[f"{twin} {precision}"] = losses_of(subject, weights, bank_NL, steps, device, dtype)
    row = {"twin_steps": steps, "batch_size": batch_size, "losses": losses, "apart_max": {}, "apart_mean": {}}
    for pair in TWIN_PAIRS:
        if not losses.keys() >= set(pair):
            continue
        apart = [abs(a - b) for a, b in zip(*(losses[name] for name in pair), strict=True)]
        row["apart_max"][" - ".join(pair)], row["apart_mean"][" - ".join(pair)] = max(apart), sum(apart) / len(apart)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--experiments", nargs="+", default=EXPERIMENTS, help="scripts of run_file/; the first is plain"
    )
    parser.add_argument("--naive", nargs="*", default=[], choices=["eager", "compiled"], help="the naive twin of 1.4.8")
    parser.add_argument("--twin_steps", type=int, default=0, help="train 1.4.8 and its twin so long and compare losses")
    parser.add_argument(
        "--twin_batch_size", type=int, default=16, help="of that; the twin in float32 takes 2.5 GiB a row of 512"
    )
    parser.add_argument("--batch_size", type=int, default=48)
    parser.add_argument("--batch_sizes", nargs="*", type=int, default=[], help="the plain model at these sizes as well")
    parser.add_argument("--seq_len", type=int, default=512)
    parser.add_argument("--n_heads", type=int, help="instead of the experiments' own")
    parser.add_argument("--fusion_scope", choices=["sequence", "token"], help="instead of the experiments' own")
    parser.add_argument("--knowledge_num", type=int)
    parser.add_argument("--dim", type=int)
    parser.add_argument("--n_layers", type=int)
    parser.add_argument("--steps", type=int, default=24, help="timed steps of each model")
    parser.add_argument("--turn", type=int, default=6, help="steps that a model makes before the plain one's turn")
    parser.add_argument("--seconds", type=float, default=540, help="no case begins after so long")
    parser.add_argument("--no_compile", action="store_true")
    parser.add_argument("--out", type=Path, help="append the rows to this JSON Lines file")
    parser.add_argument("--profile", type=Path, help="append each model's most expensive kernels to this text file")
    args = parser.parse_args()

    device = set_up()
    cases = Cases("step", args, device)
    sizes = {
        "max_seq_len": args.seq_len, "n_heads": args.n_heads, "knowledge_num": args.knowledge_num, "dim": args.dim,
        "n_layers": args.n_layers, "fusion_scope": args.fusion_scope,
    }  # fmt: skip
    new = partial(Subject, compiled=not args.no_compile, batch_size=args.batch_size)
    subjects = [new(name, script_config(name, **sizes)) for name in args.experiments]
    plain = subjects[0]
    quiet = replace(script_config("1_4_8", **sizes), attention_dropout=0.0, fusion_dropout=0.0)
    dense = replace(quiet, use_flash_attn=False)
    subjects += [new(f"1_4_8 naive, {how}", dense, naive=True, compiled=how == "compiled") for how in args.naive]
    subjects += [new(f"{plain.name}, batch {n}", plain.config, batch_size=n) for n in args.batch_sizes]

    rest = (args.steps, args.turn, device, args.profile)
    banks = {}

    def bank_of(config: ModelConfig) -> torch.Tensor:
        shape = (config.knowledge_num, config.knowledge_length)
        if shape not in banks:
            banks[shape] = random_bank(config)
        return banks[shape]

    for subject in subjects:
        case = {
            "model": subject.name, "compiled": subject.compiled, "batch_size": subject.batch_size,
            "seq_len": subject.config.max_seq_len, "n_heads": subject.config.n_heads,
            "fusion_scope": subject.config.fusion_scope if subject.config.reads_bank else None,
        }  # fmt: skip
        bank_NL = bank_of(subject.config)
        if subject is plain:
            cases.attempt(case, partial(start, plain, bank_NL, device))
            if cases.rows:
                continue
        measured = cases.attempt(case, partial(measure, subject, plain, bank_NL, *rest))
        if measured is not None:
            cases.add(case, **measured)
    release(plain)
    columns = {"model": "", "tokens_per_s": ",.0f", "step_ms": ".2f", "ratio_to_plain": ".3f", "peak_gib": ".2f"}
    print(cases.table(columns | {"mfu": ".1%", "first_step_s": ".1f"}))

    if args.twin_steps:
        case = {"model": "1_4_8 and its naive twin"}
        apart = cases.attempt(
            case,
            partial(
                compare_twins, quiet, bank_of(quiet), plain.compiled, args.twin_batch_size, args.twin_steps, device
            ),
        )
        if apart is not None:
            cases.add(case, **apart)
            print(f"losses of 1.4.8 and its naive twin, {args.twin_steps} steps: apart at most, and on average")
            for pair, most in apart["apart_max"].items():
                print(f"  {pair:30s} {most:.4f}   {apart['apart_mean'][pair]:.4f}")


if __name__ == "__main__":
    try:
        main()
    except (ValueError, FileNotFoundError) as problem:
        sys.exit(f"error: {problem}")
