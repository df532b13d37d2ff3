"""Each benchmark at tiny size on a CPU: its rows, and that what it times is the right thing."""

import importlib
import json
import sys
from types import SimpleNamespace

import pytest
import torch

from benchmark import decode, peers, retrieval
from benchmark.harness import Cases, make_parser, script_config
from tests.conftest import tiny_model


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """run("decode", flags): its rows and what it printed."""

    def run_benchmark(name, flags):
        out = tmp_path / f"{name}.jsonl"
        enough = ["--seconds", "600"]  # also on a machine that does other things
        monkeypatch.setattr("sys.argv", [name, *enough, *flags.split(), "--out", str(out)])
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


@pytest.mark.parametrize("fixed", [True, False])
@pytest.mark.parametrize("design", [{}, {"retrieval": "ngram", "fusion": "words", "pointer": True}])
def test_decoding_chooses_what_the_whole_forward_pass_would(design, fixed):
    model = tiny_model(**design)
    prompt_BT = torch.randint(3, 61, (2, 9))
    _, token_ms, new_BT = decode.decode(model, prompt_BT, 6, fixed)
    text_BT = torch.cat([prompt_BT, new_BT], dim=1)
    assert len(token_ms) == 6
    assert torch.equal(model(text_BT).logits.argmax(dim=-1)[:, 8:-1], new_BT)


def test_decoding_a_given_text_reads_it_in_place_of_what_is_chosen():
    model = tiny_model(retrieval="suffix", fusion="continuations", keep_ffn=True)
    text_BT = torch.randint(3, 61, (2, 15))
    _, _, new_BT = decode.decode(model, text_BT[:, :9], 6, True, text_BT[:, 9:])
    assert torch.equal(model(text_BT).logits.argmax(dim=-1)[:, 8:], new_BT)


def test_decode_on_real_text_with_a_bank_of_sentences(run, tmp_path, monkeypatch):
    text, bank, seen, build = tmp_path / "text.jsonl", tmp_path / "bank.jsonl", [], decode.build_model
    facts = [f"Person{i} was born in town number {i}." for i in range(256)]
    text.write_text("".join(json.dumps({"text": f"We know that {fact}"}) + "\n" for fact in facts))
    bank.write_text("".join(json.dumps({"sentence": fact}) + "\n" for fact in facts))
    monkeypatch.setattr(decode, "build_model", lambda *args: seen.append(args) or build(*args))
    sizes = "--dim 32 --n_layers 8 --n_heads 4 --knowledge_num 256 --batch_sizes 2 --prompt_tokens 9 --new_tokens 3"
    paths = f"--data_path {text} --database_init_path {bank} --cache_dir {tmp_path / 'cache'}"
    rows, _ = run("decode", f"{sizes} --prompts 1 --experiments 1_6_0 1_6_20 --caches fixed --seq_len 32 {paths}")
    assert [row["model"] for row in rows] == ["1_6_0", "1_6_20"] and {row["text"] for row in rows} == {"real"}
    assert rows[0]["ratio_to_plain"] == 1 and rows[1]["ratio_to_plain"] > 0 and not rows[1]["error"]
    assert (seen[1][1] > 0).sum(dim=1).min() > 4 and seen[0][1] is None  # whole sentences; a plain model has none


def test_decode(run):
    sizes = "--dim 32 --n_layers 1 --n_heads 4 --knowledge_num 256 --batch_sizes 2 --prompt_tokens 9 --new_tokens 3"
    rows, printed = run("decode", f"{sizes} --prompts 2 --experiments 1_4_0 1_4_10 1_5_1")
    assert [row["model"] for row in rows[::2]] == [row["model"] for row in rows[1::2]] == ["1_4_0", "1_4_10", "1_5_1"]
    assert [row["cache"] for row in rows] == ["fixed", "dynamic"] * 3
    assert all(row["tokens_per_s"] > 0 and row["steps"] == 2 for row in rows)  # 2 prompts, 1 of 3 steps after the first
    assert rows[0]["ratio_to_plain"] == 1 and "1_5_1" in printed


def test_peers(run, monkeypatch):
    sizes = "--batch_size 2 --seq_len 12 --dim 32 --n_heads 4 --knowledge_num 256 --repeats 2 --no_compile"
    monkeypatch.setitem(sys.modules, "product_key_memory", None)
    with pytest.raises(ValueError, match="pip install product-key-memory"):
        run("peers", sizes)

    class PKM(torch.nn.Linear):  # the package is optional
        def __init__(self, dim, num_keys, topk, pre_layernorm, heads, dim_head=128):
            assert (num_keys, topk) == (16, 16)
            super().__init__(dim, dim)
            self.attn_dropout = torch.nn.Dropout(0.0)
            if heads == 4:
                torch.nn.init.constant_(self.bias, float("nan"))

    monkeypatch.setitem(sys.modules, "product_key_memory", SimpleNamespace(PKM=PKM))
    rows, printed = run("peers", sizes)
    assert [row["layer"] for row in rows] == [peers.OURS, "PKM, 1 head", "PKM, 4 heads"]
    assert rows[0]["ratio_to_ours"] == 1 and rows[1]["ratio_to_ours"] > 0 and rows[1]["error"] is None
    assert "NaN" in rows[2]["error"] and "PKM, 4 heads" in printed


