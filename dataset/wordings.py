"""Questions with answers to train on, asked in many wordings: what `python -m dataset.questions` writes.

`dataset/wordings.json` has the wordings of each predicate. Two kinds stand in a list: a statement names {subject} and
ends in {object}, so that the text before is a prompt; a question names {subject} and ends in a question mark.
"""

import argparse
import hashlib
import json
import random
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from string import Formatter
from typing import NamedTuple

from common.files import atomic, read_json, require_file, require_text

from .formats import read_records, require_data
from .public import SENTENCE_END
from .questions import (
    BLANK,
    FIELDS,
    QUESTION_PROMPT,
    REWORDINGS,
    TRAINED,
    answer_index,
    read_named,
    read_questions,
    relation_pair,
    split_question,
    verification_pair,
)

OBJECT, SUBJECT = "{object}", "{subject}"
FUNCTION_WORDS = set(
    "a an the this that it one and or not also of in to by for on with at from into under up as is was are were be "
    "been has have does did can which who whom whose what where when how there name named called known he she they his "
    "her their its".split()
)
ENDS = "", ":", " is", " was", " -"  # of a statement whose words were scrambled
ARTICLE = re.compile(r" an? $")


class Asked(NamedTuple):
    """A question to train on. `sentence` states what it asks, for other questions; None: no sentence does."""

    prompt: str
    answer: str
    subject: str | None
    sentence: str | None


def read_wordings(path: Path) -> dict[str, list[str]]:
    """The wordings of each predicate: {"born in": ["{subject} comes from {object}.", "Where was {subject} born?"]}.

    Raises:
        FileNotFoundError, ValueError: the file is missing, or a wording is none of the two kinds; it is named.
    """
    value = read_json(require_file(path, "wordings"))
    if not isinstance(value, dict) or not value:
        raise ValueError(f"{path} must map each predicate to a list of wordings, as dataset/wordings.json does")
    for predicate, texts in value.items():
        if not isinstance(texts, list) or not texts:
            raise ValueError(f"{path}: {predicate!r} needs a list of wordings, got {texts!r:.40}")
        for number, text in enumerate(texts, 1):
            check_wording(text, f"{path}: wording {number} of {predicate!r}")
    return value


def kept_back(wordings: dict[str, list[str]], share: float) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    """The wordings to train on, and a share of each predicate's that is kept back, always the same ones.

    Raises:
        ValueError: the share does not lie in [0, 1).
    """
    if not 0 <= share < 1:
        raise ValueError(f"--kept_back must lie in [0, 1), got {share}")
    trained, back = {}, {}
    for predicate, texts in wordings.items():
        order = sorted(texts, key=lambda text: hashlib.sha256(f"{predicate} {text}".encode()).digest())
        chosen = set(order[: min(round(share * len(texts)), len(texts) - 1)])
        trained[predicate] = [text for text in texts if text not in chosen]
        if chosen:
            back[predicate] = [text for text in texts if text in chosen]
    return trained, back


def check_wording(text, place: str) -> None:
    """Raises ValueError unless it names the subject, then ends in the object and perhaps a full stop, or in "?"."""
    try:
        parts = list(Formatter().parse(require_text(text, place)))
    except (ValueError, AttributeError, TypeError) as problem:
        raise ValueError(f"{place} cannot be read ({problem}): {text!r:.80}") from None
    fields = [field + spec + (how or "") for _, field, spec, how in parts if field is not None]
    is_statement = fields == ["subject", "object"] and text.removesuffix(".").endswith(OBJECT)
    if not is_statement and not (fields == ["subject"] and text.endswith("?")):
        raise ValueError(
            f"{place} must name {{subject}} and then end in {{object}}, or end in '?' without {{object}}: {text!r:.80}"
        )


def ended(text: str, wording: str) -> str:
    """A text at the end of a wording, with its full stop; "Apple Inc." has one already."""
    return text if text.endswith(".") else text + wording.partition(OBJECT)[2]


