"""A local web page: ask the memory, see which entries were read for each word, and change them.

python -m editing.web --run out/quickstart_memory      # then open http://127.0.0.1:7860

It needs Gradio 6 (`pip install gradio`) and listens on this machine only. Nothing is written until you change an entry.
"""

import os
import socket
from pathlib import Path

from common.cli import CommandParser, positive_int, run_command

from .store import MemoryStore


def serve(store: MemoryStore, port: int, waits: bool = True):
    """Open the page on a port of this machine; returns Gradio's app. Fonts and all else are local."""
    import gradio as gr

    from .web_page import Page

    for name in ("NO_PROXY", "no_proxy"):  # a proxy cannot reach a page of this machine
        os.environ[name] = ",".join(filter(None, [os.environ.get(name), "127.0.0.1", "localhost"]))
    page = Page(store).blocks
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
    parser = CommandParser(description=__doc__)
    parser.add_argument("--run", required=True, help="run folder of a memory model")
    parser.add_argument("--bank", help="knowledge file to read in place of the bank of the training")
    parser.add_argument("--port", type=positive_int, default=7860, help="port of the page on this machine")
    args = parser.parse_args()
    require_page(args.port)
    serve(MemoryStore(args.run, bank_path=args.bank), args.port)


if __name__ == "__main__":
    run_command(main)
