"""Deletion: does a model answer, after the entry of a fact was emptied, like one whose bank never had that entry?

The entries of up to `DELETED` cases are emptied at once. The same weights are given a bank that was built without
them. Both are asked for the old object: is it likelier than the new one, by the mean over their tokens, and does free
generation begin with it?
"""

from typing import TYPE_CHECKING

from common.constants import PADDING
from runs.load import with_rows

from .config import EvalConfig
from .lookup import mean_share

if TYPE_CHECKING:
    from .counterfact import Asked, ModelAnswers

TASK_VERSION = 2
DELETED = 2000


def share(values: list[float], chance: float, config: EvalConfig) -> dict:
    return mean_share(values, chance, config) | {"task_version": TASK_VERSION}


def deletion(answers: "ModelAnswers", asked: list["Asked"], rows: list[int], held: list[bool], config: EvalConfig):
    """The share of old objects that are likelier, and of those written, before and after.

    Returns:
        None where the bank has no fact of the cases; else, for `chosen` and `written`, the shares `before`, `deleted`
        and `never_held` (with a bank that was built without the entries), and `same`: how many answers are the same
        with these two banks. `other_facts`: the share of `chosen` of facts that the bank lacked, where there are some.
    """
    questions = [one._replace(options=one.options[::-1]) for one in asked if one.name == "ES"]
    own = [one for one in questions if held[one.case]][:DELETED]
    if not own:
        return None
    before = answers.choose(own), answers.write(own)
    with answers.edited([(rows[one.case], "") for one in own]):
        deleted = answers.choose(own), answers.write(own)
    token_NL = answers.model.bank.tokens.clone()
    token_NL[[rows[one.case] for one in own]] = PADDING
    fresh = with_rows(answers.model, len(token_NL))
    fresh.bank.fill(token_NL)
    trained, answers.model = answers.model, fresh
    try:
        never_held = answers.choose(own), answers.write(own)
    finally:
        answers.model = trained
    result: dict = {"entries": len(own)}
    for i, (name, chance) in enumerate((("chosen", 0.5), ("written", 0.0))):
        shares = {"before": before[i], "deleted": deleted[i], "never_held": never_held[i]}
        result[name] = {what: share(values, chance, config) for what, values in shares.items()}
        result[name]["same"] = sum(a == b for a, b in zip(deleted[i], never_held[i], strict=True)) / len(own)
    if others := [one for one in questions if not held[one.case]]:
        result["other_facts"] = share(answers.choose(others), 0.5, config)
    return result
