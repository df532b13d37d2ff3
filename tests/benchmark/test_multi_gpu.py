"""The benchmark of several processes at tiny size on a CPU."""

import json
import os
import sys

import pytest

from benchmark import multi_gpu
from tests.tiny_runs import FORKS, free_port

TINY = (
    "--dim 32 --n_layers 6 --n_heads 4 --batch_size 1 --seq_len 32 --knowledge_num 256 --repeats 1 --no_compile "
    "--accumulation_steps 2"
).split()


def measure(path, environment: dict) -> None:
    os.environ |= environment
    measured = multi_gpu.measure_here(multi_gpu.make_flags().parse_args(TINY), "1_4_0")
    path.write_text(json.dumps(measured))


def test_processes_make_the_steps_of_the_training_script_and_the_main_one_tells_their_speed(tmp_path):
    place = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    ranks = [{"RANK": rank, "LOCAL_RANK": rank} | place for rank in "01"]
    processes = [FORKS.Process(target=measure, args=(tmp_path / rank["RANK"], rank)) for rank in ranks]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    row, other = (json.loads((tmp_path / rank).read_text()) for rank in "01")
    assert other is None and not row["captured"]
    assert row["tokens_per_s"] * row["step_ms"] / 1000 == pytest.approx(2 * 2 * 32)
    assert 0 < row["exchange_ms"] < row["step_ms"]


def test_the_share_of_linear_speed_is_that_of_the_medians():
    assert multi_gpu.of_linear({1: [10.0, 30.0, 20.0], 4: [70.0, 80.0, 60.0]}, 4) == 70 / 20 / 4
    assert multi_gpu.of_linear({2: [10.0], 4: [18.0]}, 4) == 0.9
    assert multi_gpu.of_linear({1: [], 4: [70.0]}, 4) is None


@pytest.mark.slow
def test_the_command_starts_them_and_prints_their_ratio(tmp_path, monkeypatch, capsys):
    out = tmp_path / "rows.jsonl"
    flags = ["--processes", "1", "2", "--turns", "1", "--seconds", "600", "--out", str(out)]
    monkeypatch.setattr(sys, "argv", ["multi_gpu", *TINY, *flags, "--experiments", "1_4_0", "1_4_8", "1_5_2"])
    multi_gpu.main()
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["error"] for row in rows] == [None] * 6 and [row["processes"] for row in rows] == [1, 2] * 3
    assert rows[0]["of_linear"] == 1 and rows[1]["of_linear"] > 0 and "of_linear" in capsys.readouterr().out
