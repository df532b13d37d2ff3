"""The control that reads other entries than those found."""

import pytest
import torch

from common.constants import NO_ENTRY
from model.memory.ngrams import shuffled
from tests.conftest import tiny_config, tiny_model
from tests.model.variants import NGRAM

WORDS = NGRAM | {"fusion": "words"}


@pytest.mark.parametrize("n", [1, 2, 7, 49, 50, 589824, 1048576])
def test_shuffling_is_a_permutation_that_leaves_hardly_any_entry_and_no_neighbours(n):
    entry = torch.arange(n)
    other = shuffled(entry, n)
    assert torch.equal(other.sort().values, entry)
    assert int((other == entry).sum()) <= max(1, n // 20)
    if n > 100:
        assert int((other.diff().abs() < n // 4).sum()) == 0
    assert (shuffled(torch.full((3,), NO_ENTRY), n) == NO_ENTRY).all()


def test_the_control_reads_the_tokens_of_other_entries_where_the_search_finds_the_same():
    ids, N = torch.randint(3, 61, (2, 16)), 50
    model, control = (tiny_model(**WORDS, knowledge_num=N, bank_control=kind) for kind in (None, "shuffled"))
    found, others = (m(ids).readings[0].entry_BTS for m in (model, control))
    missing = model.search_text(ids)["match_entry_BTC"] == NO_ENTRY
    assert torch.equal(others[~missing], shuffled(found[~missing], N))
    assert not torch.equal(model(ids).logits, control(ids).logits)
    # With the entries put where the control looks for them, it is the model itself.
    tokens = model.bank.tokens.clone()
    index = control.bank.ngrams()
    control.bank.tokens[shuffled(torch.arange(N), N)] = tokens
    index.token_NL = tokens  # ranks by what was found
    torch.testing.assert_close(control(ids).logits, model(ids).logits)


def test_product_keys_have_no_such_control():
    with pytest.raises(ValueError, match="--bank_control needs --retrieval ngram"):
        tiny_config(bank_control="shuffled")
