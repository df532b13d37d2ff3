"""What a model answers with its memory and without it, and the entries that it read."""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from dataset.knowledge import Fact
from dataset.tokenizer import encode_texts
from evaluation import EvalConfig
from evaluation.controls import emptied

from .files import beginning, read_facts
from .store import MemoryStore, Row
from .trace import trace

ENDS = ".!?\n"  # an answer goes to its first sign of these, unless a letter or digit follows
MORE = 4  # tokens of an answer beyond those of the right object
SHOWN = 0.05  # weight from which an entry counts as read


@dataclass(frozen=True)
class Answer:
    """An answer to a text that the model goes on with.

    Attributes:
        text: what it writes, to the end of the sentence.  without: the same, with an empty memory.
        read: (weight, reader, entry) of what it read to write it, heaviest first; the reader is a block or the pointer,
            and the weight its highest of any token.
    """

    prompt: str
    text: str
    without: str
    read: list[tuple[float, str, Row]]


def first_sentence(text: str) -> str:
    """The text to the end of its first sentence, without the space before it."""
    for i, character in enumerate(text):
        if character in ENDS and text[:i].strip() and not text[i + 1 : i + 2].isalnum():
            return text[: i + 1].strip()
    return text.strip()


def ask(store: MemoryStore, prompt: str, new_tokens: int = 16, n: int = 5) -> Answer:
    """What the model writes after a text, with its memory and without.

    Raises:
        ValueError: the text fills the context of the model.
    """
    store.refresh()
    eos = store.tokenizer.eos_token_id

    def answer() -> tuple[str, list]:
        traced = trace(store.model, store.tokenizer, prompt, new_tokens)
        ids = [token.token_id for token in traced if token.token_id != eos]
        text = first_sentence(store.tokenizer.decode(ids))
        used = next((k for k in range(1, len(ids)) if store.tokenizer.decode(ids[:k]).strip() == text), len(ids))
        return text, traced[:used]

    text, traced = answer()
    weights: dict[tuple[int, int], float] = defaultdict(float)
    for look in (look for token in traced for look in token.lookups):
        weights[look.layer, look.entry] = max(weights[look.layer, look.entry], look.weight)
    heaviest = sorted(weights.items(), key=lambda item: -item[1])[:n]
    with emptied(store.model, store.tokenizer, EvalConfig()):
        without, _ = answer()
    name = store.model.settings.reader_name
    read = [(weight, name(layer), store.show(row)) for (layer, row), weight in heaviest if weight >= SHOWN]
    return Answer(prompt, text, without, read)


@dataclass(frozen=True)
class Asked:
    """A fact that was asked for, and whether the answer begins with its object, with the memory and without."""

    fact: Fact
    answer: Answer

    @property
    def right(self) -> bool:
        return is_object(self.answer.text, self.fact.object)

    @property
    def right_without(self) -> bool:
        return is_object(self.answer.without, self.fact.object)


def is_object(answer: str, object: str) -> bool:
    """Whether an answer begins with an object, not with a longer word that begins so."""
    answer, object = answer.casefold(), object.casefold()
    return answer.startswith(object) and not answer[len(object) : len(object) + 1].isalnum()


def ask_facts(store: MemoryStore, path: str | Path, templates: dict[str, list[str]] | None = None) -> Iterator[Asked]:
    """Ask for the object of each fact of a file, in the words before it.

    Raises:
        FileNotFoundError, ValueError: as in `MemoryStore.import_facts`; or a fact has no words before its object.
    """
    facts = store.worded(read_facts(path), Path(path), templates or {})
    for fact in facts:
        if not beginning(fact):
            raise ValueError(
                f"{path}: {fact.sentence!r:.80} has no subject before its object, so it cannot be asked for"
            )
    lengths = [len(ids) + MORE for ids in encode_texts(store.tokenizer, [fact.object for fact in facts])]
    return (Asked(fact, ask(store, beginning(fact), n)) for fact, n in zip(facts, lengths, strict=True))
