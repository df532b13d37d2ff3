"""Two machines: two launchers, on one network or with a cable between them that can be pulled."""

import json
import os
import shutil
import subprocess
import sys
import time

import psutil
import pytest

from tests.tiny_runs import free_port
from trainer.checkpoint import checkpoint_dirs, read_state

from .test_processes import ROOT, SECONDS, launch_environment


def launcher_of(rank: int, port: int, gpus: bool) -> tuple[list[str], dict[str, str]]:
    """What docs/reliability.md says for one of two machines, as command and variables; with GPUs the launcher's own."""
    if gpus:  # run_file/_launch.sh takes another launcher where there are none
        words = f"--multi_gpu --num_processes 2 --num_machines 2 --machine_rank {rank} --main_process_ip 127.0.0.1"
        words += f" --main_process_port {port} --mixed_precision no --dynamo_backend no train_pretrain_accelerate.py"
        return [sys.executable, "-m", "accelerate.commands.launch", *words.split()], {"ACCELERATE_USE_CPU": "true"}
    flags = f"--nnodes 2 --node_rank {rank} --master_addr 127.0.0.1 --master_port {port}"
    return ["bash", "run_file/_launch.sh"], {"NUM_PROCESSES": "1", "ACCELERATE_FLAGS": flags}


@pytest.mark.slow
@pytest.mark.parametrize("gpus", [False, True])
def test_two_machines_are_two_launchers(runs, gpus):
    """Both over the loopback interface, each with one process."""
    assert [one.code for one in runs.start_ranks("ranks", "--batch_size", "2")] == [0, 0]
    launchers, port = [], free_port()
    outputs = [runs.folder / f"output{rank}" for rank in range(2)]
    for rank in range(2):
        command, variables = launcher_of(rank, port, gpus)
        command += runs.argv("machines", "--batch_size", "2")
        output, environment = open(outputs[rank], "w+"), launch_environment(**variables)
        launchers.append(subprocess.Popen(command, cwd=ROOT, env=environment, stdout=output, stderr=output))
    for launcher, output in zip(launchers, outputs, strict=True):
        assert launcher.wait(timeout=240) == 0, output.read_text()
    facts = json.loads((runs.folder / "machines" / "run.json").read_text())
    assert facts["processes"] == 2 and facts["state"] == "finished"
    states = [read_state(checkpoint_dirs(runs.folder / name)[-1]) for name in ("ranks", "machines")]
    assert states[0] == states[1]


def ip(*words: str) -> bool:
    return subprocess.run(["ip", *words], capture_output=True).returncode == 0


@pytest.fixture
def machines():
    """The names of two network namespaces, each also that of its end of the cable; addresses 10.9.0.1 and 10.9.0.2."""
    ends = [f"m{os.getpid()}{end}" for end in "ab"]
    if os.geteuid() or not shutil.which("ip") or not ip("link", "add", ends[0], "type", "veth", "peer", ends[1]):
        pytest.skip("needs root and the program ip, which make the network")
    try:
        for number, end in enumerate(ends, 1):
            assert ip("netns", "add", end) and ip("link", "set", end, "netns", end)
            assert ip("-n", end, "addr", "add", f"10.9.0.{number}/24", "dev", end)
            assert ip("-n", end, "link", "set", "lo", "up") and ip("-n", end, "link", "set", end, "up")
        yield ends
    finally:
        for end in ends:
            ip("netns", "del", end) or ip("link", "del", end)


def worker_of(launcher: subprocess.Popen) -> psutil.Process:
    children = psutil.Process(launcher.pid).children(recursive=True)
    (worker,) = [p for p in children if "train_pretrain_accelerate.py" in p.cmdline() and not p.children()]
    return worker


@pytest.mark.slow
@pytest.mark.parametrize("what", ["kill -9 of one process of two", "a pulled cable between two machines"])
def test_what_happens_to_one_machine_ends_both_in_seconds(runs, survives, machines, what):
    launchers, outputs = [], [runs.folder / f"output{rank}" for rank in range(2)]
    command = ["bash", "run_file/_launch.sh", *runs.argv("run", "--max_steps", "100000", "--batch_size", "2")]
    for rank, end in enumerate(machines):
        flags = f"--nnodes 2 --node_rank {rank} --master_addr 10.9.0.1 --master_port 29500"
        environment = launch_environment(NUM_PROCESSES="1", ACCELERATE_FLAGS=flags, GLOO_SOCKET_IFNAME=end)
        launchers.append(
            subprocess.Popen(
                ["ip", "netns", "exec", end, *command], cwd=ROOT, env=environment,
                stdout=open(outputs[rank], "w+"), stderr=subprocess.STDOUT,
            )
        )  # fmt: skip
    try:
        while not checkpoint_dirs(runs.folder / "run"):
            assert not any(launcher.poll() for launcher in launchers), outputs[0].read_text()
            time.sleep(0.2)
        workers = [worker_of(launcher) for launcher in launchers]
        with survives(what):
            if "cable" in what:
                assert ip("-n", machines[1], "link", "set", machines[1], "down")
            else:
                workers[1].kill()
            assert not psutil.wait_procs(workers, timeout=SECONDS)[1], "no process outlives the fault by so long"
            assert all(launcher.wait(timeout=30) for launcher in launchers)
            assert "process 1 of 2 has died or failed, so this one, 0, ends" in outputs[0].read_text()
            assert ("process 0 of 2 has died or failed" in outputs[1].read_text()) == ("cable" in what)
    finally:
        for launcher in launchers:
            if launcher.poll() is None:
                for process in (*psutil.Process(launcher.pid).children(recursive=True), launcher):
                    process.kill()
