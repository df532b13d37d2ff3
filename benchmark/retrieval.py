"""Retrieval alone, forward: product keys and n-grams, against the floor of their arithmetic and memory traffic.

python -m benchmark.retrieval
python -m benchmark.retrieval --batch_size 2 --seq_len 128 --dim 64 --knowledge_nums 256 --candidates 4 16

product_key: from queries (bf16 on the GPU) to the best C of N entries and their scores, compiled as in a block.
  Counted: 2 R D FLOPs a position for the products with both sets of sub-keys (R = sqrt(N)); the bytes of queries and
  sub-keys read once, and of C scores and row numbers a position written. Before timing, some rows are compared with
  brute force over all N entries, with poisoned memory.
ngram: `find_matches` of 1.5.0, entries of 32 tokens, over packed rows, a third of which repeat entries.
  Counted: C L W + 2 M^2 comparisons a position, to rank C entries by the last W tokens and to select the best of M
  matches; the bytes of two binary searches for each n-gram (32 a step), of its matches, of C texts read and C matches
  written. Before timing, entries that stand in the text must be found. No model uses `--ngram_candidates 256`.

floor_ms: the larger of FLOPs and bytes over the GPU's peaks; of_floor: floor_ms over the median. GB/s and TFLOP/s are
the counted ones over the median time.
"""

from functools import partial
from math import isqrt, log2

import torch
from torch import Tensor

from common.cli import run_command
from model.memory.ngram_index import NgramIndex
from model.memory.ngram_search import find_matches
from model.ops import search_grid

from .harness import Cases, floor_ms, make_parser, poison, quartiles, script_config, set_up, sizes_of, timings_ms

CHECKED_ROWS = 16


def search(query_BTD: Tensor, keys_2RK: Tensor, num_candidates: int) -> tuple[Tensor, Tensor]:
    """Scores and numbers of the best C entries: the first lines of `ProductKeys.forward`."""
    score_BT2R = torch.einsum("btpk,prk->btpr", query_BTD.unflatten(-1, (2, -1)), keys_2RK)
    return search_grid(score_BT2R, num_candidates, scale=keys_2RK.shape[-1] ** -0.5)[:2]


def check_product_keys(query_XD: Tensor, keys_2RK: Tensor, score_XC: Tensor, entry_XC: Tensor) -> None:
    """The scores must be the best of all pairs, and each entry must have the score that it is said to have."""
    half_X2R = torch.einsum("xpk,prk->xpr", query_XD.unflatten(-1, (2, -1)).float(), keys_2RK.float())
    half_X2R = half_X2R * keys_2RK.shape[-1] ** -0.5
    all_XN = (half_X2R[:, 0, :, None] + half_X2R[:, 1, None, :]).flatten(1)
    slack = 0.1 if query_XD.dtype == torch.bfloat16 else 1e-4
    best_XC = all_XN.topk(score_XC.shape[-1], dim=-1).values
    if not (0 <= int(entry_XC.min()) and int(entry_XC.max()) < all_XN.shape[1]):
        raise ValueError("an entry lies outside the bank")
    for what, wanted_XC in (("best of all pairs", best_XC), ("scores of their entries", all_XN.gather(1, entry_XC))):
        apart = float((score_XC.float() - wanted_XC).abs().max())
        if not apart <= slack:
            raise ValueError(f"the scores miss the {what} by {apart:.3g}")
    if (entry_XC.sort(dim=-1).values.diff(dim=-1) == 0).any():
        raise ValueError("an entry is found twice at one position")


def speed(times: list[float], flops: float, n_bytes: float) -> dict:
    low, middle, high = quartiles(times)
    floor = floor_ms(flops, n_bytes)
    return {
        "ms": middle, "ms_quartiles": [low, high], "steps": len(times), "gb_per_s": n_bytes / middle / 1e6,
        "tflop_per_s": flops / middle / 1e9, "floor_ms": floor, "of_floor": floor / middle if floor else None,
    }  # fmt: skip


