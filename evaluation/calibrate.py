"""Choose how far the pointer of a trained run trusts the search, by edits and questions in other words.

    python -m evaluation.calibrate --run out/experiment_1_6_14 --object_path dataset/stable/object_mcq_train.jsonl

A model learns the right entry from the words of its training questions. Questions in new words need the
search's scores more, and must not take the question for one that no entry answers. `pointer_scale` in the run's
config.json multiplies the scores at the pointer; `pointer_asked`, of a run with `--pointer_state_scale`, lets it copy
more readily where its state trusts the search. Both cost running text. `pointer_edited`, of a run with that flag, lets
it prefer edited entries, and `pointer_edited_unsaid` keeps it from those about another subject.
Facts of the questions are asked in new words, which no test uses: in general ones ("capital of Peru:"), or, with
`--wordings` and `--kept_back` as for the questions of the training, in those that it kept back. For three shares:

written: greedy writing gives the right answer, from the bank as it is;
followed: with all these facts edited at once, and others, the new object is likelier than the old one;
kept: after these edits the object of a neighbour, an unedited fact with the old object, is likelier than the new one.
Neighbours are facts of the subjects with the most entries: a well-known subject has many, which can be mistaken.

Facts that the bank lacks are asked as `kept` is, before and after these edits. No edit is about them. The share that is
right before, less the share that is right after, is what the edits cost there (`lacking`, told as a change in points).

Likelier means the higher mean log-probability of its tokens, as in `counterfact.py`. Every edit is taken back.
Chosen is the setting with the highest harmonic mean of the three, of those that cost the validation text at most
`--text_cost` and facts that the bank lacks at most `--lacking_cost`; if all cost these more, the one that costs least.
Of settings with equal scores the one closest to the training is written. Of several runs, such as
the seeds of an experiment, all answers count together, and all get one setting: one run's answers tell less.
Answers are kept in the run folder (calibration.json). A second call measures only what is new there.
The values of the training as the only ones of `--scales`, `--asked`, `--edited` and `--edited_unsaid` take it back.
Give questions that test nothing. Facts of which the bank states several objects are left out. Edited runs are refused.
`eval_model.py` sets earlier results aside. Training the run again starts from the values of its flags.
Related: temperature scaling, Guo et al. 2017, arXiv:1706.04599.
"""

import argparse
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import NamedTuple

import numpy as np
from transformers.utils import logging as transformers_logging

from common.cli import CommandParser, choose_device, positive_int, run_command
from common.files import read_json
from dataset.tokenizer import load_tokenizer
from dataset.wordings import kept_back, read_wordings
from model import load_run
from runs.journal import Journal
from runs.run import write_json

from .calibrate_choice import Outcome, Setting, chosen, read_measured, together, write_measured
from .calibrate_questions import Questions, held_facts, questions_of
from .config import EvalConfig, precision
from .counterfact import ModelAnswers
from .gold import find_gold
from .language import language
from .likelihood import encode, score_sequences

SCALES, ASKED, UNSAID = (1.0, 1.5, 2.0), (0.0, 1.5), (0.0, 1.0, 3.0)
TEXT_ROWS = 64  # of the validation text
HEAD = "scale  asked  edited  unsaid  followed      kept   written  together  lacking  text loss"


class Unedited(NamedTuple):
    """What a setting does before any edit: `written` as in `Outcome`, answers about lacking facts, the loss of text."""

    written: np.ndarray
    lacking: np.ndarray
    text_loss: float | None


def measure_unedited(answers: ModelAnswers, asked: Questions, text: EvalConfig) -> Unedited:
    model, tokenizer = answers.model, answers.tokenizer
    encoded = encode(tokenizer, asked.written)
    scores = score_sequences(model, tokenizer, encoded, answers.batch_size, answers.most_tokens)
    written = np.array([score.is_greedy for score in scores], dtype=float)
    found = language(model, tokenizer, text)
    return Unedited(written, np.array(answers.choose(asked.lacking)), found["loss"] if found else None)


