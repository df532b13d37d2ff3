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

from common.cli import run_command, sentence
from common.files import atomic
from dataset.cache import content_key
from editing.store import MemoryStore
from runs.__main__ import main as experiment_main
from runs.run import find_runs
from tests.editing.conftest import run  # noqa: F401
from tests.runs.test_record import write_run

pytestmark = pytest.mark.fault("a command that cannot work")
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
    ("dataset.questions", "--object o.jsonl --preceded 2 --out q.jsonl", "--preceded must lie in"),
    (
        "dataset.questions",
        "--object o.jsonl --wordings w.json --out q.jsonl",
        "--wordings changes nothing at --reworded 0",
    ),
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
    ("eval_model", "--run . --retriever wrods", "^error: .*: argument --retriever: invalid choice: 'wrods'"),
    ("eval_model", "", "^error: .*: give --run or --compare"),
    ("editing", "--run . show one", "^error: python -m editing show: argument row: invalid int value: 'one'"),
    ("runs", "shwo", "^error: python -m experiment: argument command: invalid choice: 'shwo'"),
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
    name = f"{module}.__main__" if module in ("editing", "runs") else module
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


def test_an_error_of_the_system_names_its_path_and_a_cure():
    assert sentence(PermissionError(13, "Permission denied", "out/x")) == (
        "out/x: Permission denied; give permission, or name another path"
    )
    assert sentence(OSError("no room to write x: make room")) == "no room to write x: make room"
    assert "a to b" in sentence(OSError(18, "Invalid cross-device link", "a", None, "b"))


def test_a_damaged_run_is_named_and_hides_no_other(tmp_path, capsys):
    for name in ("good", "bad"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "run.json").write_text('{"state": "finished", "experiment": "x"}')
    (tmp_path / "bad/eval.json").write_text('{"obj')
    assert [found.name for found in find_runs(tmp_path)] == ["good"]
    assert f"left out: {tmp_path / 'bad/eval.json'}: not valid JSON" in capsys.readouterr().err
    (tmp_path / "good/metrics.jsonl").write_text('{"step": 1}\n{"step": 2, "lo{"step": 3}\n')
    with pytest.raises(ValueError, match="metrics.jsonl, line 2: not valid JSON"):
        find_runs(tmp_path)[0].metrics  # noqa: B018


def test_runs_in_a_folder_that_cannot_be_written_are_compared(tmp_path, monkeypatch, capsys):
    for name in ("one", "two"):
        write_run(tmp_path / name)
    monkeypatch.setattr("runs.plots.draw", refuse_to_write)
    monkeypatch.setattr(sys, "argv", ["experiment", "compare", "--root", str(tmp_path), "one", "two"])
    assert experiment_main() == 0
    printed = capsys.readouterr()
    assert "results" in printed.out and "the curves were not drawn" in printed.err
    monkeypatch.setattr(sys, "argv", [*sys.argv, "--png", "no/c.png"])
    assert experiment_main() == 1


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
