"""The page in a real browser: write, click a word, edit what was read, undo."""

import shutil
import socket

import pytest

from editing.store import MemoryStore

pytestmark = pytest.mark.slow
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
QUIET = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--no-first-run",
]


@pytest.fixture
def page(run):
    pytest.importorskip("gradio", reason="the page needs gradio")
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    if CHROMIUM is None:
        pytest.skip("needs Chromium")
    from editing.web import make_page

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    app = make_page(MemoryStore(run))
    app.launch(server_name="127.0.0.1", server_port=port, prevent_thread_lock=True, quiet=True)
    with playwright.sync_playwright() as browsers:
        browser = browsers.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        tab = browser.new_page()
        tab.goto(f"http://127.0.0.1:{port}/")
        yield tab
        browser.close()
    app.close()


def test_a_read_entry_is_edited_and_the_edit_undone(page, run):
    page.fill("#prompt textarea", "Paris is in")
    page.click("#generate")
    page.click("#output .token >> nth=1")
    entry = page.locator("#reads").get_by_text("Paris is in France.").locator("visible=true").first
    entry.click()
    page.wait_for_function("document.querySelector('#text textarea').value == 'Paris is in France.'")
    page.fill("#text textarea", "Paris is in Spain.")
    page.click("#save")
    page.locator("#changed").get_by_text("Paris is in Spain.").locator("visible=true").first.wait_for()
    assert MemoryStore(run).text(0) == "Paris is in Spain."
    page.click("#undo")
    page.locator("#changed").get_by_text("Paris is in Spain.").locator("visible=true").first.wait_for(state="hidden")
    assert MemoryStore(run).text(0) == "Paris is in France."


def test_what_cannot_be_saved_is_said(page, run):
    page.click("#save")
    page.get_by_text("Choose an entry first").first.wait_for()
    assert MemoryStore(run).journal.entries() == []


def test_an_edit_of_another_process_reaches_the_open_page(page, run):
    MemoryStore(run).edit(1, "Rome is in Chile.")
    page.locator("#changed").get_by_text("Rome is in Chile.").locator("visible=true").first.wait_for(timeout=20_000)
