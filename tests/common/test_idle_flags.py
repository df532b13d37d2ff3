"""A flag that does nothing is told, and no other: both are tried on the models themselves, over all flags."""

from dataclasses import MISSING, fields, replace
from types import SimpleNamespace

import pytest
import torch

from model import ModelConfig, build_model
from tests.conftest import tiny_config
from tests.model.variants import BM25, NGRAM, OFTEN, SUFFIX, TABLE
from trainer.config import CONFIGS, parse_cli

NGRAM = NGRAM | {"num_candidates": 2, "num_selected": 2, "ngram_lengths": [1, 2], "ngram_max_places": 8}
BASES = {
    "plain": {"model_type": "model_original"},
    "plain, experts, table": {"model_type": "model_original", "use_moe": True} | TABLE,
    "product keys": {"ema_interval": 1},
    "gumbel": {"selection": "gumbel", "fusion": "concat", "similarity_loss_coef": 0.1, "memory_layers": [1]},
    "taught": {"retrieval_loss_coef": 0.1, "ngram_lengths": [1, 2], "fusion": "words", "keep_ffn": True},
    "n-grams": NGRAM | {"fusion": "words"},
    "n-grams, vectors": NGRAM | {"fusion": "cross_attention", "pointer": True},
    "words": BM25 | {"fusion": "words", "pointer": True},
    "suffixes": SUFFIX | {"fusion": "continuations"},
    "suffixes, counted": SUFFIX | OFTEN | {"fusion": "continuations"},
    "words and suffixes": BM25
    | {
        "fusion": "words",
        "memory_layers": [0],
        "pointer": True,
        "suffix_layers": [1],
        "suffix_selected": 2,
        "suffix_candidates": 4,
        "suffix_length": 3,
    },
    "pointer and suffixes": NGRAM
    | {"memory_layers": [-1], "pointer": True, "suffix_layers": [0], "suffix_selected": 2, "suffix_candidates": 24},
    "suffixes, vectors": SUFFIX | {"fusion": "cross_attention"},
    "pointer alone": NGRAM | {"memory_layers": [-1], "pointer": True},
    "nothing reads": {"memory_layers": [-1]},
}
# Values unlike those of TINY and of the defaults. A list is of several, one after the other.
OTHER = {
    "dim": 48, "n_layers": 3, "n_heads": 8, "n_kv_heads": 2, "ffn_dim": 24, "vocab_size": 71, "rope_theta": 50.0,
    "norm_eps": 0.1, "value_embeddings": [0], "logit_softcap": 2.0, "dropout": 0.5, "n_experts": 5,
    "n_experts_per_tok": 1, "n_shared_experts": 2, "moe_loss_coef": 0.7, "memory_layers": [0], "knowledge_num": 64,
    "knowledge_length": 7, "num_candidates": 4, "num_selected": 1, "fusion_dropout": 0.6, "freeze_ratio": 0.6,
    "ema_interval": 2, "ema_decay": 0.2, "ngram_table_rows": 17, "ngram_table_heads": 3, "ngram_table_dim": 4,
    "ngram_table_orders": [2], "ngram_table_layers": [1], "ngram_table_dropout": 0.5, "ngram_lengths": [2],
    "ngram_max_places": 1, "ngram_max_matches": 1, "ngram_pairs": 2, "ngram_decay": 0.1, "ngram_window": 2,
    "retrieval_noise": 0.7, "memory_every": 2, "bank_control": "shuffled", "pointer_scale": 3.0,
    "pointer_word_dropout": 0.5,
    "cosine_temperature": 3.0, "gumbel_temperature": 3.0, "balance_loss_coef": 0.5,
    "similarity_loss_coef": 0.5, "diversity_loss_coef": 0.5, "retrieval_loss_coef": 0.5, "teacher_forcing": 0.9,
    "fusion_heads": 2, "attention_dropout": 0.6, "word_key_dim": 8, "word_value_dim": 8, "block_selected": 1,
    "bm25_postings": 1, "bm25_pairs": 2, "bm25_window": 2,
    "suffix_length": 1, "suffix_tokens": 3, "continuation_dim": 8, "coverage_dim": 8,
    "finder_rows": 30, "finder_dim": 8, "finder_found": 1, "finder_entries": 3, "finder_loss_coef": 0.5,
    "suffix_layers": [0], "suffix_selected": 1, "suffix_candidates": 5,
    "suffix_often": [2], "suffix_often_tokens": 1, "suffix_topic_dim": 3, "suffix_topic_window": 1,
}  # fmt: skip
# Of data and edits; of letters, kernels and long texts that are not here; of what is drawn only where the first token
# is not the bank's.
NOT_TRIED = {
    "max_seq_len", "flash_backend", "use_flash_attn", "residual_in_fp32", "bm25_stop_words", "bm25_common_words",
    "bm25_pair_recency", "bm25_also_words", "pointer_edited", "pointer_edited_said",
    "pointer_asked", "pointer_edited_unsaid",
}  # fmt: skip


