"""A new experiment from an old one: its script, with the old one's flags, and its record, the human part blank."""

import re
import shlex
from datetime import date
from pathlib import Path

from runs.record import record_path, write_record
from trainer.config import Flags, parse_cli

LAST = '"$@"'  # what the user adds to the command line; every script ends with it


def script_of(experiment: str, root: Path) -> Path:
    """The script of an experiment, given by its number or as a path.

    Raises:
        FileNotFoundError: there is none.
    """
    named = root / experiment
    path = named if named.suffix == ".sh" else root / f"run_file/experiment_{experiment.replace('.', '_')}.sh"
    if not path.is_file():
        raise FileNotFoundError(
            f"there is no script {path.relative_to(root)}: give the number of an experiment in run_file/"
        )
    return path


def script_flags(text: str) -> list[str]:
    """The flags that a script hands to _launch.sh.

    Raises:
        ValueError: the text starts no run, or its quotes do not match.
    """
    _, launcher, body = text.partition("_launch.sh")
    if not launcher:
        raise ValueError("it does not start run_file/_launch.sh")
    return shlex.split(body.replace("\\\n", " ").replace(LAST, "").lstrip('" '))


def with_flag(text: str, flag: str, *values: str) -> str:
    """A script's text with a flag's values replaced, or the flag added before --out_dir."""
    new = " ".join([flag, *map(shlex.quote, values)])
    pattern = re.compile(rf'(?<=\s){flag}\b(?:[ =](?!--|\\|")\S+)*')
    if pattern.search(text):
        return pattern.sub(lambda _: new, text, count=1)
    return re.sub(r"\n( *)--out_dir", lambda match: f"\n{match[1]}{new} \\{match[0]}", text, count=1)


def split_flags(tokens: list[str]) -> list[list[str]]:
    """[--a, 1, --b] as [[--a, 1], [--b]].

    Raises:
        ValueError: a value stands before the first flag.
    """
    flags: list[list[str]] = []
    for token in tokens:
        if token.startswith("--"):
            flags.append(token.split("=", 1))
        elif flags:
            flags[-1].append(token)
        else:
            raise ValueError(f"{token!r} stands where a flag such as --learning_rate must: write flags after --")
    return flags


def new_script(text: str, number: str, base: str, changes: list[list[str]]) -> str:
    """The base's script with the new number, the changed flags, and its question left to be asked."""
    dotted = number.replace("_", ".")
    told = ", ".join(f"{flag.removeprefix('--')} -> {' '.join(values) or 'on'}" for flag, *values in changes)
    header = {
        "Experiment": f" {dotted}", "Question": "  [QUESTION]", "Builds on": f" {base}",
        "Change": f"    {told or '[CHANGE]'}",
    }  # fmt: skip
    for name, value in header.items():
        colon = "" if name == "Experiment" else ":"
        text = re.sub(
            rf"^# {name}{colon} .*$", lambda _, n=name, c=colon, v=value: f"# {n}{c}{v}", text, count=1, flags=re.M
        )
    text = text.replace(f"MiniMind-Experiment-{base}", f"MiniMind-Experiment-{dotted}")
    text = with_flag(text, "--base_experiment", base)
    for flag, *values in changes:
        text = with_flag(text, flag, *values)
    return with_flag(text, "--out_dir", f"out/experiment_{dotted.replace('.', '_')}")


def planned_values(flags: Flags, script: str):
    """What a record can say before the run: its names and its flags."""
    known = {
        "EXPERIMENT": f"experiment_{flags.run.experiment_id}", "VERSION": flags.run.experiment_id,
        "CREATED": date.today().isoformat(), "SCRIPT": script, "OUT_DIR": flags.run.out_dir,
        "BASE_EXPERIMENT": f"experiment_{flags.run.base_experiment}",
    } | {f"flag:{name}": str(value) for part in flags.as_dict().values() for name, value in part.items()}  # fmt: skip
    return known.get


def new_experiment(number: str, base: str, changes: list[str], root: Path) -> tuple[Path, Path]:
    """Write the script and the record of a new experiment.

    Raises:
        ValueError: the number cannot be one, exists already, or a changed flag is refused.
        FileNotFoundError: the base has no script.
    """
    name = number.replace(".", "_")
    if not re.fullmatch(r"\w+", name):
        raise ValueError(f"{number!r} is no number of an experiment: use digits, letters, dots, such as 1.4.9")
    script, record = root / f"run_file/experiment_{name}.sh", record_path(name, root / "experiment")
    for path in (script, record):
        if path.exists():
            raise ValueError(f"{path.relative_to(root)} exists already: choose another number")
    text = new_script(script_of(base, root).read_text(), number, base.replace("_", "."), split_flags(changes))
    flags = parse_cli(script_flags(text))
    script.write_text(text)
    write_record(record, planned_values(flags, str(script.relative_to(root))))
    return script, record
