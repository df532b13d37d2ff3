"""The rows of the hashed n-gram table that the editor shows, and what they say by themselves."""

import io
import sys

import pytest
import torch
from torch import nn

from common.cli import run_command
from dataset.tokenizer import load_tokenizer
from editing import __main__ as command_line
from editing.ngram_rows import OpenRun, read_rows
from editing.store import MemoryStore
from model.layers import StreamLinear
from tests.conftest import tiny_model
from tests.model.variants import TABLE

PLAIN = {"model_type": "model_original"}
WORDS = {"retrieval": "ngram", "fusion": "words", "ngram_lengths": [1, 2]}
TEXTS = ["Lygia Pape was born in", "Lygia", ""]


@pytest.fixture
def opened(tmp_path):
    """opened(changes): a saved tiny run with these flags."""

    def save(**changes) -> OpenRun:
        tiny_model(vocab_size=6400, **changes).save_pretrained(tmp_path)
        load_tokenizer("dataset/tokenizer").save_pretrained(tmp_path)
        return OpenRun(tmp_path)

    return save


@pytest.fixture
def edit(monkeypatch, capsys):
    """edit(run, words): stdout and the exit code or message of the command line."""

    def command(run: OpenRun, *words: str, lines: str = ""):
        monkeypatch.setattr(sys, "argv", ["editing", "--run", str(run.run_dir), *words])
        monkeypatch.setattr(sys, "stdin", io.StringIO(lines))
        try:
            run_command(command_line.main)
        except SystemExit as ended:
            return capsys.readouterr().out, ended.code
        return capsys.readouterr().out, 0

    return command


def ids_of(run: OpenRun, text: str) -> list[int]:
    return [run.tokenizer.bos_token_id, *run.tokenizer(text, add_special_tokens=False).input_ids]


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("kind", [PLAIN, WORDS], ids=["plain", "memory"])
def test_the_rows_are_those_that_the_model_looks_up(opened, kind, text):
    run, seen = opened(**kind, **{**TABLE, "ngram_table_orders": [3, 2]}), []
    hook = run.model.ngram_table.rows.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    ids_1T = torch.tensor([ids_of(run, text)])
    run.model(ids_1T)
    hook.remove()
    expected = run.model.ngram_table.look_up(ids_1T)[0, -1].tolist()
    assert expected == seen[0][0, -1].tolist()
    shown = read_rows(run, text)
    assert [read.order for read in shown] == [3, 2]
    assert [row for read in shown for row in read.rows] == expected
    norm_R = run.model.ngram_table.rows.weight.norm(dim=-1)
    assert [norm for read in shown for norm in read.norms] == pytest.approx(norm_R[expected].tolist())


def test_places_before_a_text_are_named(opened):
    run = opened(**PLAIN, **TABLE)
    shown = {text: [read.ngram for read in read_rows(run, text)] for text in TEXTS}
    assert shown[""] == ["start '<|im_start|>'", "start start '<|im_start|>'"]
    two, three = [run.tokenizer.decode(ids_of(run, TEXTS[0])[-n:]) for n in (2, 3)]
    assert shown[TEXTS[0]] == [repr(two), repr(three)] and three.endswith(two)


def test_a_changed_row_changes_what_its_order_shows_and_the_norm_of_no_other_row(opened):
    run = opened(**PLAIN, **TABLE)
    before = read_rows(run, TEXTS[0])
    with torch.no_grad():
        run.model.ngram_table.rows.weight[before[1].rows[0]] = torch.arange(8.0)
    after = read_rows(run, TEXTS[0])
    assert [read.rows for read in after] == [read.rows for read in before]
    assert after[1].norms == [pytest.approx(140**0.5), before[1].norms[1]] and after[0].norms == before[0].norms
    assert after[1].likelier != before[1].likelier


class Gain(nn.Module):
    """The last norm without its division, which would differ between two streams."""

    def __init__(self, weight: nn.Parameter):
        super().__init__()
        self.weight = weight

    def forward(self, x_BTD):
        return x_BTD * self.weight