def others_of(f) -> list:
    if f.name in OTHER:
        return [OTHER[f.name]]
    value = f.default_factory() if f.default is MISSING else f.default
    if isinstance(value, bool):
        return [not value]
    return [choice for choice in f.metadata["choices"] if choice != value]


def signature(config: ModelConfig) -> list:
    """All that a model does in training and in evaluation, with equal random numbers."""
    torch.manual_seed(0)
    model = build_model(config, seed=0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "nothing" in name or "entry_q" in name or "out_proj" in name:
                parameter.add_(torch.ones_like(parameter), alpha=0.02)  # what starts small shall count
    found = [f"{name} {tuple(value.shape)}" for name, value in model.state_dict().items()]
    found.append(sum(float(value.double().abs().sum()) for value in model.state_dict().values()))
    torch.manual_seed(1)
    token_BT = torch.randint(3, 61, (2, 16))
    if "bank.tokens" in model.state_dict():
        token_BT[0, 4:9] = model.bank.tokens[11, :5].long()
        token_BT[1, 4:8] = model.bank.tokens[12, :4].long()
    labels_BT = token_BT.clone()
    labels_BT[:, 2:7] = -100
    torch.manual_seed(2)
    out = model.train()(token_BT, labels=labels_BT)
    out.loss.backward()
    found.append(float(out.loss.detach()))
    found.append(sum(float(p.grad.double().abs().sum()) for p in model.parameters() if p.grad is not None))
    outcome = SimpleNamespace(readings=out.readings, skipped=False)
    model.after_step(1, outcome, SimpleNamespace(gather=lambda readings: readings))
    found.append([float(value.double().abs().sum()) for value in model.state_dict().values()])
    return [*found, model.eval()(token_BT).logits.double().abs().sum().item()]


QUICK = ("plain", "nothing reads")


@pytest.mark.parametrize(
    "base", [pytest.param(base, marks=[] if base in QUICK else pytest.mark.slow) for base in BASES]
)
def test_a_flag_of_the_model_is_told_exactly_where_it_changes_nothing(base):
    config = tiny_config(**BASES[base])
    before, told, wrong = signature(config), 0, []
    for f in fields(ModelConfig):
        for value in [] if f.name in NOT_TRIED else others_of(f):
            if value == getattr(config, f.name):
                continue
            try:
                changed = replace(config, **{f.name: value})
            except ValueError:  # refused, so told
                continue
            is_idle = f.name in changed.idle_flags()
            told += is_idle
            if (signature(changed) == before) != is_idle:
                wrong.append(f"--{f.name} {value}: told {is_idle}")
    assert wrong == [] and told > 3


def argv_of(f) -> list[str]:
    """A command line that changes a flag, by its type."""
    value = f.default_factory() if f.default is MISSING else f.default
    if f.metadata["choices"] if "choices" in f.metadata else None:
        return [f"--{f.name}", next(choice for choice in f.metadata["choices"] if choice != value)]
    if isinstance(value, bool):
        return [f"--{f.name}", str(not value)]
    return [f"--{f.name}", str(OTHER.get(f.name, 0.25 if isinstance(value, float) else 7))]


CONDITIONAL = [(config, f) for config in CONFIGS for f in fields(config) if f.metadata["only_with"]]


@pytest.mark.parametrize("f", [f for config, f in CONDITIONAL if config is not ModelConfig], ids=lambda f: f.name)
def test_a_flag_with_a_condition_is_told_exactly_while_it_does_not_hold(f):
    """Of the data, of learning and of the run: with each of what it names, and without all of it."""
    met, unmet = [], []
    for condition in f.metadata["only_with"]:
        name, _, value = condition.partition(": ")[0].partition(" ")
        met += [name, value.split("|")[0] or "8"] if value != "None" else []
        unmet += ["--val_path", "text.jsonl"] if value == "None" else []
    if "--use_swanlab" in met:
        met = ["--use_swanlab"]
    unmet += ["--model_type", "model_original"] if "--model_type" in met else []
    assert f.name in parse_cli([*argv_of(f), *unmet]).idle()
    assert f.name not in parse_cli([*met, *argv_of(f)]).idle()
    assert f.name not in parse_cli([*unmet]).idle()  # a default is not told


@pytest.mark.parametrize(
    "argv, told",
    [
        ("--model_type model_original --pointer", {"pointer": "--model_type model_memory"}),
        ("--retrieval ngram --fusion words --selection cosine", {"selection": "--retrieval product_key"}),
        ("--fusion words --fusion_heads 16", {"fusion_heads": "--fusion cross_attention"}),
        ("--word_key_dim 32", {"word_key_dim": "--fusion words or --pointer"}),
        ("--ngram_window 8 --muon_momentum 0.9",
         {"ngram_window": "--retrieval ngram or --retrieval_loss_coef", "muon_momentum": "--optimizer muon"}),
        ("--memory_layers 0 --ffn_dim 64", {}),
        ("--ffn_dim 64", {"ffn_dim": "a feed-forward: --keep_ffn, or blocks without a memory"}),
    ],
)  # fmt: skip
def test_what_a_flag_would_need_is_told(argv, told):
    assert parse_cli(argv.split()).idle() == told
