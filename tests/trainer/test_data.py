"""What a run says about the files that it reads."""

import logging

from trainer.data import tell_unused


def test_the_log_says_how_many_sentences_a_bank_leaves_out(caplog):
    log = logging.getLogger("test_data")
    with caplog.at_level(logging.INFO):
        tell_unused({"unused": 0, "entries": 9}, "knowledge.json", log)
        assert caplog.messages == []
        tell_unused({"unused": 213, "entries": 9}, "knowledge.json", log)
    assert caplog.messages[0].startswith("213 sentences of knowledge.json have no place in the bank: --knowledge_num")
