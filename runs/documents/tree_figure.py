"""The tree of experiments as SVG: each below the one that it builds on, with its change and what came of the loss."""

from html import escape

from .drawing import SANS
from .leaderboard import PLAIN, QUESTIONS, TEXTS, first, plain_of
from .rows import Rows

WIDTH, ROW, INDENT, TOP = 1310, 27, 26, 44
CHANGE_END, LETTER = 860, 5.9  # where a change must end, and the mean width of its letters
PROTOCOL_LETTERS = 24  # of a protocol's name that fit beside the plain model's number
ANSWERS_AT, SHOWS_READING = 1296, 5  # the end of the answers; points above a shuffled bank that are coloured
BAR_AT, BAR_WIDTH, BAR_MOST = 930, 110, 8.0  # the bars of the loss: from -8 % to +8 % of the plain model's


def data(rows: Rows) -> list[dict]:
    """The experiments in the order of the drawing, with depth and loss against the plain model."""
    children: dict[str | None, list[dict]] = {}
    for node in rows.tree:
        children.setdefault(node["base"], []).append(node)
    found = []

    def visit(node: dict, depth: int, parent: int | None) -> None:
        place = len(found)
        told = {name: node[name] for name in ("number", "archived")}
        told |= {"change": node["change"] if node["base"] else node["question"], "depth": depth, "parent": parent}
        found.append(told | against_plain(rows, node["number"]) | answers(rows, node["number"]))
        for child in children.get(node["number"], []):
            visit(child, depth + 1, place)

    for node in children.get(None, []):
        visit(node, 0, None)
    return found


def against_plain(rows: Rows, number: str) -> dict:
    """The loss in percent of the plain model's under the same protocol; none where one of them was not measured."""
    loss = first(rows, number, ("memory", "plain"), "val_loss", TEXTS)
    base = plain_of(rows, number)
    plain = loss and first(rows, base, ("plain",), "val_loss", ((loss.split, loss.protocol),))
    if not plain or number == PLAIN:
        return {"percent": None, "protocol": None}
    protocol = cut(loss.protocol, PROTOCOL_LETTERS) + (f", {base}" if base != PLAIN else "")
    return {"percent": round(100 * (loss.value / plain.value - 1), 2), "protocol": protocol}


def answers(rows: Rows, number: str) -> dict:
    """Right object questions in %, and those with the bank shuffled under the same protocol."""
    answer = first(rows, number, ("memory", "plain"), "object", QUESTIONS)
    asked = ((answer.split, answer.protocol),) if answer else ()
    shuffled = first(rows, number, ("shuffled",), "object", asked)
    return {"object": answer and answer.value, "shuffled": shuffled and shuffled.value}


def draw(nodes: list[dict], colors) -> str:
    height = TOP + ROW * len(nodes) + 12
    parts = [
        text(BAR_AT + BAR_WIDTH / 2, 16, "loss against plain, %", colors.text, 12, anchor="middle"),
        text(BAR_AT + BAR_WIDTH / 2, 31, "left is better", colors.plain, 11, anchor="middle"),
        text(1070, 16, "protocol, against", colors.text, 12),
        text(ANSWERS_AT, 16, "object questions, %", colors.text, 12, anchor="end"),
        text(ANSWERS_AT, 31, "(bank shuffled)", colors.plain, 11, anchor="end"),
        line(BAR_AT + BAR_WIDTH / 2, TOP - 8, BAR_AT + BAR_WIDTH / 2, height - 8, colors.grid),
    ]
    for place, node in enumerate(nodes):
        y = TOP + ROW * place + ROW / 2
        x = 12 + INDENT * node["depth"]
        if node["parent"] is not None:
            above = TOP + ROW * node["parent"] + ROW / 2 + 9
            stem = x - INDENT + 10
            parts += [line(stem, above, stem, y, colors.grid), line(stem, y, x, y, colors.grid)]
        parts += draw_node(node, x, y, colors) + draw_bar(node, y, colors) + draw_answers(node, y, colors)
    label = "Every experiment below the one it builds on, with its change and its loss against the plain model."
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" '
        f'role="img" aria-label="{label}">\n' + "\n".join(parts) + "\n</svg>\n"
    )


def cut(words: str, most: int) -> str:
    """The words, or as many of their letters as there is room for."""
    return words if len(words) <= most else words[: most - 1].rstrip(" ,") + "…"


def draw_node(node: dict, x: float, y: float, colors) -> list[str]:
    ink = colors.plain if node["archived"] else colors.memory
    width = 14 + 7.3 * len(node["number"])
    change = node["change"] + (" (archive)" if node["archived"] else "")
    change = cut(change, int((CHANGE_END - x - width) / LETTER))
    return [
        f'<rect x="{x}" y="{y - 9.5}" width="{width:.1f}" height="19" rx="5" fill="{ink}" fill-opacity="0.13" '
        f'stroke="{ink}"/>',
        text(x + width / 2, y + 4, node["number"], colors.text, 12, anchor="middle", weight="bold"),
        text(x + width + 8, y + 4, change, colors.plain if node["archived"] else colors.text, 12),
    ]


def draw_bar(node: dict, y: float, colors) -> list[str]:
    middle, percent = BAR_AT + BAR_WIDTH / 2, node["percent"]
    if percent is None:
        words = "" if node["number"] == PLAIN else "not measured"
        return [text(BAR_AT - 6, y + 4, words, colors.plain, 11, anchor="end")]
    shown = max(-BAR_MOST, min(BAR_MOST, percent))
    width = abs(shown) / BAR_MOST * BAR_WIDTH / 2
    color = colors.lookup if percent < 0 else colors.counterfactual
    return [
        f'<rect x="{middle - width if percent < 0 else middle:.1f}" y="{y - 6}" width="{width:.1f}" height="12" '
        f'fill="{color}" fill-opacity="0.75"/>',
        text(BAR_AT - 6, y + 4, f"{percent:+.1f}", colors.text, 12, anchor="end"),
        text(1070, y + 4, node["protocol"], colors.plain, 11),
    ]


def draw_answers(node: dict, y: float, colors) -> list[str]:
    if node["object"] is None:
        return []
    shuffled = "" if node["shuffled"] is None else f" ({node['shuffled']:.0f})"
    is_read = node["shuffled"] is not None and node["object"] - node["shuffled"] > SHOWS_READING
    color = colors.lookup if is_read else colors.text
    return [text(ANSWERS_AT, y + 4, f"{node['object']:.0f}{shuffled}", color, 12, anchor="end")]


def text(x: float, y: float, words: str, color: str, size: float, anchor: str = "start", weight: str = "normal") -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" font-family="{escape(SANS)}" font-size="{size}" fill="{color}" '
        f'text-anchor="{anchor}" font-weight="{weight}">{escape(words)}</text>'
    )


def line(x0: float, y0: float, x1: float, y1: float, color: str) -> str:
    return f'<path d="M{x0:.1f} {y0:.1f} L{x1:.1f} {y1:.1f}" stroke="{color}" stroke-width="1.4" fill="none"/>'
