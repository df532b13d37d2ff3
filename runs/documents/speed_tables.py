"""The tables of speed, from the rows of `benchmark/results/`."""

from .page import Page
from .rows import MISSING


def step(page: Page) -> str:
    names = {
        "1_4_0": "plain",
        "1_5_2": "n-grams, tokens",
        "1_5_0": "n-grams, tokens, pointer",
        "1_5_1": "n-grams, pointer alone",
        "1_5_4": "1.5.0, pairs of rare tokens",
        "1_5_14": "product keys, 4 entries by tokens",
        "1_5_15": "product keys, 64 entries by tokens",
        "1_4_7": "product keys, gated MLP",
        "1_4_8": "product keys, cross-attention",
        "1_4_10": "product keys, Gumbel selection",
        "1_4_8 reference, compiled": "reference of 1.4.8, compiled",
        "1_4_8 reference, eager": "reference of 1.4.8, eager",
    }
    columns = ("tokens_per_s", "step_ms", "ratio_to_plain", "peak_gib")

    def line(model: str, what: str) -> list[str]:
        fields = {"model": model, "batch_size": 48, "n_heads": 32}
        if model == "1_4_8":  # scope `token` has rows of its own
            fields["fusion_scope"] = "sequence"
        label = what if "reference" in model else f"{model.replace('_', '.')}: {what}"
        return [label, *(page.field(name, "step", **fields) for name in columns)]

    return page.table(
        ["model", "tokens/s", "ms a step", "of plain", "peak GiB"], [line(*name) for name in names.items()]
    )


def decode(page: Page) -> str:
    def line(model: str) -> list[str]:
        cells = [model.replace("_", ".")]
        for size in (1, 32):
            fields = {"model": model, "batch_size": size, "cache": "fixed"}
            cells += [page.field(name, "decode", **fields) for name in ("token_ms", "ratio_to_plain")]
        return cells

    return page.table(
        ["model", "batch 1, ms a token", "of plain", "batch 32, ms a token", "of plain"],
        map(line, ("1_4_0", "1_4_8", "1_5_2", "1_5_0", "1_6_0", "1_6_20")),
    )


def scaling(page: Page) -> str:
    def line(value: int) -> list[str]:
        cells = [f"{value:,}"]
        for experiment in ("1_4_8", "1_5_0"):
            fields = {"experiment": experiment, "axis": "knowledge_num", "value": value}
            cells += [page.field(name, "scaling", **fields) for name in ("step_ms", "ratio_to_plain", "peak_gib")]
        return cells

    return page.table(
        ["entries", "1.4.8, ms", "of plain", "peak GiB", "1.5.0, ms", "of plain", "peak GiB"],
        map(line, (65536, 1048576, 4194304)),
    )


def retrieval(page: Page) -> str:
    def line(kind: str, candidates: int) -> list[str]:
        cells = [f"{kind}, {candidates} candidates"]
        for entries in (65536, 1048576, 4194304):
            fields = {"retrieval": kind, "num_candidates": candidates, "knowledge_num": entries}
            cells += [page.field(name, "retrieval", **fields) for name in ("ms", "floor_ms")]
        return cells

    return page.table(
        ["search", "2^16, ms", "floor", "2^20, ms", "floor", "2^22, ms", "floor"],
        [line("product_key", n) for n in (16, 64, 256)] + [line("ngram", n) for n in (16, 64)],
    )


def peers(page: Page) -> str:
    layers = ("memory block of 1.4.8", "PKM, 1 head", "PKM, 4 heads")
    columns = [(name, run) for run in ("replayed", "compiled", "eager") for name in ("ms", "ratio_to_ours")]
    return page.table(
        ["layer, forward and backward", "replayed, ms", "of ours", "compiled, ms", "of ours", "eager, ms", "of ours"],
        [
            [layer, *(page.field(name, "peers", layer=layer, run=run) for name, run in columns)]
            for layer in layers
        ],
    )  # fmt: skip


def data(page: Page) -> str:
    parts = {
        "tokeniser, MB/s": ("tokeniser", "mb_per_s"),
        "share of the time that a plain run waits for data": ("loader", "waited_share"),
        "start with a knowledge file of 446 MB, first time, s": ("start, cold", "first_step_s"),
        "the same, second time, s": ("start, warm", "first_step_s"),
    }
    return page.table(
        ["part", "measured"], [[label, page.field(name, "data", part=part)] for label, (part, name) in parts.items()]
    )


def floors(page: Page) -> str:
    rows = [row for row in page.rows.benchmarks if row["benchmark"] == "floors"]
    lines = [[row["part"], row["work"], row["floor_ms"]] for row in rows]
    return page.table(["part of a step", "work", "floor, ms"], lines, source=False)


def layer(page: Page) -> str:
    rows = [row for row in page.rows.benchmarks if row["benchmark"] == "layer of 1.4.8"]
    page.used += rows
    lines = [[row["part"], f"{row['ms']:.2f}", f"{row['floor_ms']:.2f}"] for row in rows]
    return page.table(["part of a layer of 1.4.8", "ms", "floor, ms"], lines)


def changes(page: Page) -> str:
    """What was changed for speed: predicted before it was written, measured after."""

    def text(value: float | None) -> str:
        return MISSING if value is None else f"{value:g}"

    return page.table(
        ["date", "change", "model", "unit", "before", "predicted", "after", "outcome"],
        [
            [
                row["date"], row["change"], row["model"], row["unit"], text(row["before"]), text(row["predicted"]),
                text(row["after"]), row["outcome"],
            ]
            for row in page.rows.log
        ],
        source=False,
    )  # fmt: skip


SPEED_TABLES = (step, decode, scaling, retrieval, peers, data, floors, layer, changes)
