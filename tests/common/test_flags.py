"""What a flag declares is checked, in one sentence that names it."""

from dataclasses import dataclass, fields

import pytest

from common.flags import check, flag
from model.memory.product_keys import ProductKeys
from trainer.config import CONFIGS, parse_cli
from trainer.parser import BASIC, OneSentenceParser

SEARCHED = "--retrieval ngram|bm25|word_keys|suffix"


@dataclass(frozen=True)
class Base:
    width: int = flag(12, "", within=(1, None), multiple_of="heads")
    heads: int = flag(4, "", within=(1, None))


@dataclass(frozen=True)
class Config(Base):
    groups: int | None = flag(None, "", within=(1, None), divides="width")
    chosen: int = flag(1, "", within=(1, "heads"))
    share: float = flag(0.5, "", within=(0, 1), open_end=True)
    count: int = flag(0, "", within=(0, None))
    kind: str = flag("a", "", choices=["a", "b"])
    copies: bool = flag(False, "", needs=["--kind b: a has nothing to copy", "--count"])
    marks: bool = flag(False, "", needs="--copies True: only a copy is marked")


@pytest.mark.parametrize(
    "values, sentence",
    [
        ({"width": 10}, "--width 10 is not a multiple of --heads 4"),
        ({"groups": 5}, "--groups 5 does not divide --width 12"),
        ({"groups": 0}, "--groups must be at least 1, got 0"),
        ({"chosen": 5}, "--chosen 5 must lie in [1, --heads 4]"),
        ({"chosen": 0}, "--chosen 0 must lie in [1, --heads 4]"),
        ({"chosen": -1}, "--chosen -1 must lie in [1, --heads 4]"),
        ({"share": 1.0}, "--share must lie in [0, 1), got 1.0"),
        ({"share": float("nan")}, "--share must be a finite number, got nan"),
        ({"count": -1}, "--count must not be negative, got -1"),
        ({"kind": "c"}, "--kind must be one of ['a', 'b'], got 'c'"),
        ({"copies": True}, "--copies needs --kind b: a has nothing to copy"),
        ({"copies": True, "kind": "b"}, "--copies needs --count"),
        ({"marks": True}, "--marks needs --copies True: only a copy is marked"),
    ],
)
def test_a_rule_that_is_broken_is_named(values, sentence):
    with pytest.raises(ValueError) as refusal:
        check(Config(**values))
    assert str(refusal.value) == sentence


def test_rules_that_hold_pass():
    check(Config())
    check(Config(groups=3, chosen=4, share=0.0, copies=True, kind="b", count=1, marks=True))


def test_zero_of_a_flag_that_divides_another_stands_for_its_default():
    assert parse_cli(["--n_kv_heads", "0"]).model.kv_heads == 32


@pytest.mark.parametrize(
    "argv, sentence",
    [
        ("--num_selected 0", "--num_selected 0 must lie in [1, --num_candidates 16]"),
        (
            "--pointer True",
            "--pointer needs --retrieval ngram|bm25|word_keys|suffix: the pointer reads what the text has found",
        ),
        (
            "--pointer",
            "--pointer needs --retrieval ngram|bm25|word_keys|suffix: the pointer reads what the text has found",
        ),
        ("--teacher_forcing 0.5", "--teacher_forcing needs --retrieval_loss_coef"),
    ],
)
def test_a_command_line_that_breaks_a_rule_is_named(argv, sentence):
    with pytest.raises(ValueError) as refusal:
        parse_cli(argv.split())
    assert str(refusal.value) == sentence


def test_only_a_retrieval_with_a_grid_orders_its_bank(monkeypatch):
    parse_cli(["--cluster_cache_path", "order.npz"])
    monkeypatch.setattr(ProductKeys, "has_grid", False)
    with pytest.raises(ValueError, match="orders the grid of product keys"):
        parse_cli(["--cluster_cache_path", "order.npz"])


def test_a_need_holds_only_while_its_flag_is_on():
    assert not parse_cli(["--pointer", "False"]).model.pointer
    assert parse_cli(["--pointer", "True", "--retrieval", "ngram", "--fusion", "words"]).model.pointer


def test_a_bound_by_another_flag_holds_only_for_what_is_in_use():
    check(Config(groups=5), parts=[Base])
    with pytest.raises(ValueError, match="--width 10"):
        check(Config(width=10), parts=[Base])
    with pytest.raises(ValueError, match="--count"):  # a range always holds
        check(Config(count=-1), parts=[Base])


def test_help_lists_every_flag_once_and_twenty_of_them_first():
    text = OneSentenceParser(*CONFIGS).format_help()
    _, first, rest = text.partition(f"{BASIC}:")
    first, _, rest = rest.partition("\n\n")
    names = [f.name for config in CONFIGS for f in fields(config)]
    basic = [f.name for config in CONFIGS for f in fields(config) if f.metadata["basic"]]
    assert len(basic) == 20 and all(f"--{name}" in first for name in basic)
    assert [name for name in names if f"  --{name} " not in text and f"  --{name}," not in text] == []
    assert not any(f"\n  --{name} " in rest or f"\n  --{name}," in rest for name in basic)
    for heading in ("transformer", "--retrieval product_key", "--fusion cross_attention", "data", "optimisation"):
        assert f"\n{heading}:" in f"\n{rest}"
