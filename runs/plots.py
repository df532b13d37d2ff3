"""The curves of runs as PNG, drawn from metrics.jsonl; no tracker is needed.

Runs that differ by their seed alone are one group: one colour, their mean, and a band of one standard deviation.
"""

from bisect import bisect_right
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev

from .metrics import METRICS, metric, panels
from .run import Run

COLUMNS, PANEL_INCHES, DPI = 2, (5.6, 2.6), 80
# Told apart in this order: readers of a memory, and what is asked of it.
STYLES = ("-", "--", ":", "-.", (0, (1, 3)), (0, (6, 1, 1, 1, 1, 1)), (0, (8, 3)), (0, (3, 3)))
MANY = 4  # of more readers, several groups show the mean alone
AXES = {"steps": "step", "tokens": "tokens learnt", "seconds": "seconds of training, without pauses"}
ANSWERS = "right answers after training (hollow: bank shuffled, grey: chance)"
SMOOTHED = ("loss",)  # curves that are drawn thin, with their running mean on top
LOGARITHMIC, RATIO = ("loss", "grad_norm"), 3  # on a log scale where the largest value is so many times the least
BAND = "band or bar: 1 standard deviation of seeds"
Groups = dict[str, list[Run]]
Points = list[tuple[float, float, float | None]]  # (x, mean, standard deviation)


def clock_of(run: Run, axis: str):
    """A function from a step to the place on an axis: steps, tokens or seconds.

    Raises:
        ValueError: the run has logged nothing that says so.
    """
    if axis == "steps":
        return float
    lines = [line for line in run.metrics if line.get("tokens") and line["step"]]
    if axis == "tokens" and lines:
        per_step = lines[-1]["tokens"] / lines[-1]["step"]
        return lambda step: step * per_step
    steps, seconds = [0], [0.0]
    for line in lines:
        if line.get("tokens_per_s"):
            per_step = line["tokens"] / line["step"]
            seconds.append(seconds[-1] + (line["step"] - steps[-1]) * per_step / line["tokens_per_s"])
            steps.append(line["step"])
    if len(steps) == 1:
        raise ValueError(f"{run.path} has logged no {axis}: draw it with --axis steps")

    def at(step: float) -> float:
        i = min(max(bisect_right(steps, step), 1), len(steps) - 1)  # beyond the last line its speed goes on
        pace = (seconds[i] - seconds[i - 1]) / (steps[i] - steps[i - 1])
        return seconds[i - 1] + (step - steps[i - 1]) * pace

    return at


def curve_of(run: Run, name: str) -> list[tuple[float, float]]:
    """The points of a metric; those of a name that ends in * are the means over all metrics that it stands for."""
    if not name.endswith("*"):
        return run.curve(name)
    lines = [
        (line["step"], [v for own, v in line.items() if own.startswith(name[:-1]) and v is not None])
        for line in run.metrics
    ]
    return [(step, mean(values)) for step, values in lines if values]


def points_of(runs: list[Run], name: str, axis: str) -> list[Points]:
    """The curves that stand for a group: the mean at the steps that all its runs have, else a curve for each run."""
    curves = [(dict(curve), clock_of(run, axis)) for run in runs if (curve := curve_of(run, name))]
    shared = [step for step in curves[0][0] if all(step in curve for curve, _ in curves)] if curves else []
    if len(curves) < 2 or not shared:
        return [[(clock(step), value, None) for step, value in curve.items()] for curve, clock in curves]
    points = []
    for step in shared:
        values = [curve[step] for curve, _ in curves]
        points.append((mean(clock(step) for _, clock in curves), mean(values), stdev(values)))
    return [points]


def logged(groups: Groups, pattern: str) -> list[str]:
    """The names of metrics that some run has logged and that a name of the table stands for, in a fixed order."""
    if not pattern.endswith("*"):
        return [pattern] if any(run.curve(pattern) for runs in groups.values() for run in runs) else []
    names = {name for runs in groups.values() for run in runs for line in run.metrics for name in line}
    return sorted((name for name in names if name.startswith(pattern[:-1])), key=lambda name: (len(name), name))


def shown(groups: Groups, pattern: str, style: str) -> list[str]:
    """The metrics of a pattern that are drawn: all, or their mean where several groups would hide each other."""
    names = logged(groups, pattern)
    return [pattern] if len(names) > MANY and len(groups) > 1 and style != "bars" else names


