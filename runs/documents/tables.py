"""The generated tables: each is a function of the rows and of the document's language, by its name in TABLES."""

import textwrap
from collections.abc import Callable, Iterable

from .rows import FIELDS, MISSING, Rows, text_of

HELD_OUT, DEV = ("knowledge-10k", "held-out"), ("knowledge-10k", "dev")
LOOKUP, PLAIN, MEMORY = ("word look-up", "lookup"), ("1.4.0", "plain"), ("1.5.0", "memory")
EDITS = ("edit_success", "edit_paraphrase", "edit_neighbourhood")
CHINESE = {
    "loss on held-out text": "留出文本的 Loss", "object questions": "object 题", "in other wordings": "换一种问法",
    "edits ES / PS / NS": "编辑 ES / PS / NS", "training, tokens/s": "训练, token/s", "GPU memory, GiB": "显存, GiB",
    "look-up without a model": "不用模型的查找", "plain model (1.4.0)": "普通模型 (1.4.0)",
    "memory model (1.5.0)": "记忆模型 (1.5.0)", "the same, bank shuffled": "同一模型, 打乱知识库",
    "the same, bank counterfactual": "同一模型, 反事实知识库", "question": "题型", "plain": "普通模型", "memory": "记忆模型",
    "bank shuffled": "打乱知识库", "bank counterfactual": "反事实知识库", "model": "模型", "of plain": "相对普通模型",
    "object, all facts": "object, 全部事实", "object, facts of the bank only": "object, 只在知识库中的事实",
    "object, written freely": "object, 自由作答", "validation loss": "验证 Loss",
}  # fmt: skip
VARIANTS = {
    "1.4.0": "plain", "1.5.0": "n-grams, tokens, pointer", "1.5.2": "n-grams, tokens", "1.5.3": "n-grams, vectors",
    "1.5.5": "as 1.5.0, entries of 16 tokens", "1.5.6": "as 1.5.0, 64 candidates",
    "1.5.7": "product keys, vectors", "1.5.8": "1.5.7, normed queries", "1.5.9": "1.5.7, 64 candidates by cosine",
    "1.5.10": "1.5.7, 10 times the rate for keys", "1.5.11": "1.5.7 with retrieval supervision",
    "1.5.12": "1.5.11, grid of rare tokens", "1.5.13": "1.5.12, 64 candidates by cosine",
    "1.5.14": "1.5.12, tokens, 4 read", "1.5.14, 16 read": "1.5.12, tokens, 16 read", "1.5.15": "1.5.12, tokens, 64 read",
}  # fmt: skip


class Page:
    """Collects the rows that a table uses, for the line below it that says where its numbers come from."""

    def __init__(self, rows: Rows, language: str):
        self.rows, self.language, self.used = rows, language, []

    def say(self, text: str) -> str:
        return CHINESE.get(text, text) if self.language == "zh" else text

    def result(self, *key: str) -> dict | None:
        return self._use(self.rows.result(*key))

    def benchmark(self, benchmark: str, **fields) -> dict | None:
        return self._use(self.rows.benchmark(benchmark, **fields))

    def _use(self, row: dict | None) -> dict | None:
        if row is not None:
            self.used.append(row)
        return row

    def cell(self, *key: str, spread: bool = True) -> str:
        """A value without its unit; with several seeds ± their standard deviation."""
        row = self.result(*key)
        text = text_of(row, with_unit=False)
        return text + f" ± {row['sd']:g}" if row and spread and row.get("sd") is not None else text

    def edits(self, *key: str, spread: bool = False) -> str:
        cells = [self.cell(*key, measure, spread=spread) for measure in EDITS]
        return MISSING if set(cells) == {MISSING} else " / ".join(cells)

    def field(self, name: str, benchmark: str, **fields) -> str:
        row = self.benchmark(benchmark, **fields)
        return MISSING if row is None or row.get(name) is None else FIELDS[name].format(row[name]).split(" ")[0]

    def table(self, head: Iterable[str], lines: Iterable[Iterable[str]], source: bool = True) -> str:
        head = [self.say(word) for word in head]
        rule = ["---", *["---:"] * (len(head) - 1)]
        body = [[self.say(line[0]), *line[1:]] for line in map(list, lines)]
        text = "\n".join("| " + " | ".join(cells) + " |" for cells in (head, rule, *body))
        return text + ("\n\n" + self.sources() if source else "")

    def sources(self) -> str:
        """Where the numbers come from: each protocol or benchmark with n, seeds, machine, commit and date."""
        by_protocol: dict[str, dict[str, set]] = {}
        for row in self.used:
            name = f"{row['protocol']}, {row['split']}" if "protocol" in row else f"benchmark {row['benchmark']}"
            facts = by_protocol.setdefault(name, {"n": set(), "seed": set(), "on": set(), "commit": set(), "": set()})
            facts["n"] |= {row["n"]} if row.get("n") else set()
            facts["seed"] |= set(row.get("seeds") or ())
            facts["on"].add(row.get("machine") or row["device"].removesuffix(" HBM3"))
            facts["commit"].add(row.get("commit") or row["git_commit"])
            facts[""].add(row["date"])
        lines = []
        for name, facts in by_protocol.items():
            words = [f"{key} {', '.join(map(str, sorted(found)))}".strip() for key, found in facts.items() if found]
            lines += textwrap.wrap(f"{name}: {'; '.join(words)}.", 110, break_on_hyphens=False)
        return "<sub>" + "\n".join(lines) + "</sub>"


