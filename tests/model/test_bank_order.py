"""The order of the bank's rows is no knowledge: n-grams find an entry wherever it stands. A grid is the order itself.

Among entries that the text points to equally, the search keeps those of the first rows. So the tests let every entry
be read, or ask for answers whose entry the text points to most.
"""

import torch

from common.constants import PADDING
from dataset.tokenizer import load_tokenizer
from evaluation.likelihood import log_likelihoods
from tests.conftest import tiny_config, tiny_model
from tests.model.variants import MEMORY_VARIANTS, each

# The fusion concat reads its entries one after the other: those found equally are in the order of rows.
IN_ANY_ORDER = {
    name: variant
    for name, variant in MEMORY_VARIANTS.items()
    if not tiny_config(**variant).retrieval_class.has_grid and variant.get("fusion") != "concat"
}


def reordered(model, seed: int) -> None:
    """Shuffle the rows of the bank, and index them anew."""
    token_NL = model.bank.tokens.clone()
    order_N = torch.randperm(len(token_NL), generator=torch.Generator().manual_seed(seed))
    assert not torch.equal(token_NL[order_N], token_NL)
    model.bank.fill(token_NL[order_N])


@torch.no_grad()
@each(IN_ANY_ORDER)
def test_a_model_that_finds_by_content_predicts_the_same_from_a_bank_in_another_order(variant):
    every = variant.get("knowledge_num", 49)
    model = tiny_model(
        **variant
        | {
            "num_candidates": 2 * every,
            "num_selected": every,
            "ngram_max_matches": 0,
            "bm25_postings": 64,
            "finder_found": 9,
        }
    )
    ids = torch.randint(3, 61, (2, 20))
    before, rows = model(ids), torch.randint(0, every, (2, 20))
    reordered(model, seed=1)
    torch.testing.assert_close(model(ids).logits, before.logits, rtol=1e-4, atol=1e-5)
    model.bank.write(rows[0].unique(), torch.zeros(len(rows[0].unique()), 5, dtype=torch.long))
    assert not torch.allclose(model(ids).logits, before.logits, atol=1e-3)  # the bank is read


@torch.no_grad()
def test_a_grid_is_the_order_of_the_bank():
    model, ids = tiny_model(), torch.randint(3, 61, (2, 20))
    assert model.settings.retrieval_class.has_grid
    before = model(ids).logits
    reordered(model, seed=1)
    assert not torch.allclose(model(ids).logits, before, atol=1e-3)


def test_answers_do_not_depend_on_the_row_of_their_entry():
    """Twenty facts that share most words, of which few can be kept: whichever row states a fact, it is answered."""
    tokenizer = load_tokenizer("dataset/tokenizer")
    cities = (
        "Paris Lyon Nice Rome Oslo Lima Bergen Milan Tokyo Kyoto Delhi Cairo Accra Quito Minsk Riga Sofia Turin Bonn"
    )
    names, lands = cities.split(), ["France", "Italy", "Norway", "Peru"]
    ids = [tokenizer(f"{n} is in {lands[i % 4]}.", add_special_tokens=False).input_ids for i, n in enumerate(names)]
    model = tiny_model(
        vocab_size=6400, retrieval="ngram", ngram_lengths=[1, 2], pointer=True, memory_layers=[-1],
        knowledge_num=len(names), knowledge_length=10, num_candidates=6, num_selected=2,
    )  # fmt: skip
    model.bank.fill(torch.tensor([row + [PADDING] * (10 - len(row)) for row in ids]))
    torch.nn.init.constant_(model.pointer.gate.bias, 4.0)
    model.pointer.attention.follows_bias.data.copy_(torch.tensor([12.0, 8.0]))
    model.pointer.score_scale.data.fill_(4.0)
    pairs = [(f"{name} is in", f" {land}") for name in names for land in lands]

    def answers() -> list[int]:
        scores = torch.tensor([score for score, _ in log_likelihoods(model, tokenizer, pairs, 64)])
        return scores.view(-1, 4).argmax(dim=-1).tolist()

    assert answers() == [i % 4 for i in range(len(names))]
    for seed in range(3):
        reordered(model, seed)
        assert answers() == [i % 4 for i in range(len(names))]
