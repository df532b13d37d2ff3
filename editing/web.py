"""A local page to talk with a run, click a word, see what was read for it, change that, and generate again.

python -m editing.web --run out/quickstart_memory      # then open http://127.0.0.1:7860

It needs Gradio (`pip install gradio`) and listens on this machine only.
"""

import argparse
import sys
from itertools import groupby

from editing.trace import TracedToken, trace

from .store import MemoryStore

COLUMNS = ["where", "weight", "entry", "text"]


def reads(store: MemoryStore, token: TracedToken, per_layer: int = 4) -> list[list]:
    """Rows for the table: what each block, and the pointer, read before it wrote a token; heaviest first."""
    rows = []
    for layer, lookups in groupby(token.lookups, key=lambda lookup: lookup.layer):
        name = store.model.settings.reader_name(layer)
        heaviest = [lookup for lookup in lookups if lookup.weight >= 0.001][:per_layer]
        rows += [[name, f"{lookup.weight:.1%}", lookup.entry, store.text(lookup.entry)] for lookup in heaviest]
    return rows


def share_read(token: TracedToken) -> float:
    """How much of a token came from the memory: by the last reader, which is the pointer where there is one."""
    last = max((lookup.layer for lookup in token.lookups), default=0)
    return min(sum(lookup.weight for lookup in token.lookups if lookup.layer == last), 1.0)


def make_page(store: MemoryStore):
    """The page, as Gradio blocks."""
    import gradio as gr

    def generate(prompt: str, new_tokens: float):
        if not prompt.strip():
            raise gr.Error("Write the beginning of a sentence first.")
        try:
            traced = trace(store.model, store.tokenizer, prompt, int(new_tokens))
        except ValueError as problem:
            raise gr.Error(str(problem)) from None
        spans = [(prompt, None)] + [(token.text, share_read(token)) for token in traced]
        return gr.update(value=spans), traced, [], "", ""

    def choose_token(traced: list[TracedToken], event: gr.SelectData):
        place = event.index - 1  # the prompt comes first
        return reads(store, traced[place]) if 0 <= place < len(traced) else []

    def choose_entry(table, event: gr.SelectData):
        row = table[event.index[0]]
        return str(row[2]), row[3]

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

    with gr.Blocks(title=f"Memory of {store.run_dir.name}", analytics_enabled=False) as page:
        traced = gr.State([])
        gr.Markdown(f"## What {store.run_dir.name} knows\nGenerate, click a word, see what was read for it; edit that.")
        with gr.Row():
            prompt = gr.Textbox(label="Beginning of a sentence", scale=4, elem_id="prompt")
            length = gr.Slider(1, 64, value=12, step=1, label="tokens to write", scale=1)
            button = gr.Button("Generate", variant="primary", scale=1, elem_id="generate")
        output = gr.HighlightedText(
            label="Click a word that the model wrote; the redder, the more of it was read in the memory",
            show_legend=False, combine_adjacent=False, interactive=False, elem_id="output",
        )  # fmt: skip
        table = gr.Dataframe(
            headers=COLUMNS, type="array", interactive=False, wrap=True, elem_id="reads",
            label="Read just before that word: click a line to edit its entry",
        )  # fmt: skip
        with gr.Row():
            entry = gr.Textbox(label="entry", interactive=False, scale=1, elem_id="entry")
            text = gr.Textbox(label="its text", scale=5, elem_id="text")
            save_button = gr.Button("Save and generate again", variant="primary", scale=1, elem_id="save")
            undo_button = gr.Button("Undo the last change", scale=1, elem_id="undo")
        changed = gr.Dataframe(
            headers=["entry", "as trained", "now"], type="array", interactive=False, wrap=True, value=changes(),
            label="Entries that differ from what training left", elem_id="changed",
        )  # fmt: skip

        generated = [output, traced, table, entry, text]
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
    parser.add_argument("--port", type=int, default=7860)
    args = parser.parse_args()
    try:
        import gradio  # noqa: F401
    except ModuleNotFoundError:
        raise ValueError("the page needs Gradio: .venv/bin/python -m pip install gradio") from None
    make_page(MemoryStore(args.run)).launch(server_name="127.0.0.1", server_port=args.port, share=False, quiet=False)


if __name__ == "__main__":
    try:
        main()
    except (ValueError, FileNotFoundError, OSError) as problem:
        sys.exit(f"error: {problem}")
