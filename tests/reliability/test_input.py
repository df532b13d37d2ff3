"""Whatever a file or a flag holds, it works or ends with one sentence that names file and line: never a traceback."""

import gzip
import importlib.util
import json
import tempfile
from dataclasses import fields
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import GPT2Config, GPT2LMHeadModel

from common import files
from dataset import knowledge
from dataset.convert import read_trex, read_triples
from dataset.knowledge import load_bank, read_knowledge
from dataset.pretrain import open_token_cache, read_documents
from dataset.questions import read_questions
from dataset.tokenizer import load_tokenizer, read_texts
from model import ModelConfig, load_run
from runs.journal import FILE, Journal
from runs.run import Run
from tests.conftest import tiny_model
from trainer.config import DataConfig, OptimConfig, RunConfig, parse_cli

FACT = {"sentence": "A is in B.", "subject": "A", "predicate": "in", "object": "B", "uuid": "u"}
TRIPLE = {
    "subject": {"surfaceform": "A"}, "object": {"surfaceform": "B"}, "sentence_id": 0,
    "predicate": {"uri": "x/P17", "surfaceform": None},
}  # fmt: skip
TREX = {"text": "A is in B.", "sentences_boundaries": [[0, 10]], "triples": [TRIPLE]}
CHANGE = {"row": 1, "old_tokens": [1] * 5, "new_tokens": [2] * 5, "old_frozen": False, "new_frozen": True}
EDIT = {"operation": "edit", "time": "now", "undoes": None, "changes": [CHANGE]}


EXAMPLES = 30  # of each reader, always the same ones


def lines(*values) -> bytes:
    return "".join(json.dumps(value) + "\n" for value in values).encode()


def read_facts_asked(path: Path) -> list[dict]:
    return read_questions(path, ("question",), None, "object_path")


# name of the file -> what reads it, and a whole content
READERS = {
    "text.jsonl": (read_documents, lines({"text": "One é."}, {"prompt": "Who?", "answer": " I."}, {"text": ""})),
    "text.jsonl.gz": (read_documents, lines({"text": "One."}, {"text": "Two."})),
    "vocabulary.jsonl": (read_texts, lines({"text": "One."}, {"text": "Two."})),
    "array.json": (read_knowledge, json.dumps([{"target": [FACT, FACT]}, {"text": "T"}, "bare"], indent=1).encode()),
    "lines.json": (read_knowledge, lines(FACT, {"text": "T"}, "bare")),
    "triples.tsv": (read_triples, b"subject\tpredicate\tobject\nA\tin\tB\nC\tin\tD\tmine\tC is in D.\n"),
    "triples.csv": (read_triples, b'A,in,"B, C"\r\n"D ""d""",in,E\r\n'),
    "triples.csv.gz": (read_triples, b"A,in,B\n"),
    "trex.json": (read_trex, json.dumps([TREX, TREX]).encode()),
    "questions.jsonl": (read_facts_asked, lines({"question": "Is it ___?"}, {"question": "___ is.", "part": "seen"})),
    "run.json": (lambda path: [Run(path.parent).info], json.dumps({"state": "finished", "stages": []}).encode()),
    FILE: (lambda path: Journal(path.parent).replay(tiny_model().bank) or (), lines(EDIT, EDIT | {"undoes": 1})),
}
NASTY = [
    b"\xff", b"\xc3", b"\x00", b"\r\n", b"\r", b"\xef\xbb\xbf", b"\\ud800", b'"', b"\\", b"[" * 100_000,
    b'{"a":' * 5000, b"9" * 5000, b"-", b"NaN", b"1e999", b"null", b"true", b"{}", b"[]", b"}", b"\t", b",", b"\n\n",
    "\u2028".encode(),
]  # fmt: skip
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4) | st.just("\ud800"),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(
        st.sampled_from(["text", "prompt", "answer", "target", *FACT, *TRIPLE, *TREX, *CHANGE, *EDIT]),
        inner, max_size=4,
    ),
    max_leaves=8,
)  # fmt: skip


@st.composite
def contents(draw, whole: bytes) -> bytes:
    """Anything; or a whole content with nasty bytes in it, or cut; or well-formed JSON of other types."""
    kind = draw(st.sampled_from(["binary", "mutated", "types"]))
    if kind == "binary":
        return draw(st.binary(max_size=60))
    if kind == "types":
        return lines(*draw(st.lists(JSON, min_size=1, max_size=3)))
    content = whole
    for _ in range(draw(st.integers(1, 3))):
        begin, cut = draw(st.integers(0, len(content))), draw(st.integers(0, 4))
        content = content[:begin] + draw(st.sampled_from(NASTY)) + content[begin + cut :]
    return content


