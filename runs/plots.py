"""The curves of runs as PNG, drawn from metrics.jsonl; no tracker is needed."""

from pathlib import Path

from .metrics import panels
from .run import Run

COLUMNS, PANEL_INCHES, DPI = 2, (5.6, 2.6), 80


def figure_of(runs: dict[str, Run]):
    """A panel for each group of metrics that has data, a colour for each run. The keys of `runs` are the legend."""
    from matplotlib.figure import Figure

    drawn = {
        title: lines
        for title, lines in panels().items()
        if any(run.curve(name) for run in runs.values() for name in lines)
    }
    rows = max(1, -(-len(drawn) // COLUMNS))
    figure = Figure(figsize=(COLUMNS * PANEL_INCHES[0], rows * PANEL_INCHES[1]), layout="constrained")
    grid = list(figure.subplots(rows, COLUMNS, squeeze=False).flat)
    for axes, (title, lines) in zip(grid, drawn.items(), strict=False):
        for color, (label, run) in enumerate(runs.items()):
            for name, style in lines.items():
                points = run.curve(name)
                if points and style == "bars":
                    bars(axes, points[-1][1], color, label)
                elif points:
                    axes.plot(*zip(*points, strict=True), style, color=f"C{color}", label=label, lw=1.2, ms=4)
                    label = None  # one legend entry for each run
                for step in run.not_finite(name):
                    axes.axvline(step, color=f"C{color}", ls="--", lw=1)
        axes.set_title(title, fontsize=9)
        axes.grid(alpha=0.3)
        axes.set_xlabel("reads" if "bars" in lines.values() else "step", fontsize=8)
        axes.tick_params(labelsize=8)
        if len(runs) > 1 and axes is grid[0]:
            axes.legend(fontsize=8)
    for axes in grid[len(drawn) :]:
        axes.axis("off")
    return figure


def draw(runs: dict[str, Run], path: str | Path) -> Path:
    """Write the curves of runs as a PNG. The keys of `runs` are the legend."""
    # Without the library's version in it, equal curves are equal files.
    figure_of(runs).savefig(path, dpi=DPI, metadata={"Software": None})
    return Path(path)


def bars(axes, counts: list[int], color: int, label: str | None) -> None:
    """A histogram whose bins are 0, 1, 2-3, 4-7, ... reads."""
    axes.step(range(len(counts)), counts, where="mid", color=f"C{color}", label=label)
    axes.set_yscale("symlog")
    names = [str(2 ** max(0, i - 1)) if i else "0" for i in range(len(counts))]
    axes.set_xticks(range(len(counts)), [f"{name}+" if i > 1 else name for i, name in enumerate(names)])


def draw_run(run: Run) -> Path:
    """The curves of one run, as curves.png in its folder."""
    return draw({run.name: run}, run.path / "curves.png")
