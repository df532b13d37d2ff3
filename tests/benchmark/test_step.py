"""The benchmark of the training step at tiny size, and the reference against the fast model."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmark import step, subject
from benchmark.harness import script_config, script_optim
from benchmark.reference import build_reference
from model import build_model
from tests.conftest import tiny_config
from trainer.flops import flops_per_token
from trainer.muon import Muon


def test_the_reference_is_the_same_function():
    config = tiny_config(attention_dropout=0.0, fusion_dropout=0.0)
    bank = torch.randint(0, 61, (49, 5))
    fast, reference = (
        build_model(config, bank).eval(),
        build_reference(replace(config, use_flash_attn=False), bank).eval(),
    )
    reference.load_state_dict(fast.state_dict())
    ids = torch.randint(3, 61, (3, 20))
    documents = (torch.arange(20) // 9).expand(3, -1)
    ours, theirs = (model(ids, labels=ids, document_ids=documents) for model in (fast, reference))
    torch.testing.assert_close(theirs.logits, ours.logits, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(theirs.loss, ours.loss, rtol=1e-5, atol=1e-6)
    ours.loss.backward()
    theirs.loss.backward()
    for (name, a), b in zip(fast.named_parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(b.grad, a.grad, rtol=1e-3, atol=1e-5, msg=name)


@pytest.mark.parametrize("design", [{"fusion": "concat"}, {"query_norm": True}])
def test_another_design_has_no_reference(design):
    with pytest.raises(ValueError, match="1.4.8"):
        build_reference(tiny_config(**design), torch.ones(49, 5))


def test_an_experiments_architecture_is_read_from_its_script():
    config = script_config("1_4_8", knowledge_num=256)
    assert (config.dim, config.n_layers, config.knowledge_num, config.fusion_heads) == (512, 8, 256, 8)
    assert script_config("1_5_0").retrieval == "ngram"
    with pytest.raises(FileNotFoundError, match="experiments are 1_4_0"):
        script_config("9_9")


@pytest.mark.parametrize("name, kind", [("1_4_0", torch.optim.AdamW), ("1_6_0", Muon)])
def test_a_step_is_made_by_the_experiments_own_optimizer(name, kind):
    config = script_config(name, dim=64, n_layers=1, n_heads=4, max_seq_len=64)
    model = subject.Subject(name, config, script_optim(name), compiled=False, batch_size=2)
    subject.start(model, torch.zeros(1, 1), torch.device("cpu"))
    assert type(model.optimizer) is kind
    assert {group["lr"] for group in model.optimizer.param_groups} == {subject.LEARNING_RATE}


@pytest.mark.parametrize("name", ["1_4_0", "1_4_8"])
def test_mfu_is_that_of_training(monkeypatch, name):
    monkeypatch.setattr(step, "peaks", lambda: (1e12, 1.0))
    config = script_config(name, knowledge_num=256, dim=64, n_layers=1, n_heads=4, max_seq_len=64)
    measured = subject.Subject(name, config, batch_size=2, step_ms=[100.0, 100.0])
    measured.model = build_model(config, torch.zeros(256, config.knowledge_length, dtype=torch.long))
    row = step.numbers(measured, measured)
    assert row["tokens_per_s"] == 1280 and row["mfu"] == 1280 * flops_per_token(measured.model) / 1e12


def test_rows_that_count_the_flops_of_a_plain_model_say_so():
    rows = [json.loads(line) for path in Path("benchmark/results").glob("*.jsonl") for line in path.open()]
    old = [row for row in rows if row.get("model") in ("1_4_8", "1_4_7") and "plain_mfu" in row]
    plain = flops_per_token(build_model(script_config("1_4_0")))
    assert len(old) > 10 and not any("mfu" in row for row in old)
    for row in old:
        assert row["plain_mfu"] == pytest.approx(plain * row["tokens_per_s"] / 989e12, rel=1e-3)


@pytest.mark.slow
def test_every_model_gets_a_row_and_one_that_fails_says_why(tmp_path, monkeypatch, capsys):
    out = tmp_path / "rows.jsonl"
    sizes = {"batch_size": 2, "seq_len": 64, "knowledge_num": 256, "dim": 64, "n_layers": 1, "n_heads": 4, "steps": 2}
    flags = [word for name, value in sizes.items() for word in (f"--{name}", str(value))]
    build = subject.build_model

    def build_or_fail(config, bank):
        if config.fusion == "gated_mlp":
            raise RuntimeError("out of memory\nand more")
        return build(config, bank)

    monkeypatch.setattr(subject, "build_model", build_or_fail)
    names = ["1_4_0", "1_4_7", "1_5_1"]
    monkeypatch.setattr(
        "sys.argv",
        [
            "step",
            *flags,
            "--experiments",
            *names,
            "--reference",
            "eager",
            "--no_compile",
            "--reference_steps",
            "3",
            "--reference_batch_size",
            "2",
            "--batch_sizes",
            "1",
            "3",
            "--profile",
            str(tmp_path / "profile.txt"),
            "--out",
            str(out),
        ],
    )
    step.main()
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["model"] for row in rows] == [
        *names, "1_4_8 reference, eager", "1_4_0, batch 1", "1_4_0, batch 3", "1_4_8 and its reference",
    ]  # fmt: skip
    assert [row["batch_size"] for row in rows] == [2, 2, 2, 2, 1, 3, 2]
    assert rows[1]["error"] == "RuntimeError: out of memory" and rows[0]["ratio_to_plain"] == 1
    assert all(row["tokens_per_s"] > 0 and row["steps"] == 2 for row in rows[:-1] if not row["error"])
    profiles = (tmp_path / "profile.txt").read_text()
    assert "1_4_8 reference, eager: " in profiles and "aten::mm" in profiles
    assert "1_4_0, batch 3" in capsys.readouterr().out
    apart = rows[-1]["apart_max"]
    assert apart["fast float32 - reference float32"] < 5e-5 < apart["fast bf16 - reference bf16"] < 0.05
    assert all(len(losses) == 3 for losses in rows[-1]["losses"].values()) and len(rows[-1]["losses"]) == 4


@pytest.mark.parametrize("name, searches", [("1_5_2", True), ("1_4_0", False)])
def test_a_step_is_measured_as_training_makes_it_its_text_searched_before(name, searches, monkeypatch):
    config = script_config(name, knowledge_num=256, dim=64, n_layers=6, n_heads=4, max_seq_len=64)
    model = subject.Subject(name, config, compiled=False, batch_size=2)
    subject.start(model, torch.randint(3, 99, (256, config.knowledge_length)), torch.device("cpu"))
    seen = []
    monkeypatch.setattr(subject, "train_step", lambda of, batch, device: seen.append(batch))
    monkeypatch.setattr(subject, "timed_ms", lambda turn, device: turn() or 50.0)
    subject.take_turn(model, 5, torch.device("cpu"))
    assert len(seen) == model.steps_timed == 5 and model.step_ms == [10.0]  # timed as one, without a wait between
    for batch in seen:
        found = model.model.search_text(**{key: batch[key] for key in ("input_ids", "document_ids")})
        assert bool(found) == searches and set(batch) == {"input_ids", "labels", "document_ids", *found}
        assert all(torch.equal(batch[key], value) for key, value in found.items())


def test_a_bank_grows_by_beginnings_and_ends_of_its_entries():
    bank_NL = torch.randint(1, 99, (30, 8), dtype=torch.int16)
    bank_NL[::2, 4:] = 0
    grown_NL = subject.with_crossed(bank_NL, 100)
    assert grown_NL.shape == (100, 8) and torch.equal(grown_NL[:30], bank_NL)
    beginnings, ends = ({tuple(row[part].tolist()) for row in bank_NL} for part in (slice(2), slice(4, None)))
    for row in grown_NL[30:]:
        assert tuple(row[:2].tolist()) in beginnings and tuple(row[4:].tolist()) in ends
    assert not {tuple(row.tolist()) for row in bank_NL} >= {tuple(row.tolist()) for row in grown_NL}


@pytest.mark.slow
def test_what_no_time_is_left_for_is_said_and_a_reference_that_parts_is_seen(tmp_path, monkeypatch):
    out = tmp_path / "rows.jsonl"
    flags = "--batch_size 2 --seq_len 64 --dim 64 --n_layers 6 --n_heads 4 --knowledge_num 256 --steps 2 --no_compile"
    monkeypatch.setattr("sys.argv", ["step", *flags.split(), "--seconds", "0", "--out", str(out)])
    step.main()
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert len(rows) == len(step.EXPERIMENTS) and all("no time was left" in row["error"] for row in rows)

    build = subject.build_reference

    def build_another(config, bank):
        model = build(config, bank)
        model.blocks[2].fusion.out_proj.register_forward_hook(lambda module, inputs, out: 3 * out)
        return model

    monkeypatch.setattr(subject, "build_reference", build_another)
    quiet = script_config("1_4_8", knowledge_num=256, dim=64, n_layers=6, n_heads=4, max_seq_len=64)
    quiet = replace(quiet, attention_dropout=0.0, fusion_dropout=0.0)
    bank_NL = torch.randint(3, 99, (256, quiet.knowledge_length))
    apart = step.compare_with_reference(quiet, bank_NL, False, 2, 4, torch.device("cpu"))
    mean = apart["apart_mean"]
    assert mean["fast float32 - reference float32"] > 3 * mean["fast bf16 - fast float32"]


@pytest.mark.slow
def test_a_step_is_measured_on_real_text(tmp_path, monkeypatch):
    """Words of the text find entries of the bank, which they cannot where tokens are random."""
    names = ["Ada", "Bo", "Cleo", "Dov"] * 70
    facts = [f"{name}{i} was born in town number {i}." for i, name in enumerate(names)]
    text, bank, out = tmp_path / "text.jsonl", tmp_path / "bank.jsonl", tmp_path / "rows.jsonl"
    text.write_text("".join(json.dumps({"text": f"We know that {fact}"}) + "\n" for fact in facts))
    bank.write_text("".join(json.dumps({"sentence": fact}) + "\n" for fact in facts))
    flags = "--batch_size 2 --seq_len 64 --dim 64 --n_layers 6 --n_heads 4 --knowledge_num 256 --steps 1 --no_compile"
    places = ["--data_path", str(text), "--cache_dir", str(tmp_path / "cache"), "--out", str(out)]
    argv = ["step", "--experiments", "1_6_14", *flags.split(), *places]
    monkeypatch.setattr("sys.argv", argv)
    with pytest.raises(ValueError, match="needs --database_init_path"):
        step.main()
    seen = []
    take_turn = subject.take_turn
    monkeypatch.setattr(
        subject, "take_turn", lambda model, n, device: seen.append(model) or take_turn(model, 1, device)
    )
    monkeypatch.setattr(subject, "release", lambda *subjects: None)
    monkeypatch.setattr(step, "release", lambda *subjects: None)
    monkeypatch.setattr("sys.argv", [*argv, "--database_init_path", str(bank)])
    step.main()
    (row,) = map(json.loads, out.read_text().splitlines())
    assert row["text"] == "real" and not row["error"]
    found = [value for name, value in next(seen[0].supply).items() if "entry" in name]
    assert found and all((value >= 0).any() for value in found)