def shortened(prompt: str, rng: random.Random) -> str:
    """A statement's subject with a clause, or with its last one to three words alone.

    "{subject} was born in the town of" becomes "{subject}, who was born in the town of" or "{subject}, the town of".
    """
    before, _, rest = prompt.rpartition("{subject}")
    words = rest.split()
    if not before and len(words) > 1 and words[0].isalpha() and rng.random() < 0.5:
        return f"{{subject}}, {rng.choice(('who', 'which', 'that'))} {' '.join(words)}"
    kept = " ".join(words[-rng.randint(1, 3) :])
    if not kept[:1].isalnum():  # no word, or the end of one, such as "'s"
        return prompt
    return "{subject}" + rng.choice((", ", " ")) + kept


def scrambled(wording: str, rng: random.Random) -> str | None:
    """Some words of a wording in any order, the subject among them, as a statement without its object or a question.

    "{subject} earns a living as a {object}." may become "Living earns {subject} is" or "as earns living {subject}'s?".
    A function word is kept in one of two cases, another one in three of four, at least one of these. None: it has none.
    """
    words = re.findall(r"[^\W_]+", re.sub(r"\{\w+\}('s)?", " ", wording).casefold())
    telling = [word for word in words if word not in FUNCTION_WORDS]
    if not telling:
        return None
    kept = [word for word in words if rng.random() < (0.5 if word in FUNCTION_WORDS else 0.75)]
    if not set(kept) & set(telling):
        kept.append(rng.choice(telling))
    if rng.random() < 0.75:
        rng.shuffle(kept)
    if rng.random() < 0.5:
        kept[0] = kept[0].capitalize()
    subject = SUBJECT + "'s" * (rng.random() < 0.25)
    kept.insert(rng.choice((0, len(kept), rng.randint(0, len(kept)))), subject)
    return " ".join(kept) + (rng.choice(ENDS) if rng.random() < 0.5 else "?")


