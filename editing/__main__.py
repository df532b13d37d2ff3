"""Show, edit and undo entries in the memory of a trained run.

    python -m editing --run out/quickstart_memory search "Lygia Pape"
    python -m editing --run out/quickstart_memory ask "Lygia Pape was born in"
    python -m editing --run out/quickstart_memory edit 4711 "Lygia Pape was born in 1930."
    python -m editing --run out/quickstart_memory import facts.tsv
    python -m editing --run out/quickstart_memory undo
    python -m editing --run out/with_a_table ngram "Lygia Pape was born in"
    python -m editing --run out/quickstart_memory        # one process: a command a line, or a text to ask; `help`

Edits are written to a journal in the run folder. Every later load of the run replays it. The weights do not change.
Entries and answers go to stdout, all else to stderr.
"""

import argparse
import re
import shlex
import sys
import time
from itertools import count
from pathlib import Path

from transformers.utils import logging as transformers_logging

from common.cli import CommandParser, positive_int, run_command, sentence
from dataset.own import read_templates

from .asking import Answer, ask, ask_facts
from .files import has_rows, read_facts
from .ngram_rows import OpenRun, read_rows
from .store import MemoryStore, Row

# Commands of a session whose text is the rest of the line, and their words before it; options may follow.
TEXT_AFTER = {"ask": 1, "search": 1, "ngram": 1, "add": 1, "edit": 2}
OPTIONS = re.compile(r"(\s+(--new_tokens|-n)\s+\d+)*$")


def say(text: str) -> None:
    """A line for a person; a pipe gets the data alone."""
    print(text, file=sys.stderr, flush=True)


def line(entry: Row) -> str:
    marks = "".join(f"  [{mark}]" for mark, on in (("frozen", entry.frozen), ("edited", entry.edited)) if on)
    return f"#{entry.row}  {entry.text or '(empty)'}{marks}"


def search(store: MemoryStore, args) -> None:
    say("by words (sum of the rarity of the shared tokens, in nats):")
    for score, entry in store.search_words(args.text, args.n):
        print(f"  {score:6.1f}  {line(entry)}", flush=True)
    say("by the model (weight of the entry after this text):")
    for name, weight, entry in store.search_model(args.text, args.n):
        print(f"  {weight:6.1%}  {name:8}  {line(entry)}", flush=True)


def ngram(run: OpenRun | MemoryStore, args) -> None:
    for read in read_rows(run, args.text, args.n):
        print(f"last {read.order} token{'s' * (read.order > 1)}: {read.ngram}")
        for head, (row, norm) in enumerate(zip(read.rows, read.norms, strict=True)):
            print(f"  head {head:<3}  row {row:<9}  norm {norm:.4g}")
        print("  likelier: " + ("   ".join(f"{effect:+.3g} {token!r}" for token, effect in read.likelier) or "none"))


def show_answer(answer: Answer) -> None:
    print(f"{answer.prompt} {answer.text}")
    print(f"  without the memory: {answer.without}")
    for weight, reader, entry in answer.read:
        print(f"  read {weight:4.0%}  {reader:8}  {line(entry)}")


def ask_(store: MemoryStore, args) -> None:
    if (args.text is None) == (args.file is None):
        raise ValueError("ask needs a text, or --file with facts to ask for")
    if args.text is not None:
        show_answer(ask(store, args.text, args.new_tokens))
        return
    begin, asked = time.perf_counter(), []
    for one in ask_facts(store, args.file, templates_of(args)):
        asked.append(one)
        mark = "right" if one.right else "WRONG"
        print(f"{mark}  {one.answer.prompt} {one.answer.text}   (without the memory: {one.answer.without})", flush=True)
    right, without = sum(one.right for one in asked), sum(one.right_without for one in asked)
    say(f"right: {right} of {len(asked)} with the memory, {without} without it, in {time.perf_counter() - begin:.1f} s")


def templates_of(args) -> dict[str, list[str]] | None:
    return read_templates(Path(args.templates)) if args.templates else None


def show(store: MemoryStore, args) -> None:
    entry = store.show(args.row)
    print(line(entry))
    if entry.fact:
        print(f"sentence: {entry.fact.sentence}")
        for name in ("subject", "predicate", "object", "uuid", "source"):
            if value := getattr(entry.fact, name):
                print(f"{name}: {value}")
    note_unknown_origin(store)