def measure_all(
    settings: list[Setting], answers: ModelAnswers, asked: Questions, text: EvalConfig
) -> dict[Setting, Outcome]:
    """What each setting does; prints a line of the table for each. All edits are made once, and taken back."""
    unedited = {}  # values for edited entries change nothing before an edit
    for setting in settings:
        if (key := (setting.scale, setting.asked)) not in unedited:
            use(setting, answers)
            unedited[key] = measure_unedited(answers, asked, text)
    with answers.edited(asked.edits):
        return {own: measure(own, answers, asked, unedited[own.scale, own.asked]) for own in settings}


def use(setting: Setting, answers: ModelAnswers) -> None:
    for name, value in setting._asdict().items():
        setattr(answers.model.pointer, name, value)


def measure(setting: Setting, answers: ModelAnswers, asked: Questions, unedited: Unedited) -> Outcome:
    """The answers with a setting after the edits, beside those before; prints a line of the table."""
    use(setting, answers)
    written, before, text_loss = unedited
    right = answers.choose([*asked.followed, *asked.kept, *asked.lacking])
    followed, kept, after = np.split(np.array(right), np.cumsum([len(asked.followed), len(asked.kept)]))
    lacking = float((before - after).mean()) if len(before) else 0.0
    outcome = Outcome(followed, kept, written, text_loss or 0.0, lacking)
    print(line_of(setting, outcome, len(before) > 0, text_loss is not None), flush=True)
    return outcome


def line_of(setting: Setting, outcome: Outcome, has_lacking: bool, has_text: bool) -> str:
    """A line of the table under `HEAD`."""
    told = "".join(f"{share:10.1%}" for share in (*outcome.shares, outcome.score))
    told += f"{100 * (0 - outcome.lacking):+9.1f}" if has_lacking else f"{'-':>9}"
    told += f" {outcome.text_loss:10.4f}" if has_text else f" {'-':>10}"
    return f"{setting.scale:5g}{setting.asked:7g}{setting.edited:8g}{setting.edited_unsaid:8g}{told}"


def require_values(args: argparse.Namespace) -> None:
    """Raises ValueError: a number is too small, or a flag is given without another one."""
    if min(args.scales) <= 0:
        raise ValueError(f"--scales must be above 0, got {min(args.scales):g}")
    for name in ("asked", "edited", "edited_unsaid"):
        if (values := getattr(args, name)) and min(values) < 0:
            raise ValueError(f"--{name} must be at least 0, got {min(values):g}")
    for name in ("text_cost", "lacking_cost"):
        if (value := getattr(args, name)) < 0:
            raise ValueError(f"--{name} must be at least 0, got {value:g}")
    if (args.wordings is None) != (args.kept_back is None):
        raise ValueError("give both --wordings and --kept_back, as for the questions of the training, or none")


def settings_to_try(args: argparse.Namespace, run_dir: Path, model, trained: Setting) -> list[Setting]:
    """Raises ValueError: the run has no pointer, no state that scales, or no preference for edited entries."""
    if not model.settings.pointer:
        raise ValueError(f"{run_dir} has no pointer: give a run that was trained with --pointer")
    if args.asked and not model.settings.pointer_state_scale:
        raise ValueError(f"{run_dir} was trained without --pointer_state_scale, so --asked changes nothing")
    knows_edits = trained.edited or trained.edited_unsaid
    for name in ("edited", "edited_unsaid"):
        if getattr(args, name) and not knows_edits:
            raise ValueError(f"{run_dir} was trained without --pointer_edited, so --{name} changes nothing")
    if args.edited_unsaid and not model.settings.unsaid_tokens:
        raise ValueError(f"{run_dir} was trained without --unsaid_tokens, so --edited_unsaid changes nothing")
    asked = args.asked or (ASKED if model.settings.pointer_state_scale else (0.0,))
    tried = UNSAID if knows_edits and model.settings.unsaid_tokens else ()
    edited = args.edited or (trained.edited, *([trained.edited + 1] if trained.edited else []))
    unsaid = args.edited_unsaid or (*tried, trained.edited_unsaid)
    return [Setting(*values) for values in product(*(sorted({*own}) for own in (args.scales, asked, edited, unsaid)))]


