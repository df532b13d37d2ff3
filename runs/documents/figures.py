"""Figures of the documents as SVG: answers with intervals, loss over time, speed against plain, what a sentence read.

Each figure is a function that collects its data from the rows, and one that draws them. Every file carries a stamp of
its data and of the code that drew it, so that a stale figure is found without drawing it anew. No dates and a fixed
salt for the ids: the same rows give the same bytes.
"""

import hashlib
import inspect
import json
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from io import StringIO
from itertools import cycle
from pathlib import Path

from . import bank_figure, drawing, leaderboard_figure, tree_figure
from .rows import Rows

HELD_OUT = ("held-out", "knowledge-10k")
# What answers: the label of its bar, experiment, arm.
ANSWERERS = (
    ("plain model", "1.4.0", "plain"), ("memory model", "1.5.0", "memory"), ("bank shuffled", "1.5.0", "shuffled"),
    ("bank counterfactual", "1.5.0", "counterfactual"), ("look-up without a model", "*", "lookup"),
)  # fmt: skip
QUESTIONS = {"object": "object, of five", "relation": "relation, of five", "verification": "verification, of two"}
SPEEDS = {
    "1_4_0": "1.4.0, plain", "1_5_2": "1.5.2, tokens", "1_5_0": "1.5.0, tokens and pointer",
    "1_4_7": "1.4.7, gated MLP", "1_4_8": "1.4.8, cross-attention",
    "1_4_8 reference, compiled": "1.4.8, reference, compiled",
}  # fmt: skip
# On real text, against the plain model of today's recipe.
TODAY = ("train", "step, one H200")
TODAYS_SPEEDS = {
    "1.6.0": "1.6.0, plain", "1.6.20": "1.6.20, suffixes", "1.6.35, kernels of 1.6.41": "1.6.35, words",
    "1.6.41": "1.6.41, words and suffixes", "1.6.37, fewer warps": "1.6.37, the same in all rows",
    "1.6.22": "1.6.22, words, blocks read 16",
}  # fmt: skip


@dataclass(frozen=True)
class Colors:
    """The colours of figures on a light page; `DARK` has those of a dark one."""

    text: str = "#1f2328"
    grid: str = "#d0d7de"
    paper: str = "#ffffff"
    plain: str = "#6e7781"
    memory: str = "#0969da"
    shuffled: str = "#bf8700"
    counterfactual: str = "#cf222e"
    lookup: str = "#1a7f37"


LIGHT = Colors()
DARK = Colors(
    text="#e6edf3", grid="#3d444d", paper="#0d1117", plain="#8b949e", memory="#58a6ff", shuffled="#d29922",
    counterfactual="#ff7b72", lookup="#3fb950",
)  # fmt: skip


def answers_data(rows: Rows) -> list[dict]:
    bars = []
    for kind in QUESTIONS:
        for label, experiment, arm in ANSWERERS:
            if row := rows.result(experiment, arm, kind, *HELD_OUT):
                bars.append({"kind": kind, "label": label, "arm": arm, "value": row.value, "interval": row.interval})
    return bars


def draw_answers(bars: list[dict], colors: Colors) -> str:
    figure = new_figure(7.6, 3.1, colors)
    axes, width = figure.add_subplot(), 0.16
    kinds, labels = list(QUESTIONS), [label for label, *_ in ANSWERERS]
    for place, (label, _, arm) in enumerate(ANSWERERS):
        own = [bar for bar in bars if bar["label"] == label]
        x = [kinds.index(bar["kind"]) + (place - (len(labels) - 1) / 2) * width for bar in own]
        value = [bar["value"] for bar in own]
        axes.bar(x, value, 0.9 * width, color=getattr(colors, arm), label=label)
        for at, bar in zip(x, own, strict=True):
            low, high = bar["interval"] or (bar["value"], bar["value"])
            axes.plot([at, at], [low, high], color=colors.text, linewidth=1)
            axes.text(at, high + 2, f"{bar['value']:.0f}", ha="center", color=colors.text, fontsize=8)
        for missing in set(range(len(kinds))) - {kinds.index(bar["kind"]) for bar in own}:
            at = missing + (place - (len(labels) - 1) / 2) * width
            axes.text(at, 2, "–", ha="center", color=colors.text, fontsize=8)
    axes.set_xticks(range(len(kinds)), [QUESTIONS[kind] for kind in kinds])
    axes.set_ylim(0, 112)
    axes.set_ylabel("right answers, %")
    axes.set_title(
        "4,000 held-out questions of each kind; lines are 95 % intervals; –: not measured",
        fontsize=9,
        color=colors.text,
    )
    figure.legend(loc="outside lower center", ncols=5, frameon=False, fontsize=8, labelcolor=colors.text)
    return finish(figure, axes, colors)


