"""Search of entries by what a person sees: without regard to case, width or Unicode form.

Axes: N entries of the bank · L tokens per entry · X rows that have changed
"""

import math
import re
import unicodedata

import torch
from torch import Tensor

from common.constants import PADDING

# Scripts without spaces between words (Han, kana, Thai, Lao, Khmer, Burmese): pairs of characters take their place.
UNSPACED = re.compile(r"[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\U00020000-\U0003ffff]+")


def terms(text: str) -> list[str]:
    """The words of a text in one Unicode form and case, in order; pairs of characters in scripts without spaces."""
    found = []
    for word in re.findall(r"\w+", unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())):
        end = 0
        for run in UNSPACED.finditer(word):
            found += [word[end : run.start()]] * (run.start() > end)
            characters, end = run.group(), run.end()
            found += [characters[i : i + 2] for i in range(max(len(characters) - 1, 1))]
        found += [word[end:]] * (len(word) > end)
    return found


class TextSearch:
    """The terms of every entry, decoded at the first search and brought up to date at each later one."""

    def __init__(self, tokenizer):
        self.tokenizer = tokenizer
        self.token_NL: Tensor | None = None
        self.line_N: list[str] = []  # the terms of each entry, with a space before and after each

    def best(self, text: str, token_NL: Tensor, n: int) -> list[tuple[float, int]]:
        """(sum of the rarity of the shared terms in nats, row) of the n best entries, best first."""
        self._update(token_NL)
        score_N = [0.0] * len(self.line_N)
        for term in set(terms(text)):
            rows = [row for row, line in enumerate(self.line_N) if f" {term} " in line]
            rarity = math.log1p(len(self.line_N) / len(rows)) if rows else 0.0
            for row in rows:
                score_N[row] += rarity
        found = sorted((row for row, score in enumerate(score_N) if score), key=lambda row: (-score_N[row], row))
        return [(score_N[row], row) for row in found[:n]]

    def _update(self, token_NL: Tensor) -> None:
        token_NL = token_NL.cpu()
        if self.token_NL is None:
            row_X, self.line_N = torch.arange(len(token_NL)), [""] * len(token_NL)
        else:
            row_X = torch.where((token_NL != self.token_NL).any(dim=1))[0]
        ids = [[token for token in row if token != PADDING] for row in token_NL[row_X].tolist()]
        texts = self.tokenizer.backend_tokenizer.decode_batch(ids, skip_special_tokens=False)
        for row, text in zip(row_X.tolist(), texts, strict=True):
            self.line_N[row] = f" {' '.join(terms(text))} "
        self.token_NL = token_NL.clone()
