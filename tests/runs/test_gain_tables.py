"""The tables of gains show what is measured so far, each loss against the right other one."""

import pytest

from runs.documents.gain_tables import BEST_ADAMW, MIXED, WIKI, family, mixed_sources
from runs.documents.page import Page
from runs.documents.rows import Rows
from runs.documents.tables import recipe, sentences
from tests.runs.test_tree import row

LR = ", learning rate 4.5e-3"
BANK = "1.6.21"
PLAIN = (
    row(BEST_ADAMW, "plain", "val_loss", 3.3, 0.01, values=[3.301, 3.299], split=WIKI[0], protocol=WIKI[1]),
    row("1.6.0, learning rate 4.5e-3", "plain", "val_loss", 3.0, 0.01, split=WIKI[0], protocol=WIKI[1]),
)


def lines_of(table, *rows) -> dict[str, list[str]]:
    text = table(Page(Rows(list(rows), [], [], [], []), "en"))
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"]
    return {", ".join(line[:2]): line[2:] for line in cells[2:]} | {"head": cells[0]}


def wiki(name: str, value: float, arm: str = "memory", measure: str = "val_loss"):
    return row(name, arm, measure, value, 0.01, values=[value + 0.001, value - 0.001], split=WIKI[0], protocol=WIKI[1])


def test_1_4_8_by_single_changes_is_shown_before_all_of_it_is_measured():
    lines = lines_of(family, *PLAIN)
    assert lines["1.4.0, plain"][:2] == ["3.300 ± 0.010", "2"]
    assert lines["1.6.23, feed-forward kept"] == ["–"] * 6
    lines = lines_of(
        family, *PLAIN, wiki("1.4.8", 3.465), wiki("1.6.23", 3.3), wiki("1.6.23", 3.63, "shuffled"),
        wiki("1.6.25", 3.2), wiki("1.6.26, trained with a shuffled bank", 3.3),
    )  # fmt: skip
    assert lines["1.4.8, a memory in place of the feed-forward"][3:] == ["5.0 ± 0.2", "–", "–"]
    assert lines["1.6.23, feed-forward kept"][3:] == ["0.0 ± 0.2", "-4.8 ± 0.2", "10.0 ± 0.2"]
    assert lines["1.6.25, tokens of entries read, not vectors"][4] == "–"  # the line above it has no loss
    assert lines["1.6.26, trained with a shuffled bank"][3:] == ["0.0 ± 0.2", "–", "–"]


@pytest.mark.parametrize("table", [recipe, sentences])
def test_runs_of_that_family_stand_in_no_other_table(table):
    text = table(Page(Rows([*PLAIN, wiki("1.4.8", 3.4), wiki("1.6.26, a control", 3.2)], [], [], [], []), "en"))
    assert "1.4.8" not in text and "1.6.26" not in text and "| 0.0 |" in text


def mixed(name: str, arm: str, value: float, measure: str = "val_loss"):
    return row(name, arm, measure, value, None, split=MIXED[0], protocol=MIXED[1], n=5000)


def test_each_source_stands_beside_the_plain_model_of_the_better_learning_rate():
    novels = "val_loss_english_novels"
    plain = [
        mixed("1.6.0", "plain", 3.2),
        mixed("1.6.0", "plain", 9.9, "val_loss_below_1.4.0"),
        mixed("1.6.0" + LR, "plain", 3.1),
    ]
    lines = lines_of(mixed_sources, *plain)
    assert lines["head"][2:4] == ["1.6.0" + LR, BANK] and lines["all text, 5,000"] == ["3.100", "–", "–"]
    sources = [mixed("1.6.0" + LR, "plain", 4.0, novels), mixed("1.6.0", "plain", 3.9, novels)]
    memory = [mixed(BANK, "memory", 3.0), mixed(BANK, "memory", 4.04, novels), mixed(BANK, "shuffled", 5.0, novels)]
    lines = lines_of(mixed_sources, *plain, *sources, *memory)
    assert lines["all text, 5,000"][:3] == ["3.100", "3.000", "-3.2"]
    assert lines["english novels, 5,000"] == ["4.000", "4.040", "1.0"] and len(lines) == 3