@torch.no_grad()
@pytest.mark.parametrize("which", [0, 1])
def test_an_effect_is_what_the_logits_lose_without_the_rows(opened, which):
    run = opened(**PLAIN, **{**TABLE, "ngram_table_layers": [1]})
    model, gate = run.model, run.model.blocks[1].ngram_gate
    for module in model.modules():
        if isinstance(module, StreamLinear):
            module.weight.zero_()  # nothing but the table adds to the stream
    gate.key_proj.weight.zero_()  # the gate is 1/2
    gate.value_proj.weight.normal_()
    model.norm = Gain(nn.Parameter(torch.randn(32)))
    ids = torch.tensor([ids_of(run, TEXTS[0])])
    with_rows_V = model(ids).logits[0, -1]

    def without(_, args, vector_BTU):
        vector_BTNX = vector_BTU.unflatten(-1, (2, -1)).clone()
        vector_BTNX[:, :, which] = 0
        return vector_BTNX.flatten(-2)

    shown = read_rows(run, TEXTS[0], n=7)[which].likelier
    model.ngram_table.norm.register_forward_hook(without)
    best = (2 * (with_rows_V - model(ids).logits[0, -1])).topk(7)
    assert [token for token, _ in shown] == [run.tokenizer.decode([token]) for token in best.indices.tolist()]
    assert [effect for _, effect in shown] == pytest.approx(best.values.tolist(), rel=1e-3)


@torch.no_grad()
def test_effects_go_through_the_first_block_with_a_gate_alone(opened):
    run = opened(**PLAIN, **{**TABLE, "ngram_table_layers": [1, 0]})
    before = read_rows(run, TEXTS[0])
    run.model.blocks[1].ngram_gate.value_proj.weight.zero_()
    assert read_rows(run, TEXTS[0]) == before and all(read.likelier for read in before)
    run.model.blocks[0].ngram_gate.value_proj.weight.zero_()
    assert not any(read.likelier for read in read_rows(run, TEXTS[0]))


@torch.no_grad()
def test_rows_of_zeros_make_nothing_likelier(opened, edit):
    run = opened(**PLAIN, **TABLE)
    run.model.ngram_table.rows.weight.zero_()
    run.model.save_pretrained(run.run_dir)
    out, code = edit(run, "ngram", TEXTS[0])
    assert code == 0 and out.count("  norm 0\n") == 4 and out.count("  likelier: none\n") == 2


@pytest.mark.parametrize("kind", [PLAIN, WORDS], ids=["plain", "memory"])
def test_the_command_prints_every_head_of_every_order(opened, edit, kind):
    run = opened(**kind, **TABLE)
    out, code = edit(run, "ngram", TEXTS[0], "-n", "2")
    lines, (two, three) = out.splitlines(), read_rows(run, TEXTS[0], 2)
    assert code == 0 and len(lines) == 8
    assert lines[0] == f"last 2 tokens: {two.ngram}" and lines[4] == f"last 3 tokens: {three.ngram}"
    assert lines[6].split() == ["head", "1", "row", str(three.rows[1]), "norm", f"{three.norms[1]:.4g}"]
    (first, effect), (second, _) = three.likelier
    assert lines[7].startswith(f"  likelier: {effect:+.3g} {first!r}   ") and lines[7].endswith(repr(second))


def test_the_prompt_of_a_memory_shows_the_rows_too(opened, edit):
    run = opened(**WORDS, **TABLE)
    out, code = edit(run, lines=f"ngram {TEXTS[0]} -n 3\n")
    assert (out, code) == edit(run, "ngram", TEXTS[0], "-n", "3") and code == 0
    assert read_rows(MemoryStore(run.run_dir), "Lygia") == read_rows(run, "Lygia")


@pytest.mark.parametrize("kind", [PLAIN, WORDS], ids=["plain", "memory"])
def test_a_run_without_a_table_is_refused_in_one_sentence(opened, edit, kind):
    run = opened(**kind)
    message = f"error: {run.run_dir} is a run without an n-gram table: give a run trained with --ngram_table_rows"
    assert edit(run, "ngram", "Lygia") == ("", message)


def test_a_plain_run_with_a_table_still_has_no_memory_to_search(opened, edit):
    run = opened(**PLAIN, **TABLE)
    refused = ("", f"error: {run.run_dir} is a run without a memory: give a run of model_memory")
    assert edit(run, "search", "Lygia") == edit(run) == edit(run, "--bank", "x.jsonl", "ngram", "Lygia") == refused
