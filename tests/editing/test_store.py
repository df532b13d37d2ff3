"""Editing the memory of a run: journal, undo, files, and what a kill leaves behind."""

import runpy
import sys

import pytest
import torch
from transformers import AutoModelForCausalLM, pipeline

from dataset.knowledge import entry_text
from dataset.tokenizer import load_tokenizer
from editing.search import TextSearch, terms
from editing.store import MemoryStore
from model import load_run
from tests.conftest import tiny_model


def logits(run):
    ids = torch.tensor([[1, *load_tokenizer(run)("Paris is in", add_special_tokens=False).input_ids]])
    return load_run(run)(ids).logits


def test_an_edit_is_seen_by_every_later_load_and_undo_restores_every_bit(run):
    before, store = logits(run), MemoryStore(run)
    store.edit(0, "Paris is in Spain.")
    assert store.text(0) == "Paris is in Spain." == MemoryStore(run).text(0)
    assert not torch.equal(logits(run), before)
    assert list(store.changed()) == [(0, "Paris is in France.", "Paris is in Spain.")]
    assert MemoryStore(run).undo() == 1
    assert torch.equal(logits(run), before)
    assert list(MemoryStore(run).changed()) == []


def test_undo_goes_back_step_by_step_and_refuses_to_skip_one(run):
    store = MemoryStore(run)
    store.edit(0, "Paris is in Spain.")
    store.edit(0, "Paris is in Peru.")
    store.edit(1, "Rome is in Chile.")
    with pytest.raises(ValueError, match="line 2 of the journal changed the same entry"):
        store.undo(1)
    assert store.undo(2) == 2 and store.text(0) == "Paris is in Spain."
    assert store.undo() == 3 and store.text(1) == "Rome is in Italy."
    assert store.undo() == 1 and store.text(0) == "Paris is in France."
    with pytest.raises(ValueError, match="nothing to undo"):
        store.undo()


def test_adding_fills_empty_entries_until_there_is_none(run):
    store = MemoryStore(run)
    assert store.add("Bern is in Aargau.") == 4 and store.add("Kyiv is big.") == 5
    with pytest.raises(ValueError, match="all 6 entries are taken"):
        store.add("Bonn is small.")
    store.delete(1)
    assert 1 not in [entry.row for _, _, entry in store.search_model("Rome is in")]
    assert store.text(1) == "" and store.add("Bonn is small.") == 1


def test_search_finds_an_entry_by_words_and_by_the_model(run):
    store = MemoryStore(run)
    assert store.search_words("Where is Oslo", 2)[0][1].row == 2
    found = [entry.row for _, _, entry in store.search_model("We went to Oslo is in", 1)]
    assert found and set(found) == {2}


def test_the_origin_of_a_text_stays_with_it_through_freezing_and_undo(run):
    store = MemoryStore(run)
    store.edit(0, "Paris is in Spain.", source="first")
    store.freeze(0)
    assert (store.show(0).fact.source, store.show(0).edited) == ("first", True)
    store.edit(0, "Paris is in Peru.", source="second")
    store.undo()
    assert (store.show(0).fact.sentence, store.show(0).fact.source) == ("Paris is in Spain.", "first")
    store.undo()
    store.undo()
    assert (store.show(0).fact, store.show(0).edited) == (None, False)  # the knowledge file of this run is gone
    store.delete(1)
    assert (store.show(1).fact, store.show(1).edited) == (None, True)


def test_freezing_is_kept_and_is_no_edit(run):
    MemoryStore(run).freeze(3)
    assert load_run(run).bank.frozen.tolist() == [False, False, False, True, False, False]
    store = MemoryStore(run)
    assert store.show(3).frozen and not store.show(3).edited and not store.bank.ngrams().stale_N.any()
    assert store.journal.digest() is None and store.journal.edited_rows() == {}
    store.edit(3, "Lima is in Chile.")
    assert list(store.journal.edited_rows()) == store.bank.ngrams().stale_N.nonzero().flatten().tolist() == [3]


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda s: s.edit(6, "x"), "no entry 6: they are numbered from 0 to 5"),
        (lambda s: s.edit(0, "  "), "the text is empty"),
        (lambda s: s.edit(0, "a very long text about the city of Paris and all of France"), "an entry holds 8"),
    ],
)
def test_a_refused_change_leaves_nothing_behind(run, change, message):
    store = MemoryStore(run)
    with pytest.raises(ValueError, match=message):
        change(store)
    assert store.journal.entries() == []


