"""The tables of results: each is a function of a page; `marks.py` finds it by its name."""

from collections.abc import Callable

from .asked_tables import all_edits, public_tests
from .gain_tables import (
    BEST_ADAMW,
    MIXED,
    WIKI,
    both,
    both_sources,
    epochs,
    family,
    gap_text,
    is_of_family,
    mixed_sources,
    sizes,
)
from .leaderboard import CROWDED, FIXED, OWN_FLAGS, PREFERRED, UNSHORTENED
from .page import EDITS, Page
from .reading_tables import IN_CONTEXT, READING_TABLES, RUNS
from .rows import MISSING

HELD_OUT, DEV = ("held-out", "knowledge-10k"), ("dev", "knowledge-10k")  # split and protocol
FIRST_ROWS = "val_loss_first_500"  # of the validation text; read with the bank shuffled too
LOOKUP = ("*", "lookup")  # of whatever experiment it stands beside
PLAIN, MEMORY = ("1.4.0", "plain"), ("1.5.0", "memory")
KINDS = ("object", "relation", "verification")
VARIANTS = {
    "1.4.0": "plain",
    "1.5.0": "n-grams, tokens, pointer",
    "1.5.2": "n-grams, tokens",
    "1.5.3": "n-grams, vectors",
    "1.5.5": "1.5.0, entries of 16 tokens",
    "1.5.6": "1.5.0, 64 candidates",
    "1.5.7": "product keys, vectors",
    "1.5.8": "1.5.7, normed queries",
    "1.5.9": "1.5.7, 64 candidates by cosine",
    "1.5.10": "1.5.7, higher rate for keys",
    "1.5.11": "1.5.7, retrieval supervision",
    "1.5.12": "1.5.11, grid of rare tokens",
    "1.5.13": "1.5.12, 64 candidates by cosine",
    "1.5.14": "1.5.12, tokens, 4 read",
    "1.5.14, 16 read": "1.5.12, tokens",
    "1.5.15": "1.5.12, tokens, 64 read",
}


def headline(page: Page) -> str:
    """The strong plain model, its rivals and the memories of 1.6.x: text, answers, edits, speed."""
    asked, newest, step = ("dev", CROWDED), ("dev", UNSHORTENED), ("train", "step, one H200")
    edited = [f"counterfact_{name}" for name in ("es_all", "ps_made_all", "ns_entry_all")]

    def line(label: str, name: str, arm: str, where=asked, edits: str = "", text: str = "", speed: str = "") -> list:
        losses = [page.cell(WIKI, text, arm, "val_loss") if text else MISSING]
        losses.append(page.cell(newest, name, arm, "val_loss"))
        answers = page.cells(where, name, arm, "object", "object_reworded", "exact_match", "verification")
        found = [page.result(("dev", edits) if edits else where, name, arm, measure) for measure in edited]
        told = " / ".join(f"{row.value:.1f}" for row in found) if all(found) else MISSING
        return [label, *losses, *answers, told, page.cell(step, speed, "memory", "speed_ratio") if speed else MISSING]

    plain = line("plain model (1.6.0)", "1.6.0", "plain", text="1.6.0, learning rate 4.5e-3")
    return page.table(
        [
            "", "loss on Wikipedia", "on mixed text", "object questions, %", "in other wordings, %",
            "written freely, %", "statements judged, %", "all 5,239 edits: ES / PS / NS, %", "training speed, of plain",
        ],
        [
            line("a rule over the entries found, no model", "1.6.35", "search_alone"),
            [*plain[:-1], "1"],  # of itself
            line("plain, the same entries in its prompt", *RUNS["plain, entries in its prompt"], where=IN_CONTEXT),
            line("a memory of facts (1.6.35)", "1.6.35", "memory", asked, PREFERRED, speed="1.6.35, kernels of 1.6.41"),
            line("a memory of facts and text (1.6.41)", "1.6.41", "memory", newest, FIXED, "1.6.41", "1.6.41"),
        ],
    )  # fmt: skip


def answers_of(page: Page, protocol: str, columns: dict[str, tuple[str, str]], measures: dict[str, str]) -> str:
    """A line for each measure, a column for each experiment and arm, of one protocol."""
    return page.table(
        ["question", *columns],
        [
            [label, *(page.cell(("dev", protocol), *column, measure) for column in columns.values())]
            for measure, label in measures.items()
        ],
    )


ANSWERS = {
    "object_bank_only": "object, facts of the bank only",
    "object": "object, all facts",
    "exact_match": "object, written freely",
}
MODELS = {"plain": ("plain", "plain"), "memory": ("memory", "memory"), "bank shuffled": ("memory", "shuffled")}


def quickstart(page: Page) -> str:
    columns = MODELS | {"bank counterfactual": ("memory", "counterfactual")}
    return answers_of(page, "quickstart", columns, ANSWERS | {"val_loss": "validation loss"})