def headline(page: Page) -> str:
    def line(label: str, experiment: str, arm: str, model: str | None = None) -> list[str]:
        speed = [
            page.field(name, "step", model=model, batch_size=48, n_heads=32) if model else MISSING
            for name in ("tokens_per_s", "peak_gib")
        ]
        questions = [page.cell(*HELD_OUT, experiment, arm, measure) for measure in ("object", "object_reworded")]
        loss = page.cell("text-4788", "held-out", experiment, arm, "val_loss")
        return [label, loss, *questions, page.edits(*HELD_OUT, experiment, arm), *speed]

    return page.table(
        ["", "loss on held-out text", "object questions", "in other wordings", "edits ES / PS / NS", "training, tokens/s", "GPU memory, GiB"],
        [
            line("look-up without a model", *LOOKUP),
            line("plain model (1.4.0)", *PLAIN, "1_4_0"),
            line("memory model (1.5.0)", *MEMORY, "1_5_0"),
            line("the same, bank shuffled", "1.5.0", "shuffled"),
            line("the same, bank counterfactual", "1.5.0", "counterfactual"),
        ],
    )  # fmt: skip


def quickstart(page: Page) -> str:
    measures = {
        "object_bank_only": "object, facts of the bank only", "object": "object, all facts",
        "exact_match": "object, written freely", "val_loss": "validation loss",
    }  # fmt: skip
    arms = (("plain", "plain"), ("memory", "memory"), ("memory", "shuffled"), ("memory", "counterfactual"))
    return page.table(
        ["question", "plain", "memory", "bank shuffled", "bank counterfactual"],
        [
            [label, *(page.cell("quickstart", "dev", experiment, arm, name) for experiment, arm in arms)]
            for name, label in measures.items()
        ],
    )


def held_out(page: Page) -> str:
    kinds = {"object": "object, of five", "relation": "relation, of five", "verification": "verification, of two", "exact_match": "object, written freely"}  # fmt: skip
    arms = (LOOKUP, PLAIN, MEMORY, ("1.5.0", "shuffled"), ("1.5.0", "counterfactual"))
    return page.table(
        ["question", "look-up without a model", "plain", "memory", "bank shuffled", "bank counterfactual"],
        [[label, *(page.cell(*HELD_OUT, *arm, name) for arm in arms)] for name, label in kinds.items()],
    )


def variants(page: Page) -> str:
    def line(experiment: str, what: str) -> list[str]:
        arm = "plain" if experiment == "1.4.0" else "memory"
        answers = [page.cell(*DEV, experiment, arm, name) for name in ("object", "relation", "verification", "exact_match")]  # fmt: skip
        controls = [page.cell(*DEV, experiment, other, "object") for other in ("shuffled", "counterfactual")]
        return [f"{experiment}: {what}", answers[0], *controls, *answers[1:]]

    return page.table(
        ["variant", "object", "bank shuffled", "bank counterfactual", "relation", "verification", "written freely"],
        [line(*variant) for variant in VARIANTS.items()],
    )


