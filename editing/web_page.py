"""The page of `editing.web`: its parts, and what each click on them does. Needs Gradio."""

import threading
import time
from functools import lru_cache, wraps

import gradio as gr

from . import web_html as html
from .store import MemoryStore
from .web_state import Answer, answer, example_prompts, facts, refusal

REFRESH_SECONDS = 3  # between two looks at the journal for edits of other processes
PAUSE = 1  # seconds after a click in which such a look would still know the page as it was before
FOUND = 8  # entries that a search shows
SOURCE = "web page"  # of edits, in the journal
PRIVATE = {"api_visibility": "private"}
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


def box(elem_id: str, value: str = "") -> gr.HTML:
    return gr.HTML(value, elem_id=elem_id, elem_classes="part", js_on_load=PICK)


def alone(method):
    """One call at a time; what is refused is said on the page."""

    @wraps(method)
    def call(self, *arguments):
        try:
            with self.lock:
                return method(self, *arguments)
        except (ValueError, OSError) as problem:
            raise gr.Error(refusal(problem, self.store), title="Not done", print_exception=False) from None
        finally:
            self.ended = time.monotonic()

    return call


class Page:
    """What a click does. Gradio calls the methods with the values of parts; they return new values by part.

    Attributes:
        ended: when a call of a person ended last.
    """

    def __init__(self, store: MemoryStore):
        self.store, self.ended = store, 0.0
        self.lock = threading.Lock()  # the bank is another one while the model writes without its memory
        self.at = lru_cache(maxsize=1)(self.changes_and_examples)
        with gr.Blocks(title=f"Memory of {store.run_dir.name}", analytics_enabled=False) as self.blocks:
            self.lay_out()
            self.connect()

    def shown(self, asked: Answer, chosen: int | None) -> dict:
        settings = self.store.model.settings
        shade = f"read by {'the pointer' if settings.pointer else 'the last block'}"
        return {
            self.answer_box: html.answers(asked.prompt, asked.words, chosen, asked.others, shade),
            self.details_box: html.details(None if chosen is None else asked.words[chosen], settings),
        }

    def changes_and_examples(self, state: tuple[int, int]) -> tuple[list[tuple[int, str, str]], str]:
        """All changes and the examples at a state of the journal."""
        return list(self.store.changed()), html.examples(example_prompts(self.store))

    def marks(self, row: int) -> tuple[str, ...]:
        changed = self.at(self.store.journal.state())[0]
        edited = any(row == other and before != now for other, before, now in changed)
        return ("edited",) * edited + ("frozen",) * bool(self.store.bank.frozen[row])

    def found_html(self, hits: list[int]) -> str:
        return html.found([(hit, self.store.text(hit), self.marks(hit)) for hit in hits])

    def now(self, row: int | None, hits: list[int]) -> dict:
        """What every change may have changed. `hits`: the rows that the search has found."""
        store = self.store
        changed, tried = self.at(store.journal.state())
        return {
            self.found_box: self.found_html(hits) if hits else gr.skip(),
            self.seen: store.journal.state(),
            self.head: html.header(store.run_dir.name, *facts(store)),
            self.changes_box: html.changes(changed),
            self.examples_box: tried,
            self.entry_box: html.chosen_entry(row, () if row is None else self.marks(row)),
            self.freeze_button: "Unfreeze" if row is not None and store.bank.frozen[row] else "Freeze",
        }

    def again(self, asked: Answer | None, row: int | None, hits: list[int]) -> dict:
        if asked is None:
            return self.now(row, hits)
        fresh = answer(self.store, asked.prompt, asked.n_tokens)
        return self.now(row, hits) | self.shown(fresh, fresh.most_read) | {self.answered: fresh}

    @alone
    def open(self):
        return self.now(None, [])

    @alone
    def generate(self, prompt: str, n_tokens: float, row: int | None, hits: list[int]):
        if not prompt.strip():
            raise ValueError("write the beginning of a sentence first")
        return self.again(Answer(prompt, int(n_tokens or 1)), row, hits)

    @alone
    def try_example(self, n_tokens: float, row: int | None, hits: list[int], event: gr.EventData):
        return self.again(Answer(event.pick, int(n_tokens or 1)), row, hits) | {self.prompt: event.pick}

    def choose_word(self, asked: Answer, event: gr.EventData):
        return self.shown(asked, int(event.pick))

    @alone
    def choose_entry(self, hits: list[int], event: gr.EventData):
        row = int(event.pick)
        return self.now(row, hits) | {self.entry: row, self.text: self.store.text(row)}

    @alone
    def search(self, wanted: str):
        self.store.refresh()
        hits = [row for _, row in self.store.search.best(wanted, self.store.bank.tokens, FOUND)]
        return self.found_html(hits), hits

    @alone
    def save(self, row: int | None, new_text: str, asked: Answer | None, hits: list[int]):
        self.store.edit(chosen(row), new_text, SOURCE)
        return self.after_change(row, asked, hits)

    @alone
    def delete(self, row: int | None, new_text: str, asked: Answer | None, hits: list[int]):
        self.store.delete(chosen(row))
        return self.after_change(row, asked, hits)

    @alone
    def freeze(self, row: int | None, new_text: str, asked: Answer | None, hits: list[int]):
        self.store.freeze(chosen(row), not self.store.bank.frozen[row])
        return self.after_change(row, asked, hits)

    @alone
    def add(self, row: int | None, new_text: str, asked: Answer | None, hits: list[int]):
        row = self.store.add(new_text, SOURCE)
        if self.store.model.settings.retrieval_class.has_grid:
            gr.Warning(f"Product keys find an entry by its place in their grid: entry {row} may never be read.")
        return self.after_change(row, asked, hits)

    @alone
    def undo(self, row: int | None, new_text: str, asked: Answer | None, hits: list[int]):
        self.store.undo()
        return self.after_change(row, asked, hits)

    def after_change(self, row: int | None, asked: Answer | None, hits: list[int]) -> dict:
        """Everything as it is now."""
        return self.again(asked, row, hits) | {self.entry: row, self.text: "" if row is None else self.store.text(row)}

    def look(self, state: tuple[int, int], asked: Answer | None, row: int | None, hits: list[int]):
        """Take over what other processes have changed; while a person is served, at the next look."""
        present = self.store.journal.state()
        served = time.monotonic() - self.ended < PAUSE
        if present == tuple(state) or served or not self.lock.acquire(blocking=False):
            return {self.seen: gr.skip()}
        try:
            self.store.refresh()
            return self.again(asked, row, hits)
        except (ValueError, OSError) as problem:  # the journal was deleted or damaged; it is said once
            gr.Warning(refusal(problem, self.store))
            return {self.seen: present}
        finally:
            self.lock.release()

    def lay_out(self) -> None:
        """The parts of the page, from top to bottom."""
        self.answered, self.entry, self.seen = gr.State(None), gr.State(None), gr.State((0, 0))
        self.hits = gr.State([])
        self.head = box("head")
        with gr.Row(elem_id="ask", elem_classes="line"):
            self.prompt = gr.Textbox(label="Beginning of a sentence", scale=8, min_width=220, elem_id="prompt")
            self.length = gr.Number(24, label="New tokens", minimum=1, maximum=200, step=1, scale=1, min_width=110)
            self.button = gr.Button("Generate", variant="primary", scale=1, min_width=110, elem_id="generate")
        self.examples_box, self.answer_box, self.details_box = box("examples"), box("answers"), box("details")
        with gr.Row(elem_id="work"):
            with gr.Column(min_width=320):
                with gr.Row(elem_classes="line"):
                    self.wanted = gr.Textbox(label="Search the entries", scale=4, min_width=180, elem_id="wanted")
                    self.search_button = gr.Button("Search", scale=1, min_width=90, elem_id="search")
                self.found_box = box("found")
            with gr.Column(min_width=320):
                self.entry_box = box("entry")
                self.text = gr.Textbox(show_label=False, placeholder="One fact in one sentence", elem_id="text")
                with gr.Row(elem_id="buttons"):
                    self.save_button = gr.Button("Save", variant="primary", min_width=70, elem_id="save")
                    self.add_button = gr.Button("Add as new", min_width=100, elem_id="add")
                    self.freeze_button = gr.Button("Freeze", min_width=80, elem_id="freeze")
                    self.delete_button = gr.Button("Delete", min_width=70, elem_id="delete")
                    self.undo_button = gr.Button("Undo last", min_width=90, elem_id="undo")
                box("hint", f'<p class="hint">{HINT}</p>')
        self.changes_box = box("changes")

    def connect(self) -> None:
        """What calls which method."""
        everything = [
            self.head, self.examples_box, self.answer_box, self.details_box, self.changes_box, self.entry_box,
            self.freeze_button, self.answered, self.entry, self.seen, self.prompt, self.text, self.found_box,
        ]  # fmt: skip
        state, silent = [self.entry, self.hits], {"show_progress": "hidden"} | PRIVATE
        shown = {"show_progress_on": self.answer_box} | PRIVATE
        self.blocks.load(self.open, None, everything, **silent)
        looks = [self.seen, self.answered, *state]
        gr.Timer(REFRESH_SECONDS).tick(self.look, looks, everything, trigger_mode="once", **silent)
        for start in (self.button.click, self.prompt.submit):
            start(self.generate, [self.prompt, self.length, *state], everything, **shown)
        self.examples_box.click(self.try_example, [self.length, *state], everything, **shown)
        self.answer_box.click(self.choose_word, [self.answered], everything, **silent)
        for place in (self.details_box, self.found_box, self.changes_box):
            place.click(self.choose_entry, [self.hits], everything, **silent)
        for start in (self.search_button.click, self.wanted.submit):
            start(self.search, [self.wanted], [self.found_box, self.hits], **PRIVATE)
        for pressed, change in (
            (self.save_button, self.save), (self.delete_button, self.delete), (self.freeze_button, self.freeze),
            (self.add_button, self.add), (self.undo_button, self.undo),
        ):  # fmt: skip
            pressed.click(change, [self.entry, self.text, self.answered, self.hits], everything, **shown)


def chosen(row: int | None) -> int:
    """Raises ValueError where no entry is chosen."""
    if row is None:
        raise ValueError("choose an entry first: click one, or search for it")
    return row
