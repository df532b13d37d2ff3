"""The picture of the memory, as SVG: from the text to the entries that are read, and an edit of one entry."""

from html import escape

WIDTH, HEIGHT = 960, 560
SANS = "-apple-system, 'Segoe UI', Helvetica, Arial, sans-serif"
MONO = "ui-monospace, SFMono-Regular, Menlo, Consolas, 'DejaVu Sans Mono', monospace"
TOKENS = ("Lygia", "Pape", "was", "born", "in")
# Rows of the bank: number, text, whether the text above reads it.
ENTRIES = (
    (286, "Lygia Pape was born in 1927.", True), (287, "Runga language belongs to the family Maban.", False),
    (5212, "Lygia Clark was born at Belo Horizonte.", True), (22057, "Lygia Pape was born at Nova Friburgo.", True),
    (23019, "Lygia Clark died in 1988.", True), (23020, "Charles Gordon died at Bath.", False),
)  # fmt: skip
EDITED, OLD, NEW = 286, "1927", "1869"


class Canvas:
    """Collects the elements of an SVG in the colors of one theme."""

    def __init__(self, colors):
        self.colors, self.parts = colors, []

    def box(self, x: float, y: float, w: float, h: float, color: str, fill: float = 0.0, width: float = 1.3) -> None:
        self.parts.append(
            f'<rect x="{x}" y="{y}" width="{w}" height="{h}" rx="7" fill="{color}" fill-opacity="{fill}" '
            f'stroke="{color}" stroke-width="{width}"/>'
        )

    def text(self, x, y, words: str, size: float = 13, color: str = "", anchor: str = "start", **style) -> None:
        font = MONO if style.pop("mono", False) else SANS
        more = "".join(f' {name.replace("_", "-")}="{value}"' for name, value in style.items())
        self.parts.append(
            f'<text x="{x}" y="{y}" font-family="{escape(font)}" font-size="{size}" fill="{color or self.colors.text}" '
            f'text-anchor="{anchor}"{more}>{escape(words)}</text>'
        )

    def arrow(self, *points: tuple[float, float], color: str = "", dashed: bool = False) -> None:
        """A line through the points with a head at its end."""
        color = color or self.colors.text
        (x0, y0), (x1, y1) = points[-2:]
        dx, dy = (x1 > x0) - (x1 < x0), (y1 > y0) - (y1 < y0)
        line = [*points[:-1], (x1 - 7 * dx, y1 - 7 * dy)]
        path = "M" + " L".join(f"{x} {y}" for x, y in line)
        dash = ' stroke-dasharray="5 4"' if dashed else ""
        self.parts.append(f'<path d="{path}" fill="none" stroke="{color}" stroke-width="1.6"{dash}/>')
        back_x, back_y = x1 - 9 * dx, y1 - 9 * dy
        head = (x1, y1), (back_x + 4.5 * dy, back_y + 4.5 * dx), (back_x - 4.5 * dy, back_y - 4.5 * dx)
        self.parts.append(f'<path d="M{" L".join(f"{x} {y}" for x, y in head)} Z" fill="{color}"/>')

    def title(self, x: float, y: float, number: str, words: str, color: str) -> None:
        self.parts.append(f'<circle cx="{x + 9}" cy="{y - 5}" r="9.5" fill="{color}"/>')
        self.text(x + 9, y, number, 12, self.colors.paper, "middle", font_weight="bold")
        self.text(x + 25, y, words, 14, font_weight="bold")

    def svg(self) -> str:
        label = "The text retrieves rows of the bank; a block and a pointer read them; an edit changes one row."
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" '
            f'role="img" aria-label="{label}">\n' + "\n".join(self.parts) + "\n</svg>\n"
        )


def data(rows) -> list:
    """The drawing shows no measured number: its data are its own examples."""
    return [TOKENS, ENTRIES, EDITED, OLD, NEW]


def draw(_, colors) -> str:
    canvas = Canvas(colors)
    draw_text(canvas)
    draw_retrieval(canvas)
    draw_bank(canvas)
    draw_block(canvas)
    draw_prediction(canvas)
    return canvas.svg()


def draw_text(canvas: Canvas) -> None:
    canvas.title(20, 34, "1", "the text so far", canvas.colors.plain)
    x, y = 20, 50
    for token in TOKENS:
        width = 16 + 7.9 * len(token)
        if x + width > 190:
            x, y = 20, y + 34
        canvas.box(x, y, width, 26, canvas.colors.plain)
        canvas.text(x + width / 2, y + 18, token, 13, anchor="middle", mono=True)
        x += width + 6
    canvas.box(x, y, 32, 26, canvas.colors.memory, 0.12)
    canvas.text(x + 16, y + 18, "?", 14, canvas.colors.memory, "middle", font_weight="bold")
    canvas.text(20, 140, "every position looks up,", 12)
    canvas.text(20, 156, "in training and in use", 12)


