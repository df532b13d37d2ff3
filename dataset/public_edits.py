"""Cases of CounterFact and zsRE as ROME, MEND and EasyEdit publish them, in one form."""

from typing import NamedTuple


class Published(NamedTuple):
    """A case: prompt + object is the fact, prompt + new is its edit.

    worded: the prompt in other words.  neighbours: (prompt, object) of other facts; no object: the one of the case.
    """

    subject: str
    relation: str
    prompt: str
    object: str
    new: str
    worded: list[str]
    neighbours: list[tuple[str, str]]


def first_text(value) -> str:
    """A text, or the first of a list of answers."""
    while isinstance(value, list):
        value = value[0]
    return value


def texts_of(value) -> list[str]:
    """A text, or several of them, as a list; nothing for none."""
    return value if isinstance(value, list) else [value] if value else []


def published(row: dict) -> Published:
    """A case in one of the three forms.

    Raises:
        LookupError, TypeError, AttributeError: it has another form.
    """
    if "requested_rewrite" in row:  # CounterFact, Meng et al. 2022
        edit = row["requested_rewrite"]
        return Published(
            edit["subject"], edit["relation_id"], edit["prompt"].format(edit["subject"]), edit["target_true"]["str"],
            edit["target_new"]["str"], row.get("paraphrase_prompts", []),
            [(prompt, "") for prompt in row.get("neighborhood_prompts", [])],
        )  # fmt: skip
    if "src" in row:  # zsRE, Mitchell et al. 2022
        other = [(row["loc"].removeprefix("nq question: "), first_text(row["loc_ans"]))] if row.get("loc") else []
        answer = first_text(row["answers"])
        return Published(
            row["subject"], "answer", row["src"], answer, row.get("alt") or "", texts_of(row["rephrase"]), other
        )
    # EasyEdit, whose newer files have lists of prompts in place of one
    asked, answers = texts_of(row.get("locality_prompt")), texts_of(row.get("locality_ground_truth"))
    if len(asked) != len(answers):
        raise LookupError(f"{len(asked)} locality_prompt and {len(answers)} locality_ground_truth")
    other = [(prompt, first_text(answer)) for prompt, answer in zip(asked, answers, strict=True)]
    for group in (row.get("locality") or {}).values():
        other += [(one["prompt"], first_text(one["ground_truth"])) for one in group]
    return Published(
        row["subject"], row.get("relation_id", "answer"), row["prompt"], first_text(row["ground_truth"]),
        row["target_new"], texts_of(row.get("rephrase_prompt")), other,
    )  # fmt: skip


def case_row(case: Published, entry: dict, neighbours: list[dict]) -> dict:
    """The line of a case, for `dataset.edit_cases.read_cases`. `entry`: the bank's line of its fact."""
    return entry | {
        "relation": case.relation, "new_object": case.new, "prompt": case.prompt, "question": f"{case.prompt} ___",
        "bank_sentence": entry["sentence"], "new_sentence": f"{case.prompt} {case.new}.",
        "paraphrase_prompt": case.worded, "paraphrase_kind": "paraphrase", "neighbours": neighbours,
    }  # fmt: skip