class Measured(NamedTuple):
    """Of one run: the setting in its config.json, that of its training, and what each setting did."""

    run_dir: Path
    before: Setting
    trained: Setting
    outcomes: dict[Setting, Outcome]


def measured(run_dir: Path, args: argparse.Namespace) -> Measured:
    """What each setting does in a run. What was measured before, of the same weights and questions, is kept there.

    Raises:
        FileNotFoundError, ValueError: the run has no pointer or has edits, or there are no questions.
    """
    wordings = kept_back(read_wordings(args.wordings), args.kept_back)[1] if args.wordings else None
    device = choose_device(args.device)
    model, tokenizer = load_run(run_dir, device), load_tokenizer(run_dir, "run")
    if edited := Journal(run_dir).edited_rows():
        raise ValueError(f"{run_dir} has {len(edited)} edited entries: undo them first (python -m editing undo)")
    flags, config = read_json(run_dir / "flags.json"), read_json(run_dir / "config.json")
    data = flags["data"]
    if data["object_path"] and Path(args.object_path).resolve() == Path(data["object_path"]).resolve():
        raise ValueError(f"--object_path {args.object_path} tests this run: give questions of the training")
    before, trained = map(Setting.of, (config, flags["model"]))
    settings, key = settings_to_try(args, run_dir, model, trained), key_of(run_dir, args)
    outcomes = read_measured(run_dir, key)
    if outcomes:
        print(f"{run_dir} has the answers of {len(outcomes)} settings from before (calibration.json)")
    if wanted := [setting for setting in settings if setting not in outcomes]:
        files = EvalConfig(
            object_path=args.object_path, limit=args.limit, batch_size=args.batch_size, cache_dir=data["cache_dir"]
        )
        gold = find_gold(run_dir, model, tokenizer, files, data["database_init_path"], args.database_init_path)
        asked = questions_to_ask(args, wordings, gold, tokenizer, files)
        text = text_to_read(data, args)
        with precision(device, flags["optim"]["dtype"]):
            print(f"{run_dir}\n{HEAD}")
            outcomes |= measure_all(wanted, ModelAnswers(model, tokenizer, files), asked, text)
        write_measured(run_dir, key, outcomes)
    return Measured(run_dir, before, trained, {setting: outcomes[setting] for setting in settings})


def key_of(run_dir: Path, args: argparse.Namespace) -> dict:
    """What the answers of a run depend on, beside its setting."""
    val_path = read_json(run_dir / "flags.json")["data"]["val_path"]
    others = [Path(path) for path in (args.object_path, args.wordings, val_path, args.database_init_path) if path]
    paths = [*sorted(run_dir.glob("*.safetensors")), *others]
    files = {str(path.resolve()): [path.stat().st_size, path.stat().st_mtime_ns] for path in paths if path.exists()}
    return {"files": files, "limit": args.limit, "kept_back": args.kept_back}


def questions_to_ask(args: argparse.Namespace, wordings, gold, tokenizer, files: EvalConfig) -> Questions:
    """Those of the file whose facts the bank has; tells how many there are, and how many facts it lacks."""
    held, gold, crowds, lacking = held_facts(args.object_path, args.limit, gold)
    if wordings is not None:
        held = [(row, fact) for row, fact in held if fact.predicate in wordings]
        print(f"{len(held)} of them have a predicate with wordings that were kept back")
        if not held:
            raise ValueError(f"{args.wordings} has no wordings of the facts' predicates: raise --kept_back")
    asked = questions_of(held, tokenizer, replace(files, gold=gold), crowds, wordings, lacking)
    if asked.lacking:
        print(f"{len(asked.lacking)} questions ask about facts that the bank lacks")
    else:
        print(f"--lacking_cost bounds nothing: the bank lacks no fact of {args.object_path} with an edited predicate")
    return asked


def text_to_read(data: dict, args: argparse.Namespace) -> EvalConfig:
    """The first rows of the run's validation text; tells if there is none."""
    val_path = data["val_path"] if data["val_path"] and Path(data["val_path"]).exists() else None
    if val_path is None:
        where = data["val_path"] or "in the flags of the run"
        print(f"the loss of text is left out, and --text_cost bounds nothing: there is no validation file {where}")
    return EvalConfig(val_path=val_path, limit=TEXT_ROWS, batch_size=8, cache_dir=data["cache_dir"])


