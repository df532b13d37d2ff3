"""Arms of an experiment on the bank: what the model does when the text in it is not the right one."""

from contextlib import contextmanager

import torch


@contextmanager
def replaced_bank(model, token_NL: torch.Tensor):
    """The model with another table in its bank, found as the right one is; that is back, bit for bit, on leaving."""
    if model.settings.uses_ngrams:
        model.bank.ngrams()  # of the right entries, should none have been read so far
    right_NL = model.bank.tokens.clone()
    model.bank.tokens.copy_(token_NL)
    try:
        yield model
    finally:
        model.bank.tokens.copy_(right_NL)


def shuffled(model, seed: int = 0):
    """Every entry stands in another entry's place: the same words, found by the wrong keys."""
    order_N = torch.randperm(len(model.bank.tokens), generator=torch.Generator().manual_seed(seed))
    return replaced_bank(model, model.bank.tokens[order_N.to(model.device)])


def zeroed(model, seed: int = 0):
    """Every entry is padding, which is not read."""
    return replaced_bank(model, torch.zeros_like(model.bank.tokens))


ARMS = {"shuffled": shuffled, "zeroed": zeroed}
