"""Command-line flags declared as dataclass fields, each with its help, its range and what it needs.

    dropout: float = flag(0.0, "dropout of ...", within=(0, 1), open_end=True)
    n_heads: int = flag(8, "query heads", within=(1, None), divides="dim")
    pointer: bool = flag(False, "...", needs="--retrieval ngram: the pointer copies from what n-grams found")

`check` tests all of a dataclass's flags in one loop.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import MISSING, Field, field, fields
from inspect import get_annotations


def flag(
    default, help: str, choices: list | None = None, *, within: tuple | None = None, open_end: bool = False,
    divides: str | None = None, multiple_of: str | None = None, needs: str | list[str] = (),
    only_with: str | list[str] = (), basic: bool = False,
):  # fmt: skip
    """A dataclass field that is also a command-line flag; `help` is the one place where its meaning is written.

    Args:
        within: (low, high), both allowed, `high` not if `open_end`. None is no bound; a name is another flag's value.
        divides, multiple_of: name of another flag.
        needs: another flag that must be on, or have a value, while this one is on: "--flag", "--flag value",
            "--flag value|value", alternatives joined by " or ", all with ": reason". A flag is on unless it is None,
            False or 0. Otherwise the command line is refused.
        only_with: the same, but without it this flag does nothing, and `idle_flags` tells. "name: what to do" asks for
            an attribute of the config that is true.
        basic: listed first in `--help`.
    """
    make = {"default_factory": lambda: list(default)} if isinstance(default, list) else {"default": default}
    metadata = {"help": help.replace("%", "%%"), **({"choices": choices} if choices else {})}
    metadata |= {"within": within, "open_end": open_end, "divides": divides, "multiple_of": multiple_of}
    conditions = {"needs": needs, "only_with": only_with}
    metadata |= {name: [value] if isinstance(value, str) else value for name, value in conditions.items()}
    return field(**make, metadata=metadata | {"basic": basic})


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
        require(holds(need, values), f"--{f.name} needs {need}")


def holds(need: str, values: dict, config=None) -> bool:
    """Whether a condition of `needs` or `only_with` holds; one that names an unknown flag does.

    Args:
        values: of the flags, by name.  config: has the attributes that conditions may ask for.
    """

    def one_holds(condition: str) -> bool:
        name, _, wanted = condition.removeprefix("--").partition(" ")
        if not condition.startswith("--"):
            return bool(getattr(config, name))
        return name not in values or (str(values[name]) in wanted.split("|") if wanted else bool(values[name]))

    return any(map(one_holds, need.partition(": ")[0].split(" or ")))


def idle_flags(
    config, unused: Callable[[type], str | None], others: Iterable = (), every: bool = False
) -> dict[str, str]:
    """The flags that differ from their defaults and do nothing, each with what they would need.

    Args:
        config, others: as for `check`.
        unused: from a class that declares flags to what would make it do something; None: it does.
        every: also those that have their defaults.
    """
    values = {f.name: getattr(c, f.name) for c in (*others, config) for f in fields(c)}
    found = {}
    for f in fields(config):
        if not every and values[f.name] == (f.default_factory() if f.default is MISSING else f.default):
            continue
        needed = [unused(owner(type(config), f.name)) or ""]
        needed += [need for need in (*f.metadata["only_with"], *f.metadata["needs"]) if not holds(need, values, config)]
        if reason := next(filter(None, needed), None):
            found[f.name] = reason.partition(": ")[2] if not reason.startswith("--") else reason.partition(": ")[0]
    return found
