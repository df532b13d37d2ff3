"""Insertion: are facts that the bank lacks found and answered once they are added, without any training?

All facts of a file are added at once, by the functions of `python -m editing import`: in place of another object of the
same subject and predicate, else in an empty row, else over one of the last rows. They are asked in the set's own
questions, before (what the weights know) and after: which choice is the likeliest (accuracy), and does greedy
generation write the object or an alias of it (`written`)? Then they are taken back.

Parts are the sets of the file, quarters of their facts by popularity, and "as a statement": the added sentence up to
its object. `written`: the share that is exactly an alias up to the end of the sentence or line; `begins`: that begins
with one; `object`: exactly the object that was added, without its aliases. `locality`: the share of the unrelated
questions that get the same written answer as before. Questions about one fact are one draw of the intervals.
"""

from collections.abc import Callable
from pathlib import Path
from statistics import quantiles
from tempfile import TemporaryDirectory
from typing import NamedTuple

import torch

from common.constants import NO_ENTRY
from dataset.knowledge import Fact, encode_entries
from dataset.public_questions import read_inserts
from dataset.questions import QUESTION_PROMPT, answer_index
from dataset.tokenizer import encode_texts

from .config import EvalConfig, accuracy, clustered_interval
from .edits import fingerprint
from .generation import continuations
from .likelihood import score_options
from .lookup import READ, shares_right, words_of
from .places import free_rows, rows_of_texts
from .retrieval import CANDIDATES, candidates_and_reads, shares_of_gold
from .search_alone import finder_of

TASK_VERSION = 2
STATEMENT, QUARTER = "as a statement", ", popularity "  # in the names of parts
MORE, NEARBY = 4, 16  # tokens to generate: beyond those of the longest alias; after an unrelated question
TEMPLATE = "The {} of {{subject}} is {{object}}."  # of a predicate that the bank does not have
ENDS = ".!?\n"
NOWHERE = NO_ENTRY - 1  # no row, and not the mark of a place where nothing was read


class Asked(NamedTuple):
    """A question about a fact, for a model and for the look-up.

    row: the fact as read.  parts: of the results.  after: what follows a choice.  words: the question alone.
    """

    row: dict
    parts: tuple[str, ...]
    prompt: str
    words: str
    after: str = ""


def asked_of(rows: list[dict]) -> list[Asked]:
    """All questions about the facts, first in the words of the set, then as statements."""
    known = [row["popularity"] for row in rows if row["popularity"] is not None]
    borders = quantiles(known, n=4, method="inclusive") if len(known) > 1 else []
    questions, statements = [], []
    for row in rows:
        parts = (row["set"],)
        if borders and row["popularity"] is not None:
            quarter = 1 + sum(row["popularity"] > border for border in borders)
            parts += (f"{row['set']}{QUARTER}{quarter} of 4",)
        questions += [Asked(row, parts, QUESTION_PROMPT.format(question=q), q) for q in row["questions"]]
        before, _, after = row["sentence"].rpartition(row["object"])
        if before.endswith(" ") and row["subject"] in before:
            statements.append(Asked(row, (f"{row['set']}, {STATEMENT}",), before.rstrip(" "), before, after))
    return questions + statements


def is_exact(text: str, aliases: list[str]) -> bool:
    """Whether what is written, up to an end of its sentence or line, is one of these, by its words."""
    ends = [i for i, sign in enumerate(text) if sign in ENDS] + [len(text)]
    wanted = [words for alias in aliases if (words := words_of(alias))]
    return any(words_of(text[:end]) in wanted for end in ends if text[:end].strip())


def begins(text: str, aliases: list[str]) -> bool:
    words = words_of(text)
    return any(own and words[: len(own)] == own for own in map(words_of, aliases))


def share(asked: list[Asked], right: list[float], chance: float, config: EvalConfig) -> dict:
    facts = [one.row["uuid"] for one in asked]
    return {
        "accuracy": sum(right) / len(right), "n": len(right), "facts": len(set(facts)), "chance": chance,
        "ci95": clustered_interval(right, facts), "seed": config.seed, "task_version": TASK_VERSION,
    }  # fmt: skip


def by_part(asked: list[Asked], measure: Callable[[list[int]], dict]) -> dict[str, dict]:
    """The measure of the questions (their indices) of each part."""
    names = sorted({part for one in asked for part in one.parts})
    return {name: measure([i for i, one in enumerate(asked) if name in one.parts]) for name in names}


def choices_measured(asked: list[Asked], right: list[float], config: EvalConfig) -> dict:
    """Accuracy of the choices over the sets' own questions, and in each part."""

    def measure(chosen: list[int]) -> dict:
        own = [asked[i] for i in chosen]
        chance = sum(1 / len(one.row["choices"]) for one in own) / len(own)
        return share(own, [right[i] for i in chosen], chance, config)

    if not asked:
        return {"parts": {}}
    questions = [i for i, one in enumerate(asked) if not one.parts[0].endswith(STATEMENT)]
    return (measure(questions) if questions else {}) | {"parts": by_part(asked, measure)}


