"""Facts of one's own: imported into places that the program chooses, asked with and without the memory, other banks."""

import io
import json
import sys
from types import SimpleNamespace

import pytest
import torch

from common.cli import run_command
from dataset.knowledge import Fact, load_bank
from dataset.tokenizer import load_tokenizer
from editing import __main__ as command_line
from editing.asking import ask, ask_facts, first_sentence, is_object
from editing.files import FileCommands
from editing.store import MemoryStore
from model import load_run
from runs.load import load_run_bank, with_bank
from tests.conftest import tiny_model

from .conftest import FACTS


def known(text: str) -> dict:
    subject, _, object = text.rstrip(".").partition(" is in ")
    return {"sentence": text, "subject": subject, "predicate": "country", "object": object, "uuid": subject}


@pytest.fixture
def origin(run):
    """The run, with the knowledge file that its bank was made from and the two empty entries in reserve."""
    (run / "k.jsonl").write_text("".join(json.dumps(known(text)) + "\n" for text in FACTS))
    flags = json.loads((run / "flags.json").read_text())
    flags["data"] |= {"database_init_path": str(run / "k.jsonl"), "reserve_entries": 2}
    (run / "flags.json").write_text(json.dumps(flags))
    return run


def table(run, *rows: str):
    path = run / "own.tsv"
    path.write_text("".join("\t".join(row.split("|")) + "\n" for row in rows))
    return path


def test_facts_take_the_entry_of_their_subject_or_an_empty_one_in_the_words_of_the_bank(origin):
    store = MemoryStore(origin)
    rows = ("Bern|country|Aargau", "Rome|country|Chile", "Oslo|country|Norway")
    placed = store.import_facts(table(origin, *rows))
    assert [(one.row, one.text, one.before) for one in placed] == [
        (4, "Bern is in Aargau.", ""), (1, "Rome is in Chile.", "Rome is in Italy."),
    ]  # fmt: skip
    assert len(store.journal.entries()) == 1 and MemoryStore(origin).text(4) == "Bern is in Aargau."
    assert store.import_facts(table(origin, *rows)) == []
    again = store.import_facts(table(origin, "Bern|country|Peru", "Rome|country|Peru"))
    assert [(one.row, one.before) for one in again] == [(4, "Bern is in Aargau."), (1, "Rome is in Chile.")]
    store.undo()
    store.undo()
    assert list(store.changed()) == []


def test_an_entry_of_another_predicate_or_of_unknown_origin_is_never_replaced(origin):
    rows, wording = ("Rome|constellation|Peru", "Oslo|country|Peru"), {"constellation": ["{subject} is in {object}."]}
    store = MemoryStore(origin)
    assert [(one.row, one.before) for one in store.import_facts(table(origin, *rows), wording)] == [
        (4, ""), (2, "Oslo is in Norway."),
    ]  # fmt: skip
    assert [one.row for one in store.import_facts(table(origin, "Rome|constellation|Chile"), wording)] == [4]
    assert store.add("Kyiv is in Peru.") == 5
    with pytest.raises(ValueError, match="no entry is empty, and 1 are to be added"):
        store.import_facts(table(origin, "Kyiv|country|Chile"))


def test_two_objects_of_one_subject_take_two_entries_and_what_stays_is_not_replaced(origin):
    store = MemoryStore(origin)
    placed = store.import_facts(table(origin, "Oslo|country|Norway", "Oslo|country|Peru", "Kyiv|country|Peru"))
    assert [one.row for one in placed] == [4, 5] and store.text(2) == "Oslo is in Norway."


def test_a_sentence_or_a_template_gives_the_wording_where_the_bank_has_none(run):
    store = MemoryStore(run)  # the knowledge file of this run is gone
    with pytest.raises(
        ValueError, match=r"predicate 'country' of 'Bern', so its wording is unknown \(there is no file"
    ):
        store.import_facts(table(run, "Bern|country|Aargau"))
    store.import_facts(table(run, "Bern|country|Aargau||Bern lies in Aargau."))
    assert store.text(4) == "Bern lies in Aargau."
    store.import_facts(table(run, "Bern|country|Peru"), {"country": ["{subject} lies in {object}."]})
    assert store.text(4) == "Bern lies in Peru." and store.text(5) == ""


