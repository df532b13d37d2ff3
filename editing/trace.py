"""What a memory model read while it generated: for each token, the entries of each block and of the pointer.

python -m editing.trace --run out/experiment_1_4_8 --prompts "The capital of France is"
"""

import math
from dataclasses import dataclass, field

import torch
from transformers import DynamicCache
from transformers.utils import logging as transformers_logging

from common.cli import CommandParser, positive_int, run_command
from dataset.knowledge import entry_text
from dataset.tokenizer import load_tokenizer
from model import ModelConfig, load_run

from .search import UNSPACED

CHOICES = 5  # likeliest next tokens that a trace holds
BROKEN = "\ufffd"  # what the bytes of half a character decode to


@dataclass(frozen=True)
class Lookup:
    """An entry that a block read to predict a token. `layer`: the index of the block, n_layers for the pointer."""

    layer: int
    entry: int
    weight: float
    text: str


@dataclass(frozen=True)
class TracedToken:
    """A generated token and the entries read to predict it, by block, heaviest first.

    `choices`: the likeliest tokens in its place as (text, probability), the token itself first.
    """

    token_id: int
    text: str
    lookups: list[Lookup]
    choices: list[tuple[str, float]] = field(default_factory=list)


@dataclass(frozen=True)
class Word:
    """Generated tokens that a person reads as one word, number or sign; the text begins with the space before it."""

    text: str
    tokens: list[TracedToken]

    @property
    def probability(self) -> float:
        """Of all its tokens, one after the other."""
        return math.prod(token.choices[0][1] for token in self.tokens)

    @property
    def lookups(self) -> list[Lookup]:
        """What was read for the word: weights are the mean over its tokens, by block, heaviest first."""
        weights: dict[tuple[int, int], float] = {}
        texts = {}
        for look in (look for token in self.tokens for look in token.lookups):
            texts[look.entry] = look.text
            weights[look.layer, look.entry] = weights.get((look.layer, look.entry), 0.0) + look.weight
        ordered = sorted(weights.items(), key=lambda item: (item[0][0], -item[1]))
        return [Lookup(layer, row, total / len(self.tokens), texts[row]) for (layer, row), total in ordered]


def words(traced: list[TracedToken], tokenizer) -> list[Word]:
    """The words of a trace. Special tokens are left out; in scripts without spaces a character is a word."""
    found: list[list[TracedToken]] = []
    text = ""  # of the word at hand
    for token in traced:
        if token.token_id in tokenizer.all_special_ids:
            text = ""
            continue
        if not (text and goes_on(text, token.text)):
            found.append([])
        found[-1].append(token)
        text = tokenizer.decode([piece.token_id for piece in found[-1]])
    return [Word(tokenizer.decode([piece.token_id for piece in pieces]), pieces) for pieces in found]


def goes_on(text: str, piece: str) -> bool:
    """Whether a token belongs to the word before it."""
    if text.endswith(BROKEN) or text.isspace():
        return True
    if UNSPACED.match(text[-1]) or UNSPACED.match(piece):
        return False
    return text[-1].isalnum() and (piece[:1].isalnum() or piece[:1] in f"'’{BROKEN}")


@torch.no_grad()
def trace(model, tokenizer, prompt: str, new_tokens: int = 24) -> list[TracedToken]:
    """Greedy continuation of a prompt, with the entries read to predict each new token.

    Raises:
        ValueError: the model has no memory, or the prompt fills its context.
    """
    if not model.settings.reads_bank:
        raise ValueError("this model has no memory to trace: give a run of model_memory")
    ids = tokenizer(prompt, add_special_tokens=False).input_ids
    piece, traced = torch.tensor([[tokenizer.bos_token_id, *ids]], device=model.device), []
    cache = DynamicCache(config=model.config)
    room = model.settings.max_seq_len - piece.shape[1]
    if room < 1:
        raise ValueError(
            f"the prompt takes {piece.shape[1]} tokens, and the model reads at most {room + piece.shape[1]}: shorten it"
        )
    for _ in range(min(new_tokens, room)):
        out = model(piece, cache=cache, logits_to_keep=1)
        logits_V = out.logits[0, -1]
        token, p_V = int(logits_V.argmax()), logits_V.float().softmax(dim=-1)
        lookups = [
            Lookup(layer, entry, weight, entry_text(tokenizer, model.bank.tokens[entry].tolist()))
            for layer, reading in enumerate(out.readings)
            if reading is not None
            for entry, weight in reading.last_weights().items()
        ]
        lookups.sort(key=lambda lookup: (lookup.layer, -lookup.weight))
        likeliest = [token, *(other for other in p_V.topk(CHOICES).indices.tolist() if other != token)][:CHOICES]
        choices = [(tokenizer.decode([choice]), float(p_V[choice])) for choice in likeliest]
        traced.append(TracedToken(token, choices[0][0], lookups, choices))
        if token == tokenizer.eos_token_id:
            break
        piece = torch.tensor([[token]], device=model.device)
    return traced


def format_trace(traced: list[TracedToken], settings: ModelConfig, per_layer: int = 2) -> str:
    """One line for each token and block, with the heaviest entries and their weights."""
    lines = []
    for token in traced:
        lines.append(repr(token.text))
        for layer in sorted({lookup.layer for lookup in token.lookups}):
            own = [lookup for lookup in token.lookups if lookup.layer == layer][:per_layer]
            entries = "   ".join(
                f"{look.weight:4.0%} #{look.entry} {look.text!r}" for look in own if look.weight >= 0.005
            )
            lines.append(f"    {settings.reader_name(layer)}: {entries or 'nothing'}")
    return "\n".join(lines)


def main() -> None:
    parser = CommandParser(description=__doc__)
    parser.add_argument("--run", required=True, help="run folder of a memory model")
    parser.add_argument("--prompts", nargs="+", required=True, help="beginnings of sentences")
    parser.add_argument("--new_tokens", type=positive_int, default=24, help="tokens to generate, at most")
    parser.add_argument("--show", type=positive_int, help="show entries for the first prompt alone, and so many tokens")
    args = parser.parse_args()
    transformers_logging.disable_progress_bar()
    model, tokenizer = load_run(args.run), load_tokenizer(args.run, "run")
    traces = [trace(model, tokenizer, prompt, args.new_tokens) for prompt in args.prompts]
    for prompt, traced in zip(args.prompts, traces, strict=True):
        print(prompt + "".join(token.text for token in traced))
    for prompt, traced in list(zip(args.prompts, traces, strict=True))[: 1 if args.show else None]:
        print(f"\nread after {prompt!r} to predict each token: weight, number and text of the heaviest entries")
        print(format_trace(traced[: args.show], model.settings))


if __name__ == "__main__":
    run_command(main)
