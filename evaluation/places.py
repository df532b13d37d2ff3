"""Where the cases of an editing benchmark are in a bank, and where those go that it lacks.

Axes: N entries of the bank · L tokens per entry · X texts
"""

import random

import torch
from torch import Tensor

from common.constants import NO_ENTRY, PADDING
from dataset.edit_cases import Case
from dataset.knowledge import encode_entries
from model.memory.bank import ROWS_AT_ONCE

from .config import EvalConfig
from .gold import Gold


def rows_of_texts(model, tokenizer, texts: list[str]) -> list[int]:
    """The first row of the bank with the tokens of each text; NO_ENTRY where none has them."""
    if not texts:
        return []
    token_NL = model.bank.tokens
    token_XL = torch.from_numpy(encode_entries(tokenizer, texts, token_NL.shape[1])[0]).to(token_NL)
    factor_L = torch.randint(1, 2**62, token_NL.shape[1:], generator=torch.Generator().manual_seed(0))
    factor_L = factor_L.to(token_NL.device)

    def keys(token_YL: Tensor) -> Tensor:
        return torch.cat([(part.long() * factor_L).sum(dim=1) for part in token_YL.split(ROWS_AT_ONCE)])

    key_N, row_N = keys(token_NL).sort(stable=True)
    place_X = torch.searchsorted(key_N, keys(token_XL)).clamp(max=len(key_N) - 1)
    row_X = row_N[place_X]
    return row_X.where((token_NL[row_X] == token_XL).all(dim=1), NO_ENTRY).tolist()


def place_cases(
    cases: list[Case], model, tokenizer, gold: Gold | None
) -> tuple[list[Case], list[int], dict]:  # fmt: skip
    """The cases that can be edited in a row, the row of each, and what was found.

    A fact is found by its uuid, else by its sentence. One that the bank lacks takes an empty row, else the last
    unfrozen row, else the last row, that no case and no neighbour needs. Of two cases with one entry the later one is
    left out.

    Returns:
        The last has `by_uuid`, `by_sentence`, `added`, `overwritten` (of the added ones, those in rows that held
        another text), `left_out`, `cut` (new sentences longer than an entry): numbers; `held`: for each case, whether
        the bank had the fact.
    Raises:
        ValueError: the bank is too small.
    """
    by_uuid = gold.rows if gold else {}
    rows = [by_uuid.get(case.uuid, NO_ENTRY) if case.uuid else NO_ENTRY for case in cases]
    n_by_uuid = sum(row != NO_ENTRY for row in rows)
    asked = [i for i, case in enumerate(cases) if rows[i] == NO_ENTRY and case.bank_sentence]
    for i, row in zip(asked, rows_of_texts(model, tokenizer, [cases[i].bank_sentence for i in asked]), strict=True):
        rows[i] = row
    n_by_sentence = sum(row != NO_ENTRY for row in rows) - n_by_uuid
    held = [row != NO_ENTRY for row in rows]
    taken: set[int] = set()
    kept = [i for i, row in enumerate(rows) if row == NO_ENTRY or row not in taken and not taken.add(row)]
    needed = taken | {by_uuid[one.uuid] for case in cases for one in case.neighbours if one.uuid in by_uuid}
    lacking = [i for i in kept if rows[i] == NO_ENTRY]
    free, n_empty = free_rows(model.bank, needed, len(lacking))
    for i, row in zip(lacking, free, strict=True):
        rows[i] = row
    _, n_tokens = encode_entries(tokenizer, [cases[i].new_sentence for i in kept], model.settings.knowledge_length)
    about = {
        "by_uuid": n_by_uuid, "by_sentence": n_by_sentence, "added": len(lacking),
        "overwritten": max(len(lacking) - n_empty, 0), "left_out": len(cases) - len(kept),
        "cut": int((n_tokens > model.settings.knowledge_length).sum()), "held": [held[i] for i in kept],
    }  # fmt: skip
    return [cases[i] for i in kept], [rows[i] for i in kept], about


def asked_first(n_cases: int, config: EvalConfig) -> list[int]:
    """The order of the cases: those that are asked as they are drawn, then the others as in the file."""
    if config.asked_cases is None or config.asked_cases >= n_cases:
        return list(range(n_cases))
    drawn = random.Random(config.seed).sample(range(n_cases), config.asked_cases)
    return drawn + sorted(set(range(n_cases)).difference(drawn))


def free_rows(bank, needed: set[int], n: int) -> tuple[list[int], int]:
    """`n` rows for new entries: the empty ones, then the last unfrozen ones, then the last; and how many are empty.

    Raises:
        ValueError: there are fewer.
    """
    if not n:
        return [], 0
    is_empty_N = (bank.tokens == PADDING).all(dim=1)
    groups = is_empty_N, ~is_empty_N & ~bank.frozen, ~is_empty_N & bank.frozen
    empty, unfrozen, frozen = (torch.where(group_N)[0].tolist() for group_N in groups)
    rows = [row for row in [*empty, *reversed(unfrozen), *reversed(frozen)] if row not in needed][:n]
    if len(rows) < n:
        raise ValueError(
            f"the bank of {len(bank.tokens)} entries has no place for the {n} facts of the cases that it lacks: give "
            "fewer by --limit, or a larger --bank"
        )
    return rows, len(empty)