@pytest.mark.parametrize(
    "predicate, told",
    [
        ("Country", "; the nearest it has is 'country'; its commonest are 'country': write one of"),
        ("capital", "; its commonest are 'country': write one of"),
    ],
)
def test_an_unknown_predicate_is_told_beside_those_of_the_bank(origin, predicate, told):
    with pytest.raises(ValueError, match=f"has the predicate '{predicate}' of 'Bern', so its wording is unknown{told}"):
        MemoryStore(origin).import_facts(table(origin, f"Bern|{predicate}|Aargau"))


def test_a_predicate_may_have_dashes_where_the_bank_has_spaces():
    bank = SimpleNamespace(
        facts=lambda: enumerate([Fact("", predicate="place of birth")] * 2 + [Fact("", predicate="x")])
    )
    store = SimpleNamespace(trained_bank=bank)
    told = "; the nearest it has is 'place of birth'; its commonest are 'place of birth', 'x': write one of these, "
    assert FileCommands._predicates_like(store, "Place_of-birth") == told
    assert FileCommands._predicates_like(SimpleNamespace(trained_bank=None), "x") == ": "


def test_a_sentence_in_the_column_of_the_source_is_refused(run):
    store = MemoryStore(run)
    with pytest.raises(
        ValueError, match="own.tsv, row 1: the fourth column is the source, and 'Bern is.* fifth column"
    ):
        store.import_facts(table(run, "Bern|country|Peru|Bern is in Peru."))
    store.import_facts(table(run, "Bern|country|Peru|Atlas, 9th ed.|Bern is in Peru."))
    assert store.show(4).fact.source == "Atlas, 9th ed."


def test_more_facts_than_places_are_refused_with_the_cure_and_none_is_taken(origin):
    store, rows = MemoryStore(origin), [f"Bern{n}|country|Peru" for n in range(3)]
    with pytest.raises(
        ValueError, match="2 of the 6 entries are empty, and 1 .*--knowledge_num auto --reserve_entries 100"
    ):
        store.import_facts(table(origin, *rows))
    assert store.journal.entries() == []
    store.import_facts(table(origin, *rows[:2]))
    with pytest.raises(
        ValueError, match="all 6 entries are taken: delete one, edit one, or train with --knowledge_num auto"
    ):
        store.add("Bonn is small.")


def test_a_text_that_is_too_long_is_named_and_none_is_taken(origin):
    store, path = MemoryStore(origin), table(origin, "Bern|country|Peru", "Bonn|country|Peru||Bonn " + "and Bonn " * 9)
    with pytest.raises(
        ValueError, match=f"{path}, 'Bonn and .*: entry 5: the text takes .* an entry holds 8: shorten it"
    ):
        store.import_facts(path)
    assert store.journal.entries() == []


def test_a_knowledge_file_is_imported_too(run):
    path = run / "more.json"
    path.write_text(json.dumps(["Bern is big.", "Bern is big.", FACTS[0]]))
    assert [one.row for one in MemoryStore(run).import_facts(path)] == [4]


def test_asking_shows_the_answer_without_the_memory_and_leaves_the_bank_alone(run):
    before = (store := MemoryStore(run)).bank.tokens.clone()
    answer = ask(store, "Oslo is in", 2)
    assert torch.equal(store.bank.tokens, before) and answer.read[0][2].row == 2
    assert {reader for _, reader, _ in answer.read} == {"block 0", "block 1", "pointer"}
    store.edit_many([(row, f"Kyiv{row} was big.") for row in range(4)])
    assert ask(store, "Oslo is in", 2).without == answer.without  # whatever the bank says


def test_asked_facts_are_compared_with_their_objects(origin, monkeypatch):
    from editing import asking

    monkeypatch.setattr(asking, "ask", lambda store, text, n: asking.Answer(text, "Peru.", "Perugia.", []))
    (asked,) = ask_facts(MemoryStore(origin), table(origin, "Bern|country|Peru"))
    assert asked.answer.prompt == "Bern is in" and asked.right and not asked.right_without
    with pytest.raises(ValueError, match="has no subject before its object"):
        ask_facts(MemoryStore(origin), table(origin, "Bern|country|Peru||Peru has Bern."))


@pytest.mark.parametrize(
    "text, first",
    [(" 1927. He", "1927."), ("3.5 km. X", "3.5 km."), ("no end", "no end"), ("\n\nA!", "A!"), ("U.S. is", "U.S.")],
)
def test_an_answer_ends_with_its_sentence(text, first):
    assert first_sentence(text) == first


