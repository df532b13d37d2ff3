"""The parts of the page as HTML. Whatever a person can click has `data-pick`: what the click chooses."""

import re
from html import escape
from itertools import groupby

from model import ModelConfig

from .search import UNSPACED
from .trace import Lookup, Word

SHOWN = 0.005  # the least weight or probability with a line of its own
LINES = 5  # at most, of each block
TOKENS, CHOICES = 8, 4  # of a word whose probabilities are shown, and how many for each
# The last of these words is where an example stops, so that the model has a fact to state.
STOPS = {"in", "at", "of", "is", "was", "by", "to", "for", "from", "with", "the", "are", "as"}


def pick(value, inner: str, classes: str = "", title: str = "") -> str:
    """A button; `inner` is HTML, the rest plain text."""
    return (
        f'<button type="button" class="{classes}" data-pick="{escape(str(value))}" title="{escape(title)}">'
        f"{inner}</button>"
    )


def percent(share: float) -> str:
    return "<1 %" if share < 0.005 else f"{share:.0%}".replace("%", " %")


def bar(share: float) -> str:
    return f'<span class="bar" style="--w:{min(share, 1):.3f}"></span><span class="share">{percent(share)}</span>'


def header(name: str, facts: list[str], note: str = "") -> str:
    """Title of the page, a line of facts, and what stands in the way."""
    line = " · ".join(escape(fact) for fact in facts)
    return f"<h1>Memory of {escape(name)}</h1><p>{line}</p>" + (f'<p class="note">{escape(note)}</p>' if note else "")


def examples(prompts: list[str]) -> str:
    return '<span class="hint">Try</span>' + "".join(pick(p, escape(p), "example") for p in prompts) if prompts else ""


