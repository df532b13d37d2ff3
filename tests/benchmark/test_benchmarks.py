"""Each benchmark at tiny size on a CPU: its rows, and that what it times is the right thing."""

import importlib
import json

import pytest
import torch

from benchmark import bench_decode
from benchmark.measure import Cases, make_parser
from tests.conftest import tiny_model


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """run("bench_decode", flags): its rows and what it printed."""

    def run_benchmark(name, flags):
        out = tmp_path / f"{name}.jsonl"
        monkeypatch.setattr("sys.argv", [name, *flags.split(), "--out", str(out)])
        importlib.import_module(f"benchmark.{name}").main()
        return [json.loads(line) for line in out.read_text().splitlines()], capsys.readouterr().out

    return run_benchmark


def test_a_case_that_fails_or_comes_too_late_is_reported_and_the_others_go_on(capsys):
    cases = Cases("bench", make_parser("").parse_args([]), torch.device("cpu"))

    def fail():
        raise RuntimeError("no kernel\nand more")

    assert cases.attempt({"model": "a"}, fail) is None
    assert cases.attempt({"model": "b"}, lambda: 7) == 7
    cases.add({"model": "b"}, step_ms=1.234)
    cases.deadline = 0
    assert cases.attempt({"model": "c"}, lambda: 7) is None
    lines = cases.table({"model": "", "step_ms": ".1f"}).split("\n")
    assert lines[1] == "    a        -  RuntimeError: no kernel"
    assert lines[2] == "    b      1.2"
    assert lines[3].endswith("-  no time was left: give more --seconds")


@pytest.mark.parametrize("design", [{}, {"retrieval": "ngram", "fusion": "words", "pointer": True}])
def test_decoding_chooses_what_the_whole_forward_pass_would(design):
    model = tiny_model(**design)
    prompt_BT = torch.randint(3, 61, (2, 9))
    _, token_ms, new_BT = bench_decode.decode(model, prompt_BT, 6)
    text_BT = torch.cat([prompt_BT, new_BT], dim=1)
    assert len(token_ms) == 6
    assert torch.equal(model(text_BT).logits.argmax(dim=-1)[:, 8:-1], new_BT)


def test_decode(run):
    sizes = "--dim 32 --n_layers 1 --n_heads 4 --knowledge_num 256 --batch_sizes 2 --prompt_tokens 9 --new_tokens 3"
    rows, printed = run("bench_decode", f"{sizes} --prompts 2 --experiments 1_4_0 1_4_10 1_5_1")
    assert [row["model"] for row in rows] == ["1_4_0", "1_4_10", "1_5_1"]
    assert all(row["tokens_per_s"] > 0 and row["steps"] == 6 for row in rows)
    assert rows[0]["ratio_to_plain"] == 1 and "1_5_1" in printed
