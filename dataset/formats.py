"""Data files of every accepted form: JSON Lines (also packed by gzip or zstd), parquet, and folders of them."""

from collections.abc import Iterable, Iterator
from pathlib import Path

from common.files import parse_json, read_lines, require_file, unpacked_name

ROWS_AT_ONCE = 1024  # of a parquet file
SUFFIXES = (".jsonl", ".json", ".parquet")  # of the files of a folder; .jsonl.gz and .jsonl.zst too
BESIDE = ("README", "LICENSE", "LICENCE", ".")  # beginnings of names that stand beside data


def require_data(path: str | Path, flag: str | None = None) -> Path:
    """The path, if it is a file with something in it, or a folder of such files; `flag` is what names another.

    Raises:
        FileNotFoundError, ValueError: it is not there, empty, or a folder without data or with something else.
    """
    path = Path(path)
    for file in data_files(path, flag):
        require_file(file, flag)
    return path


def data_files(path: Path, flag: str | None = None) -> list[Path]:
    """The file itself, or the data files of a folder and of the folders in it, by name.

    Raises:
        ValueError: the folder has none, or a file of another kind.
    """
    if not path.is_dir():
        return [path]
    cure = f"give another --{flag}" if flag else "give another"
    files = []
    for file in sorted(files_inside(path)):
        if not unpacked_name(file).endswith(SUFFIXES):
            raise ValueError(
                f"{file} is none of {', '.join(SUFFIXES)}, also with .gz or .zst: name one file instead of the folder, "
                "or move this one away"
            )
        files.append(file)
    if not files:
        raise ValueError(f"the folder {path} holds no data, such as .jsonl or .parquet: {cure}")
    return files


def files_inside(folder: Path, above: tuple[Path, ...] = ()) -> Iterator[Path]:
    """The files of a folder and of the folders in it, linked ones too; what stands beside data is left out.

    Args:
        above: the folders that hold this one; a link to one of them is not followed again.
    """
    real = folder.resolve()
    if real in above:
        return
    for path in folder.iterdir():
        if path.name.startswith(BESIDE):
            continue
        if path.is_dir():
            yield from files_inside(path, (*above, real))
        else:
            yield path


def is_json_lines(path: Path) -> bool:
    return unpacked_name(path).endswith(".jsonl")


def read_records(path: Path, fields: Iterable[str] | None = None) -> Iterator[tuple[str, object]]:
    """The value of every line of JSON Lines, or of every row of parquet, with its place ("FILE, line N").

    Blank lines are left out. Of a folder all files are read, by name. Memory stays bounded.

    Args:
        fields: the columns of parquet to read, where the file has them; None: all.
    Raises:
        ValueError: a file cannot be read, or a line is not JSON; the place is named.
    """
    for file in data_files(path):
        if file.suffix == ".parquet":
            yield from read_rows(file, fields)
            continue
        for number, line in read_lines(file):
            if not line.isspace():
                place = f"{file}, line {number}"
                yield place, parse_json(line, place)


def read_rows(path: Path, fields: Iterable[str] | None = None) -> Iterator[tuple[str, dict]]:
    """Every row of a parquet file by column, with its place ("FILE, row N").

    Raises:
        ValueError: pyarrow is not installed, or the file is damaged.
    """
    try:
        import pyarrow.parquet as parquet  # optional: nothing else needs it
    except ModuleNotFoundError:
        raise ValueError(f"{path} is parquet, which needs a package: .venv/bin/python -m pip install pyarrow") from None
    number = 0
    try:
        with parquet.ParquetFile(path) as file:
            columns = [name for name in file.schema_arrow.names if fields and name in set(fields)] or None
            for batch in file.iter_batches(batch_size=ROWS_AT_ONCE, columns=columns):
                for row in batch.to_pylist():
                    number += 1
                    yield f"{path}, row {number}", {name: value for name, value in row.items() if value is not None}
    except (OSError, ValueError) as problem:
        what = str(problem).splitlines()[0] if str(problem) else type(problem).__name__
        raise ValueError(f"{path}, after row {number}: cannot be read ({what})") from None