def loss_data(rows: Rows) -> list[dict]:
    return [row for row in rows.curves if row.get("val_loss") is not None]


def draw_loss(points: list[dict], colors: Colors) -> str:
    """A panel by tokens, and one by seconds where every run has them."""
    names = {"tokens": "million tokens"} | (
        {"seconds": "seconds"} if all(point.get("seconds") for point in points) else {}
    )
    figure = new_figure(7.6 if len(names) > 1 else 5.2, 2.9, colors)
    panels = figure.subplots(1, len(names), sharey=True, squeeze=False)[0]
    for axes, (name, label) in zip(panels, names.items(), strict=True):
        for run, style in zip(dict.fromkeys(point["run"] for point in points), cycle(("--", "-", "-."))):
            own = sorted((point for point in points if point["run"] == run), key=lambda point: point["step"])
            x = [point[name] / (1e6 if name == "tokens" else 1) for point in own]
            y = [point["val_loss"] for point in own]
            axes.plot(x, y, style, color=getattr(colors, own[0]["arm"]), label=own[0].get("label", run))
        axes.set_xlabel(label)
        finish_axes(axes, colors)
    panels[0].set_ylabel("validation loss, nats a token")
    panels[0].legend(frameon=False, fontsize=8, labelcolor=colors.text)
    return finish(figure, panels[0], colors)


def speed_data(rows: Rows) -> list[dict]:
    bars = []
    for model, label in SPEEDS.items():
        fields = {"model": model, "batch_size": 48, "n_heads": 32}
        if model == "1_4_8":
            fields["fusion_scope"] = "sequence"
        if row := rows.benchmark("step", **fields):
            speed = {name: row[name] for name in ("ratio_to_plain", "tokens_per_s", "device")}
            bars.append({"label": label, "against": "1.4.0", **speed})
    for experiment, label in TODAYS_SPEEDS.items():
        arm = "plain" if experiment == "1.6.0" else "memory"
        ratio = 1 if arm == "plain" else getattr(rows.result(experiment, arm, "speed_ratio", *TODAY), "value", None)
        tokens = rows.result(experiment, arm, "tokens_per_s", *TODAY)
        if ratio and tokens:
            speed = {"ratio_to_plain": ratio, "tokens_per_s": tokens.value, "device": tokens.machine}
            bars.append({"label": label, "against": "1.6.0, real text", **speed})
    return bars


def draw_speed(bars: list[dict], colors: Colors) -> str:
    """A panel for each plain model that speeds are compared with."""
    panels = {
        name: [bar for bar in bars if bar["against"] == name] for name in dict.fromkeys(b["against"] for b in bars)
    }
    figure = new_figure(7.6, 0.6 * len(panels) + 0.3 * len(bars), colors)
    sizes = {"squeeze": False, "height_ratios": list(map(len, panels.values()))}
    for axes, (against, own) in zip(figure.subplots(len(panels), 1, **sizes)[:, 0], panels.items(), strict=True):
        for place, bar in enumerate(reversed(own)):
            is_memory = "plain" not in bar["label"] and "reference" not in bar["label"]
            axes.barh(place, bar["ratio_to_plain"], 0.7, color=colors.memory if is_memory else colors.plain)
            text = f" {bar['ratio_to_plain']:.2f}, {bar['tokens_per_s'] / 1000:,.0f} thousand tokens/s"
            axes.text(bar["ratio_to_plain"] + 0.005, place, text, va="center", color=colors.text, fontsize=8)
        axes.set_yticks(range(len(own)), [bar["label"] for bar in reversed(own)])
        axes.set_xlim(0, 1.45)
        axes.set_xlabel(f"training speed against plain {against}; one {own[0]['device'].removesuffix(' HBM3')}")
        finish_axes(axes, colors, grid=None)
    return finish(figure, axes, colors, grid=None)


def reading_data(rows: Rows) -> dict:
    return max(rows.readings, key=lambda row: row["date"]) if rows.readings else {}


