"""The command line of training: flags from dataclasses, `--help WORD`, and `--config FILE`."""

import argparse
import difflib
import shutil
from collections.abc import Callable, Iterator
from copy import copy
from dataclasses import Field, fields
from typing import get_args

from transformers import HfArgumentParser

from common.cli import CommandParser
from common.files import require_file
from common.flags import owner
from model.memory import chosen_by

BASIC = "the flags to begin with"
METAVARS = {int: "N", float: "X", str: "TEXT"}
ENDS = {"_path": "PATH", "_dir": "PATH"}  # of names of flags whose values are paths
NULLS = ("null", "Null", "NULL", "~")  # of YAML
# What a run's flags.json does not hand on: another run has its own folder and record.
OF_RUN = ("out_dir", "experiment", "experiment_dir", "base_experiment", "baseline", "resume")


class OneSentenceParser(HfArgumentParser):
    """Refuses in one sentence. `--help` lists the basic flags first, then the others under their config's heading."""

    def __init__(self, *configs: type):
        # allow_abbrev=False: else a typo such as --n_layer is silently taken as --n_layers.
        super().__init__(
            configs, prog="train_pretrain_accelerate.py", allow_abbrev=False, add_help=False,
            usage="%(prog)s [--flag value ...]", formatter_class=wide_help,
        )  # fmt: skip
        self.owners = {f.name: (owner(config, f.name), f) for config in configs for f in fields(config)}
        for action in self._actions:
            # Dashes are taken too, but one spelling is shown. The parser has its own table of all of them.
            action.option_strings = [option for option in action.option_strings if "-" not in option[2:]]
            action.metavar = None if action.choices else metavar_of(action)
        self.arrange(is_own)

    def heading_of(self, action) -> str:
        config, _ = self.owners[action.dest]
        return vars(config).get("heading") or " or ".join(chosen_by(config))

    def arrange(self, shown: Callable[[argparse.Action], bool], basic_first: bool = True) -> None:
        """Lay out `--help`: the actions that are shown, under their headings."""
        for group in self._action_groups:
            group._group_actions = []
        groups, actions = {}, [action for action in self._actions if shown(action)]
        for is_basic in (True, False):
            for action in actions:
                own = basic_first and self.owners[action.dest][1].metadata["basic"]
                if own == is_basic:
                    heading = BASIC if own else self.heading_of(action)
                    groups.setdefault(heading, None)
                    groups[heading] = groups[heading] or self.add_argument_group(heading)
                    groups[heading]._group_actions.append(action)

    def help_about(self, words: list[str]) -> str:
        """The help of the flags whose name, heading or help has one of these words; of all flags without a word.

        Raises:
            ValueError: no flag has one.
        """
        words = [word.strip("-").replace("-", "_").lower() for word in words]

        def shown(action) -> bool:
            text = f"{action.dest} {self.heading_of(action)} {action.help}".lower()
            return is_own(action) and (not words or any(word in text for word in words))

        if not any(map(shown, self._actions)):
            raise ValueError(f"no flag is about {' or '.join(words)}: --help lists all flags")
        self.arrange(shown, basic_first=not words)
        return self.format_help()

    @staticmethod
    def _parse_dataclass_field(parser, field: Field) -> None:
        """Hand on what argparse takes; the rest of a flag's metadata is for `common.flags.check`."""
        plain = copy(field)
        plain.metadata = {name: value for name, value in field.metadata.items() if name in ("help", "choices")}
        HfArgumentParser._parse_dataclass_field(parser, plain)

    error = CommandParser.error


def is_own(action: argparse.Action) -> bool:
    """Whether an action is a flag itself, not the --no_ of one."""
    return action.option_strings[0] == f"--{action.dest}"


def wide_help(prog: str) -> argparse.HelpFormatter:
    width = min(120, shutil.get_terminal_size((120, 0)).columns)
    return argparse.ArgumentDefaultsHelpFormatter(prog, max_help_position=36, width=width)


def metavar_of(action) -> str | None:
    if getattr(action, "const", None) is True:  # a flag that may stand alone
        return "BOOL"
    path = next((shown for end, shown in ENDS.items() if action.dest.endswith(end)), None)
    return path or METAVARS.get(action.type)


