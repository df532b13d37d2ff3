"""Published sets about language, in a few rows of each published form, become files that --language_sets reads."""

import json
import zipfile

import pyarrow
import pytest
from pyarrow import parquet

from dataset.convert import convert_set
from dataset.language_sets import CHOICES, LAST_WORD, TEXT, read_sets

PAIR = {
    "sentence_good": "She sings.",
    "sentence_bad": "She sing.",
    "field": "syntax",
    "UID": "agreement",
    "pair_id": "0",
}
STEM = {"stem": "Which is a star?", "choices": [{"text": "Sun", "label": "1"}, {"text": "Moon", "label": "2"}]}
HUB = {"question": "Which is a star?", "choices": {"text": ["Sun", "Moon"], "label": ["A", "B"]}}
SCIENCE = {"question": "What is wet?", "distractor1": "sand", "distractor2": "fire", "distractor3": "air"}
WAYS = {"goal": "boil water", "sol1": "heat it ", "sol2": "cool it"}
NEXT = {
    "activity_label": "Cooking", "ctx_a": "A man [step] cooks.", "ctx_b": "he", "label": "1",
    "endings": ["sings.", "eats [substeps] it. [title] Serve"],
}  # fmt: skip
ARTICLES = [" = Oslo = \n", "\n", " A well @-@ known town . \n", " = = Early = = \n", " = Rome = \n", " Big . \n"]


def lines(*rows) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def archive(path, **files):
    with zipfile.ZipFile(path, "w") as out:
        for name, content in files.items():
            out.writestr(name, content)


@pytest.fixture
def converted(tmp_path):
    """converted(name, content): the set that a published file becomes; content is text, rows of parquet, or files."""

    def convert(name, content):
        path = tmp_path / {str: "file.jsonl", list: "file.parquet", dict: "file.zip"}[type(content)]
        if isinstance(content, str):
            path.write_text(content)
        elif isinstance(content, list):
            parquet.write_table(pyarrow.Table.from_pylist(content), path)
        else:
            archive(path, **content)
        told = convert_set(name, path, tmp_path / "out")
        assert told.endswith("rows): give to --language_sets")
        return read_sets([tmp_path / "out"], None)[0]

    return convert


@pytest.mark.parametrize(
    "content", [{"blimp-master/data/agreement.jsonl": lines(PAIR, PAIR)}, lines(PAIR, PAIR), [PAIR] * 2]
)
def test_blimp(converted, content):
    found = converted("blimp", content)
    assert (found.name, found.kind) == ("blimp", CHOICES)
    assert found.rows == [{"context": "", "choices": ["She sings.", "She sing."], "answer": 0, "field": "syntax"}] * 2


def test_lambada(converted):
    found = converted("lambada", lines({"text": "She told the king"}))
    assert found.kind == LAST_WORD and found.rows == [{"context": "She told the", "choices": [" king"], "answer": 0}]


@pytest.mark.parametrize("content", [lines({"question": STEM, "answerKey": "2"}), [HUB | {"answerKey": "B"}]])
def test_arc(converted, content):
    row = {"context": "Question: Which is a star?\nAnswer:", "choices": [" Sun", " Moon"], "answer": 1}
    assert converted("arc_easy", content).rows == [row]


@pytest.mark.parametrize("support, before", [("  It is said.", "It is said."), ("", "")])
def test_sciq(converted, support, before):
    found = converted("sciq", json.dumps([SCIENCE | {"support": support, "correct_answer": "water"}]))
    assert found.rows == [{
        "context": f"{before}\nQuestion: What is wet?\nAnswer:", "choices": [" sand", " fire", " air", " water"],
        "answer": 3,
    }]  # fmt: skip


def test_hellaswag_loses_the_marks_of_its_pages(converted):
    assert converted("hellaswag", lines(NEXT)).rows == [
        {"context": "Cooking: A man cooks. He", "choices": [" sings.", " eats it.. Serve"], "answer": 1}
    ]


@pytest.mark.parametrize(
    "content",
    [
        {"physicaliqa/dev.jsonl": lines(WAYS, WAYS), "physicaliqa/dev-labels.lst": "0\n1\n"},
        [WAYS | {"label": 0}, WAYS | {"label": 1}],
    ],
)
def test_piqa(converted, content):
    row = {"context": "Question: boil water\nAnswer:", "choices": [" heat it ", " cool it"]}
    assert converted("piqa", content).rows == [row | {"answer": 0}, row | {"answer": 1}]


@pytest.mark.parametrize("content", ["".join(ARTICLES), [{"text": line} for line in ARTICLES]])
def test_wikitext2(converted, content):
    found = converted("wikitext2", content)
    assert found.kind == TEXT
    assert [row["text"] for row in found.rows] == [
        "= Oslo =\nA well @-@ known town .\n= = Early = =", "= Rome =\nBig .",
    ]  # fmt: skip


def test_another_form_is_told(converted):
    with pytest.raises(ValueError, match="has another form than this program knows .*sentence_good"):
        converted("blimp", lines({"good": "x"}))
