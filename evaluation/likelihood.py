"""Log-likelihoods of answers to a prompt.

Axes: B sequences · T positions · V vocabulary
"""

from itertools import islice
from pathlib import Path

import torch
from torch.nn.utils.rnn import pad_sequence

from common.constants import NO_ENTRY
from common.files import parse_json, read_lines, require_file
from dataset.tokenizer import border

from .settings import Settings, accuracy, by_part


def read_questions(path: str | Path, fields: tuple[str, ...], limit: int | None, flag: str) -> list[dict]:
    """The questions of a JSON Lines file.

    Raises:
        FileNotFoundError, ValueError: missing or malformed file, naming the line.
    """
    rows = []
    for number, line in read_lines(require_file(path, flag)):
        if len(rows) == limit:
            break
        if line.isspace():
            continue
        row = parse_json(line, f"{path}, line {number}")
        missing = [name for name in fields if not isinstance(row, dict) or name not in row]
        if missing:
            raise ValueError(f"{path}, line {number}: no field {missing[0]!r}")
        rows.append(row)
    return rows


def encode(tokenizer, prompt: str, option: str) -> tuple[list[int], int]:
    """Token ids of a beginning mark, the prompt and the option, and where the option starts.

    The two are tokenised together, as they would stand in a text.
    """
    joined = tokenizer(prompt + option, add_special_tokens=False).input_ids
    alone = tokenizer(prompt, add_special_tokens=False).input_ids
    return [tokenizer.bos_token_id, *joined], 1 + border(alone, joined)


@torch.no_grad()
def log_likelihoods(
    model, tokenizer, pairs: list[tuple[str, str]], batch_size: int, entries: list[int] | None = None
) -> list[tuple[float, int]]:
    """For each (prompt, option): the log-probability in nats of the option's tokens, and how many they are.

    Sequences longer than the model's are cut at the front. `entries` names an entry of the bank for each pair, which
    every position is made to read.
    """
    encoded = [encode(tokenizer, prompt, option) for prompt, option in pairs]
    longest = model.settings.max_seq_len
    results: list[tuple[float, int]] = [(0.0, 0)] * len(pairs)
    by_length = sorted(range(len(pairs)), key=lambda i: len(encoded[i][0]))
    for begin in range(0, len(pairs), batch_size):
        places = by_length[begin : begin + batch_size]
        cut = [max(len(encoded[i][0]) - longest, 0) for i in places]
        ids = [torch.tensor(encoded[i][0][c:]) for i, c in zip(places, cut, strict=True)]
        # Padding on the right is invisible to causal attention.
        input_BT = pad_sequence(ids, batch_first=True, padding_value=tokenizer.pad_token_id).to(model.device)
        forced = {} if entries is None else {"entry_B": torch.tensor([entries[i] for i in places], device=model.device)}
        log_p_BTV = model(input_BT, **forced).logits[:, :-1].float().log_softmax(dim=-1)
        log_p_BT = log_p_BTV.gather(-1, input_BT[:, 1:, None])[..., 0].cpu()
        for row, (i, c) in enumerate(zip(places, cut, strict=True)):
            start = max(encoded[i][1] - c, 1)
            option_T = log_p_BT[row, start - 1 : len(ids[row]) - 1]
            results[i] = (float(option_T.sum()), len(option_T))
    return results


def score_options(model, tokenizer, rows: list[dict], questions: list[tuple[str, list[str]]], settings: Settings):
    """For each question, (log-probability, tokens) of each option; with whatever help the settings give.

    Questions whose fact is not in the bank get no help. Where one option begins another (architect, architectural
    style), it is at least as likely whatever the model knows: the end of the text is then scored as part of each.
    """
    pairs, entries = [], []
    for row, (prompt, options) in zip(rows, questions, strict=True):
        fact = settings.gold.fact(row) if settings.gold else None
        if settings.help == "prompt" and fact:
            options = options if prompt else [f" {option}" for option in options]
            prompt = f"{fact.sentence} {prompt}".rstrip()
        if any(longer != option and longer.startswith(option) for option in options for longer in options):
            options = [option + tokenizer.eos_token for option in options]
        pairs += [(prompt, option) for option in options]
        entries += [settings.gold.row(row) if settings.gold else NO_ENTRY] * len(options)
    forced = entries if settings.help == "entry" else None
    scores = iter(log_likelihoods(model, tokenizer, pairs, settings.batch_size, forced))
    return [list(islice(scores, len(options))) for _, options in questions]


def multiple_choice(model, tokenizer, rows: list[dict], questions: list[tuple[str, list[str]]], settings, version):
    """The chosen option of each question, and the accuracy of the choice against each `answer` (A-E).

    Chosen is the likeliest option; the accuracy of the likeliest per token stands beside it as `per_token`.
    """
    chosen, right_per_token = [], []
    for row, own in zip(rows, score_options(model, tokenizer, rows, questions, settings), strict=True):
        chosen.append(max(range(len(own)), key=lambda i: own[i][0]))
        per_token = max(range(len(own)), key=lambda i: own[i][0] / max(own[i][1], 1))
        right_per_token.append(per_token == letter(row))
    chance = 1 / len(rows[0]["choices"])
    right = [choice == letter(row) for row, choice in zip(rows, chosen, strict=True)]
    per_token = accuracy(right_per_token, chance, settings, version)
    return chosen, by_part(rows, right, chance, settings, version) | {"per_token": per_token}


def letter(row: dict) -> int:
    """The place of the right choice."""
    return ord(row["answer"]) - ord("A")
