"""The figures of a paper, as PDF and PNG: `python -m experiment figures RUN RUN --out DIR`.

Runs that differ by their seed alone are one line: the mean, with a band of one standard deviation, as in curves.png.
Answers carry the 95 % interval over seeds, or with one seed that over questions. A figure is as wide as a column
(3.3 inches) or a page (6.8).
"""

from collections.abc import Callable
from pathlib import Path

from .compare import groups_of
from .evidence import Number, own, results_of
from .plots import band_of, draw_curve, points_of, smooth
from .run import Run

COLUMN, PAGE, HEIGHT, LINE, DPI = 3.3, 6.8, 2.3, 0.16, 300  # inches, a line of a legend among them; dots an inch
# What every reader tells apart, in print without colours too: Okabe and Ito's colours, and dashes.
COLORS = ("#000000", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#F0E442")
DASHES = ("-", "--", "-.", ":")
STYLE = {
    "pdf.fonttype": 42, "ps.fonttype": 42, "font.size": 8, "axes.labelsize": 8, "legend.fontsize": 7,
    "xtick.labelsize": 7, "ytick.labelsize": 7, "axes.spines.top": False, "axes.spines.right": False,
    "lines.linewidth": 1.2, "axes.linewidth": 0.6, "axes.grid": True, "grid.alpha": 0.3, "grid.linewidth": 0.4,
}  # fmt: skip
QUESTIONS = {
    "object": "object", "object_reworded": "object,\nreworded", "exact_match": "object,\nfree", "relation": "relation",
    "verification": "verification",
}  # fmt: skip
EDITS = {"edit_success": "ES", "edit_paraphrase": "PS", "edit_neighbourhood": "NS"}
ARMS = {
    "own": "own bank", "shuffled": "bank shuffled", "counterfactual": "bank counterfactual",
    "no_memory": "bank emptied",
}  # fmt: skip
HATCHES = ("", "////", "....", "xxxx")
Groups = dict[str, list[Run]]


def loss_figure(groups: Groups, axis: str, label: str, unit: float):
    """Validation loss, and in thin lines the training loss, of every group; None where nothing was logged.

    Over time a run that shared its GPU is left out.

    Args:
        axis: one of `plots.AXES`; unit: how many of its own make one of the label's.
    """
    from matplotlib.lines import Line2D

    (figure, axes), lines = new_figure(COLUMN, LINE * (len(groups) + len(band_of(groups)))), []
    for i, (name, runs) in enumerate(groups.items()):
        color, dash = COLORS[i % len(COLORS)], DASHES[i % len(DASHES)]
        runs = [run for run in runs if run.curve("tokens_per_s" if axis == "seconds" else "tokens")]
        runs = [run for run in runs if axis != "seconds" or not run.shares_gpu]
        for metric in ("val_loss", "loss"):
            for points in points_of(runs, metric, axis):
                x, y, spread = zip(*points, strict=True)
                x = [place / unit for place in x]
                if metric == "val_loss":
                    draw_curve(axes, list(zip(x, y, spread, strict=True)), dash, color)
                else:
                    axes.plot(x, smooth(y), color=color, linewidth=0.6, alpha=0.6)
        if runs:
            lines.append(Line2D([], [], color=color, ls=dash, label=name))
    axes.set_xlabel(label)
    axes.set_ylabel("loss, nats a token\n(thin: training, smoothed)")
    if not axes.lines and not axes.containers:
        return None
    figure.legend(handles=[*lines, *band_of(groups)], frameon=False, loc="outside upper left")
    return figure


def bars_figure(groups: Groups, measures: dict[str, str], arms: dict[str, str], unit: str):
    """A cluster of bars for each measure: a colour for each group, a hatch for each arm; lines are 95 % intervals."""
    results = {name: results_of(runs) for name, runs in groups.items()}

    def number(name: str, arm: str, measure: str) -> Number | None:
        return own(results[name], measure) if arm == "own" else results[name].get((arm, measure))

    bars = [(n, a) for n in groups for a in arms if any(number(n, a, m) for m in measures)]
    used = [m for m in measures if any(number(n, a, m) for n, a in bars)]
    if not bars:
        return None
    labels = [name if arm == "own" else f"{name}, {arms[arm]}" for name, arm in bars]
    columns = max(1, int(PAGE * 12 / (6 + max(map(len, labels)))))
    figure, axes = new_figure(PAGE, LINE * -(-len(bars) // columns))
    width, names = 0.8 / len(bars), list(groups)
    for place, (name, arm) in enumerate(bars):
        found = [(i, n) for i, measure in enumerate(used) if (n := number(name, arm, measure))]
        x = [i + (place - (len(bars) - 1) / 2) * width for i, _ in found]
        look = {"color": COLORS[names.index(name) % len(COLORS)], "hatch": HATCHES[list(arms).index(arm)]}
        look |= {"alpha": 0.85, "edgecolor": "white", "linewidth": 0.3, "label": labels[place]}
        axes.bar(x, [n.value for _, n in found], 0.92 * width, **look)
        for at, (_, n) in zip(x, found, strict=True):
            if n.interval:
                axes.plot([at, at], n.interval, color="black", linewidth=0.8)
    axes.set_xticks(range(len(used)), [measures[m] for m in used])
    axes.grid(visible=False, axis="x")
    axes.set_axisbelow(True)
    axes.set_ylabel(unit + ("\n(line: 95 % interval)" if axes.lines else ""))
    figure.legend(frameon=False, loc="outside upper left", ncols=columns)
    return figure


def new_figure(width: float, more: float = 0.0):
    """A figure and its axes; `more` is added to its height, for a legend."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, HEIGHT + more), layout="constrained")
    return figure, figure.add_subplot()


FIGURES: dict[str, Callable[[Groups], object]] = {
    "loss_over_tokens": lambda groups: loss_figure(groups, "tokens", "million tokens", 1e6),
    "loss_over_time": lambda groups: loss_figure(groups, "seconds", "minutes of training, without pauses", 60),
    "answers": lambda groups: bars_figure(groups, QUESTIONS, ARMS, "right answers, %"),
    "edits": lambda groups: bars_figure(groups, EDITS, {"own": "own bank"}, "edits, %"),
    "speed": lambda groups: bars_figure(groups, {"tokens_per_s": ""}, {"own": ""}, "training, tokens/s"),
}


def draw_figures(runs: list[Run], folder: str | Path) -> list[Path]:
    """Write every figure that the runs have data for; returns the files.

    Raises:
        ValueError: the runs have no data for any figure.
    """
    from matplotlib import rc_context

    folder, groups, written = Path(folder), groups_of(runs), []
    with rc_context(STYLE):
        for name, draw in FIGURES.items():
            figure = draw(groups)
            if figure is None:
                continue
            folder.mkdir(parents=True, exist_ok=True)
            for kind, metadata in (("pdf", {"CreationDate": None}), ("png", {"Software": None})):
                path = folder / f"{name}.{kind}"
                figure.savefig(path, dpi=DPI, metadata=metadata)
                written.append(path)
    if not written:
        raise ValueError("these runs have logged no loss and have no evaluation: there is nothing to draw")
    return written
