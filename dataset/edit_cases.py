"""Cases of an editing benchmark (CounterFact, zsRE): a fact, its new object, and the prompts that ask for it.

A line has `subject`, `object`, `new_object`, `prompt` and `new_sentence`. It may have

- `uuid`, `bank_sentence`: of the fact's entry; without them the new sentence is added to the bank; `predicate`;
- `paraphrase_prompt`, a text or a list, with `paraphrase_kind`; `made_paraphrases`, a list;
- `neighbours`: of other facts, each with `prompt`, and optionally `uuid` (it has an entry), `edited` (it is a case
  itself), `object` (by default the case's) and `subject` (those of one subject are one draw of the intervals);
- `other_rows`: further rows of the bank that state the subject's old object.
"""

from dataclasses import dataclass
from pathlib import Path

from common.files import require_text

from .questions import placed_questions

FIELDS = ("subject", "object", "new_object", "prompt", "new_sentence")
MADE, PARAPHRASE = "made", "paraphrase"  # kinds of paraphrases


@dataclass(frozen=True)
class Neighbour:
    """A prompt about another fact, whose object is to stay."""

    prompt: str
    object: str
    uuid: str = ""
    edited: bool = False
    subject: str = ""


@dataclass(frozen=True)
class Case:
    """An edit: the prompt of the fact, prompts in other words by their kind, and prompts about other facts."""

    object: str
    new_object: str
    prompt: str
    new_sentence: str
    uuid: str
    bank_sentence: str
    predicate: str
    paraphrases: dict[str, list[str]]
    neighbours: list[Neighbour]
    stated_elsewhere: bool = False  # further entries state the old object


def read_cases(path: str | Path, limit: int | None, flag: str) -> list[Case]:
    """The first `limit` cases of a file; None: all.

    Raises:
        FileNotFoundError, ValueError: the file is missing, malformed, or has no case; the message names what is wrong.
    """
    cases = []
    for place, row in placed_questions(path, FIELDS, limit, flag):
        asked = row.get("paraphrase_prompt") or []
        kinds = {
            MADE: texts(row.get("made_paraphrases") or [], "made_paraphrases", place),
            str(row.get("paraphrase_kind") or PARAPHRASE): texts(
                [asked] if isinstance(asked, str) else asked, "paraphrase_prompt", place
            ),
        }
        cases.append(
            Case(
                *(row[name] for name in FIELDS[1:]), row.get("uuid", ""), str(row.get("bank_sentence") or ""),
                str(row.get("predicate") or ""),
                {kind: prompts for kind, prompts in kinds.items() if prompts}, neighbours_of(row, place),
                bool(row.get("other_rows")),
            )
        )  # fmt: skip
        for name in FIELDS[1:]:
            if not row[name].strip():
                raise ValueError(f"{place}: {name!r} is empty")
        if row["new_object"].strip() == row["object"].strip():
            raise ValueError(
                f"{place}: 'new_object' is the 'object' {row['object']!r:.60}, so nothing would change: give another "
                "'new_object', or leave the case out"
            )
    return cases


def neighbours_of(row: dict, place: str) -> list[Neighbour]:
    """The neighbours of a case.

    Raises:
        ValueError: one has no prompt.
    """
    found = []
    for value in row.get("neighbours") or []:
        prompt = value.get("prompt") if isinstance(value, dict) else None
        (prompt,) = texts([prompt], "neighbours", place)
        own = str(value.get("object") or row["object"])
        uuid, subject = (str(value.get(name) or "") for name in ("uuid", "subject"))
        found.append(Neighbour(prompt, own, uuid, bool(value.get("edited")), subject))
    return found


def texts(values: object, name: str, place: str) -> list[str]:
    """The values, each a text that is not empty.

    Raises:
        ValueError: they are no list of such texts.
    """
    if not isinstance(values, list) or not all(isinstance(value, str) and value.strip() for value in values):
        raise ValueError(f"{place}: {name!r} must hold texts, got {values!r:.60}")
    return [require_text(value, place) for value in values]
