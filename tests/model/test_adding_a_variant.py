"""docs/adding_a_variant.md, done in a temporary copy of the project with the examples of docs/examples/."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.tiny_runs import TINY, write_data

ROOT = Path(__file__).parents[2]
PACKAGES = ("common", "dataset", "model", "trainer", "runs", "evaluation", "editing", "tests", "run_file")
FILES = ("train_pretrain_accelerate.py", "eval_model.py", "pyproject.toml", "experiment/TEMPLATE.md")


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Path:
    """A copy of the project with the three examples, each added as the page says: one file and one line."""
    folder = tmp_path_factory.mktemp("project")
    for name in PACKAGES:
        ignored = shutil.ignore_patterns("__pycache__", "cache", "quickstart", "stable")
        shutil.copytree(ROOT / name, folder / name, ignore=ignored)
    (folder / "experiment").mkdir()
    for name in FILES:
        shutil.copy(ROOT / name, folder / name)
    for example, package in (
        ("weighted_sum", "model/memory"),
        ("flat_keys", "model/memory"),
        ("next_token", "evaluation"),
    ):
        shutil.copy(ROOT / f"docs/examples/{example}.py", folder / package)
    name_it(folder / "model/memory/__init__.py", "FUSIONS", "weighted_sum", "WeightedSum")
    name_it(folder / "model/memory/__init__.py", "RETRIEVALS", "flat_keys", "FlatKeys")
    name_it(folder / "evaluation/__init__.py", "TASKS", "next_token", "next_token")
    return folder


def name_it(path: Path, table: str, name: str, thing: str) -> None:
    """The import and the line of a table."""
    text = path.read_text()
    text = re.sub(r"^(from \.)", rf"from .{name} import {thing}\n\1", text, count=1, flags=re.MULTILINE)
    text, n = re.subn(rf"^({table} = {{)", rf'\1"{name}": {thing}, ', text, flags=re.MULTILINE)
    assert n == 1
    path.write_text(text)


def run(project: Path, *command: str) -> str:
    environment = os.environ | {"PYTHONPATH": str(project), "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(
        [sys.executable, *command], cwd=project, env=environment, capture_output=True, text=True, timeout=600
    )
    assert ended.returncode == 0, ended.stdout[-3000:] + ended.stderr[-3000:]
    return ended.stdout


@pytest.mark.slow
def test_the_invariants_cover_a_new_fusion_and_a_new_retrieval(project):
    wanted = "(weighted_sum or flat_keys) and (future_never or cache_equals or trains_every or packing)"
    pytest_alone = ("-m", "pytest", "-p", "no:cacheprovider", "-o", "addopts=")
    printed = run(project, *pytest_alone, "tests/model/test_invariants.py", "-k", wanted)
    assert int(re.search(r"(\d+) passed", printed)[1]) >= 24 and "failed" not in printed


@pytest.mark.slow
def test_a_model_of_both_trains_and_the_new_task_judges_it(project):
    data, out, records = write_data(project), project / "out/mine", ("--experiment_dir", str(project / "records"))
    run(
        project, "train_pretrain_accelerate.py", *TINY, "--out_dir", str(out), "--data_path", str(data / "text.jsonl"),
        "--val_fraction", "0.1", "--cache_dir", str(project / "cache"), *records,
        "--database_init_path", str(data / "facts.json"), "--retrieval", "flat_keys", "--key_dim", "8",
        "--fusion", "weighted_sum", "--sum_scale", "2",
    )  # fmt: skip
    run(project, "eval_model.py", "--run", str(out), "--tasks", "next_token", "--arms", *records)
    assert '"next_token": {' in (out / "eval.json").read_text()
    help_text = run(project, "train_pretrain_accelerate.py", "--help")
    assert "--sum_scale" in help_text and "--key_dim" in help_text
