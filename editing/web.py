"""A local web page: ask the memory, see which entries were read for each word, and change them.

python -m editing.web --run out/quickstart_memory      # then open http://127.0.0.1:7860

It needs Gradio 6 (`pip install gradio`) and listens on this machine only. Nothing is written until you change an entry.
"""

import argparse
import os
import socket
import threading
import time
from functools import lru_cache, wraps
from pathlib import Path

from common.cli import positive_int, run_command

from . import web_html as html
from .store import MemoryStore
from .web_state import Answer, answer, example_prompts, facts, refusal

REFRESH_SECONDS = 3  # between two looks at the journal for edits of other processes
PAUSE = 1  # seconds after a click in which such a look would still know the page as it was before
FOUND = 8  # entries that a search shows
SOURCE = "web page"  # of edits, in the journal
PICK = """element.addEventListener('click', event => {
    const hit = event.target.closest('[data-pick]');
    if (!hit) return;
    trigger('click', {pick: hit.dataset.pick});
    if (hit.matches('.entry, .change'))
        document.querySelector('#buttons').scrollIntoView({block: 'nearest', behavior: 'smooth'});
});"""
HINT = (
    "Save rewrites this entry, Delete empties it, Freeze keeps later training from rewriting it. "
    "The run's journal holds every change, and Undo takes the last one back. The weights stay as they are."
)


