"""Questions of public sets in the one form that the evaluation takes: as it is kept, and as `dataset.convert` makes it.

ParaRel (`--pararel_path`), a line for each wording of a fact: `uuid`, `question` with a blank at its end, `choices`,
`answer`, `own_wording` (whether the bank states the fact in these words); `relation`, `subject`, `predicate` if known.
"""

from pathlib import Path

from .questions import FIELDS, answer_index, read_questions


def read_pararel(path: str | Path, limit: int | None) -> list[dict]:
    """The first `limit` questions of ParaRel; None: all.

    Raises:
        FileNotFoundError, ValueError: the file is missing or malformed, or questions about one fact have other choices.
    """
    rows, choices = read_questions(path, ("uuid", *FIELDS["object"]), limit, "pararel_path"), {}
    for number, row in enumerate(rows, start=1):
        if type(row.get("own_wording")) is not bool:
            raise ValueError(f"{path}, question {number}: 'own_wording' must be true or false")
        about = sorted(row["choices"]), row["choices"][answer_index(row)]
        if choices.setdefault(row["uuid"], about) != about:
            raise ValueError(
                f"{path}, question {number}: the fact {row['uuid']} has other choices, or another answer, than in its "
                "question before: give all wordings of a fact the same"
            )
    return rows
