"""The hashed n-gram table: its rows, its hash, and what it adds to the stream."""

import itertools
import math

import pytest
import torch
from transformers import DynamicCache

from common.constants import PADDING
from model.memory.ngram_table import last_tokens, multipliers, ngram_rows, splitmix
from model.static_cache import StaticCache
from tests.conftest import tiny_config, tiny_model
from tests.model.variants import TABLE
from trainer.config import OptimConfig
from trainer.optim import parameter_groups

T = 16
PLAIN = {"model_type": "model_original"}
MASK = (1 << 64) - 1


def random_ids(*shape: int) -> torch.Tensor:
    return torch.randint(3, 61, shape)


def naive_rows(text: list[int], document: list[int], multiplier: list[list[int]], n_rows: int) -> list[list[int]]:
    """The rows of each position in plain Python, with numbers of any size."""
    rows, longest = [], len(multiplier[0])
    for t in range(len(text)):
        row_K = []
        for head, factors in enumerate(multiplier):
            key = 0
            for place, factor in enumerate(factors):
                s = t - (longest - 1 - place)
                token = text[s] if s >= 0 and len(set(document[s : t + 1])) == 1 else PADDING
                key ^= token * (factor & MASK) & MASK
            key = (key ^ key >> 32) * 0xBF58476D1CE4E5B9 & MASK
            row_K.append(((key >> 33) * n_rows >> 31) + head * n_rows)
        rows.append(row_K)
    return rows


@pytest.mark.parametrize("n_rows", [1, 7, 1000, 131072, 2**31 - 1])
@pytest.mark.parametrize("orders", [[2, 3], [1], [5, 2]])
def test_the_rows_equal_a_reference_in_plain_python(orders, n_rows):
    text_BT = torch.randint(0, 6400, (3, T))
    document_BT = torch.tensor([[0] * T, [0] * 5 + [1] * 1 + [2] * 10, list(range(T))])
    start_BT = torch.nn.functional.pad(document_BT[:, 1:] != document_BT[:, :-1], (1, 0), value=True)
    multiplier_KO = multipliers(orders, 3)
    rows = ngram_rows(last_tokens(text_BT, start_BT, max(orders)), multiplier_KO, n_rows)
    expected = [
        naive_rows(text, document, multiplier_KO.tolist(), n_rows)
        for text, document in zip(text_BT.tolist(), document_BT.tolist(), strict=True)
    ]
    assert rows.tolist() == expected


def test_the_multipliers_are_the_same_on_every_machine():
    assert [splitmix(0), splitmix(1)] == [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4]  # published, of seed 0
    table = multipliers([2, 3], 4)
    assert table.shape == (8, 3)
    assert (table[:4, 0] == 0).all()  # order 2 sees two tokens
    used = table[table != 0]
    assert len(used.unique()) == len(used) == 20
    assert (used % 2 != 0).all()


@pytest.mark.parametrize("n_rows", [1000, 4096, 131072])
@pytest.mark.parametrize("order", [2, 3])
def test_the_hash_spreads_different_ngrams_evenly_and_each_head_otherwise(order, n_rows):
    side = {2: 512, 3: 64}[order]
    grams = torch.cartesian_prod(*[torch.arange(3, 3 + side)] * order)[None]  # neighbours in every token
    n_heads = 4
    rows = ngram_rows(grams, multipliers([order], n_heads), n_rows)[0] - torch.arange(n_heads) * n_rows
    n, expected = len(rows), len(rows) / n_rows
    for head in range(n_heads):
        counts = torch.bincount(rows[:, head], minlength=n_rows).double()
        assert len(counts) == n_rows
        chi2 = float(((counts - expected) ** 2 / expected).sum())
        assert abs(chi2 - n_rows) < 6 * math.sqrt(2 * n_rows)
    for a, b in itertools.combinations(range(n_heads), 2):
        pairs = (rows[:, a] * n_rows + rows[:, b]).unique(return_counts=True)[1].double()
        both = float((pairs * (pairs - 1) / 2).sum())  # pairs of n-grams that share the rows of two heads
        chance = n * (n - 1) / 2 / n_rows**2
        assert both < chance + 6 * math.sqrt(chance) + 6


def test_a_document_reads_the_rows_that_it_reads_alone():
    table, ids = tiny_model(**PLAIN, **TABLE).ngram_table, random_ids(1, T)
    document_BT = torch.tensor([[4] * 6 + [5] * 1 + [6] * 9])
    rows = table.look_up(ids, document_BT)
    for begin, end in [(0, 6), (6, 7), (7, T)]:
        assert torch.equal(rows[:, begin:end], table.look_up(ids[:, begin:end]))
    assert not torch.equal(rows, table.look_up(ids))


@pytest.mark.parametrize("words", [False, True])
@pytest.mark.parametrize("make_cache", [DynamicCache, lambda config: StaticCache(T)], ids=["dynamic", "fixed"])
@torch.no_grad()
def test_a_cache_gives_the_rows_of_the_full_pass(make_cache, words):
    kind = {"retrieval": "ngram", "fusion": "words", "ngram_lengths": [1, 2]} if words else PLAIN
    model, ids, seen = tiny_model(**kind, **{**TABLE, "ngram_table_orders": [2, 4]}), random_ids(2, T), []
    ids[0, :2] = 0
    mask, look_up = (ids != 0).long(), model.ngram_table.look_up
    full = look_up(ids, mask)
    model.ngram_table.look_up = lambda *args: seen.append(look_up(*args)) or seen[-1]
    for ends in ([3, 4, 5, 9, T], range(1, T + 1), [9, 10, T]):
        cache, begin = make_cache(config=model.config), 0
        for end in ends:
            model(ids[:, begin:end], attention_mask=mask[:, :end], cache=cache)
            begin = end
        assert torch.equal(torch.cat(seen, dim=1)[:, 2:], full[:, 2:])
        assert torch.equal(torch.cat(seen, dim=1)[1], full[1])
        seen.clear()
        cache.crop(5 - T)
        model(ids[:, 5:], attention_mask=mask, cache=cache)
        assert torch.equal(seen.pop(), full[:, 5:])


