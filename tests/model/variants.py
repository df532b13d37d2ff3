"""Every variant of the two models, by name: invariants are tested over all of them.

A retrieval or fusion that is new in the tables of `model/memory` has variants here without an edit. Combinations of
parts that other variants have one by one are `RARE`: their tests are slow.
"""

from itertools import cycle, product

import pytest

from model.memory import FUSIONS, RETRIEVALS

TABLE = {
    "ngram_table_rows": 13, "ngram_table_heads": 2, "ngram_table_dim": 8, "ngram_table_layers": [0, 1],
}  # fmt: skip
RECIPE = {
    "qk_norm": True,
    "residual_scalars": True,
    "ffn_activation": "relu2",
    "tie_embeddings": False,
    "value_embeddings": [0],
    "logit_softcap": 5.0,
}
BASELINES = {
    "original": {"model_type": "model_original"},
    "original-gqa": {"model_type": "model_original", "n_kv_heads": 2},
    "original-moe": {"model_type": "model_original", "use_moe": True},
    "original-textbook": {"model_type": "model_original", "use_flash_attn": False},
    "original-qk-norm": {"model_type": "model_original", "qk_norm": True, "n_kv_heads": 2},
    "original-recipe": {"model_type": "model_original"} | RECIPE,
    "original-recipe-moe": {"model_type": "model_original", "use_moe": True} | RECIPE,
    "original-table": {"model_type": "model_original"} | TABLE,
}
NGRAM = {"retrieval": "ngram", "ngram_lengths": [1, 2, 3], "ngram_max_places": 6, "keep_ffn": True}
SUFFIX = {"retrieval": "suffix", "suffix_length": 3, "suffix_tokens": 2, "keep_ffn": True}
OFTEN = {
    "num_selected": 5, "suffix_tokens": 1, "suffix_often": [3, 5], "suffix_often_tokens": 2, "suffix_topic_dim": 5,
    "suffix_topic_window": 7,
}  # fmt: skip
BM25 = {"retrieval": "bm25", "bm25_window": 6, "bm25_postings": 2, "bm25_pairs": 3, "keep_ffn": True}
KEYS = BM25 | {"retrieval": "word_keys", "finder_rows": 100, "finder_dim": 16, "finder_found": 3, "finder_entries": 8}
SELECTIONS = ["product_key", "cosine", "gumbel"]
# Flags of each retrieval that suit tiny models.
BASES = {"product_key": {}, "ngram": NGRAM, "suffix": SUFFIX, "bm25": BM25, "word_keys": KEYS}
# Fusions that ask which tokens of an entry the text has said, and retrievals that can tell (word_keys: as bm25).
WITH_PLACES, TELL_PLACES = ["coverage"], ["ngram", "bm25"]


def scopes(fusion: str) -> list[str]:
    """A fusion without a mask reads its own position in both scopes."""
    return ["sequence", "token"] if "mask" in FUSIONS[fusion].prepares else ["token"]