def flags_of_file(path: str) -> dict[str, list[str] | None]:
    """Flag -> its words on a command line, or None for null; of a YAML file, or of the flags.json of a run.

    Flags may stand in sections. A run's own folder and record, the flags of OF_RUN, are left out of a .json.

    Raises:
        FileNotFoundError, ValueError: the file is missing or holds no flags, or a flag twice or without a value.
    """
    import yaml

    file, found = require_file(path, "config"), {}
    try:
        # Texts, as on a command line: YAML itself would read 1_4_8 as 148. JSON is YAML too.
        content = yaml.compose(file.read_text(encoding="utf-8"), Loader=yaml.BaseLoader)
    except (yaml.YAMLError, UnicodeDecodeError) as problem:
        raise ValueError(f"--config {path} is not valid YAML: {' '.join(str(problem).split())}") from None
    if not isinstance(content, yaml.MappingNode):
        raise ValueError(f"--config {path} holds no flags: write one a line, such as dim: 256")
    for name, words in pairs_of(content):
        if name in found:
            raise ValueError(f"--config {path} has --{name} twice: leave one out")
        found[name] = words
        if words == []:
            raise ValueError(f"--config {path} has --{name} without a value: give one, or leave the line out")
    return {name: words for name, words in found.items() if file.suffix != ".json" or name not in OF_RUN}


def pairs_of(mapping) -> Iterator[tuple[str, list[str] | None]]:
    """(flag, words) of a mapping of YAML and those in it. An unquoted null is None; a value left out has no words."""
    for key, value in mapping.value:
        name = str(key.value).removeprefix("--").replace("-", "_")
        if value.id == "mapping":
            yield from pairs_of(value)
        elif value.id == "sequence":
            yield name, [str(item.value) for item in value.value]
        elif value.style is None and value.value in NULLS:
            yield name, None
        else:
            yield name, [value.value] if value.value or value.style else []


def with_config(argv: list[str], parser: OneSentenceParser) -> list[str]:
    """A command line with the flags of a file in the place of its `--config FILE`: of equal flags the last one wins.

    A null, which no command line can say, takes back what stands before it.

    Raises:
        FileNotFoundError, ValueError: a file is missing or not named, or names a flag that does not exist.
    """
    taken, words = [], iter(argv)
    for word in words:
        name, equals, path = word.partition("=")
        if name != "--config":
            taken.append(word)
            continue
        path = path if equals else next(words, "")
        if not path or path.startswith("--"):
            raise ValueError("--config needs a value: give a YAML file, or the flags.json of a run")
        for flag, own in flags_of_file(path).items():
            if flag not in parser.owners:
                raise ValueError(f"--config {path} has {unknown(f'--{flag}', parser)}")
            if own is None and type(None) not in get_args(parser.owners[flag][1].type):
                raise ValueError(f"--config {path} has --{flag} null, which it cannot be: give a value")
            if own is None:
                taken = without(taken, flag)
                parser.set_defaults(**{flag: None})
            else:
                taken += [f"--{flag}", *own]
    return taken


def without(argv: list[str], flag: str) -> list[str]:
    """A command line without a flag and its values."""
    left, dropping = [], False
    for word in argv:
        if word.startswith("--"):
            dropping = word.partition("=")[0].replace("-", "_") in (f"__{flag}", f"__no_{flag}")
        left += [] if dropping else [word]
    return left


def unknown(flag: str, parser: OneSentenceParser) -> str:
    """The sentence about a flag that does not exist."""
    known = [option for action in parser._actions for option in action.option_strings]
    near = difflib.get_close_matches(flag.replace("-", "_").replace("__", "--", 1), known, n=1)
    return f"unknown flag {flag}: " + (f"did you mean {near[0]}?" if near else "--help lists the flags")


def asked_for_help(argv: list[str]) -> list[str] | None:
    """The words after --help or -h; None where neither stands on the command line."""
    place = next((i for i, word in enumerate(argv) if word in ("--help", "-h")), None)
    return None if place is None else [word for word in argv[place + 1 :] if not word.startswith("--")]
