"""The wordings that training asks in."""

import json
import re
from pathlib import Path
from string import Formatter

from dataset.questions import PARAPHRASES

WORDINGS = Path(__file__).parents[2] / "dataset/wordings.json"


def folded(text):
    """Without case, punctuation and articles."""
    words = re.sub(r"[^\w\s{}]", " ", text.casefold()).split()
    return " ".join(word for word in words if word not in ("a", "an", "the"))


def test_every_predicate_has_statements_and_questions_and_none_is_asked_in_a_wording_of_the_test():
    text = WORDINGS.read_text()
    wordings = json.loads(text)
    assert text == json.dumps(wordings, indent=1, ensure_ascii=False, sort_keys=True) + "\n"  # sorted, one a line
    assert len(wordings) > 150
    for predicate, texts in wordings.items():
        questions = [text for text in texts if text.endswith("?")]
        assert len(texts) >= 10 and len(questions) >= 4 and len(texts) - len(questions) >= 6, predicate
        tested = {folded(text.replace("{predicate}", predicate)) for text in PARAPHRASES}
        tested |= {text.removeprefix("question ").removesuffix(" answer") for text in tested}
        for text in texts:
            assert text.strip() == text and "  " not in text and 12 <= len(text) <= 100 and text.isprintable(), text
            fields = [field for _, field, *_ in Formatter().parse(text) if field is not None]
            assert fields == (["subject"] if text in questions else ["subject", "object"]), text
            assert text in questions or re.search(r"\{object\}\.?$", text), text
            assert folded(text).removesuffix(" {object}") not in tested, f"{predicate}: {text}"
        assert len({folded(text) for text in texts}) == len(texts), predicate