def test_an_object_is_whole_words():
    assert is_object("peru, and", "Peru") and not is_object("Perugia.", "Peru") and not is_object("", "Peru")


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def talk(run, monkeypatch, capsys):
    """talk(lines): stdout, stderr and exit code of a session that is given these lines."""

    def session(*lines, is_person=False):
        monkeypatch.setattr(sys, "argv", ["editing", "--run", str(run)])
        monkeypatch.setattr(
            sys, "stdin", (Terminal if is_person else io.StringIO)("".join(f"{line}\n" for line in lines))
        )
        code = 0
        try:
            run_command(command_line.main)
        except SystemExit as ended:
            code = ended.code
        return *capsys.readouterr(), code

    return session


def test_one_process_takes_commands_and_texts_and_pipes_get_data_alone(talk):
    out, err, code = talk("show 0", "", 'edit 0 "Paris is in Spain."', "Oslo is in", "undo", "show 3", "quit", "show 1")
    lines = out.splitlines()
    assert code == 0 and lines[:2] == ["#0  Paris is in France.", "#0  Paris is in Spain.  [edited]"]
    assert lines[2].startswith("Oslo is in ") and lines[3].startswith("  without the memory: ")
    assert "line 1 of the journal is undone" in err and lines[-1] == "#3  Lima is in Peru." and "> " not in err


def test_a_refused_command_of_a_pipe_ends_it(talk):
    out, _, code = talk("show 77", "show 0")
    assert code == "error: line 1, 'show 77': there is no entry 77: they are numbered from 0 to 5" and out == ""
    _, err, code = talk("show 0", "", "show x")
    assert code.startswith("error: line 3, 'show x': show: argument row: invalid int value: 'x'") and "usage" not in err
    assert talk("undo", "show 0")[2] == "error: line 1, 'undo': there is nothing to undo"


def test_help_of_a_command_does_not_end_a_session(talk):
    out, _, code = talk("delete -h", "show 0")
    assert code == 0 and "delete [-h] row [row ...]" in out and out.endswith("#0  Paris is in France.\n")


def test_a_text_needs_no_quotes_on_a_line_of_the_prompt(talk):
    out, _, code = talk("ask Paris is in --new_tokens 1", "edit 0 It's 'a'.", 'edit 1 "Rome is in Peru."')
    assert code == 0 and out.startswith("Paris is in ") and "#0  It's 'a'.  [edited]" in out
    assert "#1  Rome is in Peru.  [edited]" in out
    assert command_line.words_of("add a  - b -n 3 c\n", ["add"]) == ["add", "a  - b -n 3 c"]
    assert command_line.words_of("ask --file a.tsv\n", ["ask"]) == ["ask", "--file", "a.tsv"]
    assert command_line.words_of("search a 'b' -n 3\n", ["search"]) == ["search", "a 'b'", "-n", "3"]


def test_several_entries_are_deleted_at_once_and_come_back_at_once(talk):
    out, _, code = talk("delete 1 2 3 2", "log", "undo", "show 2", "delete 0 77")
    assert code.endswith("there is no entry 77: they are numbered from 0 to 5")
    *deleted, logged, back = out.splitlines()
    assert deleted == [f"#{row}  (empty)  [edited]" for row in (1, 2, 3)] and back == "#2  Oslo is in Norway."
    assert logged.endswith("  delete  #1, #2, #3")


def test_a_person_may_go_on_after_a_refusal(talk):
    out, err, code = talk("show 77", "show x", 'show "', "show 0", is_person=True)
    assert code == 0 and out == "#0  Paris is in France.\n"
    assert "error: there is no entry 77" in err and "No closing quotation" in err


def test_import_and_ask_of_a_file_on_the_command_line(talk, origin):
    path = table(origin, "Bern|country|Aargau", "Rome|country|Chile")
    out, err, code = talk(f"import {path}", f"import {path}", f"ask --file {path}", "ask")
    assert "nothing to import: all 2 facts are in the memory already\n" in err and err.count("`undo`") == 1
    assert "#1  Rome is in Chile.   (was: Rome is in Italy.)" in out and "2 facts imported: 1 into empty" in err
    assert "of 2 with the memory" in err and out.count("Bern is in") == 2
    assert code == "error: line 4, 'ask': ask needs a text, or --file with facts to ask for"


