"""The tables of what a change gains: 1.4.8 by single changes, and each source of the mixed text.

Both stand before all of their runs are measured: what has no row is a dash.
"""

from runs.significance import welch_half

from .leaderboard import ALIASES, UNSHORTENED
from .page import Page
from .rows import MISSING, Row

WIKI, MIXED = ("val", "wiki-49M"), ("dev", "mixed-49M")
BEST_ADAMW = ALIASES[WIKI[1], "1.4.0"]
# Each builds on the one above it.
FAMILY = {
    "1.4.8": "a memory in place of the feed-forward",
    "1.6.23": "feed-forward kept",
    "1.6.24": "two blocks read, not eight",
    "1.6.25": "tokens of entries read, not vectors",
    "1.6.26": "entries found by n-grams",
}
# Parameters, and where the rows of plain and of 1.6.21 are: the end of the protocol, and of the plain model's name.
SIZES = {
    "29 million": ("", ", learning rate 4.5e-3"),
    "90 million": (", 90 million parameters", ""),
    "310 million": (", 310 million parameters", ""),
}
# Epochs of the training articles, and the protocol of their runs.
EPOCHS = {"1": "wiki-38M, one epoch", "1.3": WIKI[1], "2": "wiki-75M, two epochs", "4": "wiki-150M, four epochs"}
MIXED_RUNS = ("1.6.0", "1.6.21")  # the names of their rows
RATES = ("", ", learning rate 4.5e-3")  # ends of these names
SOURCE = "val_loss_"  # what the measure of a source begins with


def is_of_family(experiment: str) -> bool:
    """Whether a row is of 1.4.8 by single changes, or of a control, which is named after a comma."""
    return experiment.split(",")[0] in FAMILY


def gap_text(row: Row | None, base: Row | None) -> str:
    """A loss against another in %, ± Welch's half interval where both have seeds; a dash where one is missing."""
    if row is None or base is None:
        return MISSING
    text = f"{100 * (row.value / base.value - 1):.1f}"
    if row is not base and min(len(row.values), len(base.values)) > 1:
        text += f" ± {100 * welch_half(row.values, base.values) / base.value:.1f}"
    return text


def family(page: Page) -> str:
    """1.4.0 and, a change a line, 1.4.8 to 1.6.26; then their controls, as far as there are any."""
    known = {row.experiment for row in page.rows.results if row.protocol == WIKI[1]}
    controls = sorted(name for name in known if is_of_family(name) and name not in FAMILY)
    plain, before = page.result(WIKI, BEST_ADAMW, "plain", "val_loss"), None
    lines = [["1.4.0", "plain", *cells_of(page, BEST_ADAMW, "plain"), MISSING, MISSING, MISSING]]
    for name in (*FAMILY, *controls):
        experiment, _, control = name.partition(", ")
        row = page.result(WIKI, name, "memory", "val_loss")
        shuffled = page.result(WIKI, name, "shuffled", "val_loss")
        step = MISSING if control else gap_text(row, before)
        gaps = [gap_text(row, plain), step, gap_text(shuffled, row)]
        lines.append([experiment, control or FAMILY[name], *cells_of(page, name, "memory"), *gaps])
        before = row
    head = [
        "experiment", "change", "loss", "seeds", "tokens/s in training", "against 1.4.0, %",
        "against the line above, %", "bank shuffled afterwards, %",
    ]  # fmt: skip
    return page.table(head, lines)


def cells_of(page: Page, name: str, arm: str) -> list[str]:
    row = page.result(WIKI, name, arm, "val_loss")
    loss, speed = page.cells(WIKI, name, arm, "val_loss", "tokens_per_s")
    return [loss, str(len(row.seeds)) if row else MISSING, speed]


def sizes(page: Page) -> str:
    """Loss and speed of 1.6.21 against the plain model, for each number of parameters."""
    lines = []
    for parameters, (protocol, rate) in SIZES.items():
        where, runs = (WIKI[0], WIKI[1] + protocol), (("1.6.0" + rate, "plain"), ("1.6.21", "memory"))
        plain, memory = (page.result(where, *run, "val_loss") for run in runs)
        losses = [page.cell(where, *run, "val_loss") for run in runs]
        speed = page.cell(where, "1.6.21", "memory", "speed_ratio")
        seeds = str(len(memory.seeds)) if memory else MISSING
        lines.append([parameters, seeds, *losses, gap_text(memory, plain), speed])
    return page.table(["parameters", "seeds", "1.6.0", "1.6.21", "against 1.6.0, %", "speed, of plain"], lines)


