"""An analysis put into a record: answers of a person's assistant, or a draft by rules; all of them or none."""

import difflib
from pathlib import Path

from .blanks import AI, BLANKS, DRAFT, DRAFTED, marked, open_blanks, write_answers
from .brief import brief
from .cited import refused
from .draft import draft
from .known import Known
from .record import draw_curves, fill_text, record_of, require_run, text_of_record, values_for, write_text
from .scripts import number_of, scripts

ROOT = Path(__file__).parents[1]


def experiments() -> set[str]:
    """The numbers of all experiments that have a script."""
    return {number_of(path).replace("_", ".") for path in scripts(ROOT)}


def problem_with(name: str, answer: str, text: str, known: Known, numbers: set[str]) -> str | None:
    """One sentence on an answer that cannot go into a record, or None."""
    if name not in BLANKS:
        near = difflib.get_close_matches(name, BLANKS, n=1)
        return f"the record has no blank {name}: " + (
            f"did you mean {near[0]}?" if near else "`python -m experiment brief` lists the open ones"
        )
    if name not in open_blanks(text) and marked(text).get(name) not in (AI, DRAFT):
        return f"{name} holds a person's text, which stays: leave this answer out"
    return refused(name, answer, known, numbers)


def require_known(notes: dict[str, str], text: str, known: Known, path: Path) -> None:
    """Refuse answers that cannot go into a record's text, all together.

    Raises:
        ValueError: one sentence for each such answer.
    """
    numbers = experiments()
    problems = [problem_with(name, answer, text, known, numbers) for name, answer in notes.items()]
    if problems := list(filter(None, problems)):
        raise ValueError("\n".join([*problems, f"{path} was not changed."]))


def fill_notes(run_dir: str | Path, notes: dict[str, str], experiment_dir: str | Path | None = None) -> Path:
    """Fill a record with its measured values and with the answers to its blanks, in one atomic step.

    An answer takes the place of a draft or of an earlier answer, never of a person's text.

    Raises:
        ValueError: an answer is refused, one sentence a line; then nothing is written.
    """
    run = require_run(run_dir)
    path = record_of(run, experiment_dir)
    text = fill_text(text_of_record(path), values_for(run, path))
    require_known(notes, text, Known(run, brief(run, experiment_dir)), path)
    write_text(path, write_answers(text, notes, AI))
    draw_curves(run, path)
    return path


def fill_draft(run_dir: str | Path, experiment_dir: str | Path | None = None) -> tuple[Path, int]:
    """Fill the blanks that rules can answer and that nobody has; what rules wrote before is written anew.

    Returns:
        The record, and how many blanks the rules answered.
    """
    run = require_run(run_dir)
    path = record_of(run, experiment_dir)
    text = fill_text(text_of_record(path), values_for(run, path))
    free = {*open_blanks(text), *(name for name, state in marked(text).items() if state == DRAFT)}
    answers = {name: answer + DRAFTED for name, answer in draft(run).items() if name in free}
    write_text(path, write_answers(text, answers, DRAFT))
    draw_curves(run, path)
    return path, len(answers)