def beginning(text: str) -> str:
    """A sentence up to its last small word, such as "in"; without such a word, up to its last word. May be empty."""
    words = text.split(" ")
    if len(words) == 1:
        return text[: len(text) // 2] if UNSPACED.match(text) else ""
    stops = [n for n, word in enumerate(words[:-1], 1) if n > 1 and word in STOPS]
    return " ".join(words[: stops[-1] if stops else -1])


def share_read(word: Word) -> float:
    """The total weight of the last reader, which is the pointer if there is one."""
    lookups = word.lookups
    last = max((look.layer for look in lookups), default=0)
    return min(sum(look.weight for look in lookups if look.layer == last), 1.0)


def word_button(number: int, word: Word, chosen: bool) -> str:
    space = re.match(r"\s*", word.text).group()
    share = share_read(word)
    title = f"{percent(share)} read from the memory, probability {percent(word.probability)}"
    inner = f'<span style="--w:{share:.3f}">{escape(word.text[len(space) :]) or "␣"}</span>'
    return escape(space) + pick(number, inner, "word chosen" if chosen else "word", title)


def answers(prompt: str, words: list[Word], chosen: int | None, others: dict[str, str], shade: str) -> str:
    """The answer with the memory, whose words can be clicked, beside others.

    Args:
        others: title -> the text that was written in another state of the memory.
        shade: what a dark shade means.
    """
    start = f'<span class="prompt">{escape(prompt)}</span>'
    own = "".join(word_button(number, word, number == chosen) for number, word in enumerate(words))
    scale = f'<p class="scale"><span>0 %</span><i></i><span>100 %</span> {escape(shade)}; click a word</p>'
    cards = [
        '<section class="card own"><h3>With the memory, now</h3>'
        f'<p class="text">{start}{own or ENDS}</p>{scale if words else ""}</section>'
    ]
    now = "".join(word.text for word in words)
    for title, text in others.items():
        mark = '<em class="same">the same</em>' if text == now else '<em class="other">differs</em>'
        body = f'<span class="plain">{escape(text)}</span>' if text else ENDS
        cards.append(
            f'<section class="card"><h3>{escape(title)} {mark}</h3><p class="text">{start}{body}</p></section>'
        )
    return f'<div class="cards">{"".join(cards)}</div>'


ENDS = '<span class="hint"> (the model ends here)</span>'


def entry_line(row: int, text: str, lead: str = "", marks: tuple[str, ...] = ()) -> str:
    """A line that chooses an entry."""
    tags = "".join(f'<em class="same">{escape(mark)}</em>' for mark in marks)
    body = f'<span class="entry-text">{escape(text) or "(empty)"}</span>{tags}<span class="row">#{row}</span>'
    return pick(row, lead + body, "entry", f"choose entry {row}")


def details(word: Word | None, settings: ModelConfig) -> str:
    """What was read to write a word, a column for each block and the pointer, and the probabilities of its tokens."""
    if word is None:
        return ""
    columns = [
        reader_column(settings.reader_name(layer), list(lookups), layer == settings.n_layers)
        for layer, lookups in groupby(word.lookups, key=lambda look: look.layer)
    ]
    tokens = "".join(
        f'<div class="token"><code>{visible(token.text)}</code>'
        + "".join(
            f'<div class="choice"><span class="bar" style="--w:{p:.3f}"></span>'
            f'<span class="share">{percent(p)}</span><code>{visible(text)}</code></div>'
            for text, p in token.choices[:CHOICES]
            if p >= SHOWN
        )
        + "</div>"
        for token in word.tokens[:TOKENS]
    )
    n = len(word.tokens)
    more = f" (the first {TOKENS} of {n})" if n > TOKENS else ""
    hint = "one token" if n == 1 else f"{n} tokens, each with the likeliest in its place{more}"
    columns.append(card(f"Probabilities <small>{hint}</small>", f'<div class="tokens">{tokens}</div>'))
    mean = ", mean over its tokens" if n > 1 else ""
    name = escape(word.text.strip()) or "␣"
    title = f"<h3>Read to write <q>{name}</q> <small>weight of each entry{mean}</small></h3>"
    return f'{title}<div class="cards">{"".join(columns)}</div>'


def reader_column(name: str, lookups: list[Lookup], is_pointer: bool) -> str:
    what = "copies this share from its entries" if is_pointer else "reads its entries by attention"
    lines = [entry_line(look.entry, look.text, bar(look.weight)) for look in lookups if look.weight >= SHOWN][:LINES]
    nothing = '<p class="hint">nothing above 0.5 %</p>'
    return card(f"{escape(name.capitalize())} <small>{what}</small>", "".join(lines) or nothing)


def card(title: str, body: str) -> str:
    return f'<section class="card"><h4>{title}</h4>{body}</section>'


def visible(token: str) -> str:
    """A token as HTML, its spaces and line ends to be seen."""
    return escape(token.replace(" ", "␣").replace("\n", "⏎").replace("\t", "⇥")) or "–"


def found(entries: list[tuple[int, str, tuple[str, ...]]]) -> str:
    """The entries of a search: row, text and marks."""
    lines = "".join(entry_line(row, text, marks=marks) for row, text, marks in entries)
    return f'<div class="list">{lines}</div>' if entries else '<p class="hint">No entry has any of these words.</p>'


def chosen_entry(row: int | None, marks: tuple[str, ...] = ()) -> str:
    if row is None:
        return "<h3>Entry <small>click one above or below, or write a new one</small></h3>"
    tags = "".join(f'<em class="same">{escape(mark)}</em>' for mark in marks)
    return f"<h3>Entry #{row} {tags}</h3>"


def changes(rows: list[tuple[int, str, str]], most: int = 50) -> str:
    """Every entry that differs from the training's: row, text before, text now."""
    title = f"<h3>Changed since training <small>{len(rows)} {'entry' if len(rows) == 1 else 'entries'}</small></h3>"
    lines = "".join(
        pick(
            row,
            f'<span class="row">#{row}</span><span class="before">{escape(before) or "(empty)"}</span>'
            f'<span class="arrow">→</span><span class="after">{escape(now_text(before, now))}</span>',
            "change",
            f"choose entry {row}",
        )
        for row, before, now in rows[:most]
    )
    more = (
        f'<p class="hint">and {len(rows) - most} more: `python -m editing export --changed` writes all</p>'
        if len(rows) > most
        else ""
    )
    return title + (f'<div class="list">{lines}</div>{more}' if rows else '<p class="hint">nothing yet</p>')


def now_text(before: str, now: str) -> str:
    """The text of a changed entry; where only its mark changed, that."""
    return "(frozen or unfrozen, the same text)" if before == now else now or "(deleted)"
