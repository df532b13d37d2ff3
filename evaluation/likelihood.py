"""Log-likelihoods of continuations, and the choice of the likeliest option.

Axes: B sequences · T positions · V vocabulary · X sequences of a batch
"""

from collections.abc import Iterator
from itertools import islice
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from common.constants import NO_ENTRY
from dataset.questions import answer_index, chance_of
from dataset.tokenizer import border, encode_texts
from model.visibility import FLEX_BLOCK

from .config import EvalConfig, accuracy, accuracy_by_part

Batch = tuple[slice, Tensor, Tensor]
Encoded = tuple[list[int], int]  # token ids, and the position where the scored ones begin


def encode(tokenizer, pairs: list[tuple[str, str]]) -> list[Encoded]:
    """For each (prompt, option): token ids of bos, prompt and option, and the position where the option begins.

    Prompt and option are tokenised together, as in a running text.
    """
    joined = encode_texts(tokenizer, [prompt + option for prompt, option in pairs])
    prompts = list(dict.fromkeys(prompt for prompt, _ in pairs))
    alone = dict(zip(prompts, encode_texts(tokenizer, prompts), strict=True))
    return [
        ([tokenizer.bos_token_id, *ids], 1 + border(alone[prompt], ids))
        for (prompt, _), ids in zip(pairs, joined, strict=True)
    ]


def batches_by_length(lengths: list[int], batch_size: int, most_tokens: int = 0) -> Iterator[list[int]]:
    """The indices of sequences, those of about equal length together, the shortest first.

    Args:
        most_tokens: a batch may hold more than `batch_size` sequences, with so many tokens in all.
    """
    by_length, begin = sorted(range(len(lengths)), key=lengths.__getitem__), 0
    while begin < len(by_length):
        size = batch_size
        while begin + size < len(by_length) and (size + 1) * lengths[by_length[begin + size]] <= most_tokens:
            size += 1
        yield by_length[begin : begin + size]
        begin += size


def ended(options: list[str], tokenizer) -> list[str]:
    """The options, each with an end-of-text token if one of them is the beginning of another.

    The beginning would never be less likely than the longer option.
    """
    if any(longer != option and longer.startswith(option) for option in options for longer in options):
        return [option + tokenizer.eos_token for option in options]
    return options


def left_padded_batches(model, tokenizer, prompts: list[str], batch_size: int, room: int = 0) -> Iterator[Batch]:
    """Batches of prompts, each with bos, padded on the left so that all end at the last position.

    Yields:
        The slice of `prompts`, ids (X, T) int64, and their mask (X, T) int64, 0 at padding. Prompts longer than the
        model's context, less a `room` of so many tokens, lose their beginning.
    """
    ids = [[tokenizer.bos_token_id, *own] for own in encode_texts(tokenizer, prompts)]
    ids = [torch.tensor(row[-max(model.settings.max_seq_len - room, 1) :]) for row in ids]
    left = {"batch_first": True, "padding_side": "left"}
    for begin in range(0, len(ids), batch_size):
        rows = ids[begin : begin + batch_size]
        input_XT = pad_sequence(rows, padding_value=tokenizer.pad_token_id, **left)
        mask_XT = pad_sequence([torch.ones_like(row) for row in rows], **left)
        yield slice(begin, begin + len(rows)), input_XT.to(model.device), mask_XT.to(model.device)


class Score(NamedTuple):
    """log_p: nats of the scored tokens together.  n: their number.  is_greedy: each is the likeliest at its place."""

    log_p: float
    n: int
    is_greedy: bool


@torch.no_grad()
def score_sequences(
    model, tokenizer, encoded: list[Encoded], batch_size: int, most_tokens: int = 0, entries: list[int] | None = None
) -> list[Score]:
    """The score of each sequence. The model reads all but the last token, which is only predicted.

    Args:
        most_tokens: as in `batches_by_length`.
        entries: for each sequence, an entry that every position reads first (oracle); NO_ENTRY: none. None: no oracle.
    """
    results = [Score(0.0, 0, True)] * len(encoded)
    for chosen in batches_by_length([len(ids) for ids, _ in encoded], batch_size, most_tokens):
        ids = [torch.tensor(encoded[i][0]) for i in chosen]
        end_B, start_B = torch.tensor([len(own) for own in ids]), torch.tensor([encoded[i][1] for i in chosen])
        width = max(int(end_B.max()) - 1, 1)
        # Rows of whole blocks would be compiled for each of their lengths.
        width += width % FLEX_BLOCK == 0 and width < model.settings.max_seq_len
        # Causal attention does not see padding on the right.
        ids_BT = pad_sequence(ids, batch_first=True, padding_value=tokenizer.pad_token_id)
        ids_BT = F.pad(ids_BT, (0, width + 1 - ids_BT.shape[1]), value=tokenizer.pad_token_id)
        position_T = torch.arange(1, width + 1)
        is_scored_BT = (position_T >= start_B[:, None]) & (position_T < end_B[:, None])
        ids_BT, is_scored_BT = ids_BT.to(model.device), is_scored_BT.to(model.device)
        oracle = {} if entries is None else {"entry_B": torch.tensor([entries[i] for i in chosen], device=model.device)}
        log_p_XV = model(ids_BT[:, :-1], **oracle).logits[is_scored_BT].float().log_softmax(dim=-1)
        target_X, row_X = ids_BT[:, 1:][is_scored_BT], is_scored_BT.nonzero()[:, 0]
        log_p_X = log_p_XV.gather(-1, target_X[:, None])[:, 0].double()
        wrong_X = (log_p_XV.argmax(dim=-1) != target_X).double()
        total_2B = torch.zeros(2, len(chosen), dtype=torch.float64, device=model.device)
        total_2B.index_add_(1, row_X, torch.stack([log_p_X, wrong_X]))
        for i, n, log_p, wrong in zip(chosen, (end_B - start_B).tolist(), *total_2B.tolist(), strict=True):
            results[i] = Score(log_p, n, wrong == 0)
    return results


