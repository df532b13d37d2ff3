"""A new experiment from an old one: its script, which says only what it changes, and its record, still blank."""

import os
import re
import shlex
import subprocess
from datetime import date
from itertools import count
from pathlib import Path

from runs.record import record_path, write_record
from runs.record_tables import MODEL_FLAGS, TRAIN_FLAGS, flag_table
from trainer.config import Flags, parse_cli

from .run import NOT_IDENTITY
from .scripts import FOLDERS, base_of, find_script

SCRIPT = """#!/usr/bin/env bash
# Experiment {dotted}
# Question:  [QUESTION]
# Builds on: {base}
# Change:    {change}
source "$(dirname "${{BASH_SOURCE[0]}}")/_base.sh"
builds_on {base_name}
{flags}launch "$@"
"""


def script_of(experiment: str, root: Path) -> Path:
    """The script of an experiment, given by its number or as a path.

    Raises:
        FileNotFoundError: there is none.
    """
    named = root / experiment
    path = named if named.suffix == ".sh" and named.is_file() else find_script(experiment, root)
    if path is None:
        name = experiment if named.suffix == ".sh" else f"run_file/experiment_{experiment.replace('.', '_')}.sh"
        raise FileNotFoundError(f"there is no script {name}: give the number of an experiment in run_file/")
    return path


def script_flags(path: Path) -> list[str]:
    """The flags that a script hands to `_launch.sh`, as the script itself lists them; nothing is started.

    Raises:
        ValueError: the script fails, or does not end in run_file/_launch.sh.
    """
    # A script that knows no LIST=1 would start its run here.
    if not re.search(r"_(launch|base)\.sh", path.read_text(encoding="utf-8")):
        raise ValueError("it does not start run_file/_launch.sh")
    listed = subprocess.run(["bash", str(path)], env=os.environ | {"LIST": "1"}, capture_output=True, encoding="utf-8")
    if listed.returncode != 0:
        last = (listed.stderr.strip().splitlines() or [f"bash ended with {listed.returncode}"])[-1]
        raise ValueError(last.removeprefix("error: "))
    if not listed.stdout.strip():
        raise ValueError('it lists no flags: end it with launch "$@"')
    return shlex.split(listed.stdout)


def split_flags(tokens: list[str]) -> list[list[str]]:
    """[--a, 1, --b] as [[--a, 1], [--b]].

    Raises:
        ValueError: a value comes before the first flag.
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


def new_script(number: str, base: str, changes: list[list[str]]) -> str:
    """A script that builds on another and changes some flags; its question is still to be asked."""
    described = ", ".join(f"{flag.removeprefix('--')} -> {' '.join(values) or 'on'}" for flag, *values in changes)
    return SCRIPT.format(
        dotted=number.replace("_", "."), base=base.replace("_", "."), base_name=base.replace(".", "_"),
        change=described or "[CHANGE]",
        flags="flags " + " ".join(shlex.join(change) for change in changes) + "\n" if changes else "",
    )  # fmt: skip


def planned_values(flags: Flags, script: str):
    """What a record can say before the run: its names and its flags."""
    known = {
        "EXPERIMENT": f"experiment_{flags.run.experiment_id}", "VERSION": flags.run.experiment_id,
        "CREATED": date.today().isoformat(), "SCRIPT": script, "OUT_DIR": flags.run.out_dir,
        "BASE_EXPERIMENT": f"experiment_{flags.run.base_experiment}",
    }  # fmt: skip
    flat = {name: value for part in flags.as_dict().values() for name, value in part.items()}
    known |= {f"flag:{name}": str(value) for name, value in flat.items()}
    for name, rows in (("MODEL_FLAGS", MODEL_FLAGS), ("TRAIN_FLAGS", TRAIN_FLAGS)):
        known[name] = flag_table(rows, flat.get, sorted(flags.idle(every=True)))
    return known.get


def taken(name: str, root: Path) -> list[Path]:
    """The scripts and records that an experiment has, those of the archive too."""
    paths = [root / folder / f"experiment_{name}.sh" for folder in FOLDERS]
    return list(filter(Path.exists, [*paths, record_path(name, root / "experiment")]))


def next_free(number: str, root: Path) -> str | None:
    """The next number after this one without a script or a record; None if it does not end in digits."""
    series = re.fullmatch(r"(.*?)(\d+)", number.replace("_", "."))
    if series is None:
        return None
    for last in count(int(series[2]) + 1):
        name = f"{series[1]}{last}".replace(".", "_")
        if not taken(name, root):
            return f"{series[1]}{last}"


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
    for path in taken(name, root):
        free = next_free(number, root)
        hint = f", such as {free}" if free else ""
        raise ValueError(f"{path.relative_to(root)} exists already: choose another number{hint}")
    base_name = script_of(base, root).stem.removeprefix("experiment_")
    text = new_script(number, base_name, split_flags(changes))
    script.write_text(text, encoding="utf-8")
    try:
        write_record(record, planned_values(parse_cli(script_flags(script)), str(script.relative_to(root))))
    except BaseException:  # a flag that is refused leaves nothing behind
        script.unlink()
        raise
    return script, record


def next_steps(script: Path, record: Path, root: Path) -> list[str]:
    """What to do with a new experiment, a sentence a line; first of all a warning if it repeats its base."""
    base = find_script(base_of(script), root)
    told = []
    if same_flags(parse_cli(script_flags(script)), parse_cli(script_flags(base))):
        told = [f"warning: it changes nothing of {base.relative_to(root)}: add a line such as "
                "`flags --learning_rate 3e-4` before its last one"]  # fmt: skip
    lines = script.read_text(encoding="utf-8").splitlines()
    blanks = {"[QUESTION]": "its question", "[CHANGE]": "its change"}
    wanted = [
        f"{what} into line {n}" for n, line in enumerate(lines, 1) for blank, what in blanks.items() if blank in line
    ]
    script, record = script.relative_to(root), record.relative_to(root)
    return [
        *told,
        f"write {' and '.join(wanted)} of {script}, and its purpose into {record}; then: bash {script}",
        "then `python -m experiment documents` puts it into the tree and the leaderboard",
        f"to take it back: rm {script} {record}",
    ]


def same_flags(flags: Flags, others: Flags) -> bool:
    """Whether all flags that change a result are equal, and the seed."""
    first, second = (
        {name: value for part in own.as_dict().values() for name, value in part.items() if name not in NOT_IDENTITY}
        for own in (flags, others)
    )
    return first == second and flags.run.seed == others.run.seed