@pytest.mark.parametrize("examples", [EXAMPLES, pytest.param(10 * EXAMPLES, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", READERS)
def test_a_reader_works_or_says_in_one_sentence_what_is_wrong(name, survives, examples):
    reader, whole = READERS[name]

    @settings(max_examples=examples, deadline=None, derandomize=True, database=None)
    @given(content=contents(whole), cut=st.integers(0, 40) | st.none())
    @example(content=whole, cut=None)
    def check(content, cut):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / name
            if name.endswith(".gz"):
                content = gzip.compress(content)[:cut]
            path.write_bytes(content)
            try:
                for fact in reader(path):
                    str(fact).encode()  # what is let in can be written
            except (ValueError, FileNotFoundError) as refusal:
                assert str(path) in str(refusal) and "\n" not in str(refusal)

    with survives("fuzzed files", examples):
        check()


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer("dataset/tokenizer")


def test_each_kind_of_bad_line_is_named_and_each_kind_of_good_one_counted(tokenizer, tmp_path):
    def read(content: bytes) -> dict:
        (tmp_path / "text.jsonl").write_bytes(content)
        return open_token_cache(tmp_path / "text.jsonl", tokenizer, tmp_path / "cache").report

    good = b'\xef\xbb\xbf{"text": "One."}\r\n{"text": "NUL \\u0000"}\r\n{"text": " "}\r\n{"text": "\\ud83d\\ude00"}'
    assert (read(good)["documents"], read(good)["empty_documents"]) == (3, 1)
    for bad, sentence in (
        (b'{"text": "\xff"}', "line 2: not UTF-8"),
        (b'{"text": "\\ud83d"}', r"line 2: \\ud83d alone is half a character"),
        (b'{"text": 5}', 'line 2: no "text" field'),
        (b'{"text": "a\x00"}', "line 2: not valid JSON"),
        (b'{"text": ' + b"9" * 5000 + b"}", "line 2: not valid JSON"),
        (b"[" * 100_000, "line 2: not valid JSON"),
    ):
        with pytest.raises(ValueError, match=sentence):
            read(b'{"text": "One."}\n' + bad + b'\n{"text": "Three."}\n')


def test_every_sentence_of_a_knowledge_file_is_accounted_for(tokenizer, tmp_path):
    facts = [FACT, FACT | {"sentence": "Same uuid."}, FACT, {"text": ""}, "bare", "over"]
    (tmp_path / "k.json").write_text("\ufeff" + json.dumps(facts, indent=1).replace("\n", "\r\n"))
    report = load_bank(tmp_path / "k.json", tokenizer, 3, 4, tmp_path / "cache").report
    assert report["read"] == 6 == report["entries"] + report["empty"] + report["duplicated"] + report["unused"]


def test_a_line_or_value_without_end_does_not_fill_the_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "LONGEST", 1000)
    monkeypatch.setattr(knowledge, "LONGEST", 1000)
    monkeypatch.setattr(knowledge, "CHARACTERS_AT_ONCE", 100)
    (tmp_path / "t.jsonl").write_text('{"text": "One."}\n{"text": "' + "x" * 5000)
    with pytest.raises(ValueError, match="line 2: longer than 1000 characters"):
        list(read_documents(tmp_path / "t.jsonl"))
    (tmp_path / "k.json").write_text('["One.",\n"' + "x" * 5000)
    with pytest.raises(ValueError, match="line 2: .*a value longer than 1000 characters"):
        list(read_knowledge(tmp_path / "k.json"))
    (tmp_path / "k.json").write_text('["One.",\n oops ' + "x" * 5000)
    with pytest.raises(ValueError, match="line 2: not valid JSON"):  # and not read to its end first
        list(read_knowledge(tmp_path / "k.json"))


@pytest.mark.parametrize("reader", [read_knowledge, read_triples, read_texts, read_trex])
def test_what_is_no_file_is_refused(reader, tmp_path):
    loop = tmp_path / "loop.json"
    loop.symlink_to(loop)
    (tmp_path / "folder.json").mkdir()
    (tmp_path / "folder.json" / "itself").symlink_to(tmp_path / "folder.json")
    for path in (loop, tmp_path / "folder.json", tmp_path / "nowhere"):
        with pytest.raises((ValueError, FileNotFoundError), match=path.name):
            list(reader(path))


def test_a_template_that_does_not_fit_is_refused(tmp_path):
    (tmp_path / "t.tsv").write_text("A\tin\tB\n")
    for template in ("{", "{}", "{name}", "{subject.x}", "{subject[1]}"):
        with pytest.raises(ValueError, match="the template"):
            list(read_triples(tmp_path / "t.tsv", template))


def test_a_damaged_cache_is_refused(tokenizer, tmp_path):
    (tmp_path / "t.jsonl").write_bytes(lines({"text": "One."}, {"text": "Two."}))
    (tmp_path / "k.json").write_bytes(lines("One.", "Two.", "Three.", "Four."))
    readers = {
        "tokens_*": lambda: open_token_cache(tmp_path / "t.jsonl", tokenizer, tmp_path / "cache"),
        "bank_*": lambda: load_bank(tmp_path / "k.json", tokenizer, 4, 4, tmp_path / "cache"),
    }
    for pattern, reader in readers.items():
        reader()
        (folder,) = (tmp_path / "cache").glob(pattern)
        files = ("report.json", "tokens.npy") if pattern == "bank_*" else [path.name for path in folder.iterdir()]
        for name in files:
            content = (folder / name).read_bytes()
            for cut in (len(content) - 2, len(content) // 2, 0):
                (folder / name).write_bytes(content[:cut])
                with pytest.raises(ValueError, match="is damaged: delete it"):
                    reader()
            (folder / name).write_bytes(content)


FLAGS = [field.name for config in (ModelConfig, DataConfig, OptimConfig, RunConfig) for field in fields(config)]
VALUES = ["-1", "0", "1", "2", "3", "1.5", "nan", "inf", "-inf", "1e400", "", "x", "\udcff", "None", "True", str(2**70)]


@settings(max_examples=80, deadline=None, derandomize=True, database=None)
@given(st.lists(st.tuples(st.sampled_from(FLAGS), st.sampled_from(VALUES)), min_size=1, max_size=3))
def test_a_flag_is_taken_or_refused_in_one_sentence(pairs):
    argv = [part for name, value in pairs for part in (f"--{name}", value)]
    try:
        parse_cli(argv)
    except ValueError as refusal:
        assert "\n" not in str(refusal)


@pytest.mark.parametrize(
    "flags",
    ["--val_fraction 1", "--learning_rate nan", "--learning_rate inf", "--beta2 1", "--warmup_ratio -0.1", "--seed -1",
     "--weight_decay nan", "--grad_clip -1", "--eval_batches 0", "--max_skipped_in_row 0", "--balance_loss_coef -0.1",
     "--flash_backend flash_attn"],
)  # fmt: skip
def test_a_flag_out_of_range_is_refused(flags):
    with pytest.raises(ValueError, match=flags.split()[0]):
        parse_cli(flags.split())


def test_flash_attn_must_be_there_and_computes_in_16_bits(monkeypatch):
    flags = ["--flash_backend", "flash_attn", "--data_mode"]
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="needs the flash-attn package: pip install"):
        parse_cli([*flags, "padded"])
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    with pytest.raises(ValueError, match="take --dtype bfloat16 or float16"):
        parse_cli([*flags, "padded", "--dtype", "float32"])
    for mode in ("padded", "packed"):
        assert parse_cli([*flags, mode]).model.flash_backend == "flash_attn"


def test_the_weights_of_another_version_are_refused(tmp_path):
    tiny_model().save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["blocks.0.old_proj.weight"] = tensors.pop("blocks.0.retrieval.query_proj.weight")
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match="another version of the model .missing blocks.0.retrieval.query_proj.weight"):
        load_run(tmp_path)


def test_damaged_weights_and_those_of_another_project_are_refused(tmp_path):
    tiny_model().save_pretrained(tmp_path)
    whole, config = (tmp_path / "model.safetensors").read_bytes(), (tmp_path / "config.json").read_text()
    for content in (whole[:-100], whole[:5], b""):
        (tmp_path / "model.safetensors").write_bytes(content)
        with pytest.raises(ValueError, match="model.safetensors cannot be loaded, it is damaged"):
            load_run(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(whole)
    (tmp_path / "config.json").write_text(config.replace('"dim": 32', '"dim": 64'))
    with pytest.raises(ValueError, match="does not fit config.json: start the run again") as refusal:
        load_run(tmp_path)
    assert "\n" not in str(refusal.value)
    other = GPT2LMHeadModel(GPT2Config(n_layer=1, n_embd=8, n_head=2, vocab_size=11, n_positions=8))
    other.save_pretrained(tmp_path / "other")
    with pytest.raises(ValueError, match="holds a GPT2LMHeadModel, not a run of this project: give a run folder"):
        load_run(tmp_path / "other")


def test_the_journal_of_another_bank_is_refused(tmp_path):
    for wrong in ({"row": 49}, {"new_tokens": [1]}, {"new_tokens": [61] * 5}):
        (tmp_path / FILE).write_bytes(lines(EDIT | {"changes": [CHANGE | wrong]}))
        with pytest.raises(ValueError, match="line 1: entry .* does not fit the bank of 49 entries of 5 tokens"):
            Journal(tmp_path).replay(tiny_model().bank)