def make_page(store: MemoryStore):  # noqa: C901, PLR0915 (a page reads as one piece)
    """The page, as Gradio blocks."""
    import gradio as gr

    lock = threading.Lock()  # the bank is another one while the model writes without its memory
    ended = [0.0]  # when a call of a person ended last

    def alone(function):
        """One call at a time; what is refused is said on the page."""

        @wraps(function)
        def call(*arguments):
            try:
                with lock:
                    return function(*arguments)
            except (ValueError, OSError) as problem:
                raise gr.Error(refusal(problem, store), title="Not done", print_exception=False) from None
            finally:
                ended[0] = time.monotonic()

        return call

    def shown(asked: Answer, chosen: int | None) -> dict:
        settings = store.model.settings
        shade = f"read by {'the pointer' if settings.pointer else 'the last block'}"
        return {
            answer_box: html.answers(asked.prompt, asked.words, chosen, asked.others, shade),
            details_box: html.details(None if chosen is None else asked.words[chosen], settings),
        }

    @lru_cache(maxsize=1)
    def at(state: tuple[int, int]) -> tuple[list[tuple[int, str, str]], str]:
        """All changes and the examples at a state of the journal."""
        return list(store.changed()), html.examples(example_prompts(store))

    def marks(row: int) -> tuple[str, ...]:
        edited = any(row == other for other, *_ in at(store.journal.state())[0])
        return ("edited",) * edited + ("frozen",) * bool(store.bank.frozen[row])

    def now(row: int | None, hits: list[int]) -> dict:
        """What every change may have changed. `hits`: the rows that the search has found."""
        changed, tried = at(store.journal.state())
        return {
            found_box: html.found([(hit, store.text(hit), marks(hit)) for hit in hits]) if hits else gr.skip(),
            seen: store.journal.state(),
            head: html.header(store.run_dir.name, *facts(store)),
            changes_box: html.changes(changed),
            examples_box: tried,
            entry_box: html.chosen_entry(row, () if row is None else marks(row)),
            freeze_button: "Unfreeze" if row is not None and store.bank.frozen[row] else "Freeze",
        }

    def again(asked: Answer | None, row: int | None, hits: list[int]) -> dict:
        if asked is None:
            return now(row, hits)
        fresh = answer(store, asked.prompt, asked.n_tokens)
        return now(row, hits) | shown(fresh, fresh.most_read) | {answered: fresh}

    @alone
    def generate(prompt: str, n_tokens: float, row: int | None, hits: list[int]):
        if not prompt.strip():
            raise ValueError("write the beginning of a sentence first")
        return again(Answer(prompt, int(n_tokens or 1)), row, hits)

    @alone
    def try_example(n_tokens: float, row: int | None, hits: list[int], event: gr.EventData):
        return again(Answer(event.pick, int(n_tokens or 1)), row, hits) | {prompt: event.pick}

    def choose_word(asked: Answer, event: gr.EventData):
        return shown(asked, int(event.pick))

    @alone
    def choose_entry(hits: list[int], event: gr.EventData):
        row = int(event.pick)
        return now(row, hits) | {entry: row, text: store.text(row)}

    @alone
    def search(wanted: str):
        store.refresh()
        hits = [row for _, row in store.search.best(wanted, store.bank.tokens, FOUND)]
        return html.found([(hit, store.text(hit), marks(hit)) for hit in hits]), hits

    def on_entry(change, needs_entry: bool = True):
        """Change an entry, then show everything as it is then."""

        @alone
        def call(row: int | None, new_text: str, asked: Answer | None, hits: list[int]):
            if row is None and needs_entry:
                raise ValueError("choose an entry first: click one, or search for it")
            chosen = change(row, new_text)
            row = chosen if isinstance(chosen, int) and not needs_entry else row
            return again(asked, row, hits) | {entry: row, text: "" if row is None else store.text(row)}

        return call

    def add(row: int | None, new_text: str) -> int:
        row = store.add(new_text, SOURCE)
        if store.model.settings.retrieval_class.has_grid:
            gr.Warning(f"Product keys find an entry by its place in their grid: entry {row} may never be read.")
        return row

    def undo(row: int | None, new_text: str) -> None:
        store.undo()

    def look(state: tuple[int, int], asked: Answer | None, row: int | None, hits: list[int]):
        """Take over what other processes have changed; while a person is served, at the next look."""
        present = store.journal.state()
        served = time.monotonic() - ended[0] < PAUSE
        if present == tuple(state) or served or not lock.acquire(blocking=False):
            return {seen: gr.skip()}
        try:
            store.refresh()
            return again(asked, row, hits)
        except (ValueError, OSError) as problem:  # the journal was deleted or damaged; it is said once
            gr.Warning(refusal(problem, store))
            return {seen: present}
        finally:
            lock.release()

    def box(elem_id: str, value: str = "") -> gr.HTML:
        return gr.HTML(value, elem_id=elem_id, elem_classes="part", js_on_load=PICK)

    with gr.Blocks(title=f"Memory of {store.run_dir.name}", analytics_enabled=False) as page:
        answered, entry, seen, found = gr.State(None), gr.State(None), gr.State((0, 0)), gr.State([])
        head = box("head")
        with gr.Row(elem_id="ask", elem_classes="line"):
            prompt = gr.Textbox(label="Beginning of a sentence", scale=8, min_width=220, elem_id="prompt")
            length = gr.Number(24, label="New tokens", minimum=1, maximum=200, step=1, scale=1, min_width=110)
            button = gr.Button("Generate", variant="primary", scale=1, min_width=110, elem_id="generate")
        examples_box = box("examples")
        answer_box = box("answers")
        details_box = box("details")
        with gr.Row(elem_id="work"):
            with gr.Column(min_width=320):
                with gr.Row(elem_classes="line"):
                    wanted = gr.Textbox(label="Search the entries", scale=4, min_width=180, elem_id="wanted")
                    search_button = gr.Button("Search", scale=1, min_width=90, elem_id="search")
                found_box = box("found")
            with gr.Column(min_width=320):
                entry_box = box("entry")
                text = gr.Textbox(show_label=False, placeholder="One fact in one sentence", elem_id="text")
                with gr.Row(elem_id="buttons"):
                    save_button = gr.Button("Save", variant="primary", min_width=70, elem_id="save")
                    add_button = gr.Button("Add as new", min_width=100, elem_id="add")
                    freeze_button = gr.Button("Freeze", min_width=80, elem_id="freeze")
                    delete_button = gr.Button("Delete", min_width=70, elem_id="delete")
                    undo_button = gr.Button("Undo last", min_width=90, elem_id="undo")
                box("hint", f'<p class="hint">{HINT}</p>')
        changes_box = box("changes")

        everything = [
            head, examples_box, answer_box, details_box, changes_box, entry_box, freeze_button, answered, entry, seen,
            prompt, text, found_box,
        ]  # fmt: skip
        private = {"api_visibility": "private"}
        page.load(alone(lambda: now(None, [])), None, everything, show_progress="hidden", **private)
        gr.Timer(REFRESH_SECONDS).tick(
            look, [seen, answered, entry, found], everything, show_progress="hidden", trigger_mode="once", **private
        )
        for start in (button.click, prompt.submit):
            start(generate, [prompt, length, entry, found], everything, show_progress_on=answer_box, **private)
        examples_box.click(try_example, [length, entry, found], everything, show_progress_on=answer_box, **private)
        answer_box.click(choose_word, [answered], everything, show_progress="hidden", **private)
        for place in (details_box, found_box, changes_box):
            place.click(choose_entry, [found], everything, show_progress="hidden", **private)
        for start in (search_button.click, wanted.submit):
            start(search, [wanted], [found_box, found], **private)
        for pressed, change in (
            (save_button, on_entry(lambda row, new_text: store.edit(row, new_text, SOURCE))),
            (delete_button, on_entry(lambda row, _: store.delete(row))),
            (freeze_button, on_entry(lambda row, _: store.freeze(row, not store.bank.frozen[row]))),
            (add_button, on_entry(add, needs_entry=False)),
            (undo_button, on_entry(undo, needs_entry=False)),
        ):
            pressed.click(change, [entry, text, answered, found], everything, show_progress_on=answer_box, **private)
    return page


