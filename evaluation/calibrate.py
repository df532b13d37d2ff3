"""Choose how far the pointer of a trained run trusts the search, on questions in other words.

    python -m evaluation.calibrate --run out/experiment_1_6_14 --object_path dataset/stable/object_mcq_train.jsonl

A model learns the right entry from the words of its training questions. Questions in new words need the
search's scores more. `pointer_scale` in the run's config.json multiplies those at the pointer. The smallest scale with
nearly the least loss on the right answers is written, of those that cost the validation text at most `--text_cost`;
`--scales 1` takes it back. Give questions that test nothing.
Facts that the bank lacks are left out: where there is nothing to find, any trust in the search is too much.
`eval_model.py` sets earlier results aside. Training the run again starts from the scale of its flags.
Related: temperature scaling, Guo et al. 2017, arXiv:1706.04599.
"""

import argparse
from pathlib import Path

from transformers.utils import logging as transformers_logging

from common.cli import CommandParser, choose_device, positive_int, run_command
from common.constants import NO_ENTRY
from common.files import read_json
from dataset.questions import REWORDINGS, answer_index, read_named
from dataset.tokenizer import load_tokenizer
from model import load_run
from runs.run import write_json

from .config import EvalConfig, precision
from .gold import Gold, find_gold
from .language import language
from .likelihood import Encoded, encode, score_sequences

SCALES = (1.0, 1.5, 2.0, 2.5, 3.0, 4.0)
TOLERANCE = 0.03  # of the least loss: the smallest scale within it is chosen
TEXT_ROWS = 64  # of the validation text, whose loss is told beside


def right_answers(tokenizer, path: str, limit: int, gold: Gold | None) -> list[Encoded]:
    """The questions of a file in each wording of `REWORDINGS`, which no test uses, with their right answers.

    Args:
        limit: questions at most, before those are left out whose fact the bank lacks.
        gold: the facts that the bank holds. Questions that do not say which fact they ask for are all taken; None: all.
    Raises:
        FileNotFoundError, ValueError: the file is missing or malformed, its questions do not name their parts, or the
            bank holds none of their facts.
    """
    rows = read_named(path, "object", ("subject", "predicate"), limit, "object_path")
    if rows is None:
        raise ValueError(f"{path}: its questions name no subject and predicate, so they cannot be asked in other words")
    if gold is not None:
        held = [row for row in rows if "uuid" not in row or gold.row(row) != NO_ENTRY]
        if not held:
            raise ValueError(f"{path}: the bank holds no fact of its questions: give those of the training")
        print(f"{len(held)} of {len(rows)} questions are asked: the bank lacks the facts of the others")
        rows = held
    pairs = [(words.format(**row), f" {row['choices'][answer_index(row)]}") for words in REWORDINGS for row in rows]
    return encode(tokenizer, pairs)


def chosen(loss: dict[float, float], text_loss: dict[float, float], text_cost: float) -> float:
    """The smallest scale with nearly the least loss, of those that cost the text little beside the smallest scale."""
    allowed = [scale for scale in loss if text_loss[scale] <= text_loss[min(loss)] + text_cost]
    least = min(loss[scale] for scale in allowed)
    return min(scale for scale in allowed if loss[scale] <= (1 + TOLERANCE) * least)


def calibrate(args: argparse.Namespace) -> None:
    """Measure all scales, write the best, and print what it changes.

    Raises:
        FileNotFoundError, ValueError: the run has no pointer, there are no questions, or a number is too small.
    """
    if min(args.scales) <= 0:
        raise ValueError(f"--scales must be above 0, got {min(args.scales):g}")
    if args.text_cost < 0:
        raise ValueError(f"--text_cost must be at least 0, got {args.text_cost:g}")
    run_dir, device = Path(args.run), choose_device(args.device)
    model, tokenizer = load_run(run_dir, device), load_tokenizer(run_dir, "run")
    if not model.settings.pointer:
        raise ValueError(f"{run_dir} has no pointer: give a run that was trained with --pointer")
    flags = read_json(run_dir / "flags.json")
    data, config = flags["data"], read_json(run_dir / "config.json")
    if data["object_path"] and Path(args.object_path).resolve() == Path(data["object_path"]).resolve():
        raise ValueError(f"--object_path {args.object_path} tests this run: give questions of the training")
    files = EvalConfig(object_path=args.object_path, limit=args.limit, cache_dir=data["cache_dir"])
    gold = find_gold(run_dir, model, tokenizer, files, data["database_init_path"], args.database_init_path)
    encoded = right_answers(tokenizer, args.object_path, args.limit, gold)
    before = config.get("pointer_scale", 1.0)
    val_path = data["val_path"] if data["val_path"] and Path(data["val_path"]).exists() else None
    if val_path is None:
        where = data["val_path"] or "in the flags of the run"
        print(f"the loss of text is left out, and --text_cost bounds nothing: there is no validation file {where}")
    text = EvalConfig(val_path=val_path, limit=TEXT_ROWS, batch_size=8, cache_dir=data["cache_dir"])
    loss, text_loss = {}, {}
    with precision(device, flags["optim"]["dtype"]):
        for scale in sorted({*args.scales}):
            model.pointer.scale = scale
            scores = score_sequences(model, tokenizer, encoded, args.batch_size)
            loss[scale] = -sum(score.log_p for score in scores) / len(scores)
            exact = sum(score.is_greedy for score in scores) / len(scores)
            found = language(model, tokenizer, text)
            text_loss[scale] = found["loss"] if found else 0.0
            told = f"; loss of the validation text {found['loss']:.4f} nats a token" if found else ""
            print(f"scale {scale:g}: {loss[scale]:.4f} nats an answer, {exact:.1%} greedy{told}", flush=True)
    best = chosen(loss, text_loss, args.text_cost)
    if best == before:
        print(f"the run has the best scale already: {best:g}")
        return
    write_json(run_dir / "config.json", config | {"pointer_scale": best})
    print(f"pointer_scale of {run_dir}: {best:g}, before {before:g}; ask again: python eval_model.py --run {run_dir}")


def main() -> None:
    parser = CommandParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--run", required=True, help="run folder; its config.json is changed")
    parser.add_argument("--object_path", required=True, help="object questions with subject and predicate, no tests")
    parser.add_argument("--database_init_path", help="where the run's knowledge file is, if it was moved")
    parser.add_argument("--scales", nargs="+", type=float, default=SCALES, help="what is tried")
    parser.add_argument(
        "--text_cost", type=float, default=0.01,
        help="nats a token that the validation text may lose against the smallest scale (default: 0.01)",
    )  # fmt: skip
    parser.add_argument("--limit", type=positive_int, default=500, help="questions, at most; each in two wordings")
    parser.add_argument("--batch_size", type=positive_int, default=32, help="sequences of a batch")
    parser.add_argument("--device", help="cpu or cuda; default: cuda if there is one")
    args = parser.parse_args()
    transformers_logging.disable_progress_bar()
    calibrate(args)


if __name__ == "__main__":
    run_command(main)
