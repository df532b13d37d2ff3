"""Questions about facts: object, relation, verification, free generation, guesses by frequency; what they cost.

Multiple choice takes the option with the highest log-probability. Chance is 20 % for five choices, 50 % for statements.
"""

import time
from collections.abc import Callable
from statistics import mean, median

import torch

from dataset.questions import (
    FIELDS,
    NO,
    PARAPHRASES,
    RELATION_PROMPT,
    VERIFICATION_PROMPT,
    YES,
    answer_index,
    chance_of,
    counterfactual_index,
    read_named,
    read_questions,
    split_question,
)

from .config import EvalConfig, accuracy, accuracy_by_part
from .likelihood import after_context, left_padded_batches, multiple_choice, score_options

OBJECT_VERSION = RELATION_VERSION = 2
VERIFICATION_VERSION = REWORDED_VERSION = EXACT_MATCH_VERSION = FREQUENCY_VERSION = COST_VERSION = 1
MAX_GENERATED, NEW_TOKENS = 500, 24
TIMED, TIMED_ALONE, REPEATS = 256, 16, 3  # questions in batches, one by one; measured passes after one that warms up
ANSWER_TOKENS = 8  # are written in the time of an answer


def ask_objects(model, tokenizer, config: EvalConfig) -> tuple[list[dict], list[int], dict]:
    """The object questions, the index chosen for each, and the result."""
    rows = read_questions(config.object_path, FIELDS["object"], config.limit, "object_path")
    questions = [split_question(row["question"], row["choices"]) for row in rows]
    chosen, result = multiple_choice(model, tokenizer, rows, questions, config, OBJECT_VERSION)
    return rows, chosen, result


def object_prediction(model, tokenizer, config: EvalConfig) -> dict | None:
    """Which object completes the sentence? Accuracy; `planted`: the share that chooses the counterfactual object."""
    if config.object_path is None:
        return None
    rows, chosen, result = ask_objects(model, tokenizer, config)
    follows = [choice == counterfactual_index(row) for row, choice in zip(rows, chosen, strict=True)]
    return result | {"planted": accuracy(follows, result["chance"], config, OBJECT_VERSION)}


def reworded(model, tokenizer, config: EvalConfig) -> dict | None:
    """The object questions in other wordings than the bank's: accuracy over all of them, and of each as a part.

    None where a question does not name its subject and predicate.
    """
    if config.object_path is None:
        return None
    rows = read_named(config.object_path, "object", ("subject", "predicate"), config.limit, "object_path")
    if rows is None:
        return None
    asked, questions = [], []
    for wording in PARAPHRASES:
        asked += [row | {"part": wording.format(subject="X", predicate="Y")} for row in rows]
        questions += [(wording.format(**row), [f" {choice}" for choice in row["choices"]]) for row in rows]
    return multiple_choice(model, tokenizer, asked, questions, config, REWORDED_VERSION)[1]


def relation_prediction(model, tokenizer, config: EvalConfig) -> dict | None:
    """Which predicate links subject and object? Accuracy."""
    if config.relation_path is None:
        return None
    rows = read_questions(config.relation_path, FIELDS["relation"], config.limit, "relation_path")
    questions = [(RELATION_PROMPT.format(**row), [f" {choice}" for choice in row["choices"]]) for row in rows]
    return multiple_choice(model, tokenizer, rows, questions, config, RELATION_VERSION)[1]


def fact_verification(model, tokenizer, config: EvalConfig) -> dict | None:
    """Is the statement true? Accuracy of "yes" being likelier than "no".

    `calibrated` counts as "yes" the half of the statements with the largest margin of "yes" over "no": a model
    without training on such questions prefers one of the two words for all statements.
    """
    if config.verification_path is None:
        return None
    rows = read_questions(config.verification_path, FIELDS["verification"], config.limit, "verification_path")
    questions = [(VERIFICATION_PROMPT.format(**row), [YES, NO]) for row in rows]
    margins = [yes - no for (yes, _), (no, _) in score_options(model, tokenizer, rows, questions, config)]
    truth = [row["answer"] == "yes" for row in rows]

    def right(threshold: float) -> list[bool]:
        return [(margin > threshold) == true for margin, true in zip(margins, truth, strict=True)]

    result = accuracy_by_part(rows, right(0.0), 0.5, config, VERIFICATION_VERSION)
    return result | {"calibrated": accuracy(right(median(margins)), 0.5, config, VERIFICATION_VERSION)}


@torch.no_grad()
def exact_match(model, tokenizer, config: EvalConfig) -> dict | None:
    """Does greedy generation after the question begin with the right object, as whole words and in the same case?

    It takes the first 500 object questions with text before their blank. There is no chance level.
    """
    if config.object_path is None:
        return None
    rows = read_questions(config.object_path, FIELDS["object"], config.limit, "object_path")
    asked = [(row, *split_question(row["question"], row["choices"])) for row in rows]
    asked = [(row, prompt, options) for row, prompt, options in asked if prompt][:MAX_GENERATED]
    right = []
    questions = [(prompt, options) for _, prompt, options in asked]
    prompts = [prompt for prompt, _ in after_context([row for row, *_ in asked], questions, config)]
    for batch, input_XT, mask_XT in left_padded_batches(model, tokenizer, prompts, config.batch_size):
        out_XT = model.generate(
            input_XT, attention_mask=mask_XT, max_new_tokens=NEW_TOKENS, do_sample=False,
            pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id,
            **model.fixed_cache(input_XT.shape[1] + NEW_TOKENS),
        )  # fmt: skip
        texts = tokenizer.batch_decode(out_XT[:, input_XT.shape[1] :], skip_special_tokens=True)
        for (row, _, options), text in zip(asked[batch], texts, strict=True):
            index, text = answer_index(row), text.strip()
            # An option has the text after the blank, which need not be generated.
            right.append(text.startswith(options[index].strip()) or starts_with_word(text, row["choices"][index]))
    return accuracy_by_part([row for row, *_ in asked], right, 0.0, config, EXACT_MATCH_VERSION)