MEMORY = {
    f"{fusion}-{scope}-{selection}": {"fusion": fusion, "fusion_scope": scope, "selection": selection}
    for fusion in FUSIONS
    if fusion not in WITH_PLACES
    for scope, selection in product(scopes(fusion), SELECTIONS)
}
OTHERS = {
    f"{retrieval}-{fusion}": {"retrieval": retrieval, "fusion": fusion} | BASES.get(retrieval, {})
    for retrieval, fusion in product(RETRIEVALS, FUSIONS)
    if retrieval != "product_key"
    and (retrieval != "word_keys" or fusion == "gated_mlp")  # as bm25
    and fusion not in WITH_PLACES
} | {
    f"{retrieval}-{fusion}": {"retrieval": retrieval, "fusion": fusion, "token_places": True} | BASES[retrieval]
    for retrieval, fusion in product(TELL_PLACES, WITH_PLACES)
}
EXTRAS = {
    "gumbel-top1": {"selection": "gumbel", "num_selected": 1, "similarity_loss_coef": 0.1, "diversity_loss_coef": 0.1},
    "beside-ffn": {"keep_ffn": True},
    "beside-moe": {"keep_ffn": True, "use_moe": True},
    "one-layer": {"memory_layers": [1]},
    "query-norm": {"query_norm": True, "keep_ffn": True, "fusion_scope": "token"},
    "query-norm-cosine": {"query_norm": True, "selection": "cosine"},
    "taught": {"retrieval_loss_coef": 0.1, "ngram_lengths": [1, 2], "fusion_scope": "token", "keep_ffn": True},
    "taught-cosine": {"retrieval_loss_coef": 0.1, "teacher_forcing": 0.5, "ngram_lengths": [2], "selection": "cosine"},
    "taught-words": {
        "retrieval_loss_coef": 0.1,
        "teacher_forcing": 0.5,
        "ngram_lengths": [1, 2],
        "fusion": "words",
        "keep_ffn": True,
    },
    "words-cosine": {"fusion": "words", "selection": "cosine", "memory_layers": [0]},
    "memory-gqa": {"n_kv_heads": 1},
    "memory-textbook": {"use_flash_attn": False},
    "memory-recipe": {"keep_ffn": True} | RECIPE,
    "memory-untied": {"tie_embeddings": False, "logit_softcap": 5.0, "fusion_scope": "token"},
    "memory-table": TABLE | {"ngram_table_orders": [3], "ngram_table_layers": [1]},
}
NGRAMS = {
    "ngram-words-pointer": NGRAM | {"fusion": "words", "pointer": True},
    "ngram-pairs": NGRAM
    | {"fusion": "words", "pointer": True, "ngram_lengths": [3], "ngram_pairs": 3, "ngram_window": 5},
    "ngram-words": NGRAM  # 50 is no square
    | {"fusion": "words", "memory_layers": [0], "knowledge_num": 50, "ngram_lengths": [1], "ngram_window": 1},
    "ngram-pointer": NGRAM | {"memory_layers": [-1], "pointer": True, "token_places": True},
    "ngram-gated_mlp": NGRAM | {"fusion": "gated_mlp", "keep_ffn": False},
    "ngram-concat-token": NGRAM | {"fusion": "concat", "fusion_scope": "token"},
    "ngram-cross_attention": NGRAM | {"fusion": "cross_attention"},
    "ngram-recipe": NGRAM | {"fusion": "words", "pointer": True, "ngram_max_matches": 7} | RECIPE,
    "bm25-pointer": BM25
    | {
        "fusion": "words",
        "pointer": True,
        "token_places": True,
        "unsaid_tokens": True,
        "bm25_common_words": ["what"],
        "bm25_current_word": True,
        "bm25_pair_recency": 0.95,
    },
    "bm25-coverage-pointer": BM25
    | {"fusion": "coverage", "memory_layers": [0], "pointer": True, "token_places": True, "block_selected": 2},
    "word_keys-pointer": KEYS | {"fusion": "words", "pointer": True, "unsaid_tokens": True, "block_selected": 2},
    "bm25-and-suffix": BM25
    | {
        "fusion": "coverage",
        "memory_layers": [0],
        "pointer": True,
        "token_places": True,
        "suffix_layers": [1],
        "suffix_selected": 5,
        "suffix_candidates": 6,
        "suffix_length": 3,
        "suffix_tokens": 1,
        "suffix_often": [3],
        "suffix_often_tokens": 2,
        "suffix_topic_dim": 5,
    },
    "ngram-and-suffix": NGRAM | {"memory_layers": [-1], "pointer": True, "suffix_layers": [0], "suffix_length": 3},
    "suffix-pointer": SUFFIX | {"fusion": "continuations", "pointer": True},
    "suffix-often": SUFFIX | OFTEN | {"fusion": "continuations", "pointer": True},
    "ngram-words-table": NGRAM | TABLE | {"fusion": "words", "ngram_table_orders": [1, 4]},
}
MEMORY_VARIANTS = MEMORY | EXTRAS | OTHERS | NGRAMS
VARIANTS = BASELINES | MEMORY_VARIANTS


# In the fast tests each fusion in each scope meets one selection, and each fusion one other retrieval, in turns.
READS = [f"{fusion}-{scope}" for fusion in FUSIONS if fusion not in WITH_PLACES for scope in scopes(fusion)]
RARE = MEMORY.keys() - {f"{read}-{selection}" for read, selection in zip(READS, cycle(SELECTIONS), strict=False)}
SEARCHES = cycle(["suffix", "ngram", "bm25"])
RARE |= OTHERS.keys() - NGRAMS.keys() - {f"{name}-{fusion}" for name, fusion in zip(SEARCHES, FUSIONS, strict=False)}
RARE -= {"word_keys-gated_mlp"}
RARE |= {
    "original-qk-norm", "original-recipe-moe", "one-layer", "query-norm-cosine", "taught-cosine", "words-cosine",
    "memory-untied", "ngram-words", "ngram-concat-token", "ngram-words-table",
}  # fmt: skip
assert RARE < VARIANTS.keys()


def each(variants: dict, argument: str = "variant"):
    """A mark that runs a test with each of these variants, the rare ones only among the slow tests."""
    return pytest.mark.parametrize(
        argument,
        [
            pytest.param(variant, id=name, marks=[pytest.mark.slow] if name in RARE else [])
            for name, variant in variants.items()
        ],
    )
