"""The page in a real browser: write, click a word, change what was read, undo."""

import pytest

from editing.picture import CHROMIUM, opened
from editing.store import MemoryStore

pytestmark = pytest.mark.slow


@pytest.fixture
def page(run):
    pytest.importorskip("gradio", reason="the page needs gradio")
    pytest.importorskip("playwright.sync_api", reason="needs playwright")
    if CHROMIUM is None:
        pytest.skip("needs Chromium")
    with opened(MemoryStore(run)) as tab:
        yield tab


def ask(page, prompt: str) -> None:
    page.fill("#prompt textarea", prompt)
    page.click("#generate")
    page.locator("#answers .card").nth(1).wait_for()


def choose(page, text: str) -> None:
    page.locator("#details .entry").get_by_text(text).first.click()
    page.wait_for_function("text => document.querySelector('#text textarea').value == text", arg=text)


def changes(page):
    return page.locator("#changes .change")


def test_a_read_entry_is_edited_and_the_edit_undone(page, run):
    ask(page, "Paris is in")
    choose(page, "Paris is in France.")
    page.fill("#text textarea", "Paris is in Spain.")
    page.click("#save")
    changes(page).get_by_text("Paris is in Spain.").wait_for()
    assert MemoryStore(run).text(0) == "Paris is in Spain."
    page.locator("#answers").get_by_text("Before all changes").wait_for()  # the answers before and after are compared
    page.click("#undo")
    changes(page).wait_for(state="hidden")
    assert MemoryStore(run).text(0) == "Paris is in France."


def test_an_entry_is_found_frozen_deleted_and_another_added(page, run):
    page.fill("#wanted textarea", "oslo")
    page.click("#search")
    page.locator("#found [data-pick='2']").click()
    page.wait_for_function("document.querySelector('#text textarea').value == 'Oslo is in Norway.'")
    page.click("#freeze")
    page.locator("#freeze").get_by_text("Unfreeze").wait_for()
    page.click("#delete")
    changes(page).get_by_text("(deleted)").wait_for()
    page.fill("#text textarea", "Bonn is in Chad.")
    page.click("#add")
    changes(page).get_by_text("Bonn is in Chad.").wait_for()
    page.wait_for_timeout(4000)  # a look at the journal changes nothing here
    assert page.locator("#entry h3").inner_text().startswith("Entry #2")
    store = MemoryStore(run)
    assert store.text(2) == "Bonn is in Chad." and store.bank.frozen[2]  # the first free place is the emptied one


def test_what_cannot_be_saved_is_said(page, run):
    page.click("#save")
    page.get_by_text("choose an entry first").first.wait_for()
    assert MemoryStore(run).journal.entries() == []


def test_an_edit_of_another_process_reaches_the_open_page(page, run):
    ask(page, "Rome is in")
    MemoryStore(run).edit(1, "Rome is in Chile.")
    changes(page).get_by_text("Rome is in Chile.").wait_for(timeout=20_000)
    page.locator("#details .entry").get_by_text("Rome is in Chile.").first.wait_for()  # the answer was written again


def test_text_is_never_taken_as_markup(page):
    ask(page, "{{value}} ${1+1} <b>Paris</b> is in")
    assert "{{value}} ${1+1} <b>Paris</b> is in" in page.locator("#answers .prompt").first.inner_text()


def test_nothing_is_wider_than_a_telephone(page):
    page.set_viewport_size({"width": 390, "height": 800})
    ask(page, "Paris is in")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
