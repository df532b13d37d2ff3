"""How the tokens of entries match a position: scores of tokens, and a score of each entry.

Neighbouring positions read the same entries, each in a slot of its own. A program takes P positions and a part of their
entries. Each of these is read once, wherever it stands, and meets all P positions in matrix products. So the rows of a
token are read, and added to, once for each of the different entries, not for each slot of each position. Additions to
memory take most of the time (measured on an H200: docs/log.md).

Axes: X positions · P of one program · S slots, an entry each · L tokens of an entry · W = S L · R width · V vocabulary
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import custom_op

POSITIONS, TOKENS = 16, 32  # of a program, and of an entry at a time
PARTS, WARPS = 4, 1  # that the entries of P positions are dealt into, and of a program
BACKWARD_PARTS, BACKWARD_WARPS = 2, 2
# Some tokens are in most entries: their sums, made in several copies of the tables, do not wait for each other.
MOST_COPIES, COPIED_FLOATS = 4, 1 << 23


@triton.jit
def _entries(entry_ptr, position, X, part, S: tl.constexpr, SB: tl.constexpr, PARTS: tl.constexpr):
    """(P, SB) int32: the entries of this part, -1 elsewhere."""
    slot = tl.arange(0, SB)
    inside = (position < X)[:, None] & (slot < S)[None, :]
    entry = tl.load(entry_ptr + position[:, None] * S + slot[None, :], mask=inside, other=-1).to(tl.int32)
    return tl.where(entry % PARTS == part, entry, -1)


@triton.jit
def _take(left, entry, S: tl.constexpr, SB: tl.constexpr, P: tl.constexpr):
    """The slot in which each position holds an entry, -1 for none; the first such row; and what is left."""
    slot = tl.arange(0, SB)
    held = tl.max(tl.where(left == entry, slot[None, :], -1), axis=1)
    first = tl.min(tl.where(held >= 0, tl.arange(0, P) * S + held, P * S), axis=0)
    return held, first, tl.where(slot[None, :] == held[:, None], -1, left)


@triton.jit
def _vectors(vector_ptr, position, column, X, R):
    inside = (position < X)[:, None] & (column < R)[None, :]
    return tl.load(vector_ptr + position[:, None] * R + column[None, :], mask=inside, other=0.0)


@triton.jit
def _rows(table_ptr, token, is_token, column, R):
    inside = is_token[:, None] & (column < R)[None, :]
    return tl.load(table_ptr + token[:, None] * R + column[None, :], mask=inside, other=0.0)


@triton.jit
def _match_tokens(
    query_ptr, match_query_ptr, key_ptr, previous_key_ptr, match_key_ptr, token_ptr, previous_ptr, entry_ptr, score_ptr,
    match_ptr, X, R, PAD: tl.constexpr, NONE: tl.constexpr, S: tl.constexpr, L: tl.constexpr, SB: tl.constexpr,
    PARTS: tl.constexpr, PRECISION: tl.constexpr, P: tl.constexpr, LB: tl.constexpr, RB: tl.constexpr,
):  # fmt: skip
    begin = tl.program_id(0).to(tl.int64) * P
    position, column = begin + tl.arange(0, P), tl.arange(0, RB)
    query = _vectors(query_ptr, position, column, X, R)
    match_query = _vectors(match_query_ptr, position, column, X, R).to(tl.float32)
    left = _entries(entry_ptr, position, X, tl.program_id(1), S, SB, PARTS)
    entry = tl.max(tl.max(left, axis=1), axis=0)
    while entry >= 0:
        held, first, left = _take(left, entry, S, SB, P)
        at, match = position * S + held, tl.zeros([P], dtype=tl.float32)
        for start in range(0, L, LB):
            word = start + tl.arange(0, LB)
            from_row = (begin * S + first) * L + word
            token = tl.load(token_ptr + from_row, mask=word < L, other=PAD)
            previous = tl.load(previous_ptr + from_row, mask=word < L, other=NONE)
            key = _rows(key_ptr, token, token != PAD, column, R)
            previous_key = _rows(previous_key_ptr, previous, previous != NONE, column, R)
            total = tl.sum(_rows(match_key_ptr, token, token != PAD, column, R).to(tl.float32), axis=0)
            score = tl.dot(query, tl.trans(key), input_precision=PRECISION)
            score = tl.dot(query, tl.trans(previous_key), score, input_precision=PRECISION)
            match += tl.sum(match_query * total[None, :], axis=1)
            inside = (held >= 0)[:, None] & (word < L)[None, :]
            tl.store(score_ptr + at[:, None] * L + word[None, :], score, mask=inside)
        tl.store(match_ptr + at, match, mask=held >= 0)
        entry = tl.max(tl.max(left, axis=1), axis=0)


@triton.jit
def _spread_matches(
    grad_ptr, match_grad_ptr, query_ptr, match_query_ptr, key_ptr, previous_key_ptr, match_key_ptr, token_ptr,
    previous_ptr, entry_ptr, query_grad_ptr, match_query_grad_ptr, key_grad_ptr, previous_grad_ptr, match_key_grad_ptr,
    X, R, V, n_copies, PAD: tl.constexpr, NONE: tl.constexpr, S: tl.constexpr, L: tl.constexpr, SB: tl.constexpr,
    PARTS: tl.constexpr, PRECISION: tl.constexpr, P: tl.constexpr, LB: tl.constexpr, RB: tl.constexpr,
):  # fmt: skip
    begin = tl.program_id(0).to(tl.int64) * P
    position, column = begin + tl.arange(0, P), tl.arange(0, RB)
    copy = (tl.program_id(0) % n_copies).to(tl.int64) * V * R
    query = _vectors(query_ptr, position, column, X, R).to(tl.float32)
    match_query = _vectors(match_query_ptr, position, column, X, R).to(tl.float32)
    query_grad, match_query_grad = tl.zeros([P, RB], dtype=tl.float32), tl.zeros([P, RB], dtype=tl.float32)
    left = _entries(entry_ptr, position, X, tl.program_id(1), S, SB, PARTS)
    entry = tl.max(tl.max(left, axis=1), axis=0)
    while entry >= 0:
        held, first, left = _take(left, entry, S, SB, P)
        at = position * S + held
        match_grad = tl.load(match_grad_ptr + at, mask=held >= 0, other=0.0)
        by_match = tl.sum(match_grad[:, None] * match_query, axis=0)
        for start in range(0, L, LB):
            word = start + tl.arange(0, LB)
            from_row = (begin * S + first) * L + word
            token = tl.load(token_ptr + from_row, mask=word < L, other=PAD)
            previous = tl.load(previous_ptr + from_row, mask=word < L, other=NONE)
            is_token, is_previous = token != PAD, previous != NONE
            inside = (held >= 0)[:, None] & (word < L)[None, :]
            grad = tl.load(grad_ptr + at[:, None] * L + word[None, :], mask=inside, other=0.0)
            keys = _rows(key_ptr, token, is_token, column, R).to(tl.float32)
            keys += _rows(previous_key_ptr, previous, is_previous, column, R).to(tl.float32)
            query_grad = tl.dot(grad, keys, query_grad, input_precision=PRECISION)
            total = tl.sum(_rows(match_key_ptr, token, is_token, column, R).to(tl.float32), axis=0)
            match_query_grad += match_grad[:, None] * total[None, :]
            by_token = tl.dot(tl.trans(grad), query, input_precision=PRECISION)
            is_column = (column < R)[None, :]
            to = copy + token[:, None] * R + column[None, :]
            tl.atomic_add(key_grad_ptr + to, by_token, mask=is_token[:, None] & is_column, sem="relaxed")
            to_previous = copy + previous[:, None] * R + column[None, :]
            tl.atomic_add(
                previous_grad_ptr + to_previous, by_token, mask=is_previous[:, None] & is_column, sem="relaxed"
            )
            by_match_LR = tl.zeros([LB, RB], dtype=tl.float32) + by_match[None, :]
            tl.atomic_add(match_key_grad_ptr + to, by_match_LR, mask=is_token[:, None] & is_column, sem="relaxed")
        entry = tl.max(tl.max(left, axis=1), axis=0)
    to, inside = position[:, None] * R + column[None, :], (position < X)[:, None] & (column < R)[None, :]
    tl.atomic_add(query_grad_ptr + to, query_grad, mask=inside, sem="relaxed")
    tl.atomic_add(match_query_grad_ptr + to, match_query_grad, mask=inside, sem="relaxed")


def _sizes(token_XW: Tensor, entry_XS: Tensor, R: int, parts: int, dtype: torch.dtype) -> tuple:
    S, L = entry_XS.shape[1], token_XW.shape[1] // entry_XS.shape[1]
    precision = "ieee" if dtype == torch.float32 else "tf32"
    block_L, block_R = (max(16, triton.next_power_of_2(n)) for n in (min(L, TOKENS), R))
    return S, L, max(triton.next_power_of_2(S), 2), parts, precision, POSITIONS, block_L, block_R


def wider(R: int) -> int:
    """How many times the warps of a width of 64."""
    return min(max(triton.next_power_of_2(R) // 64, 1), 4)


@custom_op
def match_tokens(
    query_XR: Tensor, match_query_XR: Tensor, key_VR: Tensor, previous_key_VR: Tensor, match_key_VR: Tensor,
    token_XW: Tensor, previous_XW: Tensor, entry_XS: Tensor, padding: int, no_token: int,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """(X, W) and (X, S) float32, as the reference.

    Args:
        token_XW, previous_XW: int32.  entry_XS: int64 below 2^31.
    """
    (X, W), R, S = token_XW.shape, key_VR.shape[1], entry_XS.shape[1]
    score_XW = query_XR.new_zeros(X, W, dtype=torch.float32)
    match_XS = query_XR.new_zeros(X, S, dtype=torch.float32)
    tensors = query_XR, match_query_XR, key_VR, previous_key_VR, match_key_VR, token_XW, previous_XW, entry_XS
    sizes = _sizes(token_XW, entry_XS, R, PARTS, query_XR.dtype)
    _match_tokens[(triton.cdiv(X, POSITIONS), PARTS)](
        *(x.contiguous() for x in tensors),
        score_XW,
        match_XS,
        X,
        R,
        padding,
        no_token,
        *sizes,
        num_warps=WARPS * wider(R),
    )
    return score_XW, match_XS


@custom_op
def spread_matches(
    grad_XW: Tensor, match_grad_XS: Tensor, query_XR: Tensor, match_query_XR: Tensor, key_VR: Tensor,
    previous_key_VR: Tensor, match_key_VR: Tensor, token_XW: Tensor, previous_XW: Tensor, entry_XS: Tensor,
    padding: int, no_token: int,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """(2, X, R) and (3, V, R) float32, gradients of `match_tokens`: of queries and keys. The order of sums is open."""
    (X, R), V = query_XR.shape, len(key_VR)
    vectors = query_XR.new_zeros(2, X, R, dtype=torch.float32)
    n_copies = min(MOST_COPIES, max(COPIED_FLOATS // (V * R), 1))
    tables = query_XR.new_zeros(3, n_copies, V, R, dtype=torch.float32)
    tensors = (
        grad_XW, match_grad_XS, query_XR, match_query_XR, key_VR, previous_key_VR, match_key_VR, token_XW, previous_XW,
        entry_XS,
    )  # fmt: skip
    sizes = _sizes(token_XW, entry_XS, R, BACKWARD_PARTS, query_XR.dtype)
    _spread_matches[(triton.cdiv(X, POSITIONS), BACKWARD_PARTS)](
        *(x.contiguous() for x in tensors), *vectors, *tables, X, R, V, n_copies, padding, no_token, *sizes,
        num_warps=BACKWARD_WARPS * wider(R),
    )  # fmt: skip
    return vectors, tables.sum(dim=1)


@match_tokens.register_fake
def _(query_XR, match_query_XR, key_VR, previous_key_VR, match_key_VR, token_XW, previous_XW, entry_XS, *skip):
    return tuple(query_XR.new_empty(x.shape, dtype=torch.float32) for x in (token_XW, entry_XS))


@spread_matches.register_fake
def _(grad_XW, match_grad_XS, *inputs):
    query_XR, _, key_VR, *_ = inputs
    return tuple(x.new_empty(n, *x.shape, dtype=torch.float32) for n, x in ((2, query_XR), (3, key_VR)))


def _setup(ctx, inputs, output) -> None:
    *tensors, ctx.padding, ctx.no_token = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx, grad_XW: Tensor, match_grad_XS: Tensor):
    inputs = ctx.saved_tensors
    vectors, tables = spread_matches(grad_XW, match_grad_XS, *inputs, ctx.padding, ctx.no_token)
    grads = *vectors.to(inputs[0].dtype).unbind(), *tables.to(inputs[2].dtype).unbind()
    return *grads, None, None, None, None, None


match_tokens.register_autograd(_backward, setup_context=_setup)