def product_key_case(queries: list[Tensor], N: int, C: int, args, device: torch.device) -> dict:
    R, (B, T, D), dtype = isqrt(N), queries[0].shape, queries[0].dtype
    torch.manual_seed(1)
    keys_2RK = torch.randn(2, R, D // 2, device=device).to(dtype)
    function = partial(torch.compile(search, dynamic=False) if not args.no_compile else search, num_candidates=C)
    with torch.no_grad():
        poison(device)
        score_BTC, entry_BTC = function(queries[0], keys_2RK)
        rows = torch.randint(B * T, (CHECKED_ROWS,), device=device)
        check_product_keys(
            queries[0].flatten(0, 1)[rows], keys_2RK, score_BTC.flatten(0, 1)[rows], entry_BTC.flatten(0, 1)[rows]
        )
        times = timings_ms(lambda query_BTD: function(query_BTD, keys_2RK), queries, args.repeats, device)
    X, width = B * T, queries[0].element_size()
    n_bytes = X * D * width + R * D * width + X * C * (score_BTC.element_size() + entry_BTC.element_size())
    return speed(times, 2 * X * R * D, n_bytes)


def ngram_texts(token_NL: Tensor, B: int, T: int, n: int) -> tuple[list[tuple[Tensor, Tensor]], Tensor]:
    """Make n pairs (input_ids, document_ids), and the entries (B, stretches of 3 L tokens) that the first repeats."""
    L = token_NL.shape[1]
    texts, planted = [], None
    for _ in range(n):
        input_BT = torch.randint(3, int(token_NL.max()) + 1, (B, T), device=token_NL.device)
        places = range(0, T - L + 1, 3 * L)
        entry_BX = torch.randint(len(token_NL), (B, len(places)), device=token_NL.device)
        for place, entry_B in zip(places, entry_BX.unbind(dim=1), strict=True):
            input_BT[:, place : place + L] = token_NL[entry_B].long()
        planted = entry_BX if planted is None else planted
        texts.append((input_BT, (torch.arange(T, device=token_NL.device) * 4 // T).expand(B, T).contiguous()))
    return texts, planted


def ngram_case(N: int, C: int, args, device: torch.device) -> dict:
    config = script_config("1_5_0", **sizes_of(args))
    B, T, L, W = args.batch_size, args.seq_len, config.knowledge_length, config.ngram_window
    torch.manual_seed(1)
    token_NL = torch.randint(3, config.vocab_size, (N, L), dtype=torch.int16, device=device)
    index = NgramIndex(token_NL, config)
    texts, planted_BX = ngram_texts(token_NL, B, T, 4)
    with torch.no_grad():
        poison(device)
        matches, _ = find_matches(index, *texts[0], n_kept=C)
        ends = torch.arange(planted_BX.shape[1], device=device) * 3 * L + L - 1
        found = float((matches.entry_BTC[:, ends] == planted_BX[..., None]).any(dim=-1).float().mean())
        if found < 0.9:  # a border of two documents may cut an entry off
            raise ValueError(f"only {found:.0%} of the entries that stand in the text are found")
        times = timings_ms(lambda text: find_matches(index, *text, n_kept=C), texts, args.repeats, device)
    X, n_lengths, most = B * T, len(config.ngram_lengths), config.ngram_max_places
    hints, steps = n_lengths * most, log2(max(2, len(index.base["ngrams"].key_P)))
    n_bytes = X * (n_lengths * 2 * 32 * steps + 4 * hints + C * (2 * L + 8 + 4))
    return speed(times, X * (C * L * W + 2 * (C + hints) ** 2), n_bytes) | {"found": found}


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--batch_size", type=int, default=48)
    parser.add_argument("--knowledge_nums", nargs="+", type=int, default=[2**n for n in (14, 16, 18, 20, 22)])
    parser.add_argument("--candidates", nargs="+", type=int, default=[16, 64, 256])
    parser.add_argument("--ngram_candidates", nargs="*", type=int, default=[16, 64])
    args = parser.parse_args()
    device = set_up()
    cases = Cases("retrieval", args, device)
    dim = script_config("1_4_8", **sizes_of(args)).dim
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    queries = [torch.randn(args.batch_size, args.seq_len, dim, device=device).to(dtype) for _ in range(4)]

    todo = [("product_key", N, C) for C in args.candidates for N in args.knowledge_nums if C <= isqrt(N)]
    todo += [("ngram", N, C) for C in args.ngram_candidates for N in args.knowledge_nums]
    # If time runs out, it is for the sizes that no experiment has.
    todo.sort(key=lambda case: (case[2] != args.candidates[0], case[1] != 2**20, case[2]))
    for kind, N, C in todo:
        case = {"retrieval": kind, "knowledge_num": N, "num_candidates": C}
        function = partial(product_key_case, queries) if kind == "product_key" else ngram_case
        measured = cases.attempt(case, partial(function, N, C, args, device))
        if measured is not None:
            cases.add(case, **measured, batch_size=args.batch_size, seq_len=args.seq_len, compiled=not args.no_compile)
    cases.rows.sort(key=lambda row: (row["retrieval"], row["num_candidates"], row["knowledge_num"]))
    columns = {"retrieval": "", "knowledge_num": "", "num_candidates": "", "ms": ".3f", "floor_ms": ".3f"}
    print(cases.table(columns | {"of_floor": ".1%", "gb_per_s": ".1f", "tflop_per_s": ".2f"}))


if __name__ == "__main__":
    run_command(main)