def without_beginning(encoded: Encoded, longest: int) -> Encoded:
    """The last `longest` tokens of a sequence; at least one of them comes before those that are scored."""
    ids, start = encoded
    cut = max(len(ids) - longest, 0)
    return ids[cut:], max(start - cut, 1)


def log_likelihoods(
    model, tokenizer, pairs: list[tuple[str, str]], batch_size: int, entries: list[int] | None = None,
    most_tokens: int = 0,
) -> list[tuple[float, int]]:  # fmt: skip
    """For each (prompt, option): the log-probability of the option in nats, and its number of tokens.

    Sequences longer than the model's context lose their beginning.

    Args:
        entries, most_tokens: as in `score_sequences`.
    """
    encoded = [without_beginning(own, model.settings.max_seq_len) for own in encode(tokenizer, pairs)]
    scores = score_sequences(model, tokenizer, encoded, batch_size, most_tokens, entries)
    return [(own.log_p, own.n) for own in scores]


def after_context(
    rows: list[dict], questions: list[tuple[str, list[str]]], config: EvalConfig
) -> list[tuple[str, list[str]]]:
    """(prompt, options) of each question, after the text that the configuration puts before it, if any.

    Args:
        rows: the questions as read.  questions: (prompt, options) of each.
    """
    before = [""] * len(rows)
    if config.oracle == "prompt":
        facts = [config.gold.fact(row) if config.gold else None for row in rows]
        before = [fact.sentence if fact else "" for fact in facts]
    elif config.oracle == "found":
        before = config.finder.texts([prompt for prompt, _ in questions])
    return [behind(text, *question) for text, question in zip(before, questions, strict=True)]


def behind(text: str, prompt: str, options: list[str]) -> tuple[str, list[str]]:
    """A question and its options behind a text, if there is one; a space parts them."""
    if not text:
        return prompt, options
    return (f"{text} {prompt}", options) if prompt else (text, [f" {option}" for option in options])


def score_options(
    model, tokenizer, rows: list[dict], questions: list[tuple[str, list[str]]], config: EvalConfig,
    most_tokens: int = 0,
) -> list[list[tuple[float, int]]]:  # fmt: skip
    """For each question, (log-probability, tokens) of each option, under the oracle of the configuration.

    Questions whose fact is not in the bank get no oracle. If one option is a prefix of another, it can never be less
    likely than the longer one. In such a question every option is scored with an end-of-text token.

    Args:
        rows: the questions as read.  questions: (prompt, options) of each.
        most_tokens: as in `batches_by_length`.
    """
    pairs, entries = [], []
    for row, (prompt, options) in zip(rows, after_context(rows, questions, config), strict=True):
        options = ended(options, tokenizer)
        pairs += [(prompt, option) for option in options]
        entries += [config.gold.row(row) if config.gold else NO_ENTRY] * len(options)
    oracle = entries if config.oracle == "entry" else None
    scores = iter(log_likelihoods(model, tokenizer, pairs, config.batch_size, oracle, most_tokens))
    return [list(islice(scores, len(options))) for _, options in questions]


def multiple_choice(
    model, tokenizer, rows: list[dict], questions: list[tuple[str, list[str]]], config: EvalConfig, version: int
) -> tuple[list[int], dict]:
    """The index of the likeliest option of each question, and the accuracy of this choice.

    `per_token` has the accuracy of the option with the highest log-probability per token.
    """
    chosen, right_per_token = [], []
    for row, own in zip(rows, score_options(model, tokenizer, rows, questions, config), strict=True):
        chosen.append(max(range(len(own)), key=lambda i: own[i][0]))
        per_token = max(range(len(own)), key=lambda i: own[i][0] / max(own[i][1], 1))
        right_per_token.append(per_token == answer_index(row))
    chance = chance_of(rows)
    right = [choice == answer_index(row) for row, choice in zip(rows, chosen, strict=True)]
    per_token = accuracy(right_per_token, chance, config, version)
    return chosen, accuracy_by_part(rows, right, chance, config, version) | {"per_token": per_token}
