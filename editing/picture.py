"""A picture of the page in Chromium, for the documents: it asks, changes an entry in a copy of the run, asks again.

python -m editing.picture --run out/quickstart_memory --edit 286 "Lygia Pape was born in 1869." --to docs/page.png

It needs Gradio, Playwright (`pip install gradio playwright`) and an installed Chromium.
"""

import shutil
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from transformers.utils import logging as transformers_logging

from common.cli import CommandParser, positive_int, run_command

from .store import MemoryStore
from .web import require_page, serve
from .web_html import beginning

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
QUIET = [
    "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update", "--no-first-run",
]  # fmt: skip


@contextmanager
def opened(store: MemoryStore, **options) -> Iterator:
    """The page of a store in a browser: a Playwright page. `options`: of the browser's context, such as viewport."""
    from playwright.sync_api import sync_playwright

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    app = serve(store, port, waits=False)
    try:
        with sync_playwright() as browsers:
            browser = browsers.chromium.launch(executable_path=CHROMIUM, args=QUIET)
            tab = browser.new_context(**options).new_page()
            tab.goto(f"http://127.0.0.1:{port}/")
            tab.locator("#head h1").wait_for()
            yield tab
            browser.close()
    finally:
        app.close()


def draw(tab, row: int, text: str, path: Path, search: str) -> None:
    """Ask about an entry, change it, and take the picture."""
    if search:
        tab.fill("#wanted textarea", search)
        tab.click("#search")
    tab.locator(f"#found [data-pick='{row}']").click()
    tab.locator("#entry h3").get_by_text(f"#{row}").wait_for()
    tab.fill("#prompt textarea", beginning(text))
    tab.click("#generate")
    tab.locator("#answers .card").nth(1).wait_for()
    tab.fill("#text textarea", text)
    tab.click("#save")
    tab.locator("#changes .change").first.wait_for()
    tab.locator("#answers .card").nth(2).wait_for()
    tab.wait_for_timeout(500)
    tab.mouse.move(0, 0)
    tab.screenshot(path=path, full_page=True)


def main() -> None:
    parser = CommandParser(description=__doc__)
    parser.add_argument("--run", required=True, help="run folder of a memory model; it is not changed")
    parser.add_argument("--edit", nargs=2, required=True, metavar=("ROW", "TEXT"), help="the entry that is changed")
    parser.add_argument("--to", default="docs/page.png", help="where the picture goes")
    parser.add_argument("--width", type=positive_int, default=1280, help="of the window, in pixels")
    parser.add_argument("--dark", action="store_true", help="the dark colours")
    args = parser.parse_args()
    require_page(7860)
    if CHROMIUM is None:
        raise ValueError("the picture needs Chromium: install the package chromium")
    transformers_logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as folder:
        copy = shutil.copytree(
            args.run, Path(folder) / Path(args.run).name, ignore=shutil.ignore_patterns("checkpoint_*")
        )
        store, row = MemoryStore(copy), int(args.edit[0])
        options = {"viewport": {"width": args.width, "height": 900}, "color_scheme": "dark" if args.dark else "light"}
        with opened(store, **options) as tab:
            draw(tab, row, args.edit[1], Path(args.to), store.text(row))
    print(args.to)


if __name__ == "__main__":
    run_command(main)