def draw_retrieval(canvas: Canvas) -> None:
    color = canvas.colors.memory
    canvas.title(236, 34, "2", "retrieval: which rows?", color)
    canvas.box(236, 50, 256, 78, color)
    canvas.text(248, 70, "n-grams", 13, font_weight="bold")
    canvas.text(306, 70, "or suffixes, or words; not learned", 11.5)
    canvas.text(248, 91, "Lygia", 12.5, color, mono=True)
    canvas.text(294, 91, "is three tokens, in four rows:", 12)
    canvas.text(248, 110, "a rare n-gram finds its rows", 12)
    canvas.text(364, 147, "or", 13, anchor="middle", font_style="italic")
    canvas.box(236, 158, 256, 78, color)
    canvas.text(248, 178, "product keys", 13, font_weight="bold")
    canvas.text(334, 178, "(1.4.x and others; learned)", 11.5)
    canvas.text(248, 199, "state of the block → query; best", 12)
    canvas.text(248, 218, "pairs of 2 × 1024 sub-keys", 12)
    canvas.arrow((196, 90), (232, 90))
    canvas.arrow((496, 142), (544, 142), color=color)
    canvas.text(520, 132, "4 rows", 11.5, color, "middle")


def draw_bank(canvas: Canvas) -> None:
    colors, x = canvas.colors, 548
    canvas.title(x, 34, "3", "the bank: a million short texts, or more", colors.memory)
    canvas.box(x, 50, 392, 186, colors.plain)
    for line, (number, words, read) in enumerate(ENTRIES):
        y = 74 + 27 * line
        if read:
            canvas.box(x + 6, y - 17, 380, 24, colors.memory, 0.14, 0)
        ink = colors.text if read else colors.plain
        canvas.text(x + 60, y, f"#{number}", 12, ink, "end", mono=True)
        if number == EDITED:
            before, _, after = words.partition(OLD)
            place = x + 70 + 7.25 * len(before)
            canvas.text(x + 70, y, before, 12, ink, mono=True)
            canvas.text(place, y, OLD, 12, colors.counterfactual, mono=True, text_decoration="line-through")
            canvas.text(place + 33, y, NEW + after, 12, colors.lookup, mono=True, font_weight="bold")
        else:
            canvas.text(x + 70, y, words, 12, ink, mono=True)
    canvas.text(x, 254, f"An edit writes one row, here #{EDITED}. It counts at once,", 12, colors.lookup)
    canvas.text(x, 270, "no weight changes, and undo restores every bit.", 12, colors.lookup)


def draw_block(canvas: Canvas) -> None:
    colors = canvas.colors
    canvas.box(20, 316, 500, 226, colors.plain)
    canvas.title(64, 342, "4", "a block that reads (--memory_layers)", colors.memory)
    canvas.box(64, 376, 118, 36, colors.plain)
    canvas.text(123, 399, "self-attention", 13, anchor="middle")
    canvas.box(256, 376, 150, 36, colors.plain)
    canvas.text(331, 399, "feed-forward", 13, anchor="middle")
    canvas.box(256, 446, 150, 74, colors.memory, 0.14)
    canvas.text(331, 468, "fusion", 13, anchor="middle", font_weight="bold")
    canvas.text(331, 487, "attention to each", 12, anchor="middle")
    canvas.text(331, 504, "token of the entries", 12, anchor="middle")
    canvas.arrow((110, 168), (110, 290), (44, 290), (44, 394), (62, 394))
    canvas.text(118, 284, "embedding", 11.5)
    for x in (214, 462):
        canvas.parts.append(f'<circle cx="{x}" cy="394" r="11" fill="none" stroke="{colors.text}" stroke-width="1.3"/>')
        canvas.text(x, 399, "+", 15, anchor="middle")
    canvas.arrow((184, 394), (202, 394))
    canvas.arrow((226, 394), (254, 394))
    canvas.arrow((238, 394), (238, 483), (254, 483))
    canvas.arrow((408, 394), (450, 394))
    canvas.arrow((408, 483), (462, 483), (462, 407), color=colors.memory)
    canvas.arrow((238, 430), (419, 430), (419, 270), (364, 270), (364, 238), color=colors.memory, dashed=True)
    canvas.text(427, 274, "query", 11.5, colors.memory)
    canvas.arrow((532, 200), (532, 533), (331, 533), (331, 522), color=colors.memory)
    canvas.parts.append(f'<path d="M548 200 L532 200" stroke="{colors.memory}" stroke-width="1.6"/>')


def draw_prediction(canvas: Canvas) -> None:
    colors = canvas.colors
    canvas.title(580, 342, "5", "the next token", colors.memory)
    canvas.box(580, 358, 150, 36, colors.plain)
    canvas.text(655, 381, "vocabulary", 13, anchor="middle")
    canvas.box(580, 446, 150, 74, colors.memory, 0.14)
    canvas.text(655, 468, "pointer", 13, anchor="middle", font_weight="bold")
    canvas.text(655, 487, "copies a token of an", 12, anchor="middle")
    canvas.text(655, 504, "entry (--pointer)", 12, anchor="middle")
    canvas.arrow((474, 394), (556, 394), (556, 376), (578, 376))
    canvas.arrow((556, 394), (556, 483), (578, 483))
    canvas.arrow((532, 533), (655, 533), (655, 522), color=colors.memory)
    canvas.box(790, 394, 146, 60, colors.lookup, 0.12)
    canvas.text(863, 418, OLD, 15, colors.counterfactual, "middle", mono=True, text_decoration="line-through")
    canvas.text(863, 441, NEW, 16, colors.lookup, "middle", mono=True, font_weight="bold")
    canvas.text(863, 474, "before and after", 12, anchor="middle")
    canvas.text(863, 490, f"the edit of #{EDITED}", 12, anchor="middle")
    canvas.arrow((732, 376), (770, 376), (770, 414), (788, 414))
    canvas.arrow((732, 483), (770, 483), (770, 434), (788, 434), color=colors.memory)
