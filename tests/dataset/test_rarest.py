"""Smaller banks: the sentences of each document with the rarest words."""

import json
import math

import pytest

from dataset.rarest import kept_rows, rareness, write_rarest

ROWS = [
    ("It is a town.", "Oslo"), ("Oslo lies on the Oslofjord.", "Oslo"), ("It is the capital.", "Oslo"),
    ("It is a river.", "Glomma"), ("The Glomma drains Rondane.", "Glomma"),
]  # fmt: skip


def test_rareness_is_the_mean_over_the_words_of_what_share_of_the_sentences_has_them():
    found = rareness(["a b", "a c", "a", "?"])
    assert found == pytest.approx([(math.log(4 / 3) + math.log(4)) / 2] * 2 + [math.log(4 / 3), 0])


def test_of_each_document_the_rarest_sentences_are_kept_in_their_order():
    assert kept_rows(ROWS, 0.5, None) == [0, 1, 4]  # rounded up
    drawn = {tuple(kept_rows(ROWS, 0.5, seed)) for seed in range(20)}
    assert kept_rows(ROWS, 0.5, 7) == kept_rows(ROWS, 0.5, 7)
    assert kept_rows([("a", "b")] * 100, 0.07, None) == list(range(7))
    assert len(drawn) > 3 and all(len(rows) == 3 and sum(row < 3 for row in rows) == 2 for rows in drawn)


def test_the_lines_are_kept_as_they_are(tmp_path, capsys):
    path, out = tmp_path / "k.jsonl", tmp_path / "out.jsonl"
    lines = [json.dumps({"sentence": sentence, "title": title, "more": 1}) for sentence, title in ROWS]
    path.write_text("\n".join([*lines[:2], "", *lines[2:]]))
    write_rarest(path, 0.3, None, out)
    assert out.read_text().splitlines() == [lines[1], lines[4]] and "2 of 5 sentences" in capsys.readouterr().out


@pytest.mark.parametrize(
    "line, message", [('{"sentence": "Oslo."}', "line 1 has no sentence or no title"), ("", "k.jsonl is empty")]
)
def test_a_file_without_titles_is_refused(line, message, tmp_path):
    (tmp_path / "k.jsonl").write_text(line + "\n")
    with pytest.raises(ValueError, match=message):
        write_rarest(tmp_path / "k.jsonl", 0.5, None, tmp_path / "out.jsonl")
    with pytest.raises(ValueError, match="--share must lie between 0 and 1, got 1"):
        write_rarest(tmp_path / "k.jsonl", 1, None, tmp_path / "out.jsonl")