def note_unknown_origin(store: MemoryStore) -> None:
    if store.origin_problem:
        say(f"note: the origin of entries is unknown: {store.origin_problem}")


def diff(store: MemoryStore, args) -> None:
    for row, before, after in store.changed():
        if before != after:  # it was not only frozen
            print(f"#{row}\n- {before or '(empty)'}\n+ {after or '(empty)'}")


def log(store: MemoryStore, args) -> None:
    for entry in store.journal.entries():
        undoes = f" of {entry.undoes}" if entry.undoes else ""
        rows = ", ".join(f"#{change.row}" for change in entry.changes[:5]) + (" ..." if len(entry.changes) > 5 else "")
        print(f"{entry.number}  {entry.time}  {entry.operation}{undoes}  {rows}")


def edit(store: MemoryStore, args) -> None:
    before = store.show(args.row).text
    store.edit(args.row, args.text)
    print(line(store.show(args.row)))
    if before.split()[:2] != args.text.split()[:2]:  # probably another subject
        warn_of_grid(store, "the old words put this entry at its position")


def add(store: MemoryStore, args) -> None:
    print(line(store.show(store.add(args.text))))
    warn_of_grid(store, "the position of the empty entry does not fit this text")


def delete(store: MemoryStore, args) -> None:
    store.delete(*args.rows)
    for row in dict.fromkeys(args.rows):
        print(line(store.show(row)))


def warn_of_grid(store: MemoryStore, why: str) -> None:
    if store.model.settings.retrieval_class.has_grid:
        say(
            f"note: product keys find an entry by its position in their grid, and {why}: it may never be read; "
            "to change a fact about a subject, edit the entry of this subject"
        )


def undo(store: MemoryStore, args) -> None:
    say(f"line {store.undo(args.number)} of the journal is undone")


def export(store: MemoryStore, args) -> None:
    say(f"{store.export(args.path, args.changed)} entries written to {args.path}")
    note_unknown_origin(store)


def import_(store: MemoryStore, args) -> None:
    if has_rows(args.path):
        say(f"{store.import_file(args.path)} entries changed")
        return
    placed = store.import_facts(args.path, templates_of(args))
    note_unknown_origin(store)
    if not placed:
        say(f"nothing to import: all {len(read_facts(args.path))} facts are in the memory already")
        return
    for one in placed if not args.quiet else ():
        print(f"#{one.row}  {one.text}" + (f"   (was: {one.before})" if one.before else ""))
    replaced = sum(bool(one.before) for one in placed)
    say(
        f"{len(placed)} facts imported: {len(placed) - replaced} into empty entries, {replaced} in place of another "
        "object of their subject; `undo` takes all of them back"
    )
    if len(placed) > replaced:
        warn_of_grid(store, "the position of an empty entry does not fit its text")


def on_row(change):
    """A command that changes one entry, then prints it."""

    def command(store: MemoryStore, args) -> None:
        change(store, args)
        print(line(store.show(args.row)))

    return command


