"""Topics: what a text and an entry are about, as vectors whose products rank places that repeat the text equally well.

Tokens that stand in the same parts of the bank have similar vectors (latent semantic analysis). A text is the sum of
its tokens. Sums are of whole numbers, so they are the same in whatever order: with a cache, after an edit, after undo.

Axes: B batch · X cached tokens, then new ones · N bank entries · L tokens per entry · V vocabulary
      K width of a vector · Y any number of entries, or of parts of the bank
Related: Deerwester et al. 1990 (latent semantic analysis).
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from common.constants import PADDING

from .bank_index import ROWS_AT_ONCE

PART = 32  # entries that stand together, most often of one text or about one thing; fewer in a small bank
PARTS = 8192  # of the bank that token vectors are worked out from, at most
PASSES = 2  # over these parts
COUNTS_AT_ONCE = 1 << 22
STEPS = 4096  # whole numbers between 0 and the largest component of a token's vector


class Topics:
    """Vectors of the tokens, worked out from the bank as trained, and of the entries as they are.

    Args:
        token_NL: the bank as trained.
        width: K, at most the vocabulary.

    Memory: 2 bytes for each component of each entry's vector.
    """

    def __init__(self, token_NL: Tensor, vocab_size: int, width: int):
        self.vector_VK = token_vectors(token_NL, vocab_size, min(width, vocab_size))
        self.topic_NK = torch.empty(len(token_NL), self.vector_VK.shape[1], dtype=torch.float16, device=token_NL.device)
        self.update(token_NL, torch.arange(len(token_NL), device=token_NL.device))

    def update(self, token_NL: Tensor, row_Y: Tensor) -> None:
        """The vectors of entries that have changed."""
        for part_Y in row_Y.split(ROWS_AT_ONCE):
            sum_YK = torch.zeros(len(part_Y), self.vector_VK.shape[1], dtype=torch.int32, device=row_Y.device)
            for token_Y in token_NL[part_Y].unbind(dim=-1):
                sum_YK += self.vector_VK[token_Y.long()]
            self.topic_NK[part_Y] = F.normalize(sum_YK.float(), dim=-1).half()

    def of_text(self, text_BX: Tensor, document_BX: Tensor, window: int) -> Tensor:
        """(B, X, K) float32 of length 1, or zero: the last `window` tokens of the document up to each position."""
        # Of a long text the sums pass the largest number and start again; their differences stay right.
        sum_BXK = F.pad(self.vector_VK[text_BX].cumsum(dim=1, dtype=torch.int32), (0, 0, 1, 0))
        place_X = torch.arange(text_BX.shape[1], device=text_BX.device)
        begin_BX = torch.searchsorted(document_BX, document_BX)  # the first of each document
        begin_BX = torch.maximum(begin_BX, place_X + 1 - window)
        before_BXK = sum_BXK.gather(1, begin_BX[..., None].expand(-1, -1, sum_BXK.shape[-1]))
        return F.normalize((sum_BXK[:, 1:] - before_BXK).float(), dim=-1)


@torch.no_grad()
def token_vectors(token_NL: Tensor, vocab_size: int, width: int) -> Tensor:
    """(V, K) int32: the leading singular vectors of the tokens of parts of the bank, times their idf."""
    device, most, part = token_NL.device, len(token_NL) - 1, max(min(PART, len(token_NL) // PARTS), 1)
    first_Y = torch.arange(0, len(token_NL), part, device=device)
    first_Y = first_Y[:: -(-len(first_Y) // PARTS)]

    def counts():
        for part_Y in first_Y.split(max(COUNTS_AT_ONCE // vocab_size, 1)):
            row_YX = part_Y[:, None] + torch.arange(part, device=device)
            token_YX = (
                token_NL[row_YX.clamp(max=most)].masked_fill((row_YX > most)[..., None], PADDING).flatten(1).long()
            )
            slot_YX = token_YX + vocab_size * torch.arange(len(token_YX), device=device)[:, None]
            count_YV = torch.bincount(slot_YX.flatten(), minlength=len(token_YX) * vocab_size).view(-1, vocab_size)
            count_YV[:, PADDING] = 0
            yield count_YV

    n_parts_V = sum((count_YV > 0).sum(dim=0) for count_YV in counts())
    idf_V = (len(first_Y) / n_parts_V.clamp(min=1)).log() * (n_parts_V > 0)
    start_VK = torch.randn(vocab_size, width, generator=torch.Generator().manual_seed(0)).to(device)
    with torch.autocast(device.type, enabled=False):
        for _ in range(PASSES):
            sum_VK = torch.zeros_like(start_VK)
            for count_YV in counts():
                weight_YV = F.normalize(count_YV * idf_V, dim=-1)
                sum_VK += weight_YV.T @ (weight_YV @ start_VK)
            start_VK = torch.linalg.qr(sum_VK.cpu())[0].to(device)
    vector_VK = start_VK * idf_V[:, None]
    return (vector_VK * (STEPS / vector_VK.abs().max().clamp(min=1e-9))).round().int()
