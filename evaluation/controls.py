"""Arms of an experiment: what the model does when the text in its bank is not the right one, or when it is handed over.

An arm is a context manager `arm(model, tokenizer, settings)` that yields the settings for the tasks within. Those of
`BANK_ARMS` need a model with a memory; those of `GOLD_ARMS` need to know which entry holds the answer.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch

from common.constants import PADDING

from .likelihood import read_questions
from .object import FIELDS, planted_choice
from .settings import Settings


@contextmanager
def replaced_bank(model, token_NL: torch.Tensor) -> Iterator[None]:
    """The model with another table in its bank, found as the right one is; that is back, bit for bit, on leaving."""
    if model.settings.uses_ngrams:
        model.bank.ngrams()  # of the right entries, should none have been read so far
    right_NL = model.bank.tokens.clone()
    model.bank.tokens.copy_(token_NL)
    try:
        yield
    finally:
        model.bank.tokens.copy_(right_NL)


@contextmanager
def shuffled(model, tokenizer, settings: Settings) -> Iterator[Settings]:
    """Every entry stands in another entry's place: the same words, found by the wrong keys."""
    order_N = torch.randperm(len(model.bank.tokens), generator=torch.Generator().manual_seed(settings.seed))
    with replaced_bank(model, model.bank.tokens[order_N.to(model.device)]):
        yield settings


@contextmanager
def zeroed(model, tokenizer, settings: Settings) -> Iterator[Settings]:
    """Every entry is padding, which is not read."""
    with replaced_bank(model, torch.zeros_like(model.bank.tokens)):
        yield settings


@contextmanager
def counterfactual(model, tokenizer, settings: Settings) -> Iterator[Settings]:
    """The entry of every asked fact states a wrong choice instead of the object: the accuracy that is left, and the
    share of answers that follow the planted object, tell whether the answers come from the bank."""
    rows, token_XL = [], []
    for question in read_questions(settings.object_path, FIELDS, settings.limit, "object_path"):
        fact, row = settings.gold.fact(question), settings.gold.row(question)
        if fact and fact.object in fact.sentence:
            before, _, after = fact.sentence.rpartition(fact.object)
            planted = question["choices"][planted_choice(question)]
            rows.append(row)
            token_XL.append(entry_tokens(model, tokenizer, before + planted + after))
    row_X = torch.tensor(rows, device=model.device)
    right_XL = model.bank.write(row_X, torch.stack(token_XL).to(model.device))
    try:
        yield settings
    finally:
        model.bank.write(row_X, right_XL)


@contextmanager
def gold_forced(model, tokenizer, settings: Settings) -> Iterator[Settings]:
    """The right entry is the first that every position reads: how good the answers are if retrieval never fails."""
    yield replace(settings, help="entry")


@contextmanager
def gold_in_prompt(model, tokenizer, settings: Settings) -> Iterator[Settings]:
    """The right sentence stands before the question: what reading it in the text, without a memory, is worth."""
    yield replace(settings, help="prompt")


def entry_tokens(model, tokenizer, text: str) -> torch.Tensor:
    """(L,) token ids of a text as an entry of this model's bank, cut or padded to its length."""
    length = model.settings.knowledge_length
    ids = tokenizer(text, add_special_tokens=False).input_ids[:length]
    return torch.tensor(ids + [PADDING] * (length - len(ids)))


BANK_ARMS = {"bank shuffled": shuffled, "bank zeroed": zeroed}
GOLD_ARMS = {"gold in prompt": gold_in_prompt}
GOLD_BANK_ARMS = {"bank counterfactual": counterfactual, "gold entry forced": gold_forced}


def arms_of(model, settings: Settings) -> dict:
    """The arms that make sense for a model, by name."""
    arms = dict(BANK_ARMS) if model.settings.reads_bank else {}
    if settings.gold is not None:
        arms |= GOLD_ARMS
        if model.settings.reads_bank:
            arms |= GOLD_BANK_ARMS if settings.object_path else {"gold entry forced": gold_forced}
    return arms
