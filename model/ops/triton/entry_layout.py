"""The tokens of found entries beside each other: one program a position, all its entries' tokens in registers.

The recent text is read a token at a time, and each is compared with all tokens of the entries. Whether the token before
one stands in the text is read from what is known of that one.

Axes: X positions · B batch · N bank entries · S slots, an entry each · L tokens of an entry · W = S L
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from common.constants import PADDING

from ..entry_layout import NO_TOKEN, PLACES
from . import custom_op


@triton.jit
def _lay_out_entries(
    entry_ptr, bank_ptr, text_ptr, place_ptr, depth_ptr, token_ptr, previous_ptr, follows_ptr, follows2_ptr,
    padding_ptr, length_ptr, place_of_ptr, stands_ptr, S, L, window, PAD: tl.constexpr, NONE: tl.constexpr,
    FARTHEST: tl.constexpr, SB: tl.constexpr, LB: tl.constexpr,
):  # fmt: skip
    position, slot, word = tl.program_id(0).to(tl.int64), tl.arange(0, SB), tl.arange(0, LB)
    entry = tl.load(entry_ptr + position * S + slot, mask=slot < S, other=-1)
    found = (entry >= 0)[:, None] & (word < L)[None, :]
    at = bank_ptr + tl.maximum(entry, 0)[:, None] * L + word[None, :]
    token = tl.load(at, mask=found, other=PAD).to(tl.int32)
    before = tl.load(at - 1, mask=found & (word >= 1)[None, :], other=PAD).to(tl.int32)
    before2 = tl.load(at - 2, mask=found & (word >= 2)[None, :], other=PAD).to(tl.int32)
    here, depth = tl.load(place_ptr + position), tl.load(depth_ptr + position)  # tokens of the document before
    now = tl.load(text_ptr + here).to(tl.int32)
    stands, most = token == now, tl.minimum(depth + 1, window)
    for back in range(1, most):
        stands |= token == tl.load(text_ptr + here - back).to(tl.int32)
    to = (position * S + slot)[:, None] * L + word[None, :]
    inside = (slot < S)[:, None] & (word < L)[None, :]
    tl.store(stands_ptr + to, stands, mask=inside)
    tl.debug_barrier()  # other threads wrote what a thread reads of the token before its own
    stood = tl.load(stands_ptr + to - 1, mask=inside & (word >= 1)[None, :], other=0).to(tl.int32)
    is_padding = token == PAD
    last = tl.load(text_ptr + here - 1, mask=depth > 0, other=PAD).to(tl.int32)
    follows = (before == now) & (before != PAD)
    follows2 = follows & (before2 == last) & (before2 != PAD)
    length = tl.maximum(tl.sum(tl.where(is_padding, 0, 1), axis=1), 1)
    from_end = tl.minimum(tl.maximum(length[:, None] - 1 - word[None, :], 0), FARTHEST)
    place = from_end * 4 + stands.to(tl.int32) * 2 + stood
    tl.store(token_ptr + to, token, mask=inside)
    tl.store(previous_ptr + to, tl.where(is_padding, NONE, before), mask=inside)
    tl.store(follows_ptr + to, follows, mask=inside)
    tl.store(follows2_ptr + to, follows2, mask=inside)
    tl.store(padding_ptr + to, is_padding, mask=inside)
    tl.store(place_of_ptr + to, place.to(tl.uint8), mask=inside)
    tl.store(length_ptr + position * S + slot, length.to(tl.int64), mask=slot < S)


@custom_op
def lay_out_entries(
    entry_BTS: Tensor, token_NL: Tensor, text_BX: Tensor, start_BX: Tensor, window: int
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """As the reference."""
    (B, T, S), L, n = entry_BTS.shape, token_NL.shape[1], text_BX.shape[1]
    place_X = torch.arange(n, device=text_BX.device)
    begin_BX = place_X.where(start_BX, 0).cummax(dim=1).values
    depth_BT = (place_X - begin_BX)[:, n - T :].contiguous()
    place_BT = (torch.arange(B, device=text_BX.device)[:, None] * n + place_X[n - T :]).contiguous()

    def of_tokens(dtype: torch.dtype) -> Tensor:
        return torch.empty(B, T, S * L, dtype=dtype, device=entry_BTS.device)

    token_BTW, previous_BTW = of_tokens(torch.int32), of_tokens(torch.int32)
    follows_BTW, follows2_BTW, is_padding_BTW, stands_BTW = (of_tokens(torch.bool) for _ in range(4))
    place_BTW, length_BTS = of_tokens(torch.uint8), torch.empty_like(entry_BTS)
    block_S, block_L = triton.next_power_of_2(S), triton.next_power_of_2(L)
    _lay_out_entries[(B * T,)](
        entry_BTS.contiguous(), token_NL, text_BX.contiguous(), place_BT, depth_BT, token_BTW, previous_BTW,
        follows_BTW, follows2_BTW, is_padding_BTW, length_BTS, place_BTW, stands_BTW, S, L, window, PADDING, NO_TOKEN,
        PLACES // 4 - 1, block_S, block_L, num_warps=min(max(block_S * block_L // 128, 1), 8),
    )  # fmt: skip
    return token_BTW, previous_BTW, follows_BTW, follows2_BTW, is_padding_BTW, length_BTS, place_BTW, stands_BTW
