"""The tables of memory against prompt, of published sets about language, and of loss by what was read."""

from .leaderboard import CROWDED
from .page import Page

IN_CONTEXT = ("dev", "in-context, 2,000 steps of 128 questions")
TWO_EPOCHS = ("dev", "wiki-75M, two epochs")
# Measures of a question, and what they are.
ANSWERS = {
    "object": "object, of five", "object_reworded": "the same in other words",
    "exact_match": "the same, written freely", "relation": "relation, of five", "verification": "verification, of two",
    "prompt_tokens": "tokens of a prompt",
    "first_token_ms": "ms to the first token, in batches of 128",
    "first_token_ms_alone": "the same, one by one", "answer_ms": "ms to eight tokens, in batches of 128",
    "answer_ms_alone": "the same, one by one",
}  # fmt: skip
RUNS = {
    "plain": ("1.6.0", "plain"),
    "plain, entries in its prompt": ("1.6.0, entries of 1.6.35 in its prompt", "in_context"),
    "memory": ("1.6.35", "memory"),
}
SETS = {
    "set_blimp": "BLiMP, %", "set_lambada": "LAMBADA, %", "set_arc_easy": "ARC-easy, %",
    "set_hellaswag": "HellaSwag, %", "set_piqa": "PIQA, %", "set_bytes_wikitext2_valid": "WikiText-2, bits a byte",
}  # fmt: skip
MODELS = {
    "plain, text and questions": (("dev", CROWDED), "1.6.0", "plain"),
    "1.6.35": (("dev", CROWDED), "1.6.35", "memory"),
    "plain, Wikipedia": (TWO_EPOCHS, "1.6.0, learning rate 4.5e-3", "plain"),
    "1.6.21": (TWO_EPOCHS, "1.6.21", "memory"),
}
GROUPS = {"0": "0", "1_to_2": "1 to 2", "3_to_7": "3 to 7", "8_or_more": "8 or more", "all": "all"}


def in_context(page: Page) -> str:
    """Plain, plain with the same entries as text, and memory, after the same questions."""
    lines = [
        [what, *(page.cell(IN_CONTEXT, *run, measure) for run in RUNS.values())] for measure, what in ANSWERS.items()
    ]
    return page.table(["", *RUNS], lines)


def no_harm(page: Page) -> str:
    """Published sets: memory models beside the plain models of the same text."""
    lines = [[what, *(page.cell(*model, measure) for model in MODELS.values())] for measure, what in SETS.items()]
    return page.table(["", *MODELS], lines)


def overlap(page: Page) -> str:
    """Loss by the tokens that text and entry share, of 1.6.21."""
    columns = {
        "loss": "loss", "plain": "plain loses more by", "gain": "bank shuffled loses more by", "helped": "helped, %",
        "hurt": "hurt, %",
    }  # fmt: skip
    lines = [
        [what, *(page.cell(TWO_EPOCHS, "1.6.21", "memory", f"overlap_{name}_{group}") for name in columns)]
        for group, what in GROUPS.items()
    ]
    return page.table(["tokens shared", *columns.values()], lines)


READING_TABLES = in_context, no_harm, overlap
