"""The modules import each other in one direction."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGES = ("common", "dataset", "model", "trainer", "runs", "evaluation", "editing", "benchmark")


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports_of(path: Path, modules: set[str]) -> set[str]:
    """The modules that a file imports when it is loaded; `from package import name` needs the package's `__init__`."""
    found, package = set(), path.parent.relative_to(ROOT).parts
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            start = package[: len(package) + 1 - node.level] if node.level else ()
            source = ".".join([*start, *(node.module.split(".") if node.module else [])])
            found |= {source} | {f"{source}.{alias.name}" for alias in node.names}
    return found & modules


def test_no_modules_import_each_other():
    files = {module_of(path): path for package in PACKAGES for path in (ROOT / package).rglob("*.py")}
    graph = {name: imports_of(path, set(files)) for name, path in files.items()}
    assert sum(map(len, graph.values())) > 200
    list(TopologicalSorter(graph).static_order())  # raises CycleError
