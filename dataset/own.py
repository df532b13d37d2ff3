"""Text, bank, questions and edits made from one's own facts: `python -m dataset.questions facts.tsv --templates ...`.

| file                                    | what it holds                                                              |
|-----------------------------------------|---------------------------------------------------------------------------|
| knowledge.json                          | every fact in the first wording of its predicate: --database_init_path     |
| train.jsonl                             | the seen facts in every wording, and questions about them: --data_path     |
| val.jsonl                               | the held-out facts in every wording: --val_path                            |
| object, relation, verification.jsonl    | questions about all facts; `part` is seen or bank_only: --object_path, ... |
| edit.jsonl                              | held-out facts, each with another object: --edit_path                      |

Fields: `uuid` names the fact; `subject`, `predicate`, `object`; `question` with a blank `___`; `choices` and the letter
of the right one, `answer`; `statement` and `answer` yes or no; `new_object`, `sentence` and `new_sentence` of an edit.
"""

import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from string import Formatter

from common.files import read_json, require_file, require_text

from .convert import read_triples, write_knowledge
from .knowledge import Fact
from .making import (
    BLANK,
    Templates,
    documents,
    edits,
    part_of_fact,
    pools,
    questions,
    true_objects,
    wordings,
    write_lines,
)


def read_templates(path: Path) -> Templates:
    """The wordings of each predicate: {"born in": ["{subject} was born in {object}.", ...]}, or one text for one.

    Raises:
        FileNotFoundError, ValueError: the file is missing, or a wording is not such a text; it is named.
    """
    value = read_json(require_file(path, "templates"))
    if not isinstance(value, dict) or not value:
        raise ValueError(f"{path} must map each predicate to its wordings, as in docs/examples/templates.json")
    templates: Templates = {}
    for predicate, texts in value.items():
        templates[predicate] = [texts] if isinstance(texts, str) else texts
        if not isinstance(templates[predicate], list) or not templates[predicate]:
            raise ValueError(f"{path}: {predicate!r} needs a list of wordings")
        for number, text in enumerate(templates[predicate]):
            check_wording(text, f"{path}: wording {number + 1} of {predicate!r}", is_first=number == 0)
    return templates


def check_wording(text, place: str, is_first: bool) -> None:
    """Raises ValueError unless a wording names subject and object once, in the first wording in this order."""
    try:
        fields = [field for _, field, _, _ in Formatter().parse(require_text(text, place)) if field is not None]
    except (ValueError, AttributeError, TypeError) as problem:
        raise ValueError(f"{place} cannot be read ({problem})") from None
    if sorted(fields) != ["object", "subject"]:
        raise ValueError(f"{place} must have {{subject}} and {{object}}, once each: {text!r:.80}")
    if is_first and fields[0] != "subject":
        raise ValueError(
            f"{place}, from which questions are made, must name {{subject}} before {{object}}: {text!r:.80}"
        )


def read_own_facts(path: Path, templates: Templates) -> list[Fact]:
    """The facts of a TSV or CSV file, each with the first wording of its predicate as its sentence.

    Raises:
        FileNotFoundError, ValueError: the file is missing or malformed, has no fact, or has a predicate without
            templates.
    """
    facts = {}
    for fact in read_triples(path):
        if fact.predicate not in templates:
            raise ValueError(
                f"{path}: the predicate {fact.predicate!r} of {fact.subject!r} has no wording: add it to the "
                f"templates, which have {', '.join(map(repr, list(templates)[:8]))}"
            )
        facts[fact.uuid] = replace(fact, sentence=wordings(fact, templates)[0])
    if not facts:
        raise ValueError(f"{path} holds no fact: a row is subject, predicate, object")
    return list(facts.values())