def written_measured(asked: list[Asked], texts: list[str], config: EvalConfig) -> dict:
    """What was written after each question, against the aliases and the object, in each part."""

    def measure(chosen: list[int]) -> dict:
        own = [(asked[i], texts[i]) for i in chosen]
        judged = {
            "": [is_exact(text, [one.row["object"], *one.row["aliases"]]) for one, text in own],
            "begins": [begins(text, [one.row["object"], *one.row["aliases"]]) for one, text in own],
            "object": [is_exact(text, [one.row["object"]]) for one, text in own],
        }
        shares = {name: share([one for one, _ in own], right, 0.0, config) for name, right in judged.items()}
        return shares.pop("") | shares

    return by_part(asked, measure)


def answers(model, tokenizer, asked: list[Asked], config: EvalConfig) -> dict:
    """The choices and the written answers of a model, as results."""
    most_tokens = config.batch_size * model.settings.max_seq_len
    choosing = [one for one in asked if one.row["choices"]]
    options = [(one.prompt, [f" {own}{one.after}" for own in one.row["choices"]]) for one in choosing]
    scores = score_options(model, tokenizer, [one.row for one in choosing], options, config, most_tokens)
    chosen = [max(range(len(own)), key=lambda i: own[i][0]) for own in scores]
    right = [float(choice == answer_index(one.row)) for one, choice in zip(choosing, chosen, strict=True)]
    aliases = [[one.row["object"], *one.row["aliases"]] for one in asked]
    lengths = iter(len(ids) for ids in encode_texts(tokenizer, [alias for own in aliases for alias in own]))
    needed = [MORE + max(next(lengths) for _ in own) for own in aliases]
    texts = continuations(model, tokenizer, [one.prompt for one in asked], needed, config.batch_size, most_tokens)
    return choices_measured(choosing, right, config) | {"written": written_measured(asked, texts, config)}


def write_nearby(model, tokenizer, rows: list[dict], config: EvalConfig) -> list[str]:
    """What a model writes after each of the questions that have nothing to do with the facts."""
    questions = dict.fromkeys(one["question"] for row in rows for one in row["locality"])
    prompts = [QUESTION_PROMPT.format(question=question) for question in questions]
    most_tokens = config.batch_size * model.settings.max_seq_len
    return continuations(model, tokenizer, prompts, [NEARBY] * len(prompts), config.batch_size, most_tokens)


def without_model(asked: list[Asked], rows: list[int], config: EvalConfig) -> dict:
    """A guess, the most frequent object of the predicate, and the look-up in the bank with the added entries.

    Args:
        rows: where each fact is, in the order of `asked`.
    """
    choosing = [one for one in asked if one.row["choices"]]
    guess = [1 / len(one.row["choices"]) for one in choosing]
    result = {"guess": choices_measured(choosing, guess, config)}
    if config.gold is None or not config.gold.look_up.texts:
        return result
    counts = [[config.gold.frequency[one.row["predicate"], c] for c in one.row["choices"]] for one in choosing]
    frequent = [float(own.index(max(own)) == answer_index(one.row)) for one, own in zip(choosing, counts, strict=True)]
    result["frequency"] = choices_measured(choosing, frequent, config)
    added = {row: one.row["sentence"] for one, row in zip(asked, rows, strict=True) if row != NO_ENTRY}
    look_up = config.gold.look_up.replaced(added)
    found = look_up.found([one.words for one in asked], max(CANDIDATES))
    searched = [own for one, own in zip(asked, found, strict=True) if one.row["choices"]]
    chosen = look_up.chosen(searched, [one.row["choices"] for one in choosing])
    right = [(answer_index(one.row) in own) / len(own) for one, own in zip(choosing, chosen, strict=True)]
    result["lookup"] = choices_measured(choosing, right, config)

    def among(chosen: list[int]) -> dict:
        own = [asked[i] for i in chosen]
        hits = {n: [float(rows[i] in found[i][:n]) for i in chosen] for n in CANDIDATES}
        shares = {f"candidate_{n}": share(own, hit, n / len(look_up.texts), config) for n, hit in hits.items()}
        return shares[f"candidate_{READ}"] | shares

    result["lookup"]["found"] = by_part(asked, among)
    return result


def answers_of_search(model, tokenizer, asked: list[Asked], config: EvalConfig) -> dict:
    """`search_alone`: the choices that stand in what the model's own search finds; empty where it cannot be asked."""
    finder = finder_of(model, tokenizer)
    if finder is None:
        return {}
    choosing = [one for one in asked if one.row["choices"]]
    choices, right = [one.row["choices"] for one in choosing], [answer_index(one.row) for one in choosing]
    shares = shares_right(finder.entries([one.prompt for one in choosing]), choices, right)
    return {"search_alone": choices_measured(choosing, shares, config)}