def draw_reading(reading: dict, colors: Colors) -> str:
    from matplotlib.colors import LinearSegmentedColormap

    figure = new_figure(7.6, 2.3, colors)
    axes, tokens = figure.add_subplot(), [token.strip() or "␣" for token in reading["tokens"]]
    shades = LinearSegmentedColormap.from_list("weight", [colors.paper, colors.memory])
    for row, weights in enumerate(reading["weights"]):
        for column, weight in enumerate(weights):
            square = {"facecolor": shades(weight), "edgecolor": colors.grid, "linewidth": 0.5}
            axes.bar(column, 1, 1, bottom=row - 0.5, **square)
            if weight >= 0.05:
                ink = "#ffffff" if weight > 0.5 else colors.text
                axes.text(column, row, f"{weight:.2f}"[1:], ha="center", va="center", fontsize=7, color=ink)
    axes.set_xticks(range(len(tokens)), tokens)
    axes.set_yticks(range(len(reading["entries"])), [entry["text"] for entry in reading["entries"]])
    axes.set_xlim(-0.5, len(tokens) - 0.5)
    axes.set_ylim(len(reading["entries"]) - 0.5, -0.5)
    axes.set_title("weight of each entry just before a token is predicted", fontsize=9, color=colors.text)
    return finish(figure, axes, colors, grid=None)


def new_figure(width: float, height: float, colors: Colors):
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    figure.patch.set_alpha(0)
    return figure


def finish_axes(axes, colors: Colors, grid: str | None = "y") -> None:
    axes.patch.set_alpha(0)
    axes.tick_params(colors=colors.text, labelsize=8, length=0)
    axes.xaxis.label.set(color=colors.text, fontsize=9)
    axes.yaxis.label.set(color=colors.text, fontsize=9)
    axes.set_axisbelow(True)
    for side, spine in axes.spines.items():
        spine.set_visible(side == "bottom" and grid == "y")
        spine.set_color(colors.grid)
    if grid:
        axes.grid(axis=grid, color=colors.grid, linewidth=0.6)


def finish(figure, axes, colors: Colors, grid: str | None = "y") -> str:
    """The figure as SVG text. Text stays text, in a font that the reader's machine has."""
    from matplotlib import rc_context

    finish_axes(axes, colors, grid)
    settings = {"svg.hashsalt": "documents", "svg.fonttype": "none", "font.family": "sans-serif"}
    buffer = StringIO()
    with rc_context(settings), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")  # the reader's font has what matplotlib's lacks
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return "\n".join(line.rstrip() for line in buffer.getvalue().splitlines()) + "\n"


# Name of the file -> what collects its data and what draws it.
FIGURES: dict[str, tuple[Callable, Callable]] = {
    "answers": (answers_data, draw_answers), "loss": (loss_data, draw_loss), "speed": (speed_data, draw_speed),
    "reading": (reading_data, draw_reading), "memory": (drawing.data, drawing.draw),
    "tree": (tree_figure.data, tree_figure.draw), "leaderboard": (leaderboard_figure.data, leaderboard_figure.draw),
    "leaderboard_zh": (leaderboard_figure.data, leaderboard_figure.draw_chinese),
    "bank": (bank_figure.data, bank_figure.draw),
}  # fmt: skip


def stamp_of(name: str, rows: Rows, dark: bool) -> str:
    """A comment of the file: a checksum of the data, the colors and the module that draws."""
    collect, draw = FIGURES[name]
    source = Path(inspect.getfile(draw)).read_text(encoding="utf-8")
    made_of = json.dumps([collect(rows), asdict(DARK if dark else LIGHT), source], sort_keys=True)
    return f"<!-- stamp {hashlib.sha256(made_of.encode()).hexdigest()[:16]} -->"


def write_figure(name: str, rows: Rows, folder: Path) -> list[Path]:
    """Draw a figure for light and for dark pages; the files that changed. A figure without data is not drawn."""
    collect, draw = FIGURES[name]
    data, changed = collect(rows), []
    if not data:
        return []
    folder.mkdir(parents=True, exist_ok=True)
    for dark in (False, True):
        path = folder / f"{name}{'_dark' * dark}.svg"
        text = draw(data, replace(DARK if dark else LIGHT)) + stamp_of(name, rows, dark) + "\n"
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")
            changed.append(path)
    return changed
