"""How a training step's cost grows with the bank and with what a position weighs and reads.

python -m benchmark.bench_scaling                      # --seconds 300 for all of it: each size is a compilation
python -m benchmark.bench_scaling --batch_size 2 --seq_len 32 --dim 64 --n_layers 6 --knowledge_nums 256 1024 \\
    --candidates 4 16 --selected 2 4 --repeats 2 --no_compile

1.4.8 with knowledge_num from 2^14 to 2^22, with num_candidates C and with num_selected S, all else as in its script;
1.5.0 with knowledge_num. A step is bench_step's. The models take turns, so that a drift of the machine's speed meets
all of them. growth: the median step over that of the smallest size of the same series.
Sizes come in the order of their worth: preparing them ends when 70 % of --seconds are over, and the table says which
were left out.
"""

import argparse
import sys
import time
from functools import partial

import torch

from model.config import ModelConfig
from trainer.micro_step import EAGER_CALLS

from .bench_step import Subject, attempt, make_batches, prepare, take_turn
from .measure import Cases, make_parser, quartiles, random_bank, script_config, set_up, sizes_of

PREPARING = 0.7  # share of the time
WARM_UP, TURN = EAGER_CALLS + 2, 6  # steps


def series(args) -> list[tuple[str, str, int]]:
    """(experiment, what grows, its value), the most telling first: 2^16 and 2^20 of 1.4.8 are what is promised."""
    banks = sorted(args.knowledge_nums, key=lambda N: (N not in (2**16, 2**20), N))
    sizes = [("1_4_8", "knowledge_num", N) for N in banks]
    sizes += [("1_5_0", "knowledge_num", N) for N in banks]
    sizes += [("1_4_8", "num_candidates", C) for C in args.candidates]
    return sizes + [("1_4_8", "num_selected", S) for S in args.selected]


def make_subject(experiment: str, config: ModelConfig, args: argparse.Namespace, device: torch.device) -> Subject:
    """A model after its first step, or with the reason why there is none."""
    subject = Subject(experiment, config, compiled=not args.no_compile, batch_size=args.batch_size)
    bank_NL = random_bank(config)
    subject.batches = make_batches(config, bank_NL, args.batch_size, 4, device)
    attempt(subject, prepare, bank_NL, subject.batches[0], device)
    return subject


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--batch_size", type=int, default=48)
    parser.add_argument("--knowledge_nums", nargs="+", type=int, default=[2**n for n in (14, 16, 18, 20, 22)])
    parser.add_argument("--candidates", nargs="*", type=int, default=[8, 16, 32, 64])
    parser.add_argument("--selected", nargs="*", type=int, default=[2, 4, 8])
    parser.add_argument("--knowledge_num", type=int, help="of the series of C and S, instead of 1.4.8's own")
    args = parser.parse_args()
    device = set_up()
    cases = Cases("bench_scaling", args, device)
    prepared_until = time.perf_counter() + PREPARING * args.seconds

    subjects: dict[str, Subject] = {}  # by architecture: the experiment's own size is in several series
    places: list[tuple[dict, str]] = []
    for experiment, axis, value in series(args):
        case = {"experiment": experiment, "axis": axis, "value": value}
        if time.perf_counter() > prepared_until:
            cases.add(case, error="no time was left: give more --seconds")
            continue
        changes = sizes_of(args) | {"knowledge_num": args.knowledge_num} | {axis: value}
        config = cases.attempt(case, partial(script_config, experiment, **changes))
        if config is not None:
            if repr(config) not in subjects:
                subjects[repr(config)] = make_subject(experiment, config, args, device)
                print(f"{case}: first step after {subjects[repr(config)].first_step_s:.1f} s", file=sys.stderr)
            places.append((case, repr(config)))

    for subject in subjects.values():
        attempt(subject, take_turn, subject.batches, WARM_UP, device)
        subject.step_ms = []  # the peak is that of the warm-up: a replay allocates nothing
    for _ in range(0, args.repeats, TURN):
        for subject in subjects.values():
            attempt(subject, take_turn, subject.batches, min(TURN, args.repeats - len(subject.step_ms)), device)
        if cases.time_is_over():
            break

    smallest = {}  # the median step of the smallest size of each series
    for case, key in sorted(places, key=lambda place: (place[0]["experiment"], place[0]["axis"], place[0]["value"])):
        subject = subjects[key]
        if subject.error:
            cases.add(case, error=subject.error)
            continue
        low, middle, high = quartiles(subject.step_ms)
        first = smallest.setdefault((case["experiment"], case["axis"]), middle)
        cases.add(
            case, step_ms=middle, step_ms_quartiles=[low, high], growth=middle / first, peak_gib=subject.peak_gib,
            first_step_s=subject.first_step_s, steps=len(subject.step_ms), compiled=subject.compiled,
            batch_size=args.batch_size, seq_len=args.seq_len,
        )  # fmt: skip
    columns = {"experiment": "", "axis": "", "value": "", "step_ms": ".2f", "growth": ".3f", "peak_gib": ".2f"}
    print(cases.table(columns | {"first_step_s": ".1f"}))
    step_ms = {(r["experiment"], r["axis"], r["value"]): r.get("step_ms") for r in cases.rows}
    for experiment in ("1_4_8", "1_5_0"):
        small, large = (step_ms.get((experiment, "knowledge_num", N)) for N in (2**16, 2**20))
        if small and large:
            print(f"{experiment}: from 2^16 to 2^20 entries a step grows to {large / small:.3f} of itself")


if __name__ == "__main__":
    try:
        main()
    except (ValueError, FileNotFoundError) as problem:
        sys.exit(f"error: {problem}")
