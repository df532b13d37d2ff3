"""What is left in the environment of a shell changes no result, or is refused in one sentence."""

from functools import partial

import pytest

from tests.tiny_runs import metrics
from trainer.start import waiting_for_processes

from .faults import set_variables

pytestmark = pytest.mark.fault("variables left in the environment")
SHORT = ("--max_steps", "3", "--save_interval", "9", "--eval_interval", "9")
OF_ACCELERATE = {
    "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "8", "ACCELERATE_MIXED_PRECISION": "bf16",
    "ACCELERATE_DYNAMO_BACKEND": "inductor", "ACCELERATE_DOWNCAST_BF16": "true",
}  # fmt: skip
OF_PROXIES = {name: "http://127.0.0.1:9" for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "ALL_PROXY")}
LOCALE = {"LC_ALL": "C", "LANG": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": "ascii"}


def test_variables_of_accelerate_of_proxies_and_of_the_locale_change_no_loss(runs):
    assert runs.start("clean", *SHORT).code == 0
    ended = runs.start("left", *SHORT, fault=partial(set_variables, OF_ACCELERATE | OF_PROXIES | LOCALE))
    assert ended.code == 0, ended.output
    for name in ("loss", "grad_norm", "val_loss"):
        assert metrics(runs.folder / "left", name) == metrics(runs.folder / "clean", name)


@pytest.mark.parametrize("left, named", [({}, "RANK and MASTER_ADDR"), ({"RANK": "0"}, "MASTER_ADDR")])
def test_a_number_of_processes_that_nobody_started_is_refused(runs, left, named):
    ended = runs.start("run", fault=partial(set_variables, {"WORLD_SIZE": "2"} | left))
    assert ended.code == 1 and f"the environment has WORLD_SIZE=2 without {named}, so this" in ended.output
    assert "unset WORLD_SIZE" in ended.output and ended.output.count("\n") == 1


def test_processes_that_do_not_reach_each_other_are_told_of_the_interface(monkeypatch):
    """As on two machines whose own name means 127.0.1.1, which is what Debian's installer writes."""
    for name, value in {"WORLD_SIZE": "2", "RANK": "1", "MASTER_ADDR": "192.0.2.7"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConnectionError, match=r"process 1 of 2 .*\(timed out connecting\): .*192.0.2.7 .*GLOO_SOCKET"):
        with waiting_for_processes():
            raise RuntimeError("timed out connecting\nmore")
    with pytest.raises(RuntimeError, match="invalid device"), waiting_for_processes():
        raise RuntimeError("CUDA error: invalid device ordinal")