def middle(page: Page) -> str:
    without = {
        "most frequent answer": ("memory", "frequency"),
        "look-up without a model": ("memory", "lookup"),
        "search alone": ("memory", "search_alone"),
        "memory, untrained": ("memory, untrained", "memory"),
    }
    more = {
        "relation": "relation",
        "verification": "verification",
        "val_loss": "validation loss",
        "peak_mib": "GPU memory, MiB",
    }
    return answers_of(page, "middle", without | MODELS, ANSWERS | more)


def held_out(page: Page) -> str:
    kinds = {
        "object": "object, of five",
        "relation": "relation, of five",
        "verification": "verification, of two",
        "exact_match": "object, written freely",
    }
    arms = (LOOKUP, PLAIN, MEMORY, ("1.5.0", "shuffled"), ("1.5.0", "counterfactual"))
    return page.table(
        ["question", "look-up without a model", "plain", "memory", "bank shuffled", "bank counterfactual"],
        [[label, *(page.cell(HELD_OUT, *arm, name) for arm in arms)] for name, label in kinds.items()],
    )


def variants(page: Page) -> str:
    def line(experiment: str, what: str) -> list[str]:
        arm = "plain" if experiment == "1.4.0" else "memory"
        first, *others = page.cells(DEV, experiment, arm, *KINDS, "exact_match")
        controls = [page.cell(DEV, experiment, other, "object") for other in ("shuffled", "counterfactual")]
        return [f"{experiment}: {what}", first, *controls, *others]

    return page.table(
        ["variant", "object", "bank shuffled", "bank counterfactual", "relation", "verification", "written freely"],
        [line(*variant) for variant in VARIANTS.items()],
    )


def edits(page: Page) -> str:
    names = ("1.5.0", "1.5.2", "1.5.3", "1.5.5", "1.5.6", "1.5.15")
    return page.table(
        ["variant", "ES", "PS", "NS"], [[name, *page.cells(DEV, name, "memory", *EDITS)] for name in names]
    )


def supervision(page: Page) -> str:
    measures = ("gold_among_4_block_2", "gold_among_16_block_2", "gold_among_64_block_2", "object")
    names = [name for name in VARIANTS if page.rows.result(name, "memory", "gold_among_4_block_2", *DEV)]
    return page.table(
        ["variant", "right entry among 4", "among 16", "among 64", "object", "object, oracle retrieval"],
        [
            [name, *page.cells(DEV, name, "memory", *measures), page.cell(DEV, name, "oracle", "object")]
            for name in names
        ],
    )


def more_questions(page: Page) -> str:
    def line(n: int) -> list[str]:
        memory = page.cells(("dev", f"knowledge-{n}k"), "1.5.4", "memory", *KINDS)
        plain = page.cells(("dev", f"knowledge-{n}k"), "1.4.0", "plain", *KINDS)
        return [f"{n},000", *(f"{a} ({b})" for a, b in zip(memory, plain, strict=True))]

    return page.table(["questions of each kind", "object", "relation", "verification"], map(line, (10, 25, 50, 100)))


def text_loss(page: Page) -> str:
    def line(label: str, protocol: str, experiment: str, arm: str) -> list[str]:
        where = ("dev", protocol)
        own = page.cells(where, experiment, arm, "val_loss", "val_loss_wikipedia_film_summaries")
        return [label, *own, page.cell(where, experiment, "shuffled", "val_loss_wikipedia_film_summaries")]

    names = [
        name
        for name in (*VARIANTS, "1.5.1")
        if page.rows.result(name, "memory", "val_loss_wikipedia_film_summaries", "dev", "text-2000")
    ]
    return page.table(
        ["model", "all text", "film summaries", "films, bank shuffled"],
        [
            line("1.4.0, four seeds", "text-2000, four seeds", *PLAIN),
            line("1.5.0, four seeds", "text-2000, four seeds", *MEMORY),
            line("1.4.0, 2,950 steps", "text-2950", *PLAIN),
            line("1.4.0", "text-2000", *PLAIN),
            *(line(name, "text-2000", name, "memory") for name in names),
        ],
    )


def long_text(page: Page) -> str:
    names = (PLAIN, MEMORY, ("1.5.2", "memory"), ("1.4.8", "memory"))
    recipes = (("1.4.0, Muon", "plain"), ("1.4.0, Muon, 8 heads", "plain"))
    return page.table(
        ["model", "loss", "tokens/s in training"],
        [
            [name, *page.cells(("held-out", "text-4788"), name, arm, "val_loss", "tokens_per_s")]
            for name, arm in (*names, *recipes)
        ],
    )


def wiki(page: Page) -> str:
    def line(name: str, arm: str) -> list[str]:
        loss, speed = page.cells(("held-out", "wiki-2000"), name, arm, "val_loss", "tokens_per_s")
        return [name, loss, page.cell(("held-out", "wiki-2000"), name, "shuffled", "val_loss"), speed]

    return page.table(
        ["model", "loss", "bank shuffled", "tokens/s in training"],
        [
            line("1.4.0", "plain"),
            line("1.5.2", "memory"),
            line("1.4.0, Muon, 8 heads", "plain"),
            line("1.5.2, Muon, 8 heads", "memory"),
            line("n-gram table, Muon, 8 heads", "plain"),
            line("1.5.2 and n-gram table, Muon, 8 heads", "memory"),
        ],
    )