def test_a_line_cut_off_by_a_kill_has_not_happened(run):
    store = MemoryStore(run)
    store.edit(0, "Paris is in Spain.")
    whole = store.journal.path.read_bytes()
    store.edit(1, "Rome is in Chile.")
    both = store.journal.path.read_bytes()
    for cut in range(len(whole), len(both)):
        store.journal.path.write_bytes(both[:cut])
        assert [entry.number for entry in store.journal.entries()] == [1]
    again = MemoryStore(run)
    assert again.text(0) == "Paris is in Spain." and again.text(1) == "Rome is in Italy."
    again.edit(2, "Oslo is in Peru.")
    assert [entry.number for entry in MemoryStore(run).journal.entries()] == [1, 2]


def test_a_broken_line_is_named(run):
    store = MemoryStore(run)
    store.edit(0, "Paris is in Spain.")
    store.journal.path.write_bytes(b"{}\n" + store.journal.path.read_bytes())
    with pytest.raises(ValueError, match="line 1: not a journal line"):
        load_run(run)


def test_two_writers_do_not_lose_each_others_edits(run):
    first, second = MemoryStore(run), MemoryStore(run)
    first.edit(0, "Paris is in Spain.")
    second.edit(1, "Rome is in Chile.")
    first.edit(2, "Oslo is in Peru.")
    assert [first.text(row) for row in range(3)] == [MemoryStore(run).text(row) for row in range(3)]
    assert first.text(1) == "Rome is in Chile."


def test_an_exported_bank_comes_back_and_a_bad_file_changes_nothing(run, tmp_path):
    store, path = MemoryStore(run), tmp_path / "bank.jsonl"
    store.edit(0, "Paris is in Spain.")
    assert store.export(path) == 6
    store.undo()
    assert store.import_file(path) == 1 and store.text(0) == "Paris is in Spain."
    path.write_text('{"row": 1, "text": "Rome is in Chile."}\n{"row": 9, "text": "x"}\n')
    with pytest.raises(ValueError, match="line 2: there is no entry 9"):
        store.import_file(path)
    assert store.text(1) == "Rome is in Italy."


def test_the_command_line(run, monkeypatch, capsys):
    def memory(*args) -> str:
        monkeypatch.setattr(sys, "argv", ["editing", "--run", str(run), *args])
        runpy.run_module("editing", run_name="__main__")
        return capsys.readouterr().out

    assert "#0  Paris is in Spain.  [edited]" in memory("edit", "0", "Paris is in Spain.")
    assert memory("diff") == "#0\n- Paris is in France.\n+ Paris is in Spain.\n"
    assert "#1  Rome is in Italy.  [frozen]\n" == memory("freeze", "1") and "#1" not in memory("diff")
    with pytest.raises(SystemExit, match="^error: there is no entry 77: they are numbered from 0 to 5$"):
        memory("edit", "77", "x")


def test_who_moves_a_subject_is_told_where_product_keys_will_not_look(run, monkeypatch, capsys):
    model = tiny_model(vocab_size=6400, knowledge_num=4, knowledge_length=8, num_candidates=2, num_selected=2)
    model.bank.tokens[1:] = 0
    model.save_pretrained(run)
    monkeypatch.setattr(sys, "argv", ["editing", "--run", str(run), "add", "Lima is in Peru."])
    runpy.run_module("editing", run_name="__main__")
    printed = capsys.readouterr()
    assert "#1  Lima is in Peru." in printed.out and "it may never be read" in printed.err
    for text, is_warned in (("Lima is in Chile.", False), ("Oslo is in Norway.", True)):
        monkeypatch.setattr(sys, "argv", ["editing", "--run", str(run), "edit", "1", text])
        runpy.run_module("editing", run_name="__main__")
        assert ("the old words put this entry" in capsys.readouterr().err) == is_warned


@pytest.mark.fault("an edit that another process makes")
def test_every_way_into_a_run_sees_its_edits(run):
    ids = torch.tensor([[1, *load_tokenizer(run)("Paris is in", add_special_tokens=False).input_ids]])
    before = AutoModelForCausalLM.from_pretrained(run).eval()(ids).logits
    MemoryStore(run).edit(0, "Paris is in Spain.")
    after = AutoModelForCausalLM.from_pretrained(run).eval()
    assert torch.equal(after(ids).logits, load_run(run)(ids).logits) and not torch.equal(after(ids).logits, before)
    assert entry_text(load_tokenizer(run), after.bank.tokens[0].tolist()) == "Paris is in Spain."
    piped = pipeline("text-generation", model=str(run), device="cpu").model
    assert torch.equal(piped.bank.tokens, after.bank.tokens)
    with pytest.raises(ValueError, match="line 1: not a journal line"):
        MemoryStore(run).journal.path.write_text("{}\n")
        AutoModelForCausalLM.from_pretrained(run)