@pytest.mark.parametrize("kind", [PLAIN, {"fusion": "words"}])
def test_without_a_table_the_model_is_the_plain_one(kind):
    plain, off = tiny_model(**kind), tiny_model(**kind, **{**TABLE, "ngram_table_rows": 0})
    assert list(plain.state_dict()) == list(off.state_dict())
    assert not any("ngram_" in name for name in plain.state_dict())
    assert plain.config.num_hidden_layers == off.config.num_hidden_layers
    ids = random_ids(2, T)
    assert torch.equal(plain(ids).logits, off(ids).logits)


@pytest.mark.parametrize("kind", [PLAIN, {"fusion": "words"}])
def test_the_table_acts_only_through_its_gates(kind):
    model, plain, ids = tiny_model(**kind, **TABLE), tiny_model(**kind), random_ids(2, T)
    missing, unexpected = plain.load_state_dict(model.state_dict(), strict=False)
    assert not missing
    assert all("ngram_" in name for name in unexpected)
    assert not torch.equal(model(ids).logits, plain(ids).logits)
    with torch.no_grad():
        for layer in TABLE["ngram_table_layers"]:
            model.blocks[layer].ngram_gate.value_proj.weight.zero_()
    assert torch.equal(model(ids).logits, plain(ids).logits)


@pytest.mark.parametrize("kind", [PLAIN, {"fusion": "words", "keep_ffn": True}])
def test_each_gate_acts_once(kind):
    model, calls = tiny_model(**kind, **TABLE), []
    for layer in TABLE["ngram_table_layers"]:
        model.blocks[layer].ngram_gate.register_forward_hook(lambda *args, layer=layer: calls.append(layer))
    model(random_ids(2, T))
    assert calls == TABLE["ngram_table_layers"]


def test_a_model_with_a_table_starts_nearly_as_the_plain_one():
    model, plain, ids = tiny_model(**PLAIN, **TABLE), tiny_model(**PLAIN), random_ids(8, 32)
    plain.load_state_dict(model.state_dict(), strict=False)
    losses = [float(m(ids, labels=ids).lm_loss.detach()) for m in (model, plain)]
    assert abs(losses[0] - losses[1]) < 0.03


def test_only_rows_that_were_read_get_a_gradient():
    model, ids = tiny_model(**PLAIN, **{**TABLE, "ngram_table_rows": 1000}), random_ids(2, T)
    model(ids, labels=ids).loss.backward()
    moved = model.ngram_table.rows.weight.grad.abs().sum(dim=-1) > 0
    # The last token predicts nothing here, so its rows may stay.
    read = torch.zeros_like(moved).index_fill(0, model.ngram_table.look_up(ids)[:, :-1].flatten(), True)
    assert torch.equal(moved & read, read)
    assert moved.sum() <= model.ngram_table.look_up(ids).unique().numel() < 1000


def test_a_table_of_one_row_says_the_same_everywhere():
    model, ids = tiny_model(**PLAIN, **{**TABLE, "ngram_table_rows": 1}), random_ids(2, T)
    rows = model.ngram_table.look_up(ids)
    assert (rows == torch.arange(4)).all()


def test_dropout_leaves_out_whole_rows_and_only_in_training():
    model, ids = tiny_model(**PLAIN, **{**TABLE, "ngram_table_dropout": 0.5}), random_ids(2, T)
    given = []
    model.ngram_table.norm.register_forward_pre_hook(lambda _, args: given.append(args[0].unflatten(-1, (4, 8))))
    model(ids)
    model.train()(ids)
    whole, dropped = given
    is_zero = (dropped == 0).all(dim=-1)
    assert 0.2 < is_zero.float().mean() < 0.8
    torch.testing.assert_close(dropped[~is_zero], 2 * whole[~is_zero])


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"ngram_table_rows": -1}, "--ngram_table_rows must not be negative, got -1"),
        ({"ngram_table_heads": 0}, "--ngram_table_heads must be at least 1, got 0"),
        ({"ngram_table_orders": []}, "--ngram_table_orders"),
        ({"ngram_table_orders": [2, 2]}, "--ngram_table_orders"),
        ({"ngram_table_orders": [0, 2]}, "--ngram_table_orders"),
        ({"ngram_table_layers": []}, "--ngram_table_layers"),
        ({"ngram_table_layers": [2]}, r"--ngram_table_layers 2 must lie in \[0, 1\]"),
        ({"ngram_table_dropout": 1.0}, r"--ngram_table_dropout must lie in \[0, 1\)"),
    ],
)
def test_a_table_that_cannot_be_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        tiny_config(**{**TABLE, **changes})


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_the_rows_have_a_learning_rate_and_a_decay_of_their_own_and_the_gates_are_matrices(optimizer):
    model = tiny_model(**PLAIN, **TABLE)
    config = OptimConfig(optimizer=optimizer, ngram_table_lr_scale=3.0, ngram_table_weight_decay=0.2)
    groups = {group["name"]: group for group in parameter_groups(model, config)}
    tables = groups["tables"]
    assert (tables["lr_scale"], tables["weight_decay"]) == (3.0, 0.2)
    assert [parameter is model.ngram_table.rows.weight for parameter in tables["params"]] == [True]
    matrices = groups["muon" if optimizer == "muon" else "matrices"]["params"]
    assert any(parameter is model.blocks[0].ngram_gate.value_proj.weight for parameter in matrices)
