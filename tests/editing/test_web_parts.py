"""What the page shows, without a browser and without Gradio."""

import errno
import os
import socket
import sys

import pytest

from dataset.tokenizer import load_tokenizer
from editing import web_html
from editing.store import MemoryStore
from editing.trace import TracedToken, Word, trace, words
from editing.web import require_page
from editing.web_state import answer, as_trained, example_prompts, facts, refusal
from evaluation.controls import emptied


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer("dataset/tokenizer")


def traced(tokenizer, text: str) -> list[TracedToken]:
    ids = [*tokenizer(text, add_special_tokens=False).input_ids, tokenizer.eos_token_id]
    return [TracedToken(token, tokenizer.decode([token]), [], [("", 0.5)]) for token in ids]


@pytest.mark.parametrize(
    "text, expected",
    [
        (" born in 1927, isn't it?", [" born", " in", " 1927", ",", " isn't", " it", "?"]),
        (" Über Nova-Friburgo.\n Next", [" Über", " Nova", "-", "Friburgo", ".", "\n Next"]),
        ("法国的首都是巴黎。", [" 法", *"国的首都是巴黎。"]),
    ],
)
def test_pieces_are_joined_to_words_and_special_tokens_hidden(tokenizer, text, expected):
    assert [word.text for word in words(traced(tokenizer, text), tokenizer)] == expected


def test_each_token_has_its_probabilities_the_best_first(run):
    store = MemoryStore(run)
    for token in trace(store.model, store.tokenizer, "Paris is in", 4):
        text, best = token.choices[0]
        assert text == token.text and best == max(p for _, p in token.choices) and len(token.choices) == 5
        assert 0 < sum(p for _, p in token.choices) <= 1.0001


def test_an_answer_stands_beside_that_without_memory_and_that_before_all_changes(run):
    store = MemoryStore(run)
    before = answer(store, "Paris is in", 6)
    with emptied(store.model, store.tokenizer, None):
        alone = words(trace(store.model, store.tokenizer, "Paris is in", 6), store.tokenizer)
    assert before.others == {"Without the memory": "".join(word.text for word in alone)}
    store.edit(0, "Paris is in Spain.")
    after = answer(store, "Paris is in", 6)
    assert after.others["Before all changes"] == "".join(word.text for word in before.words)
    assert after.others["Without the memory"] == before.others["Without the memory"]
    assert {look.text for look in after.words[0].lookups} >= {"Paris is in Spain."}


def test_the_answers_leave_the_bank_as_it_was(run):
    store = MemoryStore(run)
    store.edit(0, "Paris is in Spain.")
    store.delete(1)
    tokens = store.bank.tokens.clone()
    with as_trained(store):
        assert store.text(0) == "Paris is in France." and store.text(1) == "Rome is in Italy."
    answer(store, "Rome is in", 3)
    assert store.bank.tokens.equal(tokens)


def test_the_examples_begin_with_what_was_changed(run):
    store = MemoryStore(run)
    store.edit(3, "Lima lies in Chile.")
    assert example_prompts(store) == ["Lima lies in", "Paris is in", "Rome is in", "Oslo is in"]


def test_the_page_says_what_is_shown_and_what_cannot_be_changed(run, monkeypatch):
    store = MemoryStore(run)
    assert facts(store) == (["4 entries", "2 free places", "read by block 0, block 1 and the pointer"], "")
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert facts(store)[1] == f"{run} cannot be written: entries can be read, not changed"
    problem = OSError(errno.EROFS, "Read-only file system", f"{run}/memory_journal.lock")
    told = f"{run}/memory_journal.lock cannot be written (Read-only file system): nothing was changed"
    assert refusal(problem, store) == told
    assert refusal(ValueError("there is nothing to undo"), store) == "there is nothing to undo"


@pytest.mark.parametrize(
    "sentence, start",
    [
        ("Lygia Pape was born in 1927.", "Lygia Pape was born in"),
        ("Mary wrote Emma.", "Mary wrote"),
        ("Paris", ""),
        ("法国的首都是巴黎。", "法国的首"),
    ],
)
def test_an_example_stops_before_the_fact(sentence, start):
    assert web_html.beginning(sentence) == start


def test_no_text_is_taken_as_markup():
    token = TracedToken(5, " <i>", [], [(" <i>", 0.9)])
    made = web_html.answers("<b>", [Word(" <i>", [token])], 0, {"<u>": "<s>"}, "x")
    made += web_html.found([(1, "<i>", ("<b>",))]) + web_html.changes([(1, "<b>", "<u>")]) + web_html.visible("<s>")
    made += web_html.examples(['"<s>']) + web_html.header("<b>", ["<b>"], "<b>") + web_html.chosen_entry(1, ("<b>",))
    for tag in ("<b>", "<u>", "<s>", "<i>&lt;", '"<s'):
        assert tag not in made


def test_a_taken_port_and_a_missing_gradio_are_one_sentence(monkeypatch):
    class Six:
        __version__ = "6.1"

    monkeypatch.setitem(sys.modules, "gradio", Six)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(ValueError, match="--port .* cannot be used .*: choose another one"):
            require_page(taken.getsockname()[1])
    with pytest.raises(ValueError, match="--port 70000 cannot be used"):
        require_page(70000)
    Six.__version__ = "5.49"
    with pytest.raises(ValueError, match="needs Gradio 6, this is 5.49"):
        require_page(7860)
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(ValueError, match="the page needs Gradio: .*pip install gradio"):
        require_page(7860)