def test_a_reader_that_has_seen_enough_ends_the_command_quietly(monkeypatch, capfd):
    def main():
        raise BrokenPipeError

    monkeypatch.setattr("os.dup2", lambda *_: None)
    with pytest.raises(SystemExit) as ended:
        run_command(main)
    assert ended.value.code == 141 and capfd.readouterr().err == ""


# Another bank.


def other_bank(run, texts):
    (run / "other.jsonl").write_text("".join(json.dumps(known(text)) + "\n" for text in texts))
    return str(run / "other.jsonl")


def logits(model, run):
    ids = torch.tensor([[1, *load_tokenizer(run)("Paris is in", add_special_tokens=False).input_ids]])
    return model(ids).logits


def test_the_same_facts_as_another_bank_give_the_same_bits(origin):
    store = MemoryStore(origin, bank_path=other_bank(origin, FACTS))
    assert torch.equal(logits(store.model, origin), logits(load_run(origin), origin))
    assert store.show(2).fact.uuid == "Oslo" and not store.bank.frozen.any()


def test_another_bank_has_its_own_edits_and_may_be_larger(origin):
    MemoryStore(origin).edit(0, "Paris is in Spain.")
    path = other_bank(origin, [f"Town{n} is in Peru." for n in range(9)])
    store = MemoryStore(origin, bank_path=path)
    assert len(store.bank.tokens) == 11 and store.text(0) == "Town0 is in Peru." and store.add("Bern is big.") == 9
    assert MemoryStore(origin, bank_path=path).text(9) == "Bern is big."
    assert MemoryStore(origin).text(0) == "Paris is in Spain." and len(MemoryStore(origin).journal.entries()) == 1
    assert ask(store, "Town7 is in", 1).read[0][2].row == 7


def test_product_keys_refuse_a_larger_bank(run):
    shape = {"knowledge_num": 4, "knowledge_length": 8, "num_candidates": 2, "num_selected": 2, "freeze_ratio": 1.0}
    tiny_model(vocab_size=6400, **shape).save_pretrained(run)
    with pytest.raises(ValueError, match="has 5 different sentences, and the product keys of .* span 4 entries"):
        MemoryStore(run, bank_path=other_bank(run, [*FACTS, "Bern is in Aargau."]))
    store = MemoryStore(run, bank_path=other_bank(run, FACTS[:3]))
    assert store.text(3) == "" and not store.bank.frozen.any() and load_run(run).bank.frozen.all()
    with pytest.raises(FileNotFoundError, match="give another --bank"):
        MemoryStore(run, bank_path=str(run / "gone"))


def test_a_reserve_is_part_of_the_bank_of_a_run(origin):
    tokenizer, model = load_tokenizer(origin), load_run(origin)
    bank = load_run_bank(origin, model, tokenizer)
    assert bank.report["reserve"] == 2 and bank.fact(3).object == "Peru" and bank.fact(4) is None
    same = load_bank(origin / "k.jsonl", tokenizer, 6, 8, origin, 2)
    assert (
        same.report["bank_key"]
        == bank.report["bank_key"]
        == with_bank(origin, model, tokenizer, origin / "k.jsonl")[1].report["bank_key"]
    )


def test_an_evaluation_with_another_bank_keeps_its_results_apart(origin, monkeypatch, capsys):
    import eval_model

    flags = json.loads((origin / "flags.json").read_text())
    flags |= {"optim": {"dtype": "float32"}, "run": {}}
    flags["data"] |= {"data_path": str(origin / "q.jsonl"), "val_fraction": 0.1}
    (origin / "flags.json").write_text(json.dumps(flags))
    question = {"question": "Bern is in ___.", "choices": ["Peru", "Aargau"], "answer": "B", "uuid": "Bern"}
    (origin / "q.jsonl").write_text(json.dumps(question | {"object": "Aargau"}) + "\n")
    path, asked = other_bank(origin, ["Bern is in Aargau."]), str(origin / "q.jsonl")
    words = ["--run", str(origin), "--bank", path, "--object_path", asked, "--tasks", "object", "retrieval", "--arms"]
    monkeypatch.setattr(sys, "argv", ["eval_model", *words])
    assert eval_model.main() == 0
    (file,) = origin.glob("eval*.json")
    results = json.loads(file.read_text())
    assert file.name.startswith("eval_bank_") and results["about"]["bank_file"] == path and results["object"]["n"] == 1
    assert results["retrieval"]["n"] == 1  # the question's fact is found in the other bank
    assert f"results with the bank {path}: {file}" in capsys.readouterr().out