def add_commands(parser: argparse.ArgumentParser, required: bool = False) -> dict:
    """Add all commands to a parser; returns their own parsers by name."""
    commands = parser.add_subparsers(required=required, metavar="command")

    def command(name: str, function, help: str, *arguments: tuple) -> None:
        own = commands.add_parser(name, help=help, description=help)
        own.set_defaults(function=function)
        for flag, options in arguments:
            own.add_argument(flag, **options)

    row, text, path = ("row", {"type": int}), ("text", {}), ("path", {})
    n = ("-n", {"type": positive_int, "default": 5, "help": "how many"})
    templates = (
        "--templates",
        {"help": "JSON: the wording of each predicate; default: that of the bank's own entries"},
    )
    command("search", search, "find entries by words, and by what the model reads after the text", text, n)
    command(
        "ask", ask_, "let the model go on with a text, with the memory and without it, beside the entries read",
        ("text", {"nargs": "?", "help": "the beginning of a sentence"}),
        ("--file", {"help": "ask for the object of each fact of this file instead"}), templates,
        ("--new_tokens", {"type": positive_int, "default": 16, "help": "tokens of an answer, at most"}),
    )  # fmt: skip
    command(
        "ngram", ngram,
        "show the rows of the n-gram table that the last tokens of a text read, and the next tokens that they make "
        "likelier; a direct effect only, from the first gated block to the output head: later blocks are ignored",
        text, n,
    )  # fmt: skip
    command("show", show, "show an entry and its origin", row)
    command("edit", edit, "give an entry another text", row, text)
    command("add", add, "put a text into an empty entry", text)
    command("delete", delete, "empty entries", ("rows", {"type": int, "nargs": "+", "metavar": "row"}))
    command("freeze", on_row(lambda s, a: s.freeze(a.row)), "exclude an entry from rewriting by training", row)
    command("unfreeze", on_row(lambda s, a: s.freeze(a.row, False)), "allow rewriting by training", row)
    command(
        "undo", undo, "undo a line of the journal",
        ("number", {"type": int, "nargs": "?", "help": "number of the line; default: the last"}),
    )  # fmt: skip
    command("log", log, "list the lines of the journal")
    command("diff", diff, "show every edited entry, before and after")
    changed = ("--changed", {"action": "store_true", "help": "edited, frozen and unfrozen entries alone"})
    command("export", export, "write entries as JSON Lines", path, changed)
    command(
        "import", import_, "give facts (TSV, CSV, a knowledge file) a place each, or put back what export wrote", path,
        templates, ("--quiet", {"action": "store_true", "help": "do not list the facts"}),
    )  # fmt: skip
    return commands.choices


def words_of(text: str, commands: dict) -> list[str]:
    """The words of a line; a text needs no quotes, and a line that begins with no command is asked."""
    name = text.split(maxsplit=1)[0]
    if name not in commands:
        return ["ask", text.strip()]
    *before, rest = text.strip().split(maxsplit=TEXT_AFTER.get(name, 0))
    if name not in TEXT_AFTER or len(before) < TEXT_AFTER[name] or rest[0] in "\"'-":
        return shlex.split(text)
    options = OPTIONS.search(rest)
    return [*before, rest[: options.start()], *options[0].split()]


def session(store: MemoryStore) -> None:
    """Commands from stdin, a line each; a line that begins with none of them is asked. `quit` or the end ends it.

    Raises:
        ValueError: a line of a pipe is refused, and named; a person at a terminal may go on.
    """
    parser = CommandParser(prog="", add_help=False)
    commands, is_person = add_commands(parser, required=True), sys.stdin.isatty()
    say(f"{len(store.bank.tokens)} entries. Write the beginning of a sentence, or: {', '.join(commands)}, help, quit")
    for number in count(1):
        if is_person:
            sys.stderr.write("> ")
            sys.stderr.flush()
        text = sys.stdin.readline()
        words = text.split(maxsplit=1)[:1]
        if not text or words in (["quit"], ["exit"]):
            return
        if not words:
            continue
        if words == ["help"]:
            say(parser.format_help())
            continue
        try:
            args = parser.parse_args(words_of(text, commands))
            args.function(store, args)
            sys.stdout.flush()
        except BrokenPipeError:
            raise
        except (ValueError, OSError) as problem:
            if not is_person:
                raise ValueError(f"line {number}, {text.strip()!r:.80}: {sentence(problem)}") from problem
            say(f"error: {sentence(problem)}")
        except SystemExit:  # the help of a command ends nothing
            continue


def main() -> None:
    parser = CommandParser(prog="python -m editing", description=__doc__)
    parser.add_argument("--run", required=True, help="run folder of a memory model; ngram takes any with a table")
    parser.add_argument(
        "--bank", help="knowledge file to read in place of the bank of the training, with its own edits"
    )
    parser.add_argument("--database_init_path", help="where the run's knowledge file is, if it was moved")
    parser.add_argument("--cache_dir", help="folder of banks; default: as in the run's flags")
    add_commands(parser)
    args = parser.parse_args()
    transformers_logging.disable_progress_bar()
    places = {"knowledge_path": args.database_init_path, "cache_dir": args.cache_dir}
    needs_memory = args.bank or getattr(args, "function", None) is not ngram
    store = MemoryStore(args.run, bank_path=args.bank, **places) if needs_memory else OpenRun(args.run)
    if hasattr(args, "function"):
        args.function(store, args)
    else:
        session(store)


if __name__ == "__main__":
    run_command(main)