class Rewording:
    """Asks a share of questions in wordings drawn at random, and counts which kinds it drew.

    Without wordings, and for a predicate that has none, object questions name the relation (`REWORDINGS`).

    Args:
        shortened: share of the statements that become what `shortened` makes of them.
        scrambled: share of the reworded object questions that become what `scrambled` makes of their wording.
    """

    def __init__(
        self, share: float, wordings: dict[str, list[str]] | None, rng: random.Random, shortened: float = 0.0,
        scrambled: float = 0.0,
    ):  # fmt: skip
        self.share, self.wordings, self.rng = share, wordings or {}, rng
        self.shortened, self.scrambled = shortened, scrambled
        self.drawn, self.without = Counter(), set()

    def draw(self, predicate: str, statements_only: bool = False) -> str | None:
        """A wording of the predicate; None, and noted, if there is none."""
        texts = self.wordings.get(predicate, [])
        texts = [text for text in texts if not (statements_only and text.endswith("?"))]
        if not texts:
            self.without.add(predicate)
            return None
        return self.rng.choice(texts)

    def object_pair(self, row: dict) -> tuple[str, str]:
        """Prompt and answer of an object question, a share of them in another wording."""
        prompt, choices = split_question(row["question"], row["choices"])
        right = answer_index(row)
        if self.rng.random() >= self.share:
            return prompt, choices[right]
        answer, wording = " " + row["choices"][right], self.draw(row["predicate"])
        if wording is None:
            self.drawn["general"] += 1
            return self.rng.choice(REWORDINGS).format(**row), answer
        if self.scrambled and self.rng.random() < self.scrambled and (words := scrambled(wording, self.rng)):
            self.drawn["scrambled"] += 1
            text = words.format(subject=row["subject"])
            return (QUESTION_PROMPT.format(question=text), answer) if text.endswith("?") else (text, f"{answer}.")
        self.drawn["questions" if wording.endswith("?") else "statements"] += 1
        return self.prompt(wording, row["subject"]), answer if wording.endswith("?") else ended(answer, wording)

    def prompt(self, wording: str, subject: str) -> str:
        """A wording up to its answer."""
        if wording.endswith("?"):
            return QUESTION_PROMPT.format(question=wording.format(subject=subject))
        return self.before_object(wording, subject).rstrip(" ")

    def before_object(self, wording: str, subject: str) -> str:
        """A statement up to its object; a share of them is shortened."""
        prompt, _, _ = wording.partition(OBJECT)
        # The article does not tell the answer: an edited fact is asked with that of the old object.
        prompt = ARTICLE.sub(lambda _: self.rng.choice((" a ", " an ")), prompt)
        if self.shortened and self.rng.random() < self.shortened:
            self.drawn["shortened"] += 1
            prompt = shortened(prompt, self.rng) + " " * prompt.endswith(" ")
        return prompt.format(subject=subject)

    def statement(self, row: dict) -> str:
        """The statement of a verification question with its three names, a share of them in another wording."""
        if not self.wordings or self.rng.random() >= self.share:
            return row["statement"]
        wording = self.draw(row["predicate"], statements_only=True)
        self.drawn["unchanged" if wording is None else "verified"] += 1
        if wording is None:
            return row["statement"]
        return self.before_object(wording, row["subject"]) + ended(row["object"], wording)

    def __str__(self):
        drawn = self.drawn
        text = (
            f"reworded: {drawn['statements']} object questions by a statement, {drawn['questions']} by a question, "
            f"{drawn['general']} by the general wordings; {drawn['verified']} verification questions"
        )
        text += f"; {drawn['scrambled']} object questions scrambled" if self.scrambled else ""
        text += f"; {drawn['shortened']} statements shortened" if self.shortened else ""
        as_it_was = f", {drawn['unchanged']} stayed" if drawn["unchanged"] else ""
        return text + as_it_was + (f"; {len(self.without)} predicates have no wordings" if self.without else "")


def object_questions(path: Path, limit: int | None, rewording: Rewording, _) -> Iterator[Asked]:
    """Object questions, a share of them in another wording."""
    for row in read_questions(path, (*FIELDS["object"], "subject", "predicate"), limit, "object"):
        sentence = row["question"].replace(BLANK, row["choices"][answer_index(row)], 1)
        yield Asked(*rewording.object_pair(row), row["subject"], sentence)


def relation_questions(path: Path, limit: int | None, *_) -> Iterator[Asked]:
    """Relation questions."""
    for row in read_questions(path, FIELDS["relation"], limit, "relation"):
        yield Asked(*relation_pair(row), row["subject"], None)


def verification_questions(path: Path, limit: int | None, rewording: Rewording, with_subject: bool) -> Iterator[Asked]:
    """Statements, a share of them in another wording if the file has their names; `with_subject`: it must have one."""
    flag = "verification"
    rows = read_named(path, flag, ("subject", "predicate", "object"), limit, flag) if rewording.wordings else None
    is_named = rows is not None
    for row in rows or read_questions(path, (*FIELDS[flag], *(["subject"] if with_subject else [])), limit, flag):
        statement = rewording.statement(row) if is_named else row["statement"]
        subject = row["subject"] if is_named or with_subject else None
        yield Asked(*verification_pair(row | {"statement": statement}), subject, row["statement"])


READERS = dict(zip(TRAINED, (object_questions, relation_questions, verification_questions), strict=True))


def names(sentence: str, subject: str) -> bool:
    """Whether a sentence names a subject, as whole words in any case."""
    return re.search(rf"(?<!\w){re.escape(subject.casefold())}(?!\w)", sentence.casefold()) is not None


