"""Show, edit and undo entries in the memory of a trained run.

    python -m editing --run out/quickstart_memory search "Lygia Pape"
    python -m editing --run out/quickstart_memory edit 4711 "Lygia Pape was born in 1930."
    python -m editing --run out/quickstart_memory undo

Edits are written to a journal in the run folder. Every later load of the run replays it. The weights do not change.
"""

import argparse
import sys

from transformers.utils import logging as transformers_logging

from common.cli import positive_int, run_command

from .store import MemoryStore, Row


def line(entry: Row) -> str:
    marks = "".join(f"  [{mark}]" for mark, on in (("frozen", entry.frozen), ("edited", entry.edited)) if on)
    return f"#{entry.row}  {entry.text or '(empty)'}{marks}"


def search(store: MemoryStore, args) -> None:
    print("by words (sum of the rarity of the shared tokens, in nats):")
    for score, entry in store.search_words(args.text, args.n):
        print(f"  {score:6.1f}  {line(entry)}")
    print("by the model (weight of the entry after this text):")
    for name, weight, entry in store.search_model(args.text, args.n):
        print(f"  {weight:6.1%}  {name:8}  {line(entry)}")


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
        print(f"note: the origin of entries is unknown: {store.origin_problem}", file=sys.stderr)


def diff(store: MemoryStore, args) -> None:
    for row, before, after in store.changed():
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


def warn_of_grid(store: MemoryStore, why: str) -> None:
    if store.model.settings.retrieval_class.has_grid:
        print(
            f"note: product keys find an entry by its position in their grid, and {why}: it may never be read; "
            "to change a fact about a subject, edit the entry of this subject",
            file=sys.stderr,
        )


def undo(store: MemoryStore, args) -> None:
    print(f"line {store.undo(args.number)} of the journal is undone")


def export(store: MemoryStore, args) -> None:
    print(f"{store.export(args.path, args.changed)} entries written to {args.path}")
    note_unknown_origin(store)


def import_(store: MemoryStore, args) -> None:
    print(f"{store.import_file(args.path)} entries changed")


def on_row(change):
    """A command that changes one entry, then prints it."""

    def command(store: MemoryStore, args) -> None:
        change(store, args)
        print(line(store.show(args.row)))

    return command


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m editing", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--run", required=True, help="run folder of a memory model")
    parser.add_argument("--database_init_path", help="where the run's knowledge file is, if it was moved")
    parser.add_argument("--cache_dir", help="folder of banks; default: as in the run's flags")
    commands = parser.add_subparsers(required=True, metavar="command")

    def command(name: str, function, help: str, *arguments: tuple) -> None:
        own = commands.add_parser(name, help=help, description=help)
        own.set_defaults(function=function)
        for flag, options in arguments:
            own.add_argument(flag, **options)

    row, text, path = ("row", {"type": int}), ("text", {}), ("path", {})
    n = ("-n", {"type": positive_int, "default": 5, "help": "how many"})
    command("search", search, "find entries by words, and by what the model reads after the text", text, n)
    command("show", show, "show an entry and its origin", row)
    command("edit", edit, "give an entry another text", row, text)
    command("add", add, "put a text into an empty entry", text)
    command("delete", on_row(lambda s, a: s.delete(a.row)), "empty an entry", row)
    command("freeze", on_row(lambda s, a: s.freeze(a.row)), "exclude an entry from rewriting by training", row)
    command("unfreeze", on_row(lambda s, a: s.freeze(a.row, False)), "allow rewriting by training", row)
    command(
        "undo",
        undo,
        "undo a line of the journal",
        ("number", {"type": int, "nargs": "?", "help": "number of the line; default: the last"}),
    )
    command("log", log, "list the lines of the journal")
    command("diff", diff, "show every edited entry, before and after")
    changed = ("--changed", {"action": "store_true", "help": "edited entries alone"})
    command("export", export, "write entries as JSON Lines", path, changed)
    command("import", import_, "make all edits of a JSON Lines file with row and text", path)

    args = parser.parse_args()
    transformers_logging.disable_progress_bar()
    args.function(MemoryStore(args.run, knowledge_path=args.database_init_path, cache_dir=args.cache_dir), args)


if __name__ == "__main__":
    run_command(main)