def serve(store: MemoryStore, port: int, waits: bool = True):
    """Open the page on a port of this machine; returns Gradio's app. Fonts and all else are local."""
    import gradio as gr

    for name in ("NO_PROXY", "no_proxy"):  # a proxy cannot reach a page of this machine
        os.environ[name] = ",".join(filter(None, [os.environ.get(name), "127.0.0.1", "localhost"]))
    page = make_page(store)
    page.launch(
        server_name="127.0.0.1", server_port=port, share=False, quiet=True, prevent_thread_lock=True,
        theme=gr.themes.Default(primary_hue="blue", font=["system-ui", "sans-serif"], font_mono=["monospace"]),
        css_paths=Path(__file__).with_name("web.css"), footer_links=[], run_history=False,
    )  # fmt: skip
    if waits:
        print(f"http://127.0.0.1:{port} shows the memory of {store.run_dir}; Ctrl-C ends it")
        page.block_thread()
    return page


def require_page(port: int) -> None:
    """Raises ValueError, before anything slow, if Gradio is missing or too old, or the port cannot be used."""
    try:
        import gradio
    except ModuleNotFoundError:
        raise ValueError("the page needs Gradio: .venv/bin/python -m pip install gradio") from None
    if int(gradio.__version__.split(".")[0]) < 6:
        raise ValueError(f"the page needs Gradio 6, this is {gradio.__version__}: pip install --upgrade gradio")
    with socket.socket() as attempt:
        attempt.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            attempt.bind(("127.0.0.1", port))
        except (OSError, OverflowError) as problem:
            reason = getattr(problem, "strerror", None) or problem
            raise ValueError(f"--port {port} cannot be used ({reason}): choose another one") from None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", required=True, help="run folder of a memory model")
    parser.add_argument("--bank", help="knowledge file to read in place of the bank of the training")
    parser.add_argument("--port", type=positive_int, default=7860, help="port of the page on this machine")
    args = parser.parse_args()
    require_page(args.port)
    serve(MemoryStore(args.run, bank_path=args.bank), args.port)


if __name__ == "__main__":
    run_command(main)
