"""Command-line flags declared as dataclass fields, each with its help, its range and what it needs.

    dropout: float = flag(0.0, "dropout of ...", within=(0, 1), open_end=True)
    n_heads: int = flag(8, "query heads", within=(1, None), divides="dim")
    pointer: bool = flag(False, "...", needs="--retrieval ngram: the pointer copies from what n-grams found")

`check` tests all of a dataclass's flags in one loop.
"""

import math
from collections.abc import Iterable
from dataclasses import Field, field, fields
from inspect import get_annotations


def flag(
    default, help: str, choices: list | None = None, *, within: tuple | None = None, open_end: bool = False,
    divides: str | None = None, multiple_of: str | None = None, needs: str | list[str] = (), basic: bool = False,
):  # fmt: skip
    """A dataclass field that is also a command-line flag; `help` is the one place where its meaning is written.

    Args:
        within: (low, high), both allowed, `high` not if `open_end`. None is no bound; a name is another flag's value.
        divides, multiple_of: name of another flag.
        needs: another flag that must be on, or have a value, while this one is on: "--flag", "--flag value", either
            with ": reason". A flag is on unless it is None, False or 0.
        basic: listed first in `--help`.
    """
    make = {"default_factory": lambda: list(default)} if isinstance(default, list) else {"default": default}
    metadata = {"help": help.replace("%", "%%"), **({"choices": choices} if choices else {})}
    metadata |= {"within": within, "open_end": open_end, "divides": divides, "multiple_of": multiple_of}
    return field(**make, metadata=metadata | {"needs": [needs] if isinstance(needs, str) else needs, "basic": basic})


def require(condition: bool, message: str) -> None:
    """Refuse a user's setting with one sentence."""
    if not condition:
        raise ValueError(message)


def owner(config_class: type, name: str) -> type:
    """The class, among a dataclass and its bases, that declares a flag."""
    return next(c for c in reversed(config_class.__mro__) if name in get_annotations(c))


def check(config, parts: Iterable[type] | None = None, others: Iterable = (), needs: bool = True) -> None:
    """Refuse a value that is out of range, or that contradicts another flag.

    Args:
        config: a dataclass made of `flag`s.
        parts: the classes in use; a bound by another flag holds for flags that these, or their bases, declare.
            None: for all flags.
        others: further dataclasses whose flags may be needed. A need that names a flag of none of them is not checked.
        needs: False leaves out what flags need.
    Raises:
        ValueError: one sentence names the flag, its value and what is allowed.
    """
    values = {f.name: getattr(c, f.name) for c in (*others, config) for f in fields(c)}
    for f in fields(config):
        check_range(f, values[f.name])
    for f in fields(config):
        if parts is None or any(issubclass(part, owner(type(config), f.name)) for part in parts):
            check_bounds(f, values)
        if needs:
            check_needs(f, values)


def check_range(f: Field, value) -> None:
    choices = f.metadata.get("choices")
    require(not choices or value is None or value in choices, f"--{f.name} must be one of {choices}, got {value!r}")
    require(not isinstance(value, float) or math.isfinite(value), f"--{f.name} must be a finite number, got {value}")
    low, high = f.metadata["within"] or (None, None)
    if value is None or (low is None and high is None) or isinstance(high, str):
        return
    if high is None:
        rule = "not be negative" if low == 0 else f"be at least {low}"
        require(value >= low, f"--{f.name} must {rule}, got {value}")
        return
    end = ")" if f.metadata["open_end"] else "]"
    inside = low <= value <= high and not (value == high and f.metadata["open_end"])
    require(inside, f"--{f.name} must lie in [{low}, {high}{end}, got {value}")


def check_bounds(f: Field, values: dict) -> None:
    value = values[f.name]
    if value is None:
        return
    low, high = f.metadata["within"] or (None, None)
    if isinstance(high, str):
        inside = low <= value <= values[high]
        require(inside, f"--{f.name} {value} must lie in [{low}, --{high} {values[high]}]")
    if (other := f.metadata["divides"]) and value:  # 0 stands for a default
        require(values[other] % value == 0, f"--{f.name} {value} does not divide --{other} {values[other]}")
    if other := f.metadata["multiple_of"]:
        require(value % values[other] == 0, f"--{f.name} {value} is not a multiple of --{other} {values[other]}")


def check_needs(f: Field, values: dict) -> None:
    for need in f.metadata["needs"] if values[f.name] else ():
        name, _, wanted = need.partition(": ")[0].removeprefix("--").partition(" ")
        if name in values:
            has_it = str(values[name]) == wanted if wanted else bool(values[name])
            require(has_it, f"--{f.name} needs {need}")
