"""Every document of the project: writing its tables, values and figures anew, and the problems that it has."""

from collections.abc import Iterator
from pathlib import Path

from .figures import FIGURES, stamp_of, write_figure
from .marks import fill
from .prose import problems_of_text
from .rows import Rows

LEADERBOARD = "experiment/README.md"
FIGURE_FOLDER = "experiment/figures"


def documents_of(root: Path) -> list[Path]:
    """README in both languages, the pages of docs/, and the leaderboard."""
    named = (root / "README.md", root / "README.zh-CN.md", root / LEADERBOARD)
    return [*filter(Path.exists, named), *sorted((root / "docs").glob("*.md"))]


def language_of(path: Path) -> str:
    return "zh" if path.stem.endswith("zh-CN") or path.parts[-2:] == ("experiment", "README.md") else "en"


def write(root: Path) -> list[Path]:
    """Write every generated table, value and figure anew; the files that changed.

    Raises:
        ValueError: a document names a table or a value that does not exist.
    """
    rows, changed = Rows.load(root), []
    for path in documents_of(root):
        old = path.read_text(encoding="utf-8")
        new = fill(old, rows, language_of(path), path.name)
        if new != old:
            path.write_text(new, encoding="utf-8")
            changed.append(path)
    for name in FIGURES:
        changed += write_figure(name, rows, root / FIGURE_FOLDER)
    return changed


def problems(root: Path) -> Iterator[tuple[Path, str]]:
    """(file, what is wrong with it): stale tables, values and figures, broken links, unmarked numbers, long files."""
    rows = Rows.load(root)
    for path in documents_of(root):
        text = path.read_text(encoding="utf-8")
        for problem in [*stale_marks(text, rows, path), *problems_of_text(text, path, root)]:
            yield path.relative_to(root), problem
    wanted = [name for name, (collect, _) in FIGURES.items() if collect(rows)] if documents_of(root) else []
    for name in wanted:
        for dark in (False, True):
            path = root / FIGURE_FOLDER / f"{name}{'_dark' * dark}.svg"
            if not path.exists():
                yield path.relative_to(root), "the figure is missing: python -m experiment documents"
            elif stamp_of(name, rows, dark) not in path.read_text(encoding="utf-8"):
                yield path.relative_to(root), "the figure is stale: python -m experiment documents"


def stale_marks(text: str, rows: Rows, path: Path) -> list[str]:
    """The first line of a document that its rows no longer give, or the mark that nothing fills."""
    try:
        new = fill(text, rows, language_of(path), path.name)
    except ValueError as problem:
        return [str(problem)]
    for number, (a, b) in enumerate(zip(text.splitlines(), new.splitlines(), strict=False), 1):
        if a != b:
            return [f"line {number} is not what the rows give: python -m experiment documents"]
    return [] if text == new else ["the end is not what the rows give: python -m experiment documents"]
