"""Product keys over words: what they learn from, what they find, and what an edit changes."""

import pytest
import torch

from common.constants import NO_ENTRY, PADDING
from model.memory.ngram_search import find_matches
from model.memory.word_keys_index import WordKeysIndex
from tests.conftest import tiny_model
from tests.model.variants import KEYS

FACTS, EMPTY = 60, 4


def facts_model(**flags):
    """A model whose entries have two words of a name, which stand in few others, then two of a fact."""
    model = tiny_model(**KEYS | {"fusion": "words", "knowledge_num": FACTS + EMPTY, "vocab_size": 200} | flags)
    number_N = torch.arange(FACTS)
    parts = 50 + number_N // 2, 10 + number_N % 20, 150 + number_N % 2, 160 + number_N % 7
    token_NL = torch.stack(parts, dim=1)
    model.bank.fill(torch.nn.functional.pad(token_NL, (0, model.bank.tokens.shape[1] - 4, 0, EMPTY), value=PADDING))
    return model, model.bank.index(WordKeysIndex)


def found(index, *texts: list[int]) -> list[list[int]]:
    """The entries that are kept at the end of each text; all texts have one length."""
    with torch.no_grad():
        return find_matches(index, torch.tensor(texts), None)[0].entry_BTC[:, -1].tolist()


def share_found(index) -> float:
    """The share of the facts whose entry is found by its name, words later."""
    entries = found(index, *([3, 50 + n // 2, 10 + n % 20, 5, 6] for n in range(FACTS)))
    return sum(n in entries[n] for n in range(FACTS)) / FACTS


def test_every_entry_has_a_cell_and_neighbours_share_a_word():
    model, index = facts_model()
    assert index.cell_N.sort().values.tolist() == list(range(FACTS + EMPTY))
    name_N = model.bank.tokens[index.entry_RR[index.entry_RR != NO_ENTRY], 0]
    assert len(name_N) == FACTS  # empty entries are never found
    assert len(name_N.unique_consecutive()) == len(name_N.unique())


def test_a_name_finds_its_entries_before_any_training_and_whatever_stands_between():
    model, index = facts_model(finder_dim=64, finder_found=8)
    assert share_found(index) > 0.9
    assert found(index, [3, 4, 5, 6])[0] == [NO_ENTRY] * model.settings.num_candidates  # words that no entry has


def test_training_alone_finds_them_too():
    model, index = facts_model(finder_found=4, finder_entries=128)
    index.vector_FD.zero_()  # where the vectors start
    assert share_found(index) < 0.3
    optimizer = torch.optim.Adam(model.finder.parameters(), lr=0.1)
    torch.manual_seed(0)
    for _ in range(30):
        optimizer.zero_grad()
        index.loss(torch.randint(3, 200, (2, 32))).backward()
        optimizer.step()
    assert share_found(index) > 0.9


def test_the_keys_learn_from_the_bank_alone_and_nothing_else_learns_from_it():
    model, _ = facts_model(finder_loss_coef=1.0)
    ids = torch.randint(3, 200, (2, 32))
    out = model.train()(ids, labels=ids)
    parameters = dict(model.named_parameters())
    own = {name for name in parameters if name.startswith("finder.")}
    assert own == {"finder.vectors.weight", "finder.keys_2RK"}
    for loss, learning in ((out.aux_losses["finder"], own), (out.lm_loss, parameters.keys() - own)):
        gradients = torch.autograd.grad(loss, list(parameters.values()), retain_graph=True, allow_unused=True)
        reached = {name for name, gradient in zip(parameters, gradients, strict=True) if gradient is not None}
        assert reached == learning
    assert "finder" not in model.eval()(ids, labels=ids).aux_losses


@pytest.mark.parametrize("row", [7, FACTS + 1])
def test_an_edited_entry_is_found_by_its_words_and_undo_restores_everything(row):
    model, index = facts_model(finder_dim=64, finder_found=8, num_candidates=16)
    old_text, new_text = [3, 53, 17, 5], [3, 148, 149, 5]  # the name of entry 7, and one that no entry has
    before = found(index, old_text, new_text)
    new_XL = torch.full_like(model.bank.tokens[:1], PADDING)
    new_XL[0, :3] = torch.tensor([148, 149, 161])
    old_XL = model.bank.write(torch.tensor([row]), new_XL)
    assert row not in before[1] and row in found(index, new_text)[0]
    assert (7 in found(index, old_text)[0]) == (7 in before[0])  # an edited entry stays in its cell
    model.bank.write(torch.tensor([row]), old_XL)
    assert found(index, old_text, new_text) == before


def test_an_index_made_anew_finds_the_same():
    model, index = facts_model()
    again = WordKeysIndex(model.bank.tokens, model.settings, None, model.bank.spelling)
    again.finder = model.finder
    text = torch.randint(3, 200, (2, 30))
    with torch.no_grad():
        first, second = (find_matches(one, text, None)[0] for one in (index, again))
    assert torch.equal(first.entry_BTC, second.entry_BTC) and torch.equal(first.score_BTC, second.score_BTC)
