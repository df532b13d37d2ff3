"""A local web page: generate text, click a word, see which entries were read for it, edit one, generate again.

python -m editing.web --run out/quickstart_memory      # then open http://127.0.0.1:7860

It needs Gradio (`pip install gradio`) and listens on this machine only.
"""

import argparse
import os
from itertools import groupby

from common.cli import positive_int, run_command

from .store import MemoryStore
from .trace import TracedToken, trace

REFRESH_SECONDS = 5  # between two looks at the journal for edits of other processes
COLUMNS = ["where", "weight", "entry", "text"]


def reads(store: MemoryStore, token: TracedToken, per_layer: int = 4) -> list[list]:
    """Rows of the table: the entries that each block and the pointer read to predict a token, heaviest first."""
    rows = []
    for layer, lookups in groupby(token.lookups, key=lambda lookup: lookup.layer):
        name = store.model.settings.reader_name(layer)
        heaviest = [lookup for lookup in lookups if lookup.weight >= 0.001][:per_layer]
        rows += [[name, f"{lookup.weight:.1%}", lookup.entry, store.text(lookup.entry)] for lookup in heaviest]
    return rows


def share_read(token: TracedToken) -> float:
    """The total weight of the last reader, which is the pointer if there is one."""
    last = max((lookup.layer for lookup in token.lookups), default=0)
    return min(sum(lookup.weight for lookup in token.lookups if lookup.layer == last), 1.0)


def make_page(store: MemoryStore):  # noqa: C901, PLR0915 (a page reads as one piece)
    """The page, as Gradio blocks."""
    import gradio as gr

    def generate(prompt: str, new_tokens: float):
        if not prompt.strip():
            raise gr.Error("Write the beginning of a sentence first.")
        try:
            store.refresh()
            traced = trace(store.model, store.tokenizer, prompt, int(new_tokens))
        except ValueError as problem:
            raise gr.Error(str(problem)) from None
        spans = [(prompt, None)] + [(token.text, share_read(token)) for token in traced]
        return gr.update(value=spans), traced, [], "", "", changes()

    def choose_token(traced: list[TracedToken], event: gr.SelectData):
        index = event.index - 1  # the prompt comes first
        return reads(store, traced[index]) if 0 <= index < len(traced) else []

    def choose_entry(table, event: gr.SelectData):
        row = int(table[event.index[0]][2])
        return str(row), store.text(row)  # as it is now: another process may have edited it

    def save(entry: str, text: str):
        if not entry:
            raise gr.Error("Choose an entry first: click a word, then a line of the table.")
        try:
            store.edit(int(entry), text, source="web page")
        except ValueError as problem:
            raise gr.Error(str(problem)) from None
        return changes()

    def undo():
        try:
            store.undo()
        except ValueError as problem:
            raise gr.Error(str(problem)) from None
        return changes()

    def changes() -> list[list]:
        return [[row, before, after] for row, before, after in store.changed()]

    def changes_of_others(shown):
        state = store.journal.state()
        return (gr.skip(), gr.skip()) if state == shown else (changes(), state)

    with gr.Blocks(title=f"Memory of {store.run_dir.name}", analytics_enabled=False) as page:
        traced = gr.State([])
        gr.Markdown(f"## Memory of {store.run_dir.name}\nGenerate, click a word, edit an entry that was read.")
        with gr.Row():
            prompt = gr.Textbox(label="Beginning of a sentence", scale=4, elem_id="prompt")
            length = gr.Slider(1, 64, value=12, step=1, label="new tokens", scale=1)
            button = gr.Button("Generate", variant="primary", scale=1, elem_id="generate")
        output = gr.HighlightedText(
            label="Click a generated word. The redder it is, the more was read from the memory",
            show_legend=False, combine_adjacent=False, interactive=False, elem_id="output",
        )  # fmt: skip
        table = gr.Dataframe(
            headers=COLUMNS, type="array", interactive=False, wrap=True, elem_id="reads",
            label="Entries read for that word. Click a line to edit its entry",
        )  # fmt: skip
        with gr.Row():
            entry = gr.Textbox(label="entry", interactive=False, scale=1, elem_id="entry")
            text = gr.Textbox(label="text of the entry", scale=5, elem_id="text")
            save_button = gr.Button("Save and generate again", variant="primary", scale=1, elem_id="save")
            undo_button = gr.Button("Undo the last change", scale=1, elem_id="undo")
        changed = gr.Dataframe(
            headers=["entry", "after training", "now"], type="array", interactive=False, wrap=True, value=changes(),
            label="Edited entries", elem_id="changed",
        )  # fmt: skip

        generated = [output, traced, table, entry, text, changed]
        page.load(changes, None, [changed])
        shown = gr.State(store.journal.state())
        gr.Timer(REFRESH_SECONDS).tick(changes_of_others, [shown], [changed, shown])
        button.click(generate, [prompt, length], generated)
        prompt.submit(generate, [prompt, length], generated)
        output.select(choose_token, [traced], [table])
        table.select(choose_entry, [table], [entry, text])
        save_button.click(save, [entry, text], [changed]).success(generate, [prompt, length], generated)
        undo_button.click(undo, None, [changed]).success(generate, [prompt, length], generated)
    return page


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", required=True, help="run folder of a memory model")
    parser.add_argument("--port", type=positive_int, default=7860, help="port of the page on this machine")
    args = parser.parse_args()
    try:
        import gradio  # noqa: F401
    except ModuleNotFoundError:
        raise ValueError("the page needs Gradio: .venv/bin/python -m pip install gradio") from None
    for name in ("NO_PROXY", "no_proxy"):  # a proxy cannot reach a page of this machine
        os.environ[name] = ",".join(filter(None, [os.environ.get(name), "127.0.0.1", "localhost"]))
    make_page(MemoryStore(args.run)).launch(server_name="127.0.0.1", server_port=args.port, share=False, quiet=False)


if __name__ == "__main__":
    run_command(main)
