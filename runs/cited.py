"""What in an answer to a blank is not in the run's data: a number, a date, a version; each refusal is one sentence.

A value of metrics.jsonl may stand where the same sentence names its step (步 20, step 20). A plan may give new values
to flags (--num_candidates 64) and counts up to 12.
"""

import re

from .blanks import BLANKS, PLAN, SCORE, VERSION
from .known import Known, normal
from .numerals import numerals

# Dates, times and durations; versions such as 1.4.8 and 2.13.0: they must occur in the data as they stand.
DATE = re.compile(r"\d{4}-\d\d-\d\d(?:[T ]\d\d:\d\d(?::\d\d)?)?|\d+:\d\d(?::\d\d)?")
VERSION_NUMBER = re.compile(r"(?<![\w.])(?:experiment_)?\d+(?:[._]\d+){2,}(?:[._]?[a-z]\w*)*", re.ASCII)
STEP = re.compile(r"(?:步|[Ss]tep)\s*(\d+)|第\s*(\d+)\s*步")
FLAG_VALUES = re.compile(r"--(\w+)((?:[ =]+-?[\d.eE+-]+)+)")
INTERVAL = re.compile(r"95\s*%\s*(?:的|置信)*(?:区间|CI|confidence interval|interval)")
SENTENCE = re.compile(r"[^。;；\n]+")
COUNTED = 12


def refused(blank: str, answer: str, known: Known, experiments: set[str]) -> str | None:
    """One sentence on the first thing in an answer that the run's data do not have; None where there is none.

    Args:
        experiments: the numbers of all experiments, such as 1.4.8.
    """
    text, kind = normal(answer), BLANKS[blank].kind
    if kind == SCORE:
        number = re.fullmatch(r"(\d+(?:\.\d)?)(?:\s*/\s*10)?", text.strip())
        is_score = number is not None and float(number[1]) <= 10
        return None if is_score else f"{blank} asks for a score of 0 to 10, got {answer!r}"
    if kind == VERSION:
        fits = re.fullmatch(r"(?:experiment_)?\d+(?:[._]\d+)+\w*", text.strip())
        return None if fits else f"{blank} asks for the number of an experiment such as 1.4.9, got {answer!r}"

    text = INTERVAL.sub(" 区间 ", text)  # that 95 is no result
    text = FLAG_VALUES.sub(lambda m: " " if kind == PLAN and m[1] in known.flags else m[0], text)
    for found in DATE.finditer(text):
        if found[0] not in known.text:
            return f"{blank} states {found[0]}, which is no time in the data of the run: correct it or leave it out"
    for found in VERSION_NUMBER.finditer(text):
        name = found[0].removeprefix("experiment_")
        if not (kind == PLAN or name in known.text or name.replace("_", ".") in experiments):
            return f"{blank} names {found[0]}, which is no experiment and no version in the data: correct it"
    text = VERSION_NUMBER.sub(" ", DATE.sub(" ", text))
    for sentence in SENTENCE.findall(text):
        at_steps = [v for a, b in STEP.findall(sentence) for v in known.by_step.get(int(a or b), [])]
        for numeral in numerals(sentence):
            is_count = kind == PLAN and not numeral.is_percent and numeral.value in range(COUNTED + 1)
            if not is_count and not known.holds(numeral, sentence, at_steps):
                return f"{blank} states {numeral.text}, which is not in the data of the run: correct it or leave it out"
    return None