def test_the_peer_runs_under_autocast():
    pytest.importorskip("product_key_memory", reason="the package is optional")
    config = script_config("1_4_8", knowledge_num=256, dim=32, n_layers=6, n_heads=4)
    layer = peers.Peer(config, False, torch.device("cpu"), heads=2)
    with torch.autocast("cpu", torch.bfloat16):
        (out_BTD,) = layer(torch.randn(2, 9, 32))
    out_BTD.sum().backward()
    assert out_BTD.isfinite().all() and layer.layer.values.weight.grad.isfinite().all()


def test_what_retrieval_finds_is_checked_before_it_is_timed():
    query_BTD, keys_2RK = torch.randn(1, 9, 8), torch.randn(2, 7, 4)
    score_BTC, entry_BTC = retrieval.search(query_BTD, keys_2RK, 5)
    retrieval.check_product_keys(query_BTD[0], keys_2RK, score_BTC[0], entry_BTC[0])
    with pytest.raises(ValueError, match="scores of their entries"):
        retrieval.check_product_keys(query_BTD[0], keys_2RK, score_BTC[0], entry_BTC[0].flip(-1))
    score_BTC[0, 3, 1] = float("nan")  # a poisoned place that was not written
    with pytest.raises(ValueError, match="best of all pairs"):
        retrieval.check_product_keys(query_BTD[0], keys_2RK, score_BTC[0], entry_BTC[0])


def test_retrieval(run):
    sizes = "--batch_size 2 --seq_len 128 --dim 32 --n_heads 4 --knowledge_nums 64 256 --candidates 4 16"
    rows, _ = run("retrieval", f"{sizes} --ngram_candidates 4 --repeats 2 --no_compile")
    cases = {(row["retrieval"], row["knowledge_num"], row["num_candidates"]) for row in rows}
    product_keys = {("product_key", 64, 4), ("product_key", 256, 4), ("product_key", 256, 16)}
    assert cases == product_keys | {("ngram", 64, 4), ("ngram", 256, 4)}
    assert all(row["error"] is None and row["gb_per_s"] > 0 and row["steps"] == 2 for row in rows)


@pytest.mark.slow
def test_scaling(run):
    sizes = "--batch_size 2 --seq_len 32 --dim 32 --n_heads 4 --n_layers 6 --knowledge_nums 256 400 300 --no_compile"
    rows, _ = run("scaling", f"{sizes} --knowledge_num 400 --candidates 8 --selected 4 --repeats 2")
    by_case = {(row["experiment"], row["axis"], row["value"]): row for row in rows}
    assert len(by_case) == len(rows) == 8
    assert "square" in by_case["1_4_8", "knowledge_num", 300]["error"]
    assert by_case["1_4_8", "knowledge_num", 256]["growth"] == 1 == by_case["1_5_0", "knowledge_num", 256]["growth"]
    assert by_case["1_5_0", "knowledge_num", 400]["growth"] > 0 and by_case["1_4_8", "num_candidates", 8]["steps"] == 2


@pytest.mark.slow
def test_data(run, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    sizes = "--dim 32 --n_layers 1 --n_heads 4 --seq_len 64 --batch_size 2 --accumulation_steps 1 --knowledge_num 289"
    rows, _ = run("data", f"{sizes} --text_mb 0.2 --knowledge_mb 0.2 --repeats 2 --no_compile")
    tokeniser, loader, cold, warm = rows
    assert all(row["error"] is None for row in rows)
    assert tokeniser["mb_per_s"] > 0 and loader["batches_per_s"] > loader["needed_per_s"] > 0
    assert all(row["knowledge_mb"] >= 0.2 and row["first_step_s"] > row["data_s"] >= 0 for row in (cold, warm))


@pytest.mark.slow
def test_all_of_them_run_in_turn_within_their_budget(tmp_path, monkeypatch, capfd):
    main = importlib.import_module("benchmark.__main__").main
    out = tmp_path / "rows.jsonl"
    monkeypatch.setattr("sys.argv", ["benchmark", "--tiny", "--only", "retrieval", "--out", str(out)])
    assert main() == 0
    assert "retrieval      finished" in capfd.readouterr().out
    assert {json.loads(line)["benchmark"] for line in out.read_text().splitlines()} == {"retrieval"}

    monkeypatch.setattr(
        "sys.argv", ["benchmark", "--only", "retrieval", "peers", "--minutes", "0.01", "--out", str(out)]
    )
    assert main() == 1
    assert capfd.readouterr().out.splitlines()[-2:] == [
        "retrieval      cut off after 1 s; give more --minutes", "peers          not reached; give more --minutes",
    ]  # fmt: skip
