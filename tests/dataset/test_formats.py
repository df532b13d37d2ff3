"""The same data in every accepted form (packed, parquet, a folder), and what is refused, with its place."""

import gzip
import json
import sys

import pyarrow
import pytest
import zstandard
from pyarrow import parquet

from common.files import read_lines
from dataset.cache import content_key
from dataset.convert import read_trex
from dataset.formats import read_records, require_data
from dataset.knowledge import load_bank, read_knowledge
from dataset.pretrain import Document, open_pretrain_data, read_documents
from dataset.questions import read_questions
from dataset.tokenizer import read_texts

from .conftest import TEXTS

QUESTION = {"question": "Oslo is in ___.", "choices": ["Peru", "Norway"], "answer": "B"}
TURNS = [("system", "Be brief."), ("user", "Hi"), ("assistant", "Hello"), ("user", "Bye"), ("assistant", "Ciao")]
FORMS = ["plain", "gz", "zst", "parquet", "folder"]


@pytest.fixture
def put(tmp_path):
    """put(form, values): a file or folder that holds these JSON objects."""

    def put_as(form, values, name="d"):
        packed = "".join(json.dumps(value) + "\n" for value in values).encode()
        path = tmp_path / {"plain": f"{name}.jsonl", "folder": name, "parquet": f"{name}.parquet"}.get(
            form, f"{name}.jsonl.{form}"
        )
        if form == "plain":
            path.write_bytes(packed)
        elif form == "gz":
            path.write_bytes(gzip.compress(packed))
        elif form == "zst":  # two frames, as `zstd a b` writes them
            frames = (packed[: len(packed) // 2], packed[len(packed) // 2 :])
            path.write_bytes(b"".join(map(zstandard.compress, frames)))
        elif form == "parquet":
            parquet.write_table(pyarrow.Table.from_pylist(values), path)
        else:
            (path / "sub").mkdir(parents=True)
            (path / "README.md").write_text("words")
            half = len(values) // 2
            for name, part in (("a.jsonl", values[:half]), ("sub/b.jsonl", values[half:])):
                (path / name).write_text("".join(json.dumps(value) + "\n" for value in part))
        return path

    return put_as


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_text_facts_and_questions(put, form, tokenizer, tmp_path):
    path = put(form, [{"text": text, "source": "s"} for text in TEXTS])
    assert [document.text for document in read_documents(path)] == TEXTS == list(read_texts(path))
    rows = open_pretrain_data(path, tokenizer, 16, "packed", tmp_path / "cache")
    assert rows.report["documents"] == len(TEXTS)
    facts = [{"sentence": text, "subject": f"S{n}"} for n, text in enumerate(TEXTS)]
    path = put(form, facts, "facts")
    assert [fact.subject for fact in read_knowledge(path)] == [fact["subject"] for fact in facts]
    assert load_bank(path, tokenizer, 16, 4, tmp_path / "cache").fact(15).subject == "S15"


@pytest.mark.parametrize("form", FORMS)
def test_questions_are_read_in_every_form(put, form):
    rows = read_questions(
        put(form, [QUESTION | {"subject": str(n)} for n in range(4)]), ("question",), 3, "object_path"
    )
    assert [row["subject"] for row in rows] == ["0", "1", "2"] and rows[0]["answer"] == "B"


@pytest.mark.parametrize("form", ["plain", "parquet"])
def test_each_turn_of_the_assistant_is_predicted_after_all_turns_before_it(put, form):
    turns = [{"role": role, "content": content} for role, content in TURNS]
    first, second = read_documents(put(form, [{"conversations": turns}]))
    before = "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    assert first == Document(before + "Hello<|im_end|>\n", len(before))
    assert (
        second.text.startswith(first.text + "<|im_start|>user\nBye")
        and second.text[second.given :] == "Ciao<|im_end|>\n"
    )


def test_the_markup_becomes_the_tokenizer_s_special_tokens(put, tmp_path):
    from dataset.tokenizer import load_tokenizer

    tokenizer = load_tokenizer("dataset/tokenizer")
    turns = [{"role": role, "content": content} for role, content in TURNS[1:3]]
    rows = open_pretrain_data(put("plain", [{"conversations": turns}]), tokenizer, 64, "packed", tmp_path / "cache")
    batch = rows[0]
    predicted = batch["input_ids"][batch["labels"] >= 0].tolist()
    assert predicted[-1] == tokenizer.eos_token_id and tokenizer.decode(predicted).strip().startswith("Hello<|im_end|>")


@pytest.mark.parametrize(
    "line, sentence",
    [
        ({"conversations": [{"from": "human", "value": "x"}]}, 'line 2: turn 1 of "conversations" needs "role"'),
        ({"conversations": [{"role": "user", "content": "x"}]}, 'line 2: no turn of "conversations" is the assistant'),
        ({"conversations": "x"}, 'line 2: no turn of "conversations"'),
        ({"story": "x"}, 'line 2: no "text" field .*it has .story'),
        ([1], "line 2: .*it is not an object with fields"),
    ],
)
def test_a_text_that_is_not_understood_is_refused_with_its_line(put, line, sentence):
    with pytest.raises(ValueError, match=sentence):
        list(read_documents(put("plain", [{"text": "fine"}, line])))


@pytest.mark.parametrize("form", ["gz", "zst", "parquet"])
@pytest.mark.parametrize("fault", ["cut", "damaged"])
def test_a_cut_or_damaged_file_is_named(put, form, fault):
    path = put(form, [{"text": f"{n} {n * n}"} for n in range(5000)])
    content = bytearray(path.read_bytes())
    if fault == "cut":
        del content[len(content) // 2 :]
    else:
        content[: len(content) // 3] = bytes(len(content) // 3)
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"{path}, .*: cannot be read"):
        list(read_documents(path))


@pytest.mark.parametrize("name, package", [("d.zst", "zstandard"), ("d.parquet", "pyarrow")])
def test_a_missing_package_is_named_with_its_cure(tmp_path, monkeypatch, name, package):
    (tmp_path / name).write_bytes(b"x")
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ValueError, match=f"needs a package: .venv/bin/python -m pip install {package}"):
        list(read_records(tmp_path / name))


def test_a_folder_is_refused_for_what_it_lacks_or_what_is_no_data(tmp_path):
    with pytest.raises(ValueError, match="holds no data, .*: give another --data_path"):
        require_data(tmp_path, "data_path")
    (tmp_path / "a.jsonl").write_text('{"text": "x"}\n')
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(ValueError, match="empty.jsonl is empty"):
        require_data(tmp_path)
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(ValueError, match="notes.txt is none of .jsonl"):
        require_data(tmp_path)


def test_linked_folders_are_read_and_a_link_back_ends(put, tmp_path):
    elsewhere, folder = put("folder", [{"text": text} for text in TEXTS[:4]], "elsewhere"), tmp_path / "d"
    folder.mkdir()
    (folder / "a.jsonl").write_text(json.dumps({"text": TEXTS[4]}) + "\n")
    (folder / "b").symlink_to(elsewhere)
    (elsewhere / "back").symlink_to(folder)
    assert [document.text for document in read_documents(folder)] == [TEXTS[4], *TEXTS[:4]]
    (tmp_path / "t").mkdir()
    (tmp_path / "t" / "link").symlink_to(tmp_path / "trex")
    (tmp_path / "trex").mkdir()
    (tmp_path / "trex" / "a.json").write_text("[]")
    assert list(read_trex(tmp_path / "t")) == []  # refused if it had seen no file


def test_the_key_of_a_folder_follows_names_and_contents(put, tmp_path):
    folder, cache = put("folder", [{"text": "a"}, {"text": "b"}]), tmp_path / "cache"
    key = content_key(folder, cache)
    assert content_key(folder, cache) == key
    (folder / "a.jsonl").rename(folder / "z.jsonl")
    renamed = content_key(folder, cache)
    (folder / "z.jsonl").write_text('{"text": "c"}\n')
    assert len({key, renamed, content_key(folder, cache)}) == 3


def test_broken_utf_8_in_a_packed_file_is_named_with_its_line(tmp_path):
    path = tmp_path / "d.jsonl.zst"
    path.write_bytes(zstandard.compress(b'{"text": "x"}\n{"text": "\xff"}\n'))
    with pytest.raises(ValueError, match="line 2: not UTF-8"):
        list(read_lines(path))