def starts_with_word(text: str, start: str) -> bool:
    """Whether a text begins with these words and the last of them ends there."""
    return text.startswith(start) and not text[len(start) : len(start) + 1].isalnum()


def frequency(model, tokenizer, config: EvalConfig) -> dict | None:
    """For each question set, the accuracy of guessing by how often predicate and object occur together in the bank.

    The asked fact itself is not counted. A statement counts as true if its pair is more frequent than that of the
    median statement. Only above this level has a model learnt something about the asked facts themselves. None
    where the bank is unknown. Questions that do not name subject, predicate and object are left out.
    """
    if config.gold is None:
        return None
    counts = config.gold.frequency
    if not counts:
        return None
    asked = {(fact.subject, fact.predicate, fact.object) for fact in config.gold.facts.values()}

    def count(subject: str, predicate: str, object: str) -> int:
        return counts[predicate, object] - ((subject, predicate, object) in asked)

    result, about, limit = {}, ("subject", "predicate"), config.limit
    if config.object_path and (rows := read_named(config.object_path, "object", about, limit, "object_path")):
        choices = [[count(row["subject"], row["predicate"], choice) for choice in row["choices"]] for row in rows]
        right = most_frequent_is_right(rows, choices)
        result["object"] = accuracy(right, chance_of(rows), config, FREQUENCY_VERSION)
    if config.relation_path:
        rows = read_questions(config.relation_path, FIELDS["relation"], limit, "relation_path")
        choices = [[count(row["subject"], choice, row["object"]) for choice in row["choices"]] for row in rows]
        right = most_frequent_is_right(rows, choices)
        result["relation"] = accuracy(right, chance_of(rows), config, FREQUENCY_VERSION)
    path, about = config.verification_path, (*about, "object")
    if path and (rows := read_named(path, "verification", about, limit, "verification_path")):
        stated = [count(row["subject"], row["predicate"], row["object"]) for row in rows]
        middle = median(stated)
        right = [(number > middle) == (row["answer"] == "yes") for row, number in zip(rows, stated, strict=True)]
        result["verification"] = accuracy(right, 0.5, config, FREQUENCY_VERSION)
    return result or None


def most_frequent_is_right(rows: list[dict], counts: list[list[int]]) -> list[bool]:
    """For each question, whether the first of the most frequent choices is the right one."""
    return [own.index(max(own)) == answer_index(row) for row, own in zip(rows, counts, strict=True)]


def ms_a_question(act: Callable, batches: list, n: int, device: torch.device) -> float:
    """Milliseconds that `act` takes over all batches, a question: the fastest pass after a first one."""
    seconds = []
    for _ in range(1 + REPEATS):
        wait(device)
        start = time.perf_counter()
        for batch in batches:
            act(batch)
        wait(device)
        seconds.append(time.perf_counter() - start)
    return 1000 * min(seconds[1:]) / n


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@torch.no_grad()
def cost(model, tokenizer, config: EvalConfig) -> dict | None:
    """Tokens and milliseconds of an object question, in batches and alone, after a pass that warms up.

    `first_token_ms`: from the tokens of the prompt to the distribution of the answer's first token; `answer_ms`: to
    eight written tokens. Both include `search_ms`, the search for entries in the prompt; a memory's own search is a
    part of its forward pass. Tokenising is not counted.
    """
    if config.object_path is None:
        return None
    rows = read_questions(config.object_path, FIELDS["object"], min(config.limit or TIMED, TIMED), "object_path")
    asked = [split_question(row["question"], row["choices"]) for row in rows]
    prompts = [prompt for prompt, _ in after_context(rows, asked, config)]

    def write(batch) -> None:
        input_XT, mask_XT = batch
        model.generate(
            input_XT, attention_mask=mask_XT, min_new_tokens=ANSWER_TOKENS, max_new_tokens=ANSWER_TOKENS,
            do_sample=False, pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id,
        )  # fmt: skip

    def measured(n: int, size: int) -> dict:
        batches = [batch[1:] for batch in left_padded_batches(model, tokenizer, prompts[:n], size)]
        search = 0.0
        if config.oracle == "found":
            queries = config.finder.batches([prompt for prompt, _ in asked[:n]], size)
            search = ms_a_question(config.finder.search, queries, n, model.device)
        read = ms_a_question(lambda b: model(b[0], attention_mask=b[1], logits_to_keep=1), batches, n, model.device)
        answer = ms_a_question(write, batches, n, model.device)
        return {
            "batch_size": size, "search_ms": search, "first_token_ms": search + read, "answer_ms": search + answer,
            "n": n,
        }  # fmt: skip

    lengths = [1 + len(tokenizer(prompt, add_special_tokens=False).input_ids) for prompt in prompts]
    return {
        "prompt_tokens": mean(lengths), "batched": measured(len(prompts), config.batch_size),
        "alone": measured(min(len(prompts), TIMED_ALONE), 1), "n": len(prompts), "task_version": COST_VERSION,
    }  # fmt: skip
