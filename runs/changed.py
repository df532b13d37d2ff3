"""What differs between the flags of two sessions of a run, or between a run and the one whose weights it takes."""

import logging
import sys
from dataclasses import fields
from pathlib import Path

from trainer.config import OptimConfig
from trainer.optim import lr_at
from trainer.state import total_steps_of

from .journal import Journal
from .run import NOT_IDENTITY, Run

# Paths, for their content is compared instead, and flags that do not change what is learnt.
NOT_LEARNT = NOT_IDENTITY | {
    "data_path", "val_path", "database_init_path", "tokenizer_path", "cluster_cache_path", "init_path", "object_path",
    "relation_path", "verification_path", "edit_path", "val_questions", "log_interval", "eval_interval", "eval_batches",
    "save_interval",
    "keep_checkpoints", "keep_best", "memory_monitor_interval", "max_skipped_in_row",
}  # fmt: skip
log = logging.getLogger("run")


def warn(message: str) -> None:
    """Write a message to the log, and to whoever watches."""
    log.warning(message)
    print(f"warning: {message}", file=sys.stderr)


def warn_of_flags(run_dir: Path, flags: dict, step: int, steps_per_epoch: int) -> dict:
    """Say whether a run has finished, and which flags are not those of flags.json; returns the old ones.

    More steps or epochs lengthen a run: what its schedule then is stands in a sentence of its own.

    Args:
        flags: the sections of today's flags.  step: how far the run has come.
    """
    old = Run(run_dir).flat_flags
    new = {name: value for section in flags.values() for name, value in section.items()}
    names = [name for name in new if name in old and name not in NOT_LEARNT and old[name] != new[name]]
    before, after = (optim_of(values) for values in (old, new))
    last, end = (total_steps_of(optim, steps_per_epoch) for optim in (before, after))
    goes_on = step < end
    if goes_on and last != end:
        rates = lr_at(step, end, after), lr_at(step, last, before)
        warn(
            f"the run goes on from step {step} to step {end} instead of {last}: the learning rate follows the "
            f"{after.lr_schedule} schedule of {end} steps, {rates[0]:.3g} at this step instead of {rates[1]:.3g}"
        )
    if not goes_on:
        limit = "--max_steps" if end < after.epochs * steps_per_epoch else "--epochs"
        told = f"already finished: {step} of {end} steps; a larger {limit} makes it longer"
        log.info(told)
        print(told, file=sys.stderr)
    others = [name for name in names if not goes_on or name not in ("max_steps", "epochs")]
    if others:
        changed = ", ".join(f"--{name} {new[name]} (before {old[name]})" for name in others)
        start = "the run goes on with other flags" if goes_on else "the run is finished, so other flags change nothing"
        cure = "give the old ones, or start over with --no_resume" if goes_on else "start over with --no_resume"
        warn(f"{start}: {changed}; {cure}")
    return old if names else {}


def optim_of(values: dict) -> OptimConfig:
    """The flags of learning among those of a run; flags that it did not know have their defaults."""
    return OptimConfig(**{f.name: values[f.name] for f in fields(OptimConfig) if f.name in values})


def warn_of_idle_flags(idle: dict[str, str]) -> None:
    """Say which flags of the command line do nothing, and what each of them would need."""
    if idle:
        warn("these flags do nothing here: " + ", ".join(f"--{name} (needs {need})" for name, need in idle.items()))


def warn_of_edits(init_path: str) -> None:
    """Say that edits of the run that the weights come from are left out."""
    if changed := Journal(init_path).changed_rows():
        warn(
            f"the {len(changed)} edited or frozen entries of --init_path {init_path} are left out, for the bank comes "
            "from --database_init_path: export them there, and import them here after training"
        )


def warn_of_own_edits(run_dir: Path) -> None:
    """Say that edits of a run that goes on are not trained with; its journal is replayed over the result."""
    if changed := Journal(run_dir).changed_rows():
        warn(
            f"training goes on with the bank as it was trained, without the {len(changed)} edited or frozen entries of "
            f"{run_dir}: they stand in the result again, and `python -m editing undo` takes them back"
        )
