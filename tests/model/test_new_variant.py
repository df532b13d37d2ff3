"""The examples of docs/adding_a_variant.md: one file and one line of a table, and flags, --help and tests cover it."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PARTS = ("common", "dataset", "docs/examples", "model", "runs", "tests/model", "trainer")
FILES = ("pyproject.toml", "tests/__init__.py", "tests/conftest.py", "tests/tiny_runs.py")
EXAMPLES = {  # file -> its class, the table, a flag of its own, and the variant that is tested
    "weighted_sum": ("WeightedSum", "FUSIONS", "sum_scale", "ngram-weighted_sum"),
    "flat_keys": ("FlatKeys", "RETRIEVALS", "key_dim", "flat_keys-cross_attention"),
}
SCRIPT = """
import json, sys
from trainer.config import CONFIGS, OneSentenceParser, parse_cli
from tests.model.variants import VARIANTS
try:
    parse_cli([sys.argv[1], "-1"])
except ValueError as problem:
    print(json.dumps([OneSentenceParser(*CONFIGS).format_help(), str(problem), list(VARIANTS)]))
"""


def run(folder: Path, *command: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, *command], cwd=folder, capture_output=True, text=True)


@pytest.fixture
def project(tmp_path) -> Path:
    """A copy of the code to change."""
    ignored = shutil.ignore_patterns("__pycache__", "*.npy", "*.tsv", "cache", "stable")
    for part in PARTS:
        shutil.copytree(ROOT / part, tmp_path / part, ignore=ignored)
    for file in FILES:
        shutil.copy(ROOT / file, tmp_path / file)
    return tmp_path


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_needs_one_file_and_one_line(name, project):
    class_name, table, flag, variant = EXAMPLES[name]
    shutil.copy(project / "docs" / "examples" / f"{name}.py", project / "model" / "memory")
    init = project / "model" / "memory" / "__init__.py"
    text = init.read_text(encoding="utf-8")
    line = f'\nfrom .{name} import {class_name}\n\n{table} = {{"{name}": {class_name}, '
    assert text.count(f"\n{table} = {{") == 1
    init.write_text(text.replace(f"\n{table} = {{", line), encoding="utf-8")

    out = run(project, "-c", SCRIPT, f"--{flag}")
    assert out.returncode == 0, out.stderr
    help_text, refusal, names = json.loads(out.stdout)
    assert f"--{table.lower().removesuffix('s')} {name}:" in help_text and f"  --{flag} " in help_text
    assert refusal.startswith(f"--{flag} must") and variant in names
    tests = ("-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/model/test_invariants.py", "-m", "not slow")
    out = run(project, *tests, "-k", variant)
    assert out.returncode == 0, out.stdout[-3000:]