def calibrate(args: argparse.Namespace) -> None:
    """Measure the settings in each run, write the one that is best in all together, and print what it changes.

    Raises:
        FileNotFoundError, ValueError: as `measured`, a number is too small, or the runs were trained in other ways.
    """
    require_values(args)
    runs = [measured(run_dir, args) for run_dir in args.run]
    trained = runs[0].trained
    for other in runs[1:]:
        if other.trained != trained or other.outcomes.keys() != runs[0].outcomes.keys():
            raise ValueError(
                f"{other.run_dir} was trained with {other.trained}, {runs[0].run_dir} with {trained}: give runs of one "
                "experiment"
            )
    outcomes = {setting: together([run.outcomes[setting] for run in runs]) for setting in runs[0].outcomes}
    if len(runs) > 1:
        print(f"{len(runs)} runs together\n{HEAD}")
        for setting, outcome in outcomes.items():
            print(line_of(setting, outcome, bool(outcome.lacking), bool(outcome.text_loss)))
    best = chosen(outcomes, trained, args.text_cost, args.lacking_cost)
    cost = ""
    if (least := outcomes[best].lacking) > args.lacking_cost:
        which = "every setting within --text_cost costs facts that the bank lacks"
        cost = f"; {which} more than --lacking_cost {args.lacking_cost:g}, this one least: {least:.4f}"
    for run_dir, before, _, _ in runs:
        if best == before:
            print(f"{run_dir} has the best setting already: {best}{cost}")
            continue
        config = read_json(run_dir / "config.json")
        write_json(run_dir / "config.json", config | {f"pointer_{name}": x for name, x in best._asdict().items()})
        print(f"{run_dir} has {best}, before {before}{cost}; ask again: python eval_model.py --run {run_dir}")


def main() -> None:
    parser = CommandParser(description=__doc__)
    parser.add_argument(
        "--run", nargs="+", required=True, type=Path,
        help="run folder, or several of one experiment, which get one setting; config.json is changed",
    )  # fmt: skip
    parser.add_argument("--object_path", required=True, help="object questions with the uuid of their facts, no tests")
    parser.add_argument("--database_init_path", help="where the run's knowledge file is, if it was moved")
    parser.add_argument("--scales", nargs="+", type=float, default=SCALES, help="values of pointer_scale to try")
    parser.add_argument(
        "--asked", nargs="+", type=float,
        help="values of pointer_asked to try with each scale (default: 0 1.5 for a run with --pointer_state_scale)",
    )  # fmt: skip
    parser.add_argument(
        "--edited", nargs="+", type=float,
        help="values of pointer_edited to try with each (default: the training's, and one nat more)",
    )  # fmt: skip
    parser.add_argument(
        "--edited_unsaid", nargs="+", type=float,
        help="values of pointer_edited_unsaid to try with each (default: the training's, and 0 1 3 for a run with "
        "--pointer_edited and --unsaid_tokens)",
    )  # fmt: skip
    parser.add_argument(
        "--text_cost", type=float, default=0.01,
        help="nats a token that the validation text may lose against the setting closest to the training (default: "
        "0.01)",
    )  # fmt: skip
    parser.add_argument(
        "--lacking_cost", type=float, default=0.01,
        help="share of the questions about facts that the bank lacks, which the edits may cost (default: 0.01, a "
        "point)",
    )  # fmt: skip
    parser.add_argument("--wordings", type=Path, help="the --wordings of the training's questions")
    parser.add_argument(
        "--kept_back", type=float, help="their --kept_back, which no run records: the share that is asked here"
    )
    parser.add_argument("--limit", type=positive_int, default=500, help="questions, at most; each in two wordings")
    parser.add_argument("--batch_size", type=positive_int, default=128, help="sequences of a batch")
    parser.add_argument("--device", help="cpu or cuda; default: cuda if there is one")
    args = parser.parse_args()
    transformers_logging.disable_progress_bar()
    calibrate(args)


if __name__ == "__main__":
    run_command(main)
