"""Every command line refuses what cannot work in one sentence that says what to do: never a traceback."""

import ast
import importlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from common.cli import run_command
from common.files import atomic
from dataset.cache import content_key
from editing.store import MemoryStore
from tests.editing.conftest import run  # noqa: F401

# In a folder that is a run of a memory model, with a text t.jsonl and questions o.jsonl.
REFUSED = [
    ("dataset.tokenizer", "--data nowhere.jsonl --out tok", "no file nowhere.jsonl: give another --data"),
    ("dataset.tokenizer", "--data t.jsonl --every 0 --out tok", "'0' is not a whole number of at least 1"),
    ("dataset.tokenizer", "--data t.jsonl --every 1 2 --out tok", "--every has 2 numbers for 1 files of --data"),
    ("dataset.tokenizer", "--data t.jsonl --vocab_size -5 --out tok", "--vocab_size must be at least 259"),
    ("dataset.tokenizer", "--data t.jsonl --out o.jsonl", "--out o.jsonl is a file: give a folder"),
    ("dataset.questions", "--object nowhere --out q.jsonl", "no file nowhere: give another --object"),
    ("dataset.questions", "--object o.jsonl --out no/q.jsonl", "there is no folder no to write q.jsonl into"),
    ("dataset.questions", "--object o.jsonl --reworded 2 --out q.jsonl", "--reworded must lie in"),
    ("dataset.questions", "--out q.jsonl", "no questions: give --object, --relation or --verification"),
    ("dataset.questions", "t.jsonl --out q", "your own facts need both: facts.tsv and --templates"),
    ("dataset.questions", "t.jsonl --templates t.jsonl --held_out 1 --out q", "--held_out must lie between 0 and 1"),
    ("dataset.questions", "t.jsonl --templates nowhere --out q", "no file nowhere: give another --templates"),
    ("dataset.fetch", "nothing", "'nothing' is neither a name of the list nor a file or folder"),
    ("dataset.fetch", "o.jsonl flags.json", 'flags.json, line 1: no "text" field'),
    ("dataset.overlap", "--text nowhere --questions o.jsonl --out p.jsonl", "no file nowhere: give another --text"),
    ("dataset.overlap", "--text t.jsonl --questions o.jsonl --out no/p.jsonl", "there is no folder no"),
    ("dataset.convert", "triples nowhere.tsv k.json", "no file nowhere.tsv"),
    ("dataset.convert", "triples t.jsonl k.json", "row 1: 1 columns, need subject, predicate and object"),
    ("dataset.quickstart", "--out o.jsonl", "File exists"),
    ("editing", "--run nowhere show 0", "nowhere holds no model.safetensors"),
    ("editing", "--run . search a -n -3", "'-3' is not a whole number of at least 1"),
    ("editing", "--run . export no/x.jsonl", "there is no folder no to write x.jsonl into"),
    ("editing", "--run . undo 5", "line 5 of the journal cannot be undone"),
    ("editing.trace", "--run . --prompts a --new_tokens 0", "'0' is not a whole number of at least 1"),
    ("editing.trace", "--run . --prompts LONG", "the prompt takes .* tokens, and the model reads at most 32"),
    ("eval_model", "--run nowhere", "nowhere holds no model.safetensors"),
    ("eval_model", "--run . --limit -1", "'-1' is not a whole number of at least 1"),
    ("eval_model", "--run . --device cuda:9", "'cuda:9' is not there"),
    ("eval_model", "--compare .", "has no eval.json: run eval_model.py --run . first"),
]


@pytest.mark.parametrize("module, flags, message", REFUSED, ids=[f"{m} {f}" for m, f, _ in REFUSED])
def test_what_cannot_work_is_refused_in_one_sentence(run, monkeypatch, capsys, module, flags, message):  # noqa: F811
    (run / "t.jsonl").write_text('{"text": "Oslo is in Norway."}\n')
    question = {"question": "Oslo is in ___.", "choices": ["Peru", "Norway"], "answer": 1, "object": "Norway"}
    (run / "o.jsonl").write_text(json.dumps(question | {"subject": "Oslo", "predicate": "in"}) + "\n")
    words = ["word " * 40 if flag == "LONG" else flag for flag in flags.split()]
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2]))
    monkeypatch.chdir(run)
    monkeypatch.setattr(sys, "argv", [module, *words])
    name = f"{module}.__main__" if module == "editing" else module
    with pytest.raises(SystemExit) as ended:
        run_command(importlib.import_module(name).main)
    said = str(ended.value.code) if isinstance(ended.value.code, str) else capsys.readouterr().err
    assert re.search(message, said), said
    assert ended.value.code not in (0, None) and "Traceback" not in said and len(said.strip().splitlines()[-1]) < 300


def refuse_to_write(*args, **options):
    raise PermissionError(13, os.strerror(13))


def test_a_run_is_shown_without_writing_anything(run, monkeypatch):  # noqa: F811
    from common import files

    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    monkeypatch.setattr(files, "flush", refuse_to_write)  # nothing is ever put in its place
    store = MemoryStore(run)
    assert store.show(0).text == "Paris is in France." and store.search_words("Rome")[0][1].row == 1
    assert store.search_model("Paris is in", 2) and list(store.changed()) == []
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before


def test_a_cache_that_can_only_be_read_is_still_of_use(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("x")
    key = content_key(tmp_path / "file", tmp_path / "cache")
    monkeypatch.setattr(Path, "mkdir", refuse_to_write)
    assert content_key(tmp_path / "file", tmp_path / "other") == key


def test_a_read_only_folder_is_named(tmp_path, monkeypatch):
    with pytest.raises(OSError, match="cannot be written: give permission, or give another --out .Permission denied"):
        with atomic(tmp_path / "file", "out"):
            refuse_to_write()


PACKAGES = ("common", "dataset", "model", "trainer", "runs", "evaluation", "editing", "benchmark")


@pytest.mark.parametrize("package", [*PACKAGES, "."])
def test_every_text_file_is_opened_as_utf_8(package):
    """The locale decides otherwise, and a file that one machine wrote cannot be read on another."""
    root = Path(__file__).parents[2]
    for path in sorted((root / package).glob("*.py" if package == "." else "**/*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call):
                continue
            name = getattr(node.func, "id", getattr(node.func, "attr", ""))
            owner = getattr(getattr(node.func, "value", None), "id", "")
            names = {keyword.arg for keyword in node.keywords}
            assert "text" not in names or owner != "subprocess", f"{path}, line {node.lineno}: give encoding='utf-8'"
            is_open = name in ("open", "FileHandler") and owner not in ("os", "gzip", "RunFolder")
            if not is_open and not (name in ("read_text", "write_text") and isinstance(node.func, ast.Attribute)):
                continue
            mode = next((a.value for a in node.args[1:2] if isinstance(a, ast.Constant)), "r")
            assert "encoding" in names or "b" in str(mode), f"{path}, line {node.lineno}: give encoding='utf-8'"


def test_a_reader_that_has_seen_enough_ends_a_command_without_a_word():
    command = "from common.cli import run_command; run_command(lambda: [print('x' * 999) for _ in range(999)] and None)"
    process = subprocess.Popen([sys.executable, "-c", command], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout.read(1) == b"x"
    process.stdout.close()
    assert process.stderr.read() == b"" and process.wait() == 141
