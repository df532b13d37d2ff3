"""Numbers as a text writes them: rounded, as percentages, with units, with thousands separators."""

import re
from collections.abc import Iterator
from dataclasses import dataclass

NUMBER = re.compile(r"(?<![\d.])(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?(?:[eE][-+]?\d{1,2}(?!\d))?(?!\.?[xX]\b)")
HASH = re.compile(r"\b(?=\w*[a-f])(?=\w*\d)[0-9a-f]{7,}\b")
# What a unit may multiply a number by, so that it is one of the data's: MiB, seconds, plain counts.
UNITS = {
    "k": (1e3,), "K": (1e3,), "M": (1e6,), "B": (1e9,), "千": (1e3,), "万": (1e4,), "百万": (1e6,), "亿": (1e8,),
    "GiB": (1024, 2**30), "GB": (1024, 1e3, 1e9), "MiB": (1, 2**20), "MB": (1, 1e6), "ms": (1, 1e-3), "毫秒": (1, 1e-3),
    "分钟": (60,), "min": (60,), "小时": (3600,), "h": (3600,), "倍": (1,), "x": (1,), "s": (1,), "秒": (1,),
}  # fmt: skip
UNIT = re.compile(r"\s*(GiB|MiB|GB|MB|ms|min|百万|毫秒|分钟|小时|[kKMBhsx](?![A-Za-z])|[千万亿倍秒])")
PERCENT = re.compile(r"\s*(?:%|个?百分点)")
OF_A_LIST = re.compile(r"(?:\s*[/,±–~、至到对和与-]+\s*\d[\d.,]*)+\s*(?:%|个?百分点)")


@dataclass(frozen=True)
class Numeral:
    """A number as a text writes it: its value, how far rounding may have moved it, and what its unit may stand for."""

    text: str
    value: float
    slack: float
    factors: tuple[float, ...]
    is_percent: bool

    def is_one_of(self, values: list[float]) -> bool:
        """Whether rounding explains the distance to one of these values, apart from its sign."""
        for factor in self.factors:
            value, slack = self.value * factor, self.slack * factor * 1.0001 + 1e-9 * abs(self.value * factor)
            if any(abs(abs(known) - value) <= slack for known in values):
                return True
        return False


def numerals(text: str) -> Iterator[Numeral]:
    """The numbers of a text; digits that belong to a name, as in H100, block_2, 4-gram or 1.4.x, are none."""
    for match in NUMBER.finditer(text):
        before, after = text[: match.start()], text[match.end() :]
        is_percent = bool(PERCENT.match(after) or OF_A_LIST.match(after))
        unit = UNIT.match(after)
        if match[0].isdigit() and not is_percent:
            is_name_after = re.match(r"[A-Za-z_]|-[A-Za-z]", after) and not unit
            if is_name_after or re.search(r"(?:[A-Za-z_]|[A-Za-z]-)$", before):
                continue
        plain = match[0].replace(",", "")
        factors = (1.0, *UNITS[unit[1]]) if unit else (1.0,)
        told = match[0] + (after[: unit.end()] if unit else "%" * is_percent)
        yield Numeral(told, float(plain), slack_of(plain, bool(unit) or is_percent), factors, is_percent)


def slack_of(digits: str, is_measured: bool) -> float:
    """Half of the last digit's place.

    Zeros at the end of a large whole number may be rounded: three digits must fit. A small whole number without a unit
    is a count, which is not rounded.
    """
    mantissa, _, exponent = digits.lower().partition("e")
    power = int(exponent or 0)
    if "." in mantissa:
        return 0.5 * 10.0 ** (power - len(mantissa.split(".")[1]))
    zeros = max(0, min(len(mantissa) - len(mantissa.rstrip("0")), len(mantissa) - 3))
    return 0.5 * 10.0 ** (power + zeros) if is_measured or exponent or len(mantissa) > 3 else 0.0
