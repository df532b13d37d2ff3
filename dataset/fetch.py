"""Published data, in one command: downloaded, checked, and made into the files that the scripts read.

    python -m dataset.fetch                        # the list: name, size, licence, what it becomes
    python -m dataset.fetch minimind trex          # into dataset/stable
    python -m dataset.fetch my_folder              # your own file or folder (also file:...): what it holds, which flag
    python -m dataset.fetch https://host/a.jsonl.zst

A download that was cut goes on where it stopped when the same command is given again. HF_ENDPOINT names a mirror of
the hub.
"""

import filecmp
import hashlib
import importlib.util
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from urllib.parse import unquote, urlsplit

from common.cli import CommandParser, run_command
from common.files import atomic, unpacked_name

from .convert import read_triples
from .download import Progress, download
from .formats import data_files, read_records, require_data
from .knowledge import read_knowledge, read_values
from .language_sets import read_sets
from .pretrain import read_documents
from .public_questions import read_inserts, read_pararel
from .questions import FIELDS, read_questions
from .sources import SOURCES, File, Source

MEGABYTE = 1e6


def listing() -> str:
    """The table of all sources."""
    lines = [f"{'name':14} {'MB':>6}  {'licence':24} becomes"]
    for name, source in SOURCES.items():
        size = "?" if source.megabytes is None else str(source.megabytes)
        lines.append(f"{name:14} {size:>6}  {source.licence:24.24} {', '.join(source.makes)}")
        lines.append(f"{'':14} {'':6}  {source.what}")
    return "\n".join(lines)


def fetch(name: str, source: Source, out: Path, downloads: Path, say: Callable[[str], None]) -> None:
    """Download a source and write what it becomes into the folder `out`.

    Raises:
        ValueError: it cannot be had, has another content, or would replace a file.  OSError: there is no room.
    """
    size = "of unknown size" if source.megabytes is None else f"about {source.megabytes} MB"
    say(f"{name}: {source.what}; {size}; licence: {source.licence}")
    if any(file.name.endswith(".parquet") for file in source.files) and not importlib.util.find_spec("pyarrow"):
        raise ValueError(f"{name} is parquet, which needs a package: .venv/bin/python -m pip install pyarrow")
    made = [out / one for one in source.makes]
    there = [path for path in made if path.exists()]
    if there == made:
        say(f"{', '.join(map(str, made))}: there already; delete to make again")
        return
    if there:
        raise ValueError(f"{there[0]} is there, and {name} would replace it: move it away, or give another --out")
    paths = [download(file, downloads / name, say) for file in source.files]
    if source.convert is None:
        out.mkdir(parents=True, exist_ok=True)
        for path, target in zip(paths, made, strict=True):
            shutil.move(path, target)
        rest = ""
    else:
        from .public import make

        say(f"making {', '.join(source.makes)}")
        counts = make(source.convert, paths, source.makes, out, downloads / name)
        say("; ".join(f"{file}: {number} rows" for file, number in counts.items()))
        rest = f"; the download stays in {downloads / name}, and can be deleted"
    print(f"{', '.join(map(str, made))}: give to {source.flag}{rest}")


def describe(path: Path) -> str:
    """What a file or folder that a user brings holds, all of it read, and the flag to give it to.

    Raises:
        FileNotFoundError, ValueError: it is missing, or a line is not understood; file and line are named.
    """
    files = data_files(require_data(path))
    if unpacked_name(files[0]).endswith((".tsv", ".csv")):
        number = sum(1 for _ in read_triples(path))
        return f"{path} holds {number} facts: give it to python -m dataset.convert triples, or to dataset.questions"
    first = next(first_values(files[0]), None)
    fields = set(first) if isinstance(first, dict) else set()
    if "own_wording" in fields:
        return f"{path} holds {len(read_pararel(path, None))} questions of ParaRel: give it to --pararel_path"
    if fields.issuperset({"sentence", "questions", "object"}):
        return f"{path} holds {len(read_inserts(path, None))} facts to insert: give it to --insert_path"
    for kind in ("edit", "object", "relation", "verification"):  # an object question has a relation question's fields
        needed = FIELDS[kind]
        if fields.issuperset(needed):
            return f"{path} holds {len(read_questions(path, needed, None, 'path'))} questions: give it to --{kind}_path"
    if fields.issuperset({"context", "choices", "answer"}):
        number = sum(len(questions.rows) for questions in read_sets([path], None))
        return f"{path} holds {number} questions about language: give it to --language_sets"
    if isinstance(first, (str, list)) or fields & {"target", "sentence"}:
        number = sum(1 for _ in read_knowledge(path))
        return f"{path} holds {number} sentences: give it to --database_init_path, with --knowledge_num auto"
    number = characters = 0
    for document in read_documents(path):
        number += 1
        characters += len(document.text)
    return f"{path} holds {number} texts of {characters / MEGABYTE:.1f} million characters: give it to --data_path"


def first_values(path: Path):
    """The values of a file, to see of which kind it is."""
    if path.suffix != ".parquet" and unpacked_name(path).endswith(".json"):
        return (value for _, value in read_values(path))
    return (value for _, value in read_records(path))


def fetch_url(url: str, out: Path, downloads: Path, say: Callable[[str], None]) -> Path:
    """Download an address of the user's into the folder `out`.

    Raises:
        ValueError: it cannot be had, or a file of its name with another content is there.  OSError: there is no room.
    """
    place = hashlib.blake2b(url.encode(), digest_size=6).hexdigest()  # two addresses can end in the same name
    path = download(File(url), downloads / "other" / place, say)
    target = out / path.name
    if target.exists() and not filecmp.cmp(path, target, shallow=False):
        raise ValueError(
            f"{target} is there, and {url} has another content: move it away, or give another --out; the download "
            f"stays in {path}"
        )
    out.mkdir(parents=True, exist_ok=True)
    with atomic(target) as temporary:
        shutil.move(path, temporary)
    return target


def main() -> None:
    command = os.environ.get("DATA_COMMAND", "python -m dataset.fetch")  # data.sh names itself
    about = __doc__.replace("python -m dataset.fetch", command)
    parser = CommandParser(prog=command, description=about)
    parser.add_argument("names", nargs="*", help="names of the list, files or folders of your own, or addresses")
    parser.add_argument("--out", type=Path, default=Path("dataset/stable"), help="folder for what they become")
    parser.add_argument("--downloads", type=Path, default=Path("dataset/downloads"), help="folder for what is fetched")
    args = parser.parse_args()
    if not args.names:
        print(f"{listing()}\nnext: {command} NAME")
        return
    own = {name: Path(unquote(urlsplit(name).path)) if name.startswith("file:") else Path(name) for name in args.names}
    for name in args.names:
        if name not in SOURCES and "://" not in name and not own[name].exists():
            raise ValueError(
                f"{name!r} is neither a name of the list nor a file or folder: choose from {', '.join(SOURCES)}"
            )
    say = Progress()
    for name in args.names:
        if name in SOURCES:
            fetch(name, SOURCES[name], args.out, args.downloads, say)
        elif name.startswith(("http://", "https://")):
            print(describe(fetch_url(name, args.out, args.downloads, say)))
        else:
            print(describe(own[name]))
    sys.stdout.flush()


if __name__ == "__main__":
    run_command(main)