def epochs(page: Page) -> str:
    """Loss of 1.6.21 against the plain model, for each number of epochs."""
    lines = []
    for number, protocol in EPOCHS.items():
        where, runs = (WIKI[0], protocol), (("1.6.0, learning rate 4.5e-3", "plain"), ("1.6.21", "memory"))
        plain, memory = (page.result(where, *run, "val_loss") for run in runs)
        losses = [page.cell(where, *run, "val_loss") for run in runs]
        lines.append([number, str(len(memory.seeds)) if memory else MISSING, *losses, gap_text(memory, plain)])
    return page.table(["epochs", "seeds", "1.6.0", "1.6.21", "against 1.6.0, %"], lines)


def mixed_sources(page: Page) -> str:
    """The loss of each source of the mixed text: plain, and 1.6.21 with facts, sentences and this text in one bank."""
    runs = [(name, "plain" if name == MIXED_RUNS[0] else "memory") for name in MIXED_RUNS]
    return by_source(page, MIXED, [(best_rate(page, name, arm), arm) for name, arm in runs])


def by_source(page: Page, where: tuple[str, str], runs: list[tuple[str, str]]) -> str:
    """The loss of each source of the held-out text, for (experiment, arm): plain first, the others against it."""
    of_runs = [row for row in page.rows.results if row.protocol == where[1] and (row.experiment, row.arm) in runs]
    measures = {row.measure for row in of_runs if row.measure.startswith(SOURCE) and row.unit == "nats/token"}
    lines = []
    for measure in ("val_loss", *sorted(measures)):
        plain, *others = (page.result(where, *run, measure) for run in runs)
        source = measure.removeprefix(SOURCE).replace("_", " ") if measure in measures else "all text"
        tokens = f"{plain.n:,}" if plain and plain.n else MISSING
        losses = [page.cell(where, *run, measure) for run in runs]
        gaps = [gap_text(row, plain) for row in others]
        lines.append(
            [source, tokens, losses[0], *(cell for pair in zip(losses[1:], gaps, strict=True) for cell in pair)]
        )
    (plain_name, _), *banks = runs
    head = ["source", "tokens", plain_name]
    for name, _ in banks:
        head += [name, "against plain, %"]
    return page.table(head, lines)


BOTH = ("dev", UNSHORTENED)
LONGER = ("dev", f"{UNSHORTENED}, time of 1.6.37")
LONG = ("dev", f"{UNSHORTENED}, 3,600 steps")


def both(page: Page) -> str:
    """Text and facts in one model: its loss and its answers beside those of plain and of the memory of facts alone."""
    lines = {
        "plain (1.6.0)": (BOTH, "1.6.0", "plain"),
        "plain, trained for the time of 1.6.37": (LONGER, "1.6.0", "plain"),
        "plain, 3,600 steps": (LONG, "1.6.0", "plain"),
        "facts alone (1.6.35)": (BOTH, "1.6.35", "memory"),
        "facts alone, learned in every fourth row (1.6.39)": (BOTH, "1.6.39", "memory"),
        "both searches (1.6.37), facts alone in the bank": (BOTH, "1.6.37, without passages", "memory"),
        "**both (1.6.37)**": (BOTH, "1.6.37", "memory"),
        "1.6.37, bank shuffled": (BOTH, "1.6.37", "shuffled"),
        "**facts learned in every fourth row (1.6.40)**": (BOTH, "1.6.40", "memory"),
        "**in every second row (1.6.41)**": (BOTH, "1.6.41", "memory"),
        "1.6.41, bank shuffled": (BOTH, "1.6.41", "shuffled"),
        "in every eighth row": (BOTH, "1.6.40, every eighth row", "memory"),
        "in every fourth, one block of suffixes": (BOTH, "1.6.40, one block of suffixes", "memory"),
        "its search for facts, without the model": (BOTH, "1.6.37", "search_alone"),
    }
    questions = {
        "object": "object, of five, %", "object_reworded": "in other words, %", "exact_match": "written freely, %",
        "relation": "relation, of five, %", "verification": "statements, %",
    }  # fmt: skip
    plain, found = page.result(BOTH, "1.6.0", "plain", "val_loss"), []
    for label, (where, name, arm) in lines.items():
        loss = page.result(where, name, arm, "val_loss")
        seeds = str(len(loss.seeds)) if loss else MISSING
        gap = gap_text(loss, plain) if loss and loss is not plain else MISSING
        answers = [page.cell(where, name, arm, measure) for measure in questions]
        found.append([label, page.cell(where, name, arm, "val_loss"), seeds, gap, *answers])
    return page.table(["", "loss", "seeds", "against plain, %", *questions.values()], found)


def both_sources(page: Page) -> str:
    return by_source(page, BOTH, [("1.6.0", "plain"), ("1.6.41", "memory")])


def best_rate(page: Page, name: str, arm: str) -> str:
    """The name of the run with the learning rate that gives the lower loss of all text; without rows the first."""
    known = {name + end: page.rows.result(name + end, arm, "val_loss", *MIXED) for end in RATES}
    losses = {own: row.value for own, row in known.items() if row}
    return min(losses, key=losses.get) if losses else name
