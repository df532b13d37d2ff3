"""Free generation: does the greedy continuation of an object question begin with the object, word for word?"""

import torch

from .likelihood import letter, read_questions
from .object import FIELDS, split_question
from .retrieval import last_positions
from .settings import Settings, by_part

TASK_VERSION = 1
MAX_QUESTIONS, NEW_TOKENS = 500, 24


@torch.no_grad()
def exact_match(model, tokenizer, settings: Settings) -> dict | None:
    """Over the first 500 questions that end with their blank. There is no chance level: any text may be written.

    Upper and lower case are told apart; what follows the object must not go on with the same word.
    """
    if settings.object_path is None:
        return None
    rows = read_questions(settings.object_path, FIELDS, settings.limit, "object_path")
    asked = [(row, *split_question(row["question"], row["choices"])) for row in rows]
    asked = [(row, prompt, choices) for row, prompt, choices in asked if prompt][:MAX_QUESTIONS]
    right = []
    for place, input_XT in last_positions(model, tokenizer, [prompt for _, prompt, _ in asked], settings.batch_size):
        out_XT = model.generate(
            input_XT, attention_mask=(input_XT != tokenizer.pad_token_id).long(), max_new_tokens=NEW_TOKENS,
            do_sample=False, pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id,
            **model.fixed_cache(input_XT.shape[1] + NEW_TOKENS),
        )  # fmt: skip
        texts = tokenizer.batch_decode(out_XT[:, input_XT.shape[1] :], skip_special_tokens=True)
        for (row, _, choices), text in zip(asked[place], texts, strict=True):
            answer = row["choices"][letter(row)]
            # The choice with the words after the blank; these words need not be written.
            written, expected = text.strip(), choices[letter(row)].strip()
            right.append(written.startswith(expected) or starts_with_word(written, answer))
    return by_part([row for row, *_ in asked], right, 0.0, settings, TASK_VERSION)


def starts_with_word(text: str, start: str) -> bool:
    return text.startswith(start) and not text[len(start) : len(start) + 1].isalnum()