def edits(page: Page) -> str:
    names = [name for name in ("1.5.0", "1.5.2", "1.5.3", "1.5.5", "1.5.6", "1.5.15")]
    return page.table(
        ["variant", "ES", "PS", "NS"],
        [[name, *(page.cell(*DEV, name, "memory", measure) for measure in EDITS)] for name in names],
    )


def supervision(page: Page) -> str:
    names = ("1.5.11", "1.5.12", "1.5.13", "1.5.14", "1.5.14, 16 read", "1.5.15")
    found = [f"gold_among_{n}" for n in (4, 16, 64)]
    return page.table(
        ["variant", "right entry among 4", "among 16", "among 64", "object", "object, oracle retrieval"],
        [
            [name, *(page.cell(*DEV, name, "memory", measure) for measure in (*found, "object")), page.cell(*DEV, name, "oracle", "object")]
            for name in names
        ],
    )  # fmt: skip


def more_questions(page: Page) -> str:
    def line(n: int) -> list[str]:
        protocol = f"knowledge-{n}k"
        memory = [page.cell(protocol, "dev", "1.5.4", "memory", kind) for kind in ("object", "relation", "verification")]
        plain = [
            page.cell(protocol, "dev", "1.4.0", "plain", kind, spread=False)
            for kind in ("object", "relation", "verification")
        ]
        return [f"{n},000", *(f"{a} ({b})" for a, b in zip(memory, plain, strict=True))]

    return page.table(["questions of each kind", "object", "relation", "verification"], map(line, (10, 25, 50, 100)))


def text_loss(page: Page) -> str:
    def line(protocol: str, experiment: str, arm: str) -> list[str]:
        own = [page.cell(protocol, "dev", experiment, arm, measure) for measure in ("val_loss", "film_loss")]
        return [f"{experiment}, {protocol.removeprefix('text-')}", *own, page.cell(protocol, "dev", experiment, "shuffled", "film_loss")]  # fmt: skip

    names = ("1.5.0", "1.5.1", "1.5.2", "1.5.3", "1.5.5", "1.5.6", "1.5.7", "1.5.11", "1.5.12", "1.5.14")
    return page.table(
        ["model, steps", "all text", "film summaries", "films, bank shuffled"],
        [
            line("text-2000, four seeds", *PLAIN), line("text-2000, four seeds", *MEMORY), line("text-2950", *PLAIN),
            line("text-2000", *PLAIN), *(line("text-2000", name, "memory") for name in names),
        ],
    )  # fmt: skip


def long_text(page: Page) -> str:
    names = (PLAIN, MEMORY, ("1.5.2", "memory"), ("1.4.8", "memory"), ("1.4.0, Muon", "plain"), ("1.4.0, Muon, 8 heads", "plain"))  # fmt: skip
    return page.table(
        ["model", "loss", "tokens/s in training"],
        [[name, *(page.cell("text-4788", "held-out", name, arm, m) for m in ("val_loss", "tokens_per_s"))] for name, arm in names],
    )  # fmt: skip


def wiki(page: Page) -> str:
    names = (
        PLAIN, ("1.5.2", "memory"), ("1.4.0, Muon, 8 heads", "plain"), ("1.5.2, Muon, 8 heads", "memory"),
        ("n-gram table, Muon, 8 heads", "plain"), ("1.5.2 and n-gram table, Muon, 8 heads", "memory"),
    )  # fmt: skip
    return page.table(
        ["model", "loss", "bank shuffled", "tokens/s in training"],
        [
            [
                name, page.cell("wiki-2000", "held-out", name, arm, "val_loss"),
                page.cell("wiki-2000", "held-out", name, "shuffled", "val_loss"),
                page.cell("wiki-2000", "held-out", name, arm, "tokens_per_s"),
            ]
            for name, arm in names
        ],
    )  # fmt: skip