def text_sentences(path: Path, rng: random.Random) -> list[Asked]:
    """A sentence of each text that has one of 20 to 160 characters, as what may stand before a question.

    Raises:
        FileNotFoundError, ValueError: the file is missing or malformed, or no text has such a sentence.
    """
    found = []
    for place, row in read_records(require_data(path, "preceded_by"), ["text"]):
        text = row.get("text") if isinstance(row, dict) else None
        if not isinstance(text, str):
            raise ValueError(f"--preceded_by: {place} has no text: give running text, lines with a `text`")
        sentences = [s for line in text.split("\n") for s in SENTENCE_END.split(line) if 20 <= len(s) <= 160]
        if sentences := [s for s in sentences if s[-1] in ".!?"]:
            found.append(Asked("", "", None, rng.choice(sentences)))
    if not found:
        raise ValueError(f"--preceded_by: no text of {path} has a sentence of 20 to 160 characters: give running text")
    return found


def put_before(asked: list[Asked], pools: list[list[Asked]], share: float, rng: random.Random) -> list[Asked]:
    """Puts a sentence before a share of the prompts, of each pool equally often, never one that names their subject.

    Raises:
        ValueError: every sentence of a pool is about a subject.
    """
    made = []
    for one in asked:
        if rng.random() < share:
            pool = pools[0] if len(pools) == 1 else rng.choice(pools)
            start = rng.randrange(len(pool))
            others = (pool[(start + i) % len(pool)] for i in range(len(pool)))
            other = next((x for x in others if x.subject != one.subject and not names(x.sentence, one.subject)), None)
            if other is None:
                raise ValueError(f"--preceded: every sentence names {one.subject!r:.40}: give questions about others")
            one = one._replace(prompt=f"{other.sentence} {one.prompt}")
        made.append(one)
    return made


def write_questions(args: argparse.Namespace) -> None:
    """Writes questions as lines with a `prompt` and an `answer`, in the order of the seed.

    Raises:
        FileNotFoundError, ValueError: a file is missing or malformed, a share is no share, or nothing is asked.
    """
    for name in ("reworded", "shortened", "scrambled", "preceded"):
        if not 0 <= getattr(args, name) <= 1:
            raise ValueError(f"--{name} must lie in [0, 1], got {getattr(args, name)}")
    if args.wordings and not args.reworded:
        raise ValueError("--wordings changes nothing at --reworded 0: give the share of the questions to reword")
    needs = {"shortened": "cuts the statements", "scrambled": "takes the words", "kept_back": "keeps back some"}
    for name, what in needs.items():
        if getattr(args, name) and not args.wordings:
            raise ValueError(f"--{name} {what} of --wordings: give that too")
    if args.preceded_by and not args.preceded:
        raise ValueError("--preceded_by changes nothing at --preceded 0: give the share of the questions")
    wordings = kept_back(read_wordings(args.wordings), args.kept_back)[0] if args.wordings else None
    rewording = Rewording(args.reworded, wordings, random.Random(args.seed), args.shortened, args.scrambled)
    paths = {kind: path for kind in TRAINED if (path := getattr(args, kind))}
    found = {kind: list(READERS[kind](path, args.limit, rewording, args.preceded > 0)) for kind, path in paths.items()}
    asked = [one for ones in found.values() for one in ones]
    if not asked:
        raise ValueError("no questions: give --object, --relation or --verification")
    if args.preceded:
        pool = found.get("verification") or found.get("object")
        if not pool:
            raise ValueError("--preceded needs the sentences of --verification or --object: give one of them")
        rng = random.Random(f"preceded {args.seed}")
        pools = [pool, text_sentences(args.preceded_by, rng)] if args.preceded_by else [pool]
        asked = put_before(asked, pools, args.preceded, rng)
    random.Random(args.seed).shuffle(asked)
    with atomic(args.out) as temporary, open(temporary, "w", encoding="utf-8") as file:
        for one in asked:
            file.write(json.dumps({"prompt": one.prompt, "answer": one.answer}, ensure_ascii=False) + "\n")
    if args.wordings:
        print(rewording)
    print(f"{len(asked)} questions written to {args.out}")
