"""What a run says about the files that it reads."""

import logging

import pytest

from trainer.config import parse_cli
from trainer.data import require_inputs, tell_unused


def test_the_log_says_how_many_sentences_a_bank_leaves_out(caplog):
    log = logging.getLogger("test_data")
    with caplog.at_level(logging.INFO):
        tell_unused({"unused": 0, "entries": 9}, "knowledge.json", log)
        assert caplog.messages == []
        tell_unused({"unused": 213, "entries": 9}, "knowledge.json", log)
    assert caplog.messages[0].startswith("213 sentences of knowledge.json have no place in the bank: --knowledge_num")


def test_a_folder_is_taken_wherever_a_file_is_and_what_is_wrong_in_it_names_the_flag(tmp_path):
    for name in ("text", "val", "bank"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.jsonl").write_text('{"text": "x"}\n')
    paths = {"--data_path": "text", "--val_path": "val", "--database_init_path": "bank"}
    flags = parse_cli([word for flag, name in paths.items() for word in (flag, str(tmp_path / name))])
    require_inputs(flags)
    for flag, name in paths.items():
        (tmp_path / name / "a.jsonl").rename(tmp_path / "kept")
        with pytest.raises(ValueError, match=f"{name} holds no data.*give another {flag}"):
            require_inputs(flags)
        (tmp_path / "kept").rename(tmp_path / name / "a.jsonl")
