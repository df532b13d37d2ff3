"""Words that an entry also counts as having, because of a word that it has: questions say it in other words.

"The occupation of Ada is poet." is asked for by "job", "trade" and "profession". The entry is indexed by these too, so
that a search takes no longer.

Axes: X any number of rows · L words of an entry · T words with others · E others of a word · A words added to an entry
Related: Nogueira et al. 2019, arXiv:1904.08375 (documents expanded by the words of their questions)
"""

import torch
from torch import Tensor

from common.flags import require

from ..ops.word_search import only_first
from .spelling import first_bytes, numbers_of

MOST = 6  # words added to an entry, A
EXPANDED = 4  # words of an entry that add others


def read_also(flag: list[str] | None) -> dict[str, list[str]]:
    """The others of each word, from "word=other,other".

    Raises:
        ValueError: the flag has another form.
    """
    also = {}
    for text in flag or []:
        word, _, others = text.partition("=")
        require(
            bool(word) and all(others.split(",")),
            f"--bm25_also_words {text!r} must be a word and its others, as in occupation=job,trade",
        )
        also[word] = others.split(",")
    word_of = {first_bytes(word): word for word in also}
    for word in also:
        other = word_of[first_bytes(word)]
        require(other == word, f"--bm25_also_words: {word} and {other} are one word by their first letters: give one")
    return also


def closed_up(word_XL: Tensor, n: int) -> Tensor:
    """(X, n): the first n words of each row, without gaps."""
    return word_XL.gather(1, (word_XL == 0).int().argsort(dim=1, stable=True)[:, :n])


class AlsoWords:
    """What is added to the words of entries.

    Args:
        flag: "word=other,other" for each word that has others; those that come first are added first.
    """

    def __init__(self, flag: list[str] | None, device: torch.device):
        also = read_also(flag)
        number_T, widest = numbers_of(list(also)), max(map(len, also.values()), default=0)
        other_TE = torch.zeros(len(also), widest, dtype=torch.int64)
        for other_E, others in zip(other_TE, also.values(), strict=True):
            other_E[: len(others)] = numbers_of(others)
        self.number_T, order_T = number_T.int().to(device).sort()
        self.other_TE = other_TE.int().to(device)[order_T]

    def added_to(self, word_XL: Tensor) -> Tensor:
        """(X, A) int32: words that the entries do not have; 0 fills up. A is 0 where no word has others.

        Args:
            word_XL: int32, the different words of each entry; 0 for none.
        """
        if not len(self.number_T):
            return word_XL[:, :0]
        at_XL = torch.searchsorted(self.number_T, word_XL.contiguous()).clamp(max=len(self.number_T) - 1)
        has_others_XL = (self.number_T[at_XL] == word_XL) & (word_XL != 0)
        at_XL = closed_up((at_XL + 1).where(has_others_XL, 0), EXPANDED) - 1
        other_XLE = self.other_TE[at_XL.clamp(min=0)].masked_fill((at_XL < 0)[..., None], 0)
        other_XO = only_first(other_XLE.transpose(1, 2).flatten(1))  # the first others of all words come first
        is_own_XO = (other_XO[:, :, None] == word_XL[:, None, :]).any(dim=-1)
        return closed_up(other_XO.masked_fill(is_own_XO, 0), MOST)