def cpu(page: Page) -> str:
    def line(experiment: str, arm: str) -> list[str]:
        kinds = ("object", "relation", "verification", "exact_match")
        answers = [page.cell("knowledge-cpu", "dev", experiment, arm, kind) for kind in kinds]
        return [experiment, *answers, page.cell("knowledge-cpu", "dev", experiment, "counterfactual", "object")]

    return page.table(
        ["model", "object", "relation", "verification", "written freely", "object, bank counterfactual"],
        [line(*PLAIN), *(line(name, "memory") for name in ("1.5.0", "1.5.2", "1.5.3", "1.5.4"))],
    )


def first_memories(page: Page) -> str:
    return page.table(
        ["model", "loss", "bank shuffled", "bank filled with padding"],
        [
            [name, *(page.cell("text-300", "dev", name, other, "val_loss") for other in (arm, "shuffled", "no_memory"))]
            for name, arm in (PLAIN, ("1.4.7", "memory"), ("1.4.8", "memory"))
        ],
    )


def several_gpus(page: Page) -> str:
    names = (PLAIN, ("1.4.8", "memory"), MEMORY)
    return page.table(
        ["model", "speed of 4 GPUs, of 4 times one"],
        [[name, page.cell("4 GPUs", "none", name, arm, "scaling")] for name, arm in names],
    )


def step(page: Page) -> str:
    names = {
        "1_4_0": "plain", "1_5_2": "n-grams, tokens", "1_5_0": "n-grams, tokens, pointer", "1_5_1": "n-grams, pointer alone",
        "1_5_4": "as 1.5.0, pairs of rare tokens", "1_5_14": "product keys, 4 entries by tokens",
        "1_5_15": "product keys, 64 entries by tokens", "1_4_7": "product keys, gated MLP",
        "1_4_8": "product keys, cross-attention", "1_4_10": "product keys, Gumbel selection",
        "1_4_8 naive, compiled": "reference of 1.4.8, compiled", "1_4_8 naive, eager": "reference of 1.4.8, eager",
    }  # fmt: skip
    columns = ("tokens_per_s", "step_ms", "ratio_to_plain", "peak_gib")

    def line(model: str, what: str) -> list[str]:
        fields = {"model": model, "batch_size": 48, "n_heads": 32}
        if model == "1_4_8":  # scope `token` has rows of its own
            fields["fusion_scope"] = "sequence"
        label = what if "naive" in model else f"{model.replace('_', '.')}: {what}"
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
        map(line, ("1_4_0", "1_4_8", "1_5_2", "1_5_0")),
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
    return page.table(
        ["layer, forward and backward", "replayed, ms", "of ours", "compiled, ms", "of ours", "eager, ms", "of ours"],
        [
            [layer, *(page.field(name, "peers", layer=layer, run=run) for run in ("replayed", "compiled", "eager") for name in ("ms", "ratio_to_ours"))]
            for layer in layers
        ],
    )  # fmt: skip


def data(page: Page) -> str:
    return page.table(
        ["part", "measured"],
        [
            ["tokeniser, MB/s", page.field("mb_per_s", "data", part="tokeniser")],
            ["share of the time that a plain run waits for data", page.field("waited_share", "data", part="loader")],
            ["start with a knowledge file of 446 MB, first time, s", page.field("first_step_s", "data", part="start, cold")],
            ["the same, second time, s", page.field("first_step_s", "data", part="start, warm")],
        ],
    )  # fmt: skip


def floors(page: Page) -> str:
    rows = [row for row in page.rows.benchmarks if row["benchmark"] == "floors"]
    return page.table(
        ["part", "work", "floor, ms"], [[row["part"], row["work"], row["floor_ms"]] for row in rows], source=False
    )


def made_by(function: Callable[[Page], str]) -> Callable[[Rows, str], str]:
    return lambda rows, language: function(Page(rows, language))


TABLES = {
    function.__name__.replace("_", "-"): made_by(function)
    for function in (
        headline, quickstart, held_out, variants, edits, supervision, more_questions, text_loss, long_text, wiki, cpu,
        first_memories, several_gpus, step, decode, scaling, retrieval, peers, data, floors,
    )
}  # fmt: skip
