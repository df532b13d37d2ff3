"""Files of language questions (`--language_sets`): BLiMP, LAMBADA, ARC-easy, SciQ, HellaSwag, PIQA, WikiText, your own.

A line of questions is {"context", "choices", "answer"}: context + choice is the text, so a choice brings its leading
space, and the answer is a letter. Further fields: `field`, a part that is told apart too. With one choice in every
line the file asks for the last word. A line of running text is {"text"}. `dataset/public.py` makes these files of the
published ones.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from common.files import require_text, unpacked_name

from .formats import SUFFIXES, data_files, require_data
from .questions import LETTERS, choice_of, question_values

FLAG = "language_sets"
CHOICES, LAST_WORD, TEXT = "choices", "last word", "text"


@dataclass(frozen=True)
class LanguageSet:
    """A file.

    Attributes:
        name: of the file, without its endings.  kind: CHOICES, LAST_WORD or TEXT.
        rows: questions, `answer` as the index of the right choice; or texts.
    """

    name: str
    kind: str
    rows: list[dict]


def read_sets(paths: Iterable[str | Path], limit: int | None) -> list[LanguageSet]:
    """The sets of files, and of folders with such files; the first `limit` lines of each, None: all.

    Raises:
        FileNotFoundError, ValueError: a file is missing, malformed or empty, or two have one name; the line is named.
    """
    files = [file for path in paths for file in data_files(require_data(path, FLAG), FLAG)]
    sets: dict[str, LanguageSet] = {}
    for file in files:
        name = unpacked_name(file).rsplit("/", 1)[-1]
        name = next((name.removesuffix(suffix) for suffix in SUFFIXES if name.endswith(suffix)), name)
        if name in sets:
            raise ValueError(f"--{FLAG} has two sets of the name {name!r}, the second is {file}: rename one of them")
        sets[name] = read_set(name, file, limit)
    return list(sets.values())


def read_set(name: str, file: Path, limit: int | None) -> LanguageSet:
    """The first `limit` lines of one file.

    Raises:
        ValueError: a line has another form than those before it, or there is none.
    """
    kind, rows = "", []
    for place, row in question_values(file):
        if len(rows) == limit:
            break
        own = kind_of(row, place)
        if kind and own != kind:
            raise ValueError(f"{place}: a line of {own} in a file of {kind}: put it into a file of its own")
        kind = own
        rows.append({"text": require_text(row["text"], place)} if kind == TEXT else question_of(row, place))
    if not rows:
        raise ValueError(f"{file} has no questions and no text: give another --{FLAG}")
    return LanguageSet(name, kind, rows)


def kind_of(row, place: str) -> str:
    """What a line is.

    Raises:
        ValueError: none of the known forms.
    """
    if isinstance(row, dict) and isinstance(row.get("choices"), list):
        return LAST_WORD if len(row["choices"]) == 1 else CHOICES
    if isinstance(row, dict) and isinstance(row.get("text"), str) and row["text"].strip():
        return TEXT
    raise ValueError(f'{place}: neither a question {{"context", "choices", "answer"}} nor {{"text"}} with words in it')


def question_of(row: dict, place: str) -> dict:
    """`context`, `choices`, `answer` as an index and, if the line has one, `field`.

    Raises:
        ValueError: a field is missing or has another type, or the answer names no choice.
    """
    context, choices, answer = row.get("context"), row["choices"], row.get("answer")
    if not isinstance(context, str):
        raise ValueError(f"{place}: 'context' must be a text, it may be empty, got {context!r:.40}")
    if not 1 <= len(choices) <= len(LETTERS) or not all(isinstance(c, str) and c.strip() for c in choices):
        raise ValueError(f"{place}: 'choices' must be a list of 1 to {len(LETTERS)} texts")
    for text in (context, *choices):
        require_text(text, place)
    index = choice_of(answer, choices, place, letters_first=True)
    question = {"context": context, "choices": choices, "answer": index}
    field = row.get("field")
    # BLiMP writes syntax/semantics and syntax_semantics.
    return question | {"field": field.replace("/", "_")} if field and isinstance(field, str) else question


def is_wikitext(texts: list[str]) -> bool:
    """Whether texts are in WikiText's form, in which words and marks are separated by spaces."""
    return any(mark in text for text in texts for mark in (" @-@ ", " @,@ ", " @.@ "))


def joined(text: str) -> str:
    """A text of WikiText as people write it, exactly as lm-evaluation-harness makes it (its task `wikitext`)."""
    text = text.replace("s '", "s'")
    text = re.sub(r"/' [0-9]/", r"/'[0-9]/", text)
    for mark, written in ((" @-@ ", "-"), (" @,@ ", ","), (" @.@ ", ".")):
        text = text.replace(mark, written)
    for mark in ":;.!?,":
        text = text.replace(f" {mark} ", f"{mark} ")
    for first, last in (("(", ")"), ("[", "]"), ("{", "}"), ('"', '"'), ("'", "'")):
        begin, end = re.escape(first), re.escape(last)
        text = re.sub(rf"{begin}\s*([^{end}]*?)\s*{end}", lambda m, a=first, b=last: a + m[1] + b, text)
    for mark, written in (("= = = =", "===="), ("= = =", "==="), ("= =", "=="), (" ° ", "°"), (" \n", "\n"),
                          ("\n ", "\n"), (" N ", " 1 "), (" 's", "'s")):  # fmt: skip
        text = text.replace(mark, written)
    return text