def lines_of(groups: Groups, patterns: dict[str, str]) -> dict[str, tuple]:
    """The metrics of a panel -> (style, label); a panel without a * has no labels, for its title says what it shows."""
    names = [(name, pattern) for pattern in patterns for name in shown(groups, pattern, patterns[pattern])]
    if not any(pattern.endswith("*") for pattern in patterns):
        return {name: (patterns[pattern], "") for name, pattern in names}
    found = {}
    for number, (name, pattern) in enumerate(names):
        reader = name.removeprefix(pattern.rstrip("*")).strip("/").replace("_", " ")
        reader = f"mean of {len(logged(groups, pattern))}" if reader == "*" else reader
        style = "bars" if patterns[pattern] == "bars" else STYLES[number % len(STYLES)]
        found[name] = style, metric(pattern).label.replace("{}", reader).strip(", ")
    return found


def figure_of(groups: Groups, axis: str = "steps"):
    """A panel for each group of metrics that has data, and one of answers; the keys of `groups` are the legend."""
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    drawn = {title: lines for title, own in panels().items() if (lines := lines_of(groups, own))}
    answers = answers_of(groups)
    titles = [*drawn, *([ANSWERS] if answers else [])]
    rows = max(1, -(-len(titles) // COLUMNS))
    figure = Figure(figsize=(COLUMNS * PANEL_INCHES[0], rows * PANEL_INCHES[1]), layout="constrained")
    grid = figure.add_gridspec(rows, COLUMNS)
    for number, title in enumerate(titles):
        alone = number == len(titles) - 1 and number % COLUMNS == 0  # the last panel fills its row: no place is empty
        axes = figure.add_subplot(grid[number // COLUMNS, slice(None) if alone else number % COLUMNS])
        axes.set_title(title, fontsize=9)
        axes.grid(alpha=0.3)
        axes.tick_params(labelsize=8)
        axes.ticklabel_format(axis="y", style="plain", useOffset=False)
        if title == ANSWERS:
            draw_answers(axes, answers)
        else:
            draw_panel(axes, groups, drawn[title], axis)
    handles = [Line2D([], [], color=f"C{i}", label=label) for i, label in enumerate(groups)] if len(groups) > 1 else []
    if handles := [*handles, *band_of(groups)]:
        figure.legend(handles=handles, loc="outside upper left", ncols=4, fontsize=8, frameon=False)
    return figure


def band_of(groups: Groups) -> list:
    """What a legend says of the bands of `draw_curve`; nothing where no group has several runs."""
    from matplotlib.patches import Patch

    return [Patch(color="grey", alpha=0.2, lw=0, label=BAND)] if any(len(runs) > 1 for runs in groups.values()) else []


def draw_panel(axes, groups: Groups, lines: dict[str, tuple], axis: str) -> None:
    """Curves, or a histogram, of all groups; what tells the lines of one group apart stands beside the panel."""
    from matplotlib.lines import Line2D

    labels = []
    for number, (name, (style, label)) in enumerate(lines.items()):
        dash, by_line = STYLES[number % len(STYLES)], bool(label) and len(groups) == 1
        for color, runs in enumerate(groups.values()):
            color = f"C{number if by_line else color}"
            if style == "bars":
                bars(axes, [run.curve(name)[-1][1] for run in runs if run.curve(name)], color, dash)
            else:
                for points in points_of(runs, name, axis):
                    draw_curve(axes, points, style, color, name in SMOOTHED)
            for run in runs:
                for step in run.not_finite(name):
                    axes.axvline(clock_of(run, axis)(step), color=color, ls="--", lw=1)
        if label:
            labels.append(Line2D([], [], color=f"C{number}" if by_line else "grey", ls=dash, label=label))
    is_histogram = any(style == "bars" for style, _ in lines.values())
    axes.set_xlabel("reads" if is_histogram else AXES[axis], fontsize=8)
    if any(m.unit == "%" and name.startswith(m.name.rstrip("*")) for m in METRICS if m.panel for name in lines):
        axes.yaxis.set_major_formatter(in_percent())
    if is_histogram:
        label_bins(axes)
    if any(name in LOGARITHMIC for name in lines):
        scale_by_ratio(axes, [value for name in lines for runs in groups.values() for run in runs
                              for _, value in run.curve(name)])  # fmt: skip
    if len(labels) > 1 or any(name.endswith("*") for name in lines):
        axes.legend(handles=labels, loc="upper left", bbox_to_anchor=(1, 1), fontsize=7, frameon=False)


def scale_by_ratio(axes, values: list[float]) -> None:
    """A log scale with plain numbers, where the values are far apart in ratio."""
    from matplotlib.ticker import LogLocator, NullLocator, ScalarFormatter

    if values and 0 < RATIO * min(values) < max(values):
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5, 7)))
        axes.yaxis.set_major_formatter(ScalarFormatter())
        axes.yaxis.set_minor_locator(NullLocator())


def smooth(values: Sequence[float]) -> list[float]:
    """The running mean over a twentieth of a curve."""
    width = max(1, len(values) // 20)
    return [mean(values[max(0, i - width + 1) : i + 1]) for i in range(len(values))]


def draw_curve(axes, points: Points, style, color: str, is_smoothed: bool = False) -> None:
    """One curve; a spread is a band, or a bar at each dot. A smoothed one lies thin below its running mean."""
    if not points:
        return
    x, y, spread = zip(*points, strict=True)
    if style == "o" or len(points) == 1:  # a line of one point would not be seen
        axes.errorbar(x, y, yerr=None if spread[0] is None else spread, fmt="o", color=color, ms=4, lw=1)
        return
    if is_smoothed and len(points) >= 40:
        axes.plot(x, y, ls=style, color=color, lw=0.6, alpha=0.4)
        y = smooth(y)
    axes.plot(x, y, ls=style, color=color, lw=1.2)
    if spread[0] is not None:
        low, high = [a - b for a, b in zip(y, spread, strict=True)], [a + b for a, b in zip(y, spread, strict=True)]
        axes.fill_between(x, low, high, color=color, alpha=0.2, lw=0)


def bars(axes, counts: list[list[int]], color: str, dash: str) -> None:
    """A histogram whose bins are 0, 1, 2-3, 4-7, ... reads: the mean of the counts of some runs."""
    if counts:
        longest = max(map(len, counts))
        middle = [mean(own[i] if i < len(own) else 0 for own in counts) for i in range(longest)]
        axes.step(range(longest), middle, where="mid", color=color, ls=dash)


def in_percent():
    from matplotlib.ticker import PercentFormatter

    return PercentFormatter(1)


def label_bins(axes) -> None:
    """Name the bins of a histogram by their fewest reads."""
    n_bins = max(len(line.get_xdata()) for line in axes.get_lines())
    fewest = [2 ** (i - 1) for i in range(2, n_bins)]
    names = ["0", "1", *(f"{n // 1024}k+" if n >= 1024 else f"{n}+" for n in fewest)][:n_bins]
    axes.set_yscale("symlog")
    every = -(-n_bins // 8)  # more would overlap
    axes.set_xticks(range(n_bins)[::every], names[::every])


def answers_of(groups: Groups) -> dict[str, tuple[list[list[float]], list[list[float]], float | None]]:
    """Shares of right answers after training: label -> (of each group's runs, the same with its bank shuffled, chance).

    Facts that the training text states as well are left out: they say little of the memory.
    """
    found, every = {}, [run for runs in groups.values() for run in runs]
    for measure in METRICS:
        if measure.unit == "%" and measure.is_compared and measure.path and "seen" not in measure.path:
            values, shuffled = (
                [[v for run in runs if (v := run.score(*arm, *measure.path)) is not None] for runs in groups.values()]
                for arm in ((), ("arms", "bank shuffled"))
            )
            if any(values):
                chances = [run.score(*measure.path[:-1], "chance") for run in every]
                found[measure.label] = values, shuffled, next(filter(None, chances), None)
    return found


def draw_answers(axes, answers: dict[str, tuple[list[list[float]], list[list[float]], float | None]]) -> None:
    """A row for each kind of question, a dot for each group with the spread of its seeds."""
    for row, (*arms, chance) in enumerate(answers.values()):
        for values, fill in zip(arms, (None, "none"), strict=True):
            for number, own in enumerate(values):
                if own:
                    place = row + 0.5 * (number - (len(values) - 1) / 2) / len(values)
                    width = stdev(own) if len(own) > 1 else None
                    axes.errorbar(mean(own), place, xerr=width, fmt="o", color=f"C{number}", mfc=fill, ms=5, lw=1.2)
        if chance:
            axes.plot([chance] * 2, [row - 0.4, row + 0.4], color="grey", lw=1.2)
    axes.set_yticks(range(len(answers)), list(answers))
    axes.set_ylim(len(answers) - 0.5, -0.5)
    axes.set_xlim(-0.02, 1.02)
    axes.xaxis.set_major_formatter(in_percent())


def draw(groups: Groups, path: str | Path, axis: str = "steps") -> Path:
    """Write the curves of groups of runs as a PNG. The keys of `groups` are the legend."""
    # Without the library's version in it, equal curves are equal files.
    figure_of(groups, axis).savefig(path, dpi=DPI, metadata={"Software": None})
    return Path(path)


def draw_run(run: Run) -> Path:
    """The curves of one run, as curves.png in its folder."""
    return draw({run.name: [run]}, run.path / "curves.png")
