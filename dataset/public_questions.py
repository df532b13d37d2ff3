"""Questions of public sets in the one form that the evaluation takes: as it is kept, and as `dataset.convert` makes it.

ParaRel (`--pararel_path`), a line for each wording of a fact: `uuid`, `question` with a blank at its end, `choices`,
`answer`, `own_wording` (whether the bank states the fact in these words); `relation`, `subject`, `predicate` if known.

Facts to insert (`--insert_path`), a line each: `subject`, `predicate`, `object`, the `sentence` to add, `questions`;
if known `set` (the part of the results), `uuid`, `aliases` of the object, `popularity`, `choices` with `answer`, and
`locality`: questions that have nothing to do with it. Or a TSV or CSV of one's own: subject, predicate, object and,
optionally, source and sentence. Its question is "What is the PREDICATE of SUBJECT?", its wrong choices are other
objects of the file with the predicate.
"""

import random
from collections import Counter
from pathlib import Path

from common.files import require_text, unpacked_name

from .convert import read_triples
from .formats import require_data
from .knowledge import triple_uuid
from .making import draw, pools, true_objects
from .questions import LETTERS, answer_index, choice_of, placed_questions

TABLES = (".tsv", ".csv")
OWN_SET = "own"  # the part of facts that name no set


def read_pararel(path: str | Path, limit: int | None) -> list[dict]:
    """The first `limit` questions of ParaRel; None: all.

    Raises:
        FileNotFoundError, ValueError: the file is missing or malformed, or questions about one fact have other choices.
    """
    placed, choices = placed_questions(path, ("uuid", "question"), limit, "pararel_path"), {}
    for place, row in placed:
        row |= with_letter(row, place)
        if type(row.get("own_wording")) is not bool:
            raise ValueError(f"{place}: 'own_wording' must be true or false")
        about = sorted(row["choices"]), row["choices"][answer_index(row)]
        if choices.setdefault(row["uuid"], about) != about:
            raise ValueError(
                f"{place}: the fact {row['uuid']} has other choices, or another answer, than in its "
                "question before: give all wordings of a fact the same"
            )
    return [row for _, row in placed]


def with_letter(row: dict, place: str) -> dict:
    """The choices of a question, and the letter of the right one.

    Raises:
        ValueError: the choices are not two or more texts, two are equal, or the answer names none.
    """
    choices, answer = row.get("choices"), row.get("answer")
    if not (isinstance(choices, list) and len(choices) > 1 and all(type(choice) is str for choice in choices)):
        raise ValueError(f"{place}: 'choices' must be a list of two texts or more, got {choices!r:.40}")
    if twice := [choice for choice, n in Counter(choices).items() if n > 1]:
        raise ValueError(f"{place}: 'choices' has {twice[0]!r:.40} twice: give each choice once")
    return {"choices": choices, "answer": LETTERS[choice_of(answer, choices, place, letters_first=True)]}


def read_inserts(path: str | Path, limit: int | None) -> list[dict]:
    """The first `limit` facts to insert, each with all fields of the form; None: all.

    `sentence` is empty where a table has none, `choices` None where there are none.

    Raises:
        FileNotFoundError, ValueError: the file is missing or malformed, or has no fact.
    """
    path = require_data(path, "insert_path")
    if unpacked_name(path).endswith(TABLES):
        return rows_of_table(path, limit)
    fields = ("subject", "predicate", "object", "sentence")
    return [insert_row(row, place) for place, row in placed_questions(path, fields, limit, "insert_path")]


def insert_row(row: dict, place: str) -> dict:
    """A fact to insert with all fields of the form.

    Raises:
        ValueError: a field has another type, or the answer is not the object; the place is named.
    """
    if row.get("set") is not None and type(row["set"]) is not str:
        raise ValueError(f"{place}: 'set' must be a text, got {row['set']!r:.40}: name the set, or leave it out")
    triple = row["subject"], row["predicate"], row["object"]
    row = {"uuid": triple_uuid(*triple)} | row | {"sentence": row["sentence"].strip()}
    row["set"] = row.get("set") or OWN_SET
    for name, default in (("questions", []), ("aliases", [row["object"]]), ("choices", None)):
        row[name] = row.get(name) or default
        if row[name] is not None and not (isinstance(row[name], list) and all(type(x) is str for x in row[name])):
            raise ValueError(f"{place}: {name!r} must be a list of texts, got {row[name]!r:.40}")
    if not row["questions"]:
        raise ValueError(f"{place}: 'questions' needs a question that asks for the object")
    require_text("".join([*row["questions"], *row["aliases"], *(row["choices"] or ())]), place)
    if row["choices"]:
        row |= with_letter(row, place)
        if (named := row["choices"][answer_index(row)]).strip() != row["object"].strip():
            raise ValueError(
                f"{place}: 'answer' names the choice {named!r:.40}, but 'object' is {row['object']!r:.40}: let the "
                "answer name the object"
            )
    if row.setdefault("popularity", None) is not None and type(row["popularity"]) not in (int, float):
        raise ValueError(f"{place}: 'popularity' must be a number, got {row['popularity']!r:.40}")
    row["locality"] = row.get("locality") or []
    if not all(isinstance(one, dict) and isinstance(one.get("question"), str) for one in row["locality"]):
        raise ValueError(f"{place}: 'locality' must be a list of objects with a 'question'")
    return row


def rows_of_table(path: Path, limit: int | None) -> list[dict]:
    """The facts of a table, with a question and up to five choices each."""
    facts = list(read_triples(path, template=""))
    if not facts:
        raise ValueError(f"{path} holds no fact: give another --insert_path")
    objects, true, rng, rows = pools(facts), true_objects(facts), random.Random(0), []
    for number, fact in enumerate(facts[:limit], start=1):
        choices = [fact.object, *draw(objects[fact.predicate], 4, true[fact.subject, fact.predicate], rng)]
        rng.shuffle(choices)
        row = {"set": OWN_SET, "uuid": fact.uuid, "subject": fact.subject, "predicate": fact.predicate}
        row |= {"object": fact.object, "sentence": fact.sentence.strip()}
        row |= {"questions": [f"What is the {fact.predicate} of {fact.subject}?"]}
        if len(choices) > 1:
            row |= {"choices": choices, "answer": LETTERS[choices.index(fact.object)]}
        rows.append(insert_row(row, f"{path}, row {number}"))
    return rows
