"""Words of a text of token ids: their first letters, packed into numbers, whatever tokens they are made of.

Axes: B batch · T position · V vocabulary

A word is known by its first six bytes in lower case, a common stem of its forms: "directed" and "director" are one.
Each Chinese or Japanese token is a word of its own.
"""

import unicodedata

import torch
import torch.nn.functional as F
from torch import Tensor

STEM = 6  # bytes
LONGEST = 24  # tokens of a word; what is longer counts as no word
NO_WORD, GOES_ON, BEGINS = 0, 1, 2  # what a token is; one that goes on begins a word where none stands before it
FIRST_OF_CJK = 0x2E80


def spell(tokenizer, vocab_size: int) -> Tensor:
    """(V,) int64: how each token is spelled: its first bytes (48 bits), how many of them (3), and what it is (2)."""
    pieces = tokenizer.convert_ids_to_tokens(list(range(min(len(tokenizer), vocab_size))))
    special, spelled = set(tokenizer.all_special_ids), []
    for token, piece in enumerate(pieces):
        text = tokenizer.convert_tokens_to_string([piece])
        letters = unicodedata.normalize("NFKC", text).casefold().strip()
        if "\ufffd" in text:  # a part of a letter: as the vocabulary writes it
            letters = piece.lstrip("Ġ▁ ")
        is_word = bool(letters) and letters.replace("\ufffd", "").isalnum() and token not in special
        begins = text[:1].isspace() or piece[:1] in "Ġ▁" or FIRST_OF_CJK <= ord(letters[:1] or "a") < 0xFF00
        spelled.append(pack_spelling(letters.encode(), begins) if is_word else NO_WORD)
    return torch.tensor(spelled + [NO_WORD] * (vocab_size - len(spelled)))


def pack_spelling(letters: bytes, begins: bool) -> int:
    """One number, as `spell` has it."""
    length = min(len(letters), STEM)
    return int.from_bytes(letters[:STEM].ljust(STEM, b"\0"), "big") << 5 | length << 2 | (BEGINS if begins else GOES_ON)


def tokens_as_words(vocab_size: int) -> Tensor:
    """(V,) int64: a spelling in which every token is a word, for models without a tokenizer."""
    return torch.arange(vocab_size) << 5 | STEM << 2 | BEGINS


def numbered(written_X: Tensor) -> Tensor:
    """int64 in [1, 2^31): a number for the first bytes of words, the same for the same bytes."""
    mixed_X = (written_X + 1) * 0x9E3779B97F4A7C1  # products wrap around
    return ((mixed_X ^ (mixed_X >> 29)) & (2**31 - 1)).clamp(min=1)


def numbers_of(words: list[str]) -> Tensor:
    """(X,) int64: the numbers of words given in letters."""
    first = [int.from_bytes(first_bytes(word).ljust(STEM, b"\0"), "big") for word in words]
    return numbered(torch.tensor(first, dtype=torch.int64))


def first_bytes(word: str) -> bytes:
    """What a word is known by."""
    return word.casefold().encode()[:STEM]


def words_so_far(spelling_V: Tensor, text_BT: Tensor, start_BT: Tensor) -> tuple[Tensor, Tensor]:
    """The word that each token is in, as far as it is written there, and where one has just ended.

    Args:
        start_BT: bool, the first token of each document; the first position counts as one.
    Returns:
        word_BT: int64 in [0, 2^31), 0 for no word.
        ended_BT: bool, the token before was the last one of a word; never at the start of a document.
    """
    spelled_BT, position_T = spelling_V[text_BT], torch.arange(text_BT.shape[1], device=text_BT.device)
    kind_BT, length_BT, bytes_BT = spelled_BT & 3, (spelled_BT >> 2) & 7, spelled_BT >> 5
    is_word_BT = kind_BT != NO_WORD
    start_BT = start_BT | (position_T == 0)
    after_word_BT = F.pad(is_word_BT[:, :-1], (1, 0), value=False) & ~start_BT
    goes_on_BT = (kind_BT == GOES_ON) & after_word_BT
    first_BT = torch.where(goes_on_BT, 0, position_T).cummax(dim=1).values  # where the current word began
    written_BT, n_BT = torch.zeros_like(bytes_BT), torch.zeros_like(length_BT)
    for step in range(STEM):
        at_BT = first_BT + step
        inside_BT = at_BT <= position_T
        at_BT = at_BT.minimum(position_T)
        written_BT = written_BT | (bytes_BT.gather(1, at_BT) >> (8 * n_BT)).where(inside_BT, 0)
        n_BT = (n_BT + length_BT.gather(1, at_BT).where(inside_BT, 0)).clamp(max=STEM)
    is_word_BT = is_word_BT & (position_T - first_BT < LONGEST)
    return numbered(written_BT).where(is_word_BT, 0), after_word_BT & ~goes_on_BT
