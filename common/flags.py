"""Command-line flags declared as dataclass fields."""

from dataclasses import field


def flag(default, help: str, choices: list | None = None):
    """A dataclass field that is also a command-line flag; `help` is the one place its meaning is written."""
    make = {"default_factory": lambda: list(default)} if isinstance(default, list) else {"default": default}
    return field(**make, metadata={"help": help.replace("%", "%%"), **({"choices": choices} if choices else {})})


def require(condition: bool, message: str) -> None:
    """Refuse a user's setting with one sentence."""
    if not condition:
        raise ValueError(message)