@pytest.mark.fault("an edit that another process makes")
def test_an_edit_of_another_process_reaches_an_open_store(run):
    store, other = MemoryStore(run), MemoryStore(run)
    assert store.search_words("Oslo", 1)[0][1].row == 2
    other.edit(2, "Bern is in Aargau.")
    assert store.text(2) == "Bern is in Aargau." == store.show(2).text
    other.edit(1, "Kyiv is big.")
    assert store.search_words("Oslo", 1) == [] and store.search_words("kyiv", 1)[0][1].row == 1
    other.delete(1)
    assert all(entry.row != 1 for _, _, entry in store.search_model("Kyiv is", 4))
    other.undo()
    assert [row for row, *_ in store.changed()] == [1, 2]


@pytest.mark.fault("an edit that another process makes")
def test_an_edit_made_while_a_run_is_loaded_is_not_missed(run, monkeypatch):
    from editing import store as module

    def load_then_edit(path, device):
        model = load_run(path, device)
        if not MemoryStore.__dict__.get("busy"):
            monkeypatch.setattr(MemoryStore, "busy", True, raising=False)
            MemoryStore(run).edit(0, "Paris is in Spain.")
        return model

    monkeypatch.setattr(module, "load_run", load_then_edit)
    assert MemoryStore(run).text(0) == "Paris is in Spain."


@pytest.mark.fault("export, import and search of a bank")
def test_an_export_restores_the_same_bank_bit_for_bit(run, tmp_path):
    store, path = MemoryStore(run), tmp_path / "bank.jsonl"
    tokenizer = load_tokenizer(run)
    cut = tokenizer("The city of Žďár nad Sázavou in Moravia", add_special_tokens=False).input_ids[:7]
    assert tokenizer(entry_text(tokenizer, cut), add_special_tokens=False).input_ids != cut  # cut within a character
    model = load_run(run)
    model.bank.tokens[3] = torch.tensor([*cut, 0])
    model.save_pretrained(run)
    store = MemoryStore(run)
    store.edit(0, "Paris is in Spain.", source="me")
    store.delete(1)
    store.freeze(2)
    store.export(path)
    before = store.bank.tokens.clone(), store.bank.frozen.clone(), [store.show(row).fact for row in range(6)]
    store.edit_many([(0, "a"), (1, "b"), (3, "c"), (4, "d")])
    store.freeze(2, False)
    assert store.import_file(path) == 5
    for open_store in (store, MemoryStore(run)):
        assert torch.equal(open_store.bank.tokens, before[0]) and torch.equal(open_store.bank.frozen, before[1])
    assert store.show(0).fact == before[2][0] and store.text(1) == store.text(4) == ""
    assert store.import_file(path) == 0
    store.undo()
    assert [store.text(row) for row in (0, 1, 3, 4)] == ["a", "b", "c", "d"]


@pytest.mark.fault("export, import and search of a bank")
def test_an_entry_named_twice_in_a_file_is_refused(run, tmp_path):
    store, path = MemoryStore(run), tmp_path / "twice.jsonl"
    path.write_text('{"row": 0, "text": "a"}\n{"row": 0, "text": "b"}\n')
    with pytest.raises(ValueError, match="line 2: entry 0 is on line 1 already"):
        store.import_file(path)
    with pytest.raises(ValueError, match="an entry is edited twice at once"):
        store.edit_many([(0, "a"), (0, "b")])
    assert store.journal.entries() == []


@pytest.mark.fault("export, import and search of a bank")
@pytest.mark.parametrize("text", ["édouard", "ÉDOUARD", "e\u0301douard", "Ｅ\u0301ｄｏｕａｒｄ", "was Édouard there"])
@pytest.mark.parametrize("stored", ["Édouard is big.", "E\u0301douard is big.", "ÉDOUARD is big."])
def test_search_does_not_depend_on_case_width_or_unicode_form(run, text, stored):
    tokenizer, model = load_tokenizer(run), load_run(run)
    model.bank.tokens = torch.zeros(6, 24, dtype=torch.int16)
    ids = tokenizer(stored, add_special_tokens=False).input_ids
    model.bank.tokens[4, : len(ids)] = torch.tensor(ids)
    found = TextSearch(tokenizer).best(text, model.bank.tokens, 3)
    assert [row for _, row in found] == [4]


def test_words_are_whole_and_scripts_without_spaces_are_searched_by_pairs():
    assert terms("Berlin in ΣΑΣ, 1984") == ["berlin", "in", "σασ", "1984"]
    assert terms("东京是A城市") == ["东京", "京是", "a", "城市"] and terms("京") == ["京"]
