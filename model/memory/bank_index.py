"""What the indexes of a bank have in common: edited rows are indexed apart, so an edit is fast and undone exactly.

Axes: N bank entries · L tokens per entry · X any number of rows · T positions · G tokens up to each position
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from common.constants import PADDING

ROWS_AT_ONCE = 65536  # bounds the temporary memory of whole-bank passes


def pack(token_XG: Tensor, bits: int) -> Tensor:
    """(X,) int64: n tokens as one number, the first one in the highest bits."""
    key_X = torch.zeros_like(token_XG[..., 0], dtype=torch.int64)
    for token_X in token_XG.unbind(dim=-1):
        key_X = (key_X << bits) | token_X.long()
    return key_X


def last(value_BT: Tensor, n: int, before: int) -> Tensor:
    """(B, T, n): the values of each position and of the n - 1 before it, in their order; `before` where none is."""
    return F.pad(value_BT, (n - 1, 0), value=before).unfold(1, n, 1)


class BankIndex:
    """An index of the entries as trained (`base`), and one of the rows that have been edited since (`edits`).

    A subclass has `index(token_XL, row_X)`, which makes either of them; `base` never changes.

    Args:
        token_NL: the bank as it is; the index reads edited rows from this tensor.
        edited: row -> its tokens as trained, of each row that has been edited since.
        spelling_V: how tokens are spelled (`spelling.spell`), for an index that needs it.
        hidden_N: bool, rows that are not found by what they say as trained, but as soon as they are edited.
    """

    needs_spelling = False  # whether it knows how tokens are spelled
    keeps_matches = False  # `matches` of each position go on to the next and are ranked: `ngram_search.find_matches`

    def __init__(
        self, token_NL: Tensor, config, edited: dict[int, Tensor] | None = None, spelling_V: Tensor | None = None,
        hidden_N: Tensor | None = None,
    ):  # fmt: skip
        self.config, self.token_NL, self.spelling_V = config, token_NL, spelling_V
        if edited:
            edited_X = torch.tensor(list(edited), dtype=torch.int64, device=token_NL.device)
            trained_XL = torch.stack(list(edited.values())).to(token_NL)
            token_NL = token_NL.index_copy(0, edited_X, trained_XL)
        self.hidden_N = None if hidden_N is None else hidden_N.to(token_NL.device, copy=True)
        if hidden_N is not None:
            token_NL = token_NL.masked_fill(hidden_N[:, None], PADDING)
        self.shown_X = None if hidden_N is None else (~self.hidden_N).nonzero()[:, 0]
        self.n_shown = len(token_NL) if hidden_N is None else len(self.shown_X)
        self.bits = (config.vocab_size - 1).bit_length()
        self.prepare(token_NL)
        self.base = self.index(token_NL, torch.arange(len(token_NL), device=token_NL.device))
        self.edited: dict[int, Tensor] = {}  # row -> the tokens that `base` has of it
        self.edits = None
        self.stale_N = torch.zeros(len(token_NL), dtype=torch.bool, device=token_NL.device)
        if edited:
            self.edit(edited_X, trained_XL)

    def prepare(self, token_NL: Tensor) -> None:
        """What is worked out once, from the entries as trained."""

    def before_swap(self) -> None:
        """The rows are about to get other texts, by which nothing is to be found; for what reads them in a search."""

    def index(self, token_XL: Tensor, row_X: Tensor):
        raise NotImplementedError

    def random_rows(self, like: Tensor) -> Tensor:
        """Rows that are not hidden, in the shape and type of another tensor of rows."""
        row = torch.randint_like(like, self.n_shown)
        return row if self.shown_X is None else self.shown_X[row]

    def read_rows(self, row_X: Tensor) -> Tensor:
        """(X, L): the tokens of rows as they are; PADDING in those that are hidden and not edited."""
        token_XL = self.token_NL[row_X]
        if self.hidden_N is None:
            return token_XL
        return token_XL.masked_fill((self.hidden_N & ~self.stale_N)[row_X][:, None], PADDING)

    def edit(self, row_X: Tensor, old_XL: Tensor) -> None:
        """Index rows that held `old_XL` and have changed. A row with its first text again counts as not edited."""
        for row, old_L in dict(zip(row_X.tolist(), old_XL, strict=True)).items():  # a row may be named twice
            original_L = self.edited.setdefault(row, old_L.clone())
            self.stale_N[row] = not torch.equal(original_L, self.token_NL[row])
            if not self.stale_N[row]:
                del self.edited[row]
        rows = sorted(self.edited)
        row_X = torch.tensor(rows, device=self.token_NL.device, dtype=torch.int64)
        self.edits = self.index(self.token_NL[row_X], row_X) if rows else None