def train_rows(facts: list[Fact], known: list[Fact], templates: Templates, rng: random.Random) -> Iterator[dict]:
    """What is learnt of the seen facts: texts, and questions with answers in every wording that names them."""
    from .questions import relation_pair, verification_pair

    yield from documents(facts, templates, rng)
    for fact in facts:
        for template in templates[fact.predicate]:
            before, _, after = template.format(subject=fact.subject, object=BLANK).partition(BLANK)
            if fact.subject in before:
                space = " " if before.endswith(" ") else ""
                yield {"prompt": before.rstrip(" "), "answer": space + fact.object + after}
    made = questions(facts, known, templates, lambda fact: "seen", rng)
    for kind, pair in (("relation", relation_pair), ("verification", verification_pair)):
        for row in made[kind]:
            prompt, answer = pair(row)
            yield {"prompt": prompt, "answer": answer}


def write_own(path: Path, templates_path: Path, out: Path, held_out: float, seed: int) -> None:
    """Write the files of the table above into the folder `out`; equal seeds write equal bytes.

    Args:
        held_out: share of the facts that only the bank states. At least one is, and at least one is not.
    Raises:
        FileNotFoundError, ValueError: see `read_templates` and `read_own_facts`, or there is one fact alone.
    """
    templates = read_templates(templates_path)
    facts, rng = read_own_facts(path, templates), random.Random(seed)
    if len(facts) < 2:
        raise ValueError(f"{path} holds one fact: some are learnt and others held out, so give more")
    parts = {fact.uuid: part_of_fact(fact, 1 - held_out) for fact in facts}
    for part, first in (("bank_only", 0), ("seen", -1)):
        if part not in parts.values():  # a few facts can all fall into one part
            parts[sorted(parts)[first]] = part
    out.mkdir(parents=True, exist_ok=True)
    rng.shuffle(facts)
    seen = [fact for fact in facts if parts[fact.uuid] == "seen"]
    bank_only = [fact for fact in facts if parts[fact.uuid] == "bank_only"]
    rows = list(train_rows(seen, facts, templates, rng))
    rng.shuffle(rows)
    counts = {"train.jsonl": write_lines(out / "train.jsonl", rows)}
    counts["val.jsonl"] = write_lines(out / "val.jsonl", documents(bank_only, templates, rng))
    for name, made in questions(facts, facts, templates, lambda fact: parts[fact.uuid], rng).items():
        counts[f"{name}.jsonl"] = write_lines(out / f"{name}.jsonl", made)
    counts["edit.jsonl"] = write_lines(out / "edit.jsonl", edits(bank_only, facts, templates, rng))
    counts["knowledge.json"] = write_knowledge(out / "knowledge.json", facts)
    print(f"{len(seen)} facts to learn, {len(bank_only)} held out (in the bank only), written to {out}:")
    for name, number in counts.items():
        print(f"  {name:20} {number} rows")
    tell_left_out(facts, counts)
    asked = [
        kind for kind in ("object", "relation", "verification", "edit") if counts[f"{kind}.jsonl"]
    ]  # a run refuses an empty file
    print(
        f"train on them: --data_path {out}/train.jsonl --val_path {out}/val.jsonl "
        f"--database_init_path {out}/knowledge.json --knowledge_num auto --reserve_entries 100 "
        + " ".join(f"--{kind}_path {out}/{kind}.jsonl" for kind in asked)
    )


def tell_left_out(facts: list[Fact], counts: dict[str, int]) -> None:
    """Say why there are fewer questions than facts: a wrong answer needs another object, or predicate, not true too."""
    if left := len(facts) - counts["object.jsonl"]:
        objects, true = pools(facts), true_objects(facts)
        left_out = {f.predicate for f in facts if true[f.subject, f.predicate].issuperset(objects[f.predicate])}
        names = ", ".join(map(repr, sorted(left_out)))
        print(f"  facts without an object question: {left} of {names}; every object of the predicate is right: "
              "give at least two objects for each predicate")  # fmt: skip
    if left := len(facts) - counts["relation.jsonl"]:
        print(f"  facts without a relation question: {left}; every predicate of the templates is right")
