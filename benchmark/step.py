"""Full training steps of several models, in one process and the same run.

python -m benchmark.step                                   # full size; needs a GPU
python -m benchmark.step --experiments 1_4_0 1_5_0 --batch_size 2 --seq_len 64 --knowledge_num 4096 --steps 2
python -m benchmark.step --experiments 1_6_0 1_6_14 --data_path TEXT.jsonl --database_init_path KNOWLEDGE.jsonl

A step is forward, backward, clipping and the experiment's optimizer on one micro-batch of packed documents. Each model
takes turns of a few steps with the plain one, so that a drift of the machine's speed meets both; ratio_to_plain is of
these turns. As in training, nothing waits for the device within a turn: step_ms is the median of the turns' means. The
most telling models come first, and the table names those that were left out for time.
`--batch_sizes 48 96 192` adds the first model at these batch sizes, with `--n_heads 8` at 8 heads: its best MFU.

Without --data_path, tokens are random. How long a retrieval by words or suffixes takes depends on the text: measure it
on real text. The search of the next batches runs beside a step, as in training.

MFU is that of training (`trainer.flops`): FLOPs of the model itself, over the time and the GPU's dense bf16 peak.
"""

import argparse
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity

from common.cli import run_command
from model import build_model
from model.config import ModelConfig
from trainer.config import OptimConfig
from trainer.flops import flops_per_token
from trainer.optim import make_optimizer

from .harness import Cases, make_parser, peaks, quartiles, script_config, script_optim, set_up, sizes_of
from .subject import (
    Subject,
    Text,
    add_text_flags,
    banks_of,
    forget_times,
    make_batches,
    next_batch,
    prepare,
    read_text,
    release,
    start,
    take_turn,
    train_step,
)

PAIRS = [
    ("fast float32", "reference float32"), ("fast float32", "eager float32"), ("eager float32", "reference float32"),
    ("fast bf16", "reference bf16"), ("fast bf16", "fast float32"), ("reference bf16", "reference float32"),
]  # fmt: skip
EXPERIMENTS = ["1_4_0", "1_5_2", "1_4_8", "1_4_7", "1_5_0", "1_4_10"]  # the most telling first


def measure(subject: Subject, plain: Subject, bank_NL: torch.Tensor, steps: int, turn: int, device, profile_path=None):
    """Start one model and let it take turns with the plain one, which stays; only those two hold memory at a time."""
    if plain.micro_step is None:
        raise RuntimeError("the plain model has failed, so there is no ratio")
    try:
        if subject is not plain:
            start(subject, bank_NL, device)
        forget_times(plain)
        while (done := subject.steps_timed) < steps:
            for model in (plain, subject) if subject is not plain else (plain,):
                take_turn(model, min(turn, steps - done), device)
        measured = numbers(subject, plain)
        if profile_path:
            with open(profile_path, "a", encoding="utf-8") as file:
                file.write(profile(subject, device))
        return measured
    finally:
        if subject is not plain:
            release(subject)


def profile(subject: Subject, device, n_steps: int = 4, n_kernels: int = 25) -> str:
    """The kernels (on a CPU the operations) that a step spends most time in, one a line: ms a step, calls a step."""
    on_gpu = device.type == "cuda"
    kinds = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    with torch.profiler.profile(activities=kinds) as profiler:
        for _ in range(n_steps):
            train_step(subject, next_batch(subject, device), device)
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
        "mfu": flops_per_token(subject.model) * speed / known[0] if known else None,
        "index_s": subject.index_s, "index_gib": subject.index_bytes / 2**30, "index_peak_gib": subject.index_peak_gib,
        "first_step_s": subject.first_step_s, "parameters": subject.parameters, "steps": subject.steps_timed,
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


def compare_with_reference(
    quiet: ModelConfig, bank_NL: torch.Tensor, compiled: bool, batch_size: int, steps: int, device
) -> dict:
    """How far apart the losses of 1.4.8 and its reference are, in float32 and in bf16.

    The scale is how far each is in bf16 from itself in float32. Same weights, same batches, no dropout; the reference
    runs eagerly. `eager` is the fast model without compilation and without a captured step.
    """
    dense = replace(quiet, use_flash_attn=False)
    torch.manual_seed(0)
    weights = build_model(quiet, bank_NL).state_dict()
    losses = {}
    for precision, dtype in (("bf16", torch.bfloat16), ("float32", torch.float32)):
        for name, config in (("fast", quiet), ("eager", quiet), ("reference", dense)):
            if name == "eager" and not compiled:
                continue  # as fast is then
            how = {"reference": name == "reference", "compiled": compiled and name == "fast"}
            subject = Subject(name, config, batch_size=batch_size, **how)
            losses[f"{name} {precision}"] = losses_of(subject, weights, bank_NL, steps, device, dtype)
    row = {"reference_steps": steps, "batch_size": batch_size, "losses": losses, "apart_max": {}, "apart_mean": {}}
    for pair in PAIRS:
        if not losses.keys() >= set(pair):
            continue
        apart = [abs(a - b) for a, b in zip(*(losses[name] for name in pair), strict=True)]
        row["apart_max"][" - ".join(pair)], row["apart_mean"][" - ".join(pair)] = max(apart), sum(apart) / len(apart)
    return row


