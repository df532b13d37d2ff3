"""The words that entries share with the text: one program a position, its entries' words in registers.

Axes: X positions · C entries of a position · K words of an entry · Q words of a position
"""

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _shared_words(
    words_ptr, entry_ptr, word_ptr, value_ptr, total_ptr, C, K, Q, CB: tl.constexpr, KB: tl.constexpr
):  # fmt: skip
    position, slot, column = tl.program_id(0).to(tl.int64), tl.arange(0, CB), tl.arange(0, KB)
    entry = tl.load(entry_ptr + position * C + slot, mask=slot < C, other=0)
    inside = (slot < C)[:, None] & (column < K)[None, :]
    words = tl.load(words_ptr + entry[:, None] * K + column[None, :], mask=inside, other=0)
    # An entry's words differ, so that the sum over them counts each word of the text once.
    found = tl.zeros([CB, KB], dtype=tl.float32)
    for q in range(Q):
        word, value = tl.load(word_ptr + position * Q + q), tl.load(value_ptr + position * Q + q)
        found += tl.where((words == word) & (words != 0), value, 0.0)
    tl.store(total_ptr + position * C + slot, tl.sum(found, axis=1), mask=slot < C)


def shared_words(word_NK: Tensor, entry_XC: Tensor, word_XQ: Tensor, value_XQ: Tensor) -> Tensor:
    """(X, C) float32: the sum of the values of a position's words that each entry has."""
    (X, C), (_, Q), K = entry_XC.shape, word_XQ.shape, word_NK.shape[1]
    block_C, block_K = triton.next_power_of_2(C), triton.next_power_of_2(K)
    total_XC = torch.empty(X, C, dtype=torch.float32, device=entry_XC.device)
    tensors = (x.contiguous() for x in (word_NK, entry_XC, word_XQ, value_XQ))
    warps = min(max(block_C * block_K // 512, 1), 8)
    _shared_words[(X,)](*tensors, total_XC, C, K, Q, block_C, block_K, num_warps=warps)
    return total_XC