def recipe(page: Page) -> str:
    """Every plain run of the recipe's protocol and the first memories, against 1.4.0 at its best learning rate."""

    def chosen(name: str) -> bool:
        return name == "1.6.0" or not (name.startswith("1.6") or is_of_family(name))

    return losses_against(page, WIKI, BEST_ADAMW, chosen)


def sentences(page: Page) -> str:
    """Every run on Wikipedia from 1.6.0 on, with a bank or without, against 1.6.0 at its best learning rate."""
    best = "1.6.0, learning rate 4.5e-3"
    return losses_against(page, WIKI, best, lambda name: name.startswith("1.6.") and not is_of_family(name))


def losses_against(page: Page, where: tuple[str, str], base: str, chosen: Callable[[str], bool]) -> str:
    """The chosen runs of a protocol, best first, each against the plain run `base`."""
    runs = dict.fromkeys((row.experiment, row.arm) for row in page.rows.results if row.protocol == where[1])
    losses = {run: row for run in runs if chosen(run[0]) and (row := page.result(where, *run, "val_loss"))}
    plain, lines = losses[base, "plain"], []
    for run, row in sorted(losses.items(), key=lambda item: item[1].value):
        cost = page.cells(where, *run, "tokens_per_s", "peak_gpu_mib")
        label = run[0] + (", its bank shuffled afterwards" if run[1] == "shuffled" else "")
        lines.append([label, page.cell(where, *run, "val_loss"), str(len(row.seeds)), gap_text(row, plain), *cost])
    head = ["run", "loss", "seeds", f"against {base}, %", "tokens/s in training", "GPU memory, MiB"]
    return page.table(head, lines)


def recipe_mixed(page: Page) -> str:
    """Every run on mixed text, against 1.4.0 at its best learning rate."""
    return losses_against(page, MIXED, BEST_ADAMW, lambda name: True)


def own_flags(page: Page) -> str:
    """Every experiment that was run with the flags of its script, best loss first: text, answers, edits."""
    runs = dict.fromkeys((row.experiment, row.arm) for row in page.rows.results if row.protocol == OWN_FLAGS[1])
    losses = {run: page.rows.result(*run, "val_loss", *OWN_FLAGS) for run in runs if run[1] in ("plain", "memory")}
    lines = []
    for (name, arm), row in sorted(losses.items(), key=lambda item: item[1].value):
        first, shuffled = (page.rows.result(name, own, FIRST_ROWS, *OWN_FLAGS) for own in (arm, "shuffled"))
        rise = f"{shuffled.value - first.value:+.3f}" if shuffled else MISSING
        asked = page.cells(OWN_FLAGS, name, arm, "object_reworded", "relation", "verification", "exact_match")
        objects = [page.cell(OWN_FLAGS, name, own, "object") for own in (arm, "shuffled")]
        loss = page.cell(OWN_FLAGS, name, arm, "val_loss")
        lines.append([name, str(len(row.seeds)), loss, rise, *objects, *asked, page.edits(OWN_FLAGS, name, arm)])
    head = [
        "experiment", "seeds", "loss", "rise by shuffling", "object", "bank shuffled", "in other words", "relation",
        "verification", "written freely", "ES / PS / NS",
    ]  # fmt: skip
    return page.table(head, lines)


def cpu(page: Page) -> str:
    def line(experiment: str, arm: str) -> list[str]:
        answers = page.cells(("dev", "knowledge-cpu"), experiment, arm, *KINDS, "exact_match")
        return [experiment, *answers, page.cell(("dev", "knowledge-cpu"), experiment, "counterfactual", "object")]

    return page.table(
        ["model", "object", "relation", "verification", "written freely", "object, bank counterfactual"],
        [line(*PLAIN), *(line(name, "memory") for name in ("1.5.0", "1.5.2", "1.5.3", "1.5.4"))],
    )


def first_memories(page: Page) -> str:
    def line(name: str, arm: str) -> list[str]:
        return [
            name,
            *(page.cell(("dev", "text-300"), name, other, "val_loss") for other in (arm, "shuffled", "no_memory")),
        ]

    return page.table(
        ["model", "loss", "bank shuffled", "bank filled with padding"],
        [line(*PLAIN), line("1.4.7", "memory"), line("1.4.8", "memory")],
    )


def several_gpus(page: Page) -> str:
    names = (PLAIN, ("1.4.8", "memory"), MEMORY, ("1.6.0", "plain"))
    places = ("none", "4 GPUs"), ("train", "2 GPUs")
    return page.table(
        ["model", "4 GPUs, of 4 times one, eager steps", "2 GPUs, of twice one, captured steps"],
        [[name, *(page.cell(where, name, arm, "scaling") for where in places)] for name, arm in names],
    )


RESULT_TABLES = (
    headline, quickstart, middle, held_out, variants, edits, supervision, more_questions, text_loss, long_text, wiki,
    recipe, recipe_mixed, sentences, sizes, epochs, family, mixed_sources, own_flags, cpu, first_memories, several_gpus,
    both, both_sources, public_tests, all_edits, *READING_TABLES,
)  # fmt: skip
