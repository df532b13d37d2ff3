"""The table of operations: it is complete, and its one rule chooses between reference and kernel. Needs no GPU."""

import ast
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import model.ops
from model.ops import OPS, twin
from tests.conftest import tiny_config
from tests.model.test_kernels import KERNEL_TESTS

FOLDER = Path(model.ops.__file__).parent
CPU, GPU = torch.device("cpu"), torch.device("cuda")
# Of each operation: whether its kernel runs with --deterministic, in float64, and without --use_flash_attn.
ALWAYS, NOT_DETERMINISTIC = (True, True, True), (False, True, True)
KERNEL_ON_GPU = {
    "best_of_rows": ALWAYS,
    "search_grid": ALWAYS,
    "keep_best": ALWAYS,
    "read_entries": NOT_DETERMINISTIC,
    "unit_entries": NOT_DETERMINISTIC,
    "match_tokens": (False, False, True),
    "sum_tokens": NOT_DETERMINISTIC,
    "score_words": NOT_DETERMINISTIC,
    "sum_words": NOT_DETERMINISTIC,
    "row_products": ALWAYS,
    "rarest_words": ALWAYS,
    "read_postings": ALWAYS,
    "rank_by_words": ALWAYS,
    "lay_out_entries": ALWAYS,
    "suffix_bounds": ALWAYS,
    "suffix_levels": ALWAYS,
    "suffix_neighbours": ALWAYS,
    "suffix_queries": ALWAYS,
    "spaced_places": ALWAYS,
    "next_tokens": ALWAYS,
    "read_places": ALWAYS,
    "attend_continuations": NOT_DETERMINISTIC,
    "normed_heads": (True, False, True),
    "attend_entries": (True, True, False),  # its kernel refuses float64 with a message
    "attend_own": (True, False, False),
}
FUSED, TEXTBOOK = tiny_config(use_flash_attn=True), tiny_config(use_flash_attn=False)


@pytest.fixture
def deterministic():
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def functions(path: Path) -> set[str]:
    return {node.name for node in ast.parse(path.read_text(encoding="utf-8")).body if isinstance(node, ast.FunctionDef)}


def test_the_table_is_complete():
    assert set(OPS) == set(KERNEL_ON_GPU) == set(KERNEL_TESTS)
    assert all(getattr(model.ops, name).op is op and op.name == name for name, op in OPS.items())
    files = {op.reference.__module__.rpartition(".")[2] for op in OPS.values()}
    assert files == {path.stem for path in (FOLDER / "triton").glob("*.py")} - {"__init__"}


@pytest.mark.parametrize("name", OPS)
def test_a_reference_and_its_kernel_have_one_name_and_the_same_arguments(name):
    reference, kernel = OPS[name].reference, OPS[name].kernel
    assert name in functions(FOLDER / "triton" / f"{reference.__module__.rpartition('.')[2]}.py")
    code, other = reference.__code__, kernel.__code__
    assert code.co_varnames[: code.co_argcount] == other.co_varnames[: other.co_argcount]
    assert reference.__defaults__ == kernel.__defaults__


@pytest.mark.parametrize("name", OPS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_a_cpu_has_the_reference(name, dtype):
    assert not any(OPS[name].uses_kernel(CPU, dtype, config) for config in (FUSED, TEXTBOOK))


@pytest.mark.parametrize("name", OPS)
def test_a_gpu_has_the_kernel_as_the_rule_says(name):
    op, (_, in_float64, without_fused) = OPS[name], KERNEL_ON_GPU[name]
    assert op.uses_kernel(GPU, torch.float32, FUSED) and op.uses_kernel(GPU, torch.bfloat16, FUSED)
    assert op.uses_kernel(GPU, torch.float64, FUSED) == in_float64
    assert op.uses_kernel(GPU, torch.float32, TEXTBOOK) == without_fused


@pytest.mark.parametrize("name", OPS)
def test_deterministic_runs_have_no_kernel_that_sums_in_any_order(name, deterministic):
    assert OPS[name].uses_kernel(GPU, torch.float32, FUSED) == KERNEL_ON_GPU[name][0]


def test_the_first_argument_and_the_configuration_decide(monkeypatch):
    monkeypatch.setitem(OPS, "add", None)  # removed again after the test

    def kernel(x, y, config):
        return "kernel"

    @twin(kernel, deterministic=True, flag="use_flash_attn")
    def add(x, y, config):
        return "reference"

    def tensor(device):
        return SimpleNamespace(device=device, dtype=torch.float32)

    assert add(tensor(GPU), tensor(CPU), FUSED) == "kernel"
    assert add(tensor(GPU), tensor(CPU), TEXTBOOK) == "reference"
    assert add(tensor(CPU), tensor(GPU), FUSED) == "reference"


def test_a_compiled_graph_holds_the_choice_without_a_break():
    def run(score, token, table, entry):
        best = model.ops.best_of_rows(score, 2)[0]
        grid = model.ops.search_grid(score.view(1, 1, 2, -1), 2)[0]
        read = model.ops.sum_tokens(torch.ones_like(token).float(), table, token, entry)
        return best.sum() + grid.sum() + read.sum()

    inputs = torch.randn(2, 4), torch.randint(5, (1, 2, 6)), torch.randn(5, 3), torch.zeros(1, 2, 2, dtype=torch.int64)
    compiled = torch.compile(run, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(*inputs), run(*inputs))


def test_a_cpu_imports_no_kernel_and_the_models_no_package_above_them():
    script = (
        "import sys; sys.modules['triton'] = None\n"
        "import torch\nfrom model.ops import best_of_rows\nbest_of_rows(torch.ones(2, 3), 1)\nimport model\n"
        "assert not [name for name in sys.modules if name.startswith('model.ops.triton.')]\n"
        "above = {'dataset', 'trainer', 'runs', 'evaluation', 'editing', 'benchmark'}\n"
        "assert not above & set(sys.modules), above & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], check=True, cwd=FOLDER.parents[1])
