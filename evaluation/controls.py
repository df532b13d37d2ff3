"""Controls: how the answers change when the bank has other texts, or when the model is given the right one (oracle).

A control is a context manager `control(model, tokenizer, config)`. It changes the bank, or yields a changed
configuration, for the tasks within it. The bank is the same as before, bit for bit, after it.

| name in eval.json   | what it does                                                  | needs            |
|---------------------|---------------------------------------------------------------|------------------|
| bank shuffled       | every row has the text of another entry                       | a memory         |
| bank zeroed         | every entry is empty                                          | a memory         |
| bank counterfactual | the entry of each asked fact states a wrong choice            | memory, gold     |
| gold entry forced   | every position reads the gold entry first                     | memory, gold     |
| gold in prompt      | the sentence of the fact is in the prompt                     | gold             |
| entries in prompt   | the entries that a run's retrieval finds are in the prompt    | --entries_from   |
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch

from dataset.knowledge import encode_entries
from dataset.questions import FIELDS, counterfactual_index, read_questions

from .config import EvalConfig


@contextmanager
def replaced_bank(model, token_NL: torch.Tensor) -> Iterator[None]:
    """The model with another table in its bank. Retrieval by an index still finds rows by their right texts."""
    right_NL = model.bank.swap(token_NL)
    try:
        yield
    finally:
        model.bank.tokens.copy_(right_NL)


@contextmanager
def shuffled(model, tokenizer, config: EvalConfig) -> Iterator[EvalConfig]:
    """Every row has the text of another entry: retrieval finds the right row, which states another fact."""
    order_N = torch.randperm(len(model.bank.tokens), generator=torch.Generator().manual_seed(config.seed))
    with replaced_bank(model, model.bank.tokens[order_N.to(model.device)]):
        yield config


@contextmanager
def emptied(model, tokenizer, config: EvalConfig) -> Iterator[EvalConfig]:
    """Every entry is padding, which no block reads."""
    with replaced_bank(model, torch.zeros_like(model.bank.tokens)):
        yield config


@contextmanager
def counterfactual(model, tokenizer, config: EvalConfig) -> Iterator[EvalConfig]:
    """The entry of every asked fact states a wrong choice, the counterfactual object.

    A model that answers from the bank then follows the counterfactual object (`planted`), and its accuracy falls.
    """
    rows, texts = [], []
    for question in read_questions(config.object_path, FIELDS["object"], config.limit, "object_path"):
        fact, row = config.gold.fact(question), config.gold.row(question)
        if fact and fact.object in fact.sentence:
            before, _, after = fact.sentence.rpartition(fact.object)
            rows.append(row)
            texts.append(before + question["choices"][counterfactual_index(question)] + after)
    row_X = torch.tensor(rows, device=model.device)
    token_XL, _ = encode_entries(tokenizer, texts, model.settings.knowledge_length)
    right_XL = model.bank.write(row_X, torch.from_numpy(token_XL).to(model.device))
    try:
        yield config
    finally:
        model.bank.write(row_X, right_XL)


@contextmanager
def oracle_entry(model, tokenizer, config: EvalConfig) -> Iterator[EvalConfig]:
    """Every position reads the gold entry first: the accuracy of reading if retrieval were perfect."""
    yield replace(config, oracle="entry")


@contextmanager
def oracle_prompt(model, tokenizer, config: EvalConfig) -> Iterator[EvalConfig]:
    """The sentence of the fact is in the prompt: the accuracy of reading from the context, without a memory."""
    yield replace(config, oracle="prompt")


@contextmanager
def found_in_prompt(model, tokenizer, config: EvalConfig) -> Iterator[EvalConfig]:
    """The entries that retrieval finds for a question are in its prompt: reading as text what a memory reads."""
    yield replace(config, oracle="found")


BANK_CONTROLS = {"bank shuffled": shuffled, "bank zeroed": emptied}
GOLD_CONTROLS = {"gold in prompt": oracle_prompt}
FINDER_CONTROLS = {"entries in prompt": found_in_prompt}
GOLD_BANK_CONTROLS = {"bank counterfactual": counterfactual, "gold entry forced": oracle_entry}


CONTROLS = (*BANK_CONTROLS, *GOLD_BANK_CONTROLS, *GOLD_CONTROLS, *FINDER_CONTROLS)


def controls_of(model, config: EvalConfig) -> dict:
    """The controls that are possible for a model and its questions, by name."""
    controls = dict(BANK_CONTROLS) if model.settings.reads_bank else {}
    if config.gold is not None:
        controls |= GOLD_CONTROLS
        if model.settings.reads_bank:
            controls |= GOLD_BANK_CONTROLS if config.object_path else {"gold entry forced": oracle_entry}
    if config.finder is not None:
        controls |= FINDER_CONTROLS
    return controls


def tasks_of(control: str) -> tuple[str, ...]:
    """The tasks that are repeated under a control: an oracle says nothing about running text."""
    if control == "bank counterfactual":
        return ("object",)
    questions = ("object", "relation", "verification", "pararel")
    if control in FINDER_CONTROLS:
        return (*questions, "reworded", "exact_match", "cost")
    return ("language", "language_sets", *questions) if control.startswith("bank") else questions