def entries_read(model, tokenizer, asked: list[Asked], rows: list[int], config: EvalConfig) -> dict:
    """For each part and reader, whether the added entry is found and read at the last token of the question."""
    found, read = candidates_and_reads(model, tokenizer, [one.prompt for one in asked], config)
    gold_B = torch.tensor([NOWHERE if row == NO_ENTRY else row for row in rows])

    def measure(chosen: list[int]) -> dict:
        own = [{name: x_BX[chosen] for name, x_BX in x.items()} for x in (found, read)]
        facts = [asked[i].row["uuid"] for i in chosen]
        return shares_of_gold(model, *own, gold_B[chosen], config, facts)

    return by_part(asked, measure)


def with_sentences(store, rows: list[dict]) -> list[dict]:
    """The facts, those without a sentence in the wording of the bank's entries with their predicate."""
    predicates = {row["predicate"] for row in rows if not row["sentence"]}
    known = store.wordings(predicates) if predicates else {}
    worded = []
    for row in rows:
        if not row["sentence"]:
            plain = row["predicate"].replace("{", "{{").replace("}", "}}")
            (template,) = known.get(row["predicate"], [TEMPLATE.format(plain)])
            row = row | {"sentence": template.format(subject=row["subject"], object=row["object"])}
        worded.append(row)
    return worded


def place(store, tokenizer, rows: list[dict], path: str) -> tuple[list[int], dict]:
    """Put the facts into the bank of a `MemoryStore`; the row of each, and what was done.

    A sentence that is longer than an entry is not added: NO_ENTRY.
    """
    length = store.bank.tokens.shape[1]
    _, n_tokens = encode_entries(tokenizer, [row["sentence"] for row in rows], length)
    fits = [row for row, n in zip(rows, n_tokens.tolist(), strict=True) if n <= length]
    names = ("sentence", "subject", "predicate", "object", "uuid")
    facts = store.worded([Fact(*(row[name] for name in names)) for row in fits], Path(path), {})
    free, n_empty = free_rows(store.bank, set(), min(len(facts), len(store.bank.tokens)))
    placed = store.place_facts(facts, path, free[n_empty:])
    start_of = {fact.sentence: fact.sentence.rpartition(fact.object)[0] for fact in facts}
    replaced = sum(bool(start_of[one.text]) and one.before.startswith(start_of[one.text]) for one in placed)
    found = rows_of_texts(store.model, tokenizer, [row["sentence"] for row in fits])
    row_of = dict(zip((row["uuid"] for row in fits), found, strict=True))
    about = {"facts": len(rows), "added": len(placed), "too_long": len(rows) - len(fits)}
    about |= {"in_place_of_another_object": replaced}
    about |= {"over_other_entries": sum(bool(one.before) for one in placed) - replaced}
    return [row_of.get(row["uuid"], NO_ENTRY) for row in rows], about


@torch.no_grad()
def insertion(model, tokenizer, config: EvalConfig) -> dict | None:
    """Answers before and after the facts were added, entries read, locality, the look-up, and whether undo is exact.

    Of a model without a memory only its own answers.
    """
    if config.insert_path is None or model.settings.reads_bank and config.open_store is None:
        return None
    rows = read_inserts(config.insert_path, config.limit)
    about = {"seed": config.seed, "task_version": TASK_VERSION}
    if not model.settings.reads_bank:
        asked = asked_of(rows)
        return answers(model, tokenizer, asked, config) | {"without_model": without_model(asked, [], config)} | about
    with TemporaryDirectory() as folder:
        store = config.open_store(folder)
        rows = with_sentences(store, rows)
        asked = asked_of(rows)
        before, nearby_before = answers(model, tokenizer, asked, config), write_nearby(model, tokenizer, rows, config)
        kept = fingerprint(model)
        try:
            places, placed = place(store, tokenizer, rows, config.insert_path)
            row_of = dict(zip((row["uuid"] for row in rows), places, strict=True))
            found = [row_of[one.row["uuid"]] for one in asked]
            result = answers(model, tokenizer, asked, config)
            result["read"] = entries_read(model, tokenizer, asked, found, config)
            alone = answers_of_search(model, tokenizer, asked, config)
            nearby = write_nearby(model, tokenizer, rows, config)
        finally:
            if store.journal.entries():
                store.undo()
    result |= {"before": before, "placed": placed, "undo_exact": fingerprint(model) == kept}
    if nearby:
        same = [a == b for a, b in zip(nearby_before, nearby, strict=True)]
        result["locality"] = accuracy(same, 0.0, config, TASK_VERSION)
    return result | {"without_model": without_model(asked, found, config) | alone} | about
