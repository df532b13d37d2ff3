"""Loss by overlap: the groups and the gains are those that can be counted by hand."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from common.constants import IGNORED, PADDING
from evaluation.config import EvalConfig, ratio_error
from evaluation.controls import BANK_CONTROLS
from evaluation.language import batches, language, token_losses, validation_rows
from evaluation.overlap import GROUPS, mean_over, overlap, shared_runs, tokens_read
from evaluation.report import table
from runs.metrics import METRICS
from runs.outcomes import outcomes_of
from tests.conftest import tiny_model


@pytest.fixture(scope="module")
def model(tokenizer):
    """It copies what continues the text in an entry that it has found."""
    model = tiny_model(
        vocab_size=6400, retrieval="ngram", ngram_lengths=[1, 2], pointer=True, memory_layers=[-1], knowledge_num=12,
        knowledge_length=12,
    )  # fmt: skip
    ids = [tokenizer(f"The village of {n} has {n * 7} houses.", add_special_tokens=False).input_ids for n in range(12)]
    model.bank.fill(torch.tensor([row[:12] + [PADDING] * (12 - len(row)) for row in ids]))
    torch.nn.init.constant_(model.pointer.gate.bias, 4.0)
    model.pointer.attention.follows_bias.data.copy_(torch.tensor([12.0, 8.0]))
    return model


@pytest.fixture
def text(tmp_path) -> EvalConfig:
    rows = [{"text": f"In the village of {n} has a town {n * 7} houses. Nobody knows why."} for n in range(9)]
    (tmp_path / "text.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return EvalConfig(val_path=str(tmp_path / "text.jsonl"), cache_dir=str(tmp_path / "cache"), batch_size=3)


def longest_by_hand(text: list[int], entries: list[list[int]], most: int) -> int:
    """Of the runs that end a text, the longest that an entry has."""
    spans = {tuple(entry[i:j]) for entry in entries for i in range(len(entry)) for j in range(i, len(entry) + 1)}
    return max(n for n in range(min(most, len(text)) + 1) if tuple(text[len(text) - n :]) in spans or n == 0)


def test_a_run_is_the_longest_that_ends_at_the_position_inside_its_document():
    generator = torch.Generator().manual_seed(3)
    token_BTXL = torch.randint(0, 3, (2, 14, 2, 6), generator=generator)  # 0: padding
    input_BT = torch.randint(0, 3, (2, 14), generator=generator)
    document_BT = (torch.arange(14) >= 9).long().expand(2, 14)
    found_BT = shared_runs(token_BTXL, input_BT, document_BT, longest=4)
    assert set(found_BT.flatten().tolist()) == {0, 1, 2, 3, 4}
    for row in range(2):
        for t in range(14):
            # Padding ends no run: each place of it gets a number of its own.
            own = [[token or -7 - i for i, token in enumerate(entry)] for entry in token_BTXL[row, t].tolist()]
            begin = 9 if t >= 9 else 0
            given = [token or -99 for token in input_BT[row, begin : t + 1].tolist()]
            assert found_BT[row, t] == longest_by_hand(given, own, 4)


@torch.no_grad()
def test_groups_losses_and_gains_are_those_of_the_single_tokens(model, tokenizer, text):
    plain = tiny_model(vocab_size=6400, model_type="model_original")
    config = replace(text, plain=plain)
    result, rows = overlap(model, tokenizer, config), validation_rows(model, tokenizer, text)
    lines, numbers = [], {}
    for batch in batches(rows, text, "cpu"):
        labels = batch["labels"].clone()
        losses = {"run": token_losses(model, dict(batch)), "plain": token_losses(plain, dict(batch))}
        for name, control in BANK_CONTROLS.items():
            with control(model, tokenizer, text):
                losses[name] = token_losses(model, dict(batch))
        out = model(batch["input_ids"], document_ids=batch["document_ids"])
        entry_BTXL, pointer = tokens_read(model, out.readings), out.readings[-1]
        assert torch.equal((entry_BTXL != PADDING).any(dim=-1), pointer.weight_BTS > 0)
        for row, t in np.ndindex(labels.shape):
            if t and labels[row, t] != IGNORED:
                document = batch["document_ids"][row]
                given = batch["input_ids"][row, :t][document[:t] == document[t - 1]].tolist()
                read = [[token for token in entry if token] for entry in entry_BTXL[row, t - 1].tolist()]
                shared = longest_by_hand(given, read, 8)
                group = [name for name, least in GROUPS.items() if shared >= least][-1]
                lines.append(group)
                for name, loss_BT in losses.items():
                    numbers.setdefault((group, name), []).append(float(loss_BT[row, t]))
    assert len(set(lines)) >= 3 and result["n"] == len(lines)
    for group in set(lines):
        own = result["groups"][group]
        assert own["n"] == lines.count(group) and own["loss"]["mean"] == pytest.approx(np.mean(numbers[group, "run"]))
        for name in (*BANK_CONTROLS, "plain"):
            gains, against = np.subtract(numbers[group, name], numbers[group, "run"]), own["against"][name]
            assert against["gain"]["mean"] == pytest.approx(gains.mean(), abs=1e-5)
            assert against["helped"]["mean"] == pytest.approx((gains > 0.1).mean())
            assert against["hurt"]["mean"] == pytest.approx((gains < -0.1).mean())
            if (gains < -0.1).any():
                assert against["hurt"]["by"] == pytest.approx(-gains[gains < -0.1].mean(), abs=1e-5)
    every, whole = result["groups"]["all"], language(model, tokenizer, text)
    assert every["loss"]["mean"] == pytest.approx(whole["loss"], rel=1e-5) and every["n_documents"] == 9
    documents = outcomes_of(whole)
    error = ratio_error(documents.value_X * documents.weight_X, documents.weight_X)
    assert every["loss"]["ci95"][1] - every["loss"]["mean"] == pytest.approx(1.96 * error, rel=1e-4)
    assert result["groups"]["3_to_7"]["against"]["bank zeroed"]["gain"]["mean"] > 1
    told = table({"run": {"overlap": result}})
    assert "3 to 7" in told and told.count("plain") == len(result["groups"])
    measured = [m.name for m in METRICS if m.name.startswith("overlap_") and list(m.scores({"overlap": result}))]
    assert len(measured) == 5


def test_an_interval_takes_documents_as_the_units():
    value_N, document_N = np.array([1.0, 1.0, 1.0, 3.0, 3.0]), np.array([4, 4, 4, 6, 6])
    found = mean_over(value_N, document_N)
    error = np.sqrt(2 * (3 * (1 - 1.8)) ** 2 + 2 * (2 * (3 - 1.8)) ** 2) / 5
    assert found["mean"] == pytest.approx(1.8) and found["ci95"][1] == pytest.approx(1.8 + 1.96 * error)
    assert mean_over(value_N[:3], document_N[:3])["ci95"] is None


def test_a_plain_run_reads_nothing(tokenizer, text):
    assert overlap(tiny_model(vocab_size=6400, model_type="model_original"), tokenizer, text) is None
