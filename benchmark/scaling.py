r"""Growth of a training step with the bank, the candidates and the selected entries.

python -m benchmark.scaling                      # --seconds 300 for all of it: each size is a compilation
python -m benchmark.scaling --plain 1_6_0 --experiments 1_6_20 --knowledge_nums 1048576 4194304 \
    --data_path TEXT.jsonl --database_init_path KNOWLEDGE.jsonl
python -m benchmark.scaling --batch_size 2 --seq_len 32 --dim 64 --n_layers 6 --knowledge_nums 256 1024 \
    --candidates 4 16 --selected 2 4 --repeats 2 --no_compile

1.4.8 with knowledge_num from 2^14 to 2^22, with num_candidates C and with num_selected S, all else as in its script;
1.5.0 with knowledge_num. A step is that of benchmark.step. Each size takes turns with the plain model. growth is the
ratio to plain, over that of the series' first size, so that a drift of the machine's speed cancels. The most telling
sizes come first, and the table names those that were left out for time.

--experiments measures these alone, with knowledge_num. Where the knowledge file has fewer sentences, the beginning of
one and the end of another make the rest (`real_entries` of a row says how many are real). index_peak_gib is the memory
of the GPU while the index is built, index_gib what stays of it, which peak_gib, of a step, includes.
"""

from functools import partial

from common.cli import run_command
from dataset.knowledge import count_sentences

from .harness import Cases, make_parser, script_config, script_optim, set_up, sizes_of
from .step import measure
from .subject import Subject, add_text_flags, banks_of, read_text, start

TURN = 6  # steps


def series(args) -> list[tuple[str, str, int]]:
    """(experiment, what grows, its value), the most telling first: 2^16 and 2^20 of 1.4.8 are what is promised."""
    if args.experiments:
        return [(name, "knowledge_num", N) for name in args.experiments for N in args.knowledge_nums]
    banks = sorted(args.knowledge_nums, key=lambda N: (N not in (2**16, 2**20), N))
    sizes = [("1_4_8", "knowledge_num", N) for N in banks]
    sizes += [("1_5_0", "knowledge_num", N) for N in banks]
    sizes += [("1_4_8", "num_candidates", C) for C in args.candidates]
    return sizes + [("1_4_8", "num_selected", S) for S in args.selected]


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--plain", default="1_4_0", help="the model that each size takes turns with")
    parser.add_argument("--experiments", nargs="+", default=[], help="in place of 1_4_8 and 1_5_0")
    parser.add_argument("--batch_size", type=int, default=48)
    parser.add_argument("--knowledge_nums", nargs="+", type=int, default=[2**n for n in (14, 16, 18, 20, 22)])
    parser.add_argument("--candidates", nargs="*", type=int, default=[8, 16, 32, 64])
    parser.add_argument("--selected", nargs="*", type=int, default=[2, 4, 8])
    parser.add_argument("--knowledge_num", type=int, help="of the series of C and S, instead of 1.4.8's own")
    add_text_flags(parser)
    args = parser.parse_args()
    device = set_up()
    cases = Cases("scaling", args, device)
    text = read_text(args, [script_config(name) for name in args.experiments or ["1_4_8"]])
    bank_of = banks_of(args, text)
    shared = {"compiled": not args.no_compile, "batch_size": args.batch_size, "text": text}
    plain = Subject(args.plain, script_config(args.plain, **sizes_of(args)), script_optim(args.plain), **shared)

    cases.attempt(
        {"experiment": plain.name, "axis": "plain", "value": 0},
        partial(start, plain, bank_of(plain.config), device),
    )

    measured: dict[str, dict] = {}  # by architecture: the experiment's own size is in several series
    known = count_sentences(args.database_init_path, args.cache_dir) if args.database_init_path else None
    first: dict[tuple[str, str], float] = {}

    def one(experiment: str, changes: dict) -> dict:
        config = script_config(experiment, **sizes_of(args) | {"knowledge_num": args.knowledge_num} | changes)
        if repr(config) not in measured:
            subject, bank_NL = Subject(experiment, config, script_optim(experiment), **shared), bank_of(config)
            measured[repr(config)] = measure(subject, plain, bank_NL, args.repeats, TURN, device)
        return measured[repr(config)]

    for experiment, axis, value in series(args):
        case = {"experiment": experiment, "axis": axis, "value": value}
        row = cases.attempt(case, partial(one, experiment, {axis: value}))
        if row is not None:
            relative = 1 / row["ratio_to_plain"]
            growth = relative / first.setdefault((experiment, axis), relative)
            cases.add(
                case, **row, growth=growth, compiled=plain.compiled, batch_size=args.batch_size, seq_len=args.seq_len,
                text="real" if text else "random", real_entries=known and min(known, value),
            )  # fmt: skip
    cases.rows.sort(key=lambda row: (row["experiment"], row["axis"], row["value"]))
    columns = {"experiment": "", "axis": "", "value": "", "step_ms": ".2f", "growth": ".3f", "peak_gib": ".2f"}
    columns |= {"index_gib": ".2f", "index_peak_gib": ".2f", "index_s": ".1f"}
    print(cases.table(columns | {"first_step_s": ".1f"}))
    growth = {(r["experiment"], r["axis"], r["value"]): r.get("growth") for r in cases.rows}
    for experiment in ("1_4_8", "1_5_0"):
        small, large = (growth.get((experiment, "knowledge_num", N)) for N in (2**16, 2**20))
        if small and large:
            print(f"{experiment}: from 2^16 to 2^20 entries a step grows to {large / small:.3f} of itself")


if __name__ == "__main__":
    run_command(main)
