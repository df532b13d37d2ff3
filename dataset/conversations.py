"""MiniMind's `conversations` as text: the markup of the tokenizer's chat template."""

from collections.abc import Iterator

from common.files import require_text

ROLES = ("system", "user", "assistant", "tool")
BEGIN, END = "<|im_start|>", "<|im_end|>"


def is_conversation(fields: dict) -> bool:
    """Whether a line is a conversation and nothing else."""
    return "conversations" in fields and "text" not in fields and "prompt" not in fields


def turns(fields: dict, place: str) -> Iterator[tuple[str, str]]:
    """(all before it, the turn with its end) of each turn of the assistant.

    `{"conversations": [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]}`. Of a turn only
    `role` and `content` count.

    Raises:
        ValueError: a turn has another form, or the assistant has none; `place` is named.
    """
    value, before, answers = fields["conversations"], "", 0
    for number, turn in enumerate(value if isinstance(value, list) else [], start=1):
        role, content = (turn.get("role"), turn.get("content")) if isinstance(turn, dict) else (None, None)
        if role not in ROLES or not isinstance(content, str):
            raise ValueError(
                f'{place}: turn {number} of "conversations" needs "role", one of {", ".join(ROLES)}, and "content", a '
                "text"
            )
        head, body = f"{BEGIN}{role}\n", require_text(content, place) + f"{END}\n"
        if role == "assistant":
            answers += 1
            yield before + head, body
        before += head + body
    if not answers:
        raise ValueError(f'{place}: no turn of "conversations" is the assistant\'s, so there is nothing to predict')
