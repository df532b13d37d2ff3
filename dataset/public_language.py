"""From published sets about language to files for `--language_sets`, in the words of lm-evaluation-harness.

Each function takes the one published file: as its authors give it, or as the hub has it (parquet).
"""

import json
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from common.files import parse_json, read_lines

from .formats import read_rows
from .questions import LETTERS, question_values

Rows = Iterator[tuple[int, dict]]


def archive_lines(path: Path, folder: str) -> Iterator[tuple[str, dict]]:
    """(name of the file, its value) of every line of the .jsonl files of a folder in a GitHub archive, or unpacked."""
    if path.is_dir():
        for file in sorted((path / folder).glob("*.jsonl")):
            yield from (
                (file.stem, parse_json(line, f"{file}, line {n}")) for n, line in read_lines(file) if line.strip()
            )
        return
    with zipfile.ZipFile(path) as archive:
        for name in sorted(archive.namelist()):
            inside = PurePosixPath(*PurePosixPath(name).parts[1:])  # without the name of the archive
            if str(inside.parent) == folder and inside.suffix == ".jsonl":
                for line in archive.read(name).decode().splitlines():
                    if line.strip():
                        yield inside.stem, json.loads(line)


def articles(paths: list[Path]) -> Iterator[str]:
    """Texts of WikiText, whose lines are rows: one begins at " = Title = "; deeper headings have more signs."""
    title, lines = re.compile(r"\s*= [^=].*[^=] =\s*"), []
    for path in paths:
        is_parquet = path.suffix == ".parquet"
        for _, row in read_rows(path, ["text"]) if is_parquet else read_lines(path):
            line = (row.get("text", "") if is_parquet else row).strip()
            if title.fullmatch(line) and lines:
                yield "\n".join(lines)
                lines = []
            lines += [line] * bool(line)
    if lines:
        yield "\n".join(lines)


def question(context: str, choices: list[str], right: int, **more) -> tuple[int, dict]:
    """A row for `--language_sets`; the choices come without their leading space."""
    return 0, {"context": context, "choices": [f" {choice}" for choice in choices], "answer": LETTERS[right]} | more


def blimp(paths: list[Path]) -> Rows:
    """Pairs of sentences, of which the first is good: which is likelier?"""
    is_set = paths[0].is_dir() or zipfile.is_zipfile(paths[0])
    rows = archive_lines(paths[0], "data") if is_set else question_values(paths[0])
    for _, row in rows:
        choices, about = [row["sentence_good"], row["sentence_bad"]], {"group": row["UID"], "field": row["field"]}
        yield 0, {"context": "", "choices": choices, "answer": "A"} | about


def lambada(paths: list[Path]) -> Rows:
    """The last word of a passage."""
    for _, row in question_values(paths[0]):
        context, _, word = row["text"].rpartition(" ")
        yield question(context, [word], 0)


def arc_easy(paths: list[Path]) -> Rows:
    """Questions of science lessons."""
    for _, row in question_values(paths[0]):
        if isinstance(row["question"], dict):  # as its authors give it
            asked, choices = row["question"]["stem"], row["question"]["choices"]
            texts, labels = ([choice[name] for choice in choices] for name in ("text", "label"))
        else:
            asked, texts, labels = row["question"], row["choices"]["text"], row["choices"]["label"]
        yield question(f"Question: {asked}\nAnswer:", texts, labels.index(row["answerKey"]))


def sciq(paths: list[Path]) -> Rows:
    """Questions of science, after a passage that supports the answer."""
    for _, row in question_values(paths[0]):
        context = f"{row.get('support', '').lstrip()}\nQuestion: {row['question']}\nAnswer:"
        yield question(context, [*(row[f"distractor{n}"] for n in (1, 2, 3)), row["correct_answer"]], 3)


def without_marks(text: str) -> str:
    """A text of HellaSwag without the marks of the pages that it was taken from."""
    return re.sub(r"\[.*?\]", "", text.strip().replace(" [title]", ". ")).replace("  ", " ")


def hellaswag(paths: list[Path]) -> Rows:
    """What happens next?"""
    for _, row in question_values(paths[0]):
        context = f"{row['activity_label']}: {row['ctx_a']} {row['ctx_b'].capitalize()}"
        yield question(without_marks(context), list(map(without_marks, row["endings"])), int(row["label"]))


def piqa(paths: list[Path]) -> Rows:
    """Which of two ways reaches a goal? The archive has the answers in a file of their own."""
    rows = ((row, row["label"]) for _, row in ([] if zipfile.is_zipfile(paths[0]) else question_values(paths[0])))
    if zipfile.is_zipfile(paths[0]):
        with zipfile.ZipFile(paths[0]) as archive:
            names = {PurePosixPath(name).name: name for name in archive.namelist() if "MACOSX" not in name}
            dev, labels = (archive.read(names[name]).decode().splitlines() for name in ("dev.jsonl", "dev-labels.lst"))
        rows = zip(map(json.loads, filter(str.strip, dev)), filter(str.strip, labels), strict=True)
    for row, label in rows:
        yield question(f"Question: {row['goal']}\nAnswer:", [row["sol1"], row["sol2"]], int(label))


def wikitext2(paths: list[Path]) -> Rows:
    """Articles, with the marks of the set: they are joined when they are read."""
    yield from ((0, {"text": text}) for text in articles(paths))
