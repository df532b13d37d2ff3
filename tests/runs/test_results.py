"""Rows of results are checked when they are read, and stand once."""

import json
from dataclasses import replace

import pytest

from runs.results import Row, append_rows, find, read_rows

ROW = Row(
    experiment="1.5.0", arm="memory", measure="object", value=98.6, unit="%", n=1999, seeds=[42, 1, 2],
    values=[98.5, 98.6, 98.7], interval=[98.2, 98.9], split="dev", protocol="knowledge-10k", commit="a1db0b9",
    machine="NVIDIA H100 80GB", date="2026-11-26", command="bash run_file/knowledge.sh", source="run",
)  # fmt: skip


def test_rows_come_back_as_they_were_written(tmp_path):
    path = tmp_path / "results.jsonl"
    assert read_rows(path) == []
    append_rows([ROW, replace(ROW, arm="plain", interval=None, note="one seed")], path)
    append_rows([replace(ROW, arm="shuffled")], path)
    rows = read_rows(path)
    assert [row.arm for row in rows] == ["memory", "plain", "shuffled"] and rows[0] == ROW
    assert "note" not in json.loads(path.read_text().splitlines()[0])
    assert find(rows, arm="shuffled").key == "1.5.0/shuffled/object/dev/knowledge-10k"


def test_a_row_is_found_alone_or_not_at_all():
    rows = [ROW, replace(ROW, arm="plain")]
    with pytest.raises(ValueError, match="no row with arm oracle"):
        find(rows, arm="oracle")
    with pytest.raises(ValueError, match="2 rows with measure object"):
        find(rows, measure="object")


def test_the_same_number_is_refused_twice(tmp_path):
    path = tmp_path / "results.jsonl"
    append_rows([ROW], path)
    before = path.read_text()
    for new in ([ROW], [replace(ROW, arm="plain")] * 2):
        with pytest.raises(ValueError, match="already"):
            append_rows(new, path)
    assert path.read_text() == before
    path.write_text(before * 2)
    with pytest.raises(ValueError, match="line 2: .* is in line 1 already"):
        read_rows(path)


@pytest.mark.parametrize(
    "changes, sentence",
    [
        ({"arm": "arm"}, "arm 'arm' is not one of plain, memory"),
        ({"value": "98"}, "value must be a finite number"),
        ({"value": 99.5}, "outside its interval"),
        ({"interval": None}, "needs a note"),
        ({"values": [1.0]}, "1 values for 3 seeds"),
        ({"seeds": 42}, "seeds must be a list"),
        ({"date": "26.11.2026"}, "date must look like"),
        ({"n": 0}, "n must be a positive count"),
        ({"commit": ""}, "commit must be a text"),
        ({"colour": 1}, "unknown field 'colour'"),
    ],
)
def test_a_row_that_cannot_be_is_refused_with_its_line(tmp_path, changes, sentence):
    path = tmp_path / "results.jsonl"
    second = json.loads(ROW.as_line()) | {"arm": "plain"} | changes
    path.write_text(ROW.as_line() + "\n" + json.dumps(second) + "\n")
    with pytest.raises(ValueError, match=f"line 2: .*{sentence}"):
        read_rows(path)


def test_a_missing_field_and_broken_json_are_told(tmp_path):
    path = tmp_path / "results.jsonl"
    value = json.loads(ROW.as_line())
    del value["machine"]
    path.write_text(json.dumps(value))
    with pytest.raises(ValueError, match="line 1: no field 'machine'"):
        read_rows(path)
    path.write_text('{"experiment": ')
    with pytest.raises(ValueError, match="line 1: not valid JSON"):
        read_rows(path)


def test_the_rows_of_the_project_are_sound():
    read_rows()