def parse() -> argparse.Namespace:
    parser = make_parser(__doc__, seconds=540, calls="steps")
    add = parser.add_argument
    add("--experiments", nargs="+", default=EXPERIMENTS, help="scripts of run_file/; the first is plain")
    add("--reference", "--naive", nargs="*", default=[], choices=["eager", "compiled"], help="the reference of 1.4.8")
    add("--reference_steps", "--twin_steps", type=int, default=0, help="train 1.4.8 and its reference; compare losses")
    add(
        "--reference_batch_size", "--twin_batch_size", type=int, default=16,
        help="rows of that; the reference in float32 takes 2.5 GiB a row of 512",
    )  # fmt: skip
    add("--batch_size", type=int, default=48)
    add("--batch_sizes", nargs="*", type=int, default=[], help="the plain model at these sizes as well")
    add("--fusion_scope", choices=["sequence", "token"], help="instead of the experiments' own")
    add("--knowledge_num", type=int, help="instead of the experiments' own")
    add_text_flags(parser)
    parser.set_defaults(steps=48)
    add("--turn", type=int, default=8, help="steps of a model before the plain one's turn")
    add("--profile", type=Path, help="append each model's most expensive kernels to this text file")
    return parser.parse_args()


def subjects_of(args: argparse.Namespace, sizes: dict, quiet: ModelConfig, text: Text | None) -> list[Subject]:
    """The plain model first, then the other experiments, the reference, and the plain model at other batch sizes."""
    new = partial(Subject, compiled=not args.no_compile, batch_size=args.batch_size, text=text)
    subjects = [new(name, script_config(name, **sizes), script_optim(name)) for name in args.experiments]
    plain, dense = subjects[0], replace(quiet, use_flash_attn=False)
    for how in args.reference:
        subjects.append(new(f"1_4_8 reference, {how}", dense, reference=True, compiled=how == "compiled"))
    return subjects + [
        new(f"{plain.name}, batch {n}", plain.config, plain.optim, batch_size=n) for n in args.batch_sizes
    ]


def measure_all(subjects: list[Subject], cases: Cases, bank_of: Callable, args: argparse.Namespace, device) -> None:
    """A row for each model; the plain one stays, for the others take turns with it."""
    plain = subjects[0]
    for subject in subjects:
        case = {
            "model": subject.name, "compiled": subject.compiled, "batch_size": subject.batch_size,
            "seq_len": subject.config.max_seq_len, "n_heads": subject.config.n_heads,
            "optimizer": subject.optim.optimizer, "text": "random" if subject.text is None else "real",
            "fusion_scope": subject.config.fusion_scope if subject.config.reads_bank else None,
        }  # fmt: skip
        bank_NL = bank_of(subject.config)
        if subject is plain:
            cases.attempt(case, partial(start, plain, bank_NL, device))
            if cases.rows:
                continue
        rest = (args.steps, args.turn, device, args.profile)
        measured = cases.attempt(case, partial(measure, subject, plain, bank_NL, *rest))
        if measured is not None:
            cases.add(case, **measured)
    release(plain)


def main() -> None:
    args, device = parse(), set_up()
    cases = Cases("step", args, device)
    sizes = sizes_of(args) | {"knowledge_num": args.knowledge_num, "fusion_scope": args.fusion_scope}
    quiet = replace(script_config("1_4_8", **sizes), attention_dropout=0.0, fusion_dropout=0.0)
    text = read_text(args, [script_config(name) for name in args.experiments])
    bank_of = banks_of(args, text)
    measure_all(subjects_of(args, sizes, quiet, text), cases, bank_of, args, device)
    columns = {"model": "", "tokens_per_s": ",.0f", "step_ms": ".2f", "ratio_to_plain": ".3f", "peak_gib": ".2f"}
    print(cases.table(columns | {"mfu": ".1%", "first_step_s": ".1f"}))
    if not args.reference_steps:
        return
    compiled, size, steps = not args.no_compile, args.reference_batch_size, args.reference_steps
    case = {"model": "1_4_8 and its reference"}
    compare = partial(compare_with_reference, quiet, bank_of(quiet), compiled, size, steps, device)
    if (apart := cases.attempt(case, compare)) is not None:
        cases.add(case, **apart)
        print(f"losses of 1.4.8 and its reference, {steps} steps: apart at most, and on average")
        for pair, most in apart["apart_max"].items():
            print(f"  {pair:34s} {most:.4f}   {apart['apart_mean'][pair]:.4f}")


if __name__ == "__main__":
    run_command(main)
