"""Vectors of words that are known by their tokens, read from a small table that stays in the L2 cache.

A weighted sum of words, and its gradients: a score of each word, and the spreading of weighted vectors over the table's
rows. Neighbouring positions read the same entries: a program takes P of them, and for each entry that a slot of theirs
holds, the rows of its words are read, or added to, once, and the rest is a matrix product.

Where a position has many words for the size of the table, sums and spreading are denser: a part of the positions at a
time, weights are summed by word in a matrix of a column for each row of the table, and its products are what is asked.

Axes: X positions · P of one program, or of one part · S slots, an entry each · L words of an entry
      W = S L words of a position · R width · V vocabulary
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import custom_op

WORDS, COLUMNS = 32, 128  # of an entry, and of the width, at a time: as much as fits every GPU
# Some words are in most entries: their sums, made in several copies of the table, do not wait for each other. Together
# the copies stay in the L2 cache.
MOST_COPIES, COPIED_FLOATS = 16, 1 << 23
# The dense way is taken from so many positions on, and up to so many rows of the table for each word of a position. The
# matrix of one part has about so many bytes: few launches, little memory. GPUs before Hopper add bfloat16 to memory in
# loops of compare-and-swap; the dense way was not measured there.
DENSE_POSITIONS, DENSE_ROWS, DENSE_BYTES, DENSE_CAPABILITY = 2048, 32, 100 << 20, (9, 0)


@triton.jit
def _part(part, S: tl.constexpr, LB: tl.constexpr):
    """A slot, and LB of its words."""
    return part % S, part // S * LB + tl.arange(0, LB)


@triton.jit
def _entries(entry_ptr, position, slot, X, S: tl.constexpr):
    """The entry that each position holds in a slot, -1 where none."""
    return tl.load(entry_ptr + position * S + slot, mask=position < X, other=-1)


@triton.jit
def _tokens(token_ptr, position, mine, slot, word, X, SKIP: tl.constexpr, S: tl.constexpr, L: tl.constexpr):
    """Words of the entry that the positions marked as `mine` hold in a slot."""
    first = tl.min(tl.where(mine, position, X), axis=0)
    return tl.load(token_ptr + (first * S + slot) * L + word, mask=word < L, other=SKIP)


@triton.jit
def _rows(table_ptr, token, column, R, SKIP: tl.constexpr):
    read = (token != SKIP)[:, None] & (column < R)[None, :]
    return tl.load(table_ptr + token[:, None] * R + column[None, :], mask=read, other=0.0)


@triton.jit
def _vectors(vector_ptr, position, column, X, R):
    inside = (position < X)[:, None] & (column < R)[None, :]
    return tl.load(vector_ptr + position[:, None] * R + column[None, :], mask=inside, other=0.0)


@triton.jit
def _of_words(position, slot, word, X, S: tl.constexpr, L: tl.constexpr):
    """Where words of a slot stand in a tensor of all words, and whether they are any."""
    inside = (position < X)[:, None] & (word < L)[None, :]
    return ((position * S + slot) * L)[:, None] + word[None, :], inside


@triton.jit
def _score(
    query_ptr, table_ptr, token_ptr, entry_ptr, score_ptr, X, R, SKIP: tl.constexpr, S: tl.constexpr, L: tl.constexpr,
    PRECISION: tl.constexpr, P: tl.constexpr, LB: tl.constexpr, RB: tl.constexpr,
):  # fmt: skip
    position = tl.program_id(0).to(tl.int64) * P + tl.arange(0, P)
    slot, word = _part(tl.program_id(1), S, LB)
    score = tl.zeros([P, LB], dtype=tl.float32)
    for begin in range(0, R, RB):
        column = begin + tl.arange(0, RB)
        query = _vectors(query_ptr, position, column, X, R)
        left = _entries(entry_ptr, position, slot, X, S)
        entry = tl.max(left, axis=0)
        while entry >= 0:
            mine = left == entry
            row = _rows(table_ptr, _tokens(token_ptr, position, mine, slot, word, X, SKIP, S, L), column, R, SKIP)
            score = tl.where(mine[:, None], tl.dot(query, tl.trans(row), score, input_precision=PRECISION), score)
            left = tl.where(mine, -1, left)
            entry = tl.max(left, axis=0)
    place, inside = _of_words(position, slot, word, X, S, L)
    tl.store(score_ptr + place, score, mask=inside)


@triton.jit
def _sum(
    weight_ptr, table_ptr, token_ptr, entry_ptr, sum_ptr, X, R, SKIP: tl.constexpr, S: tl.constexpr, L: tl.constexpr,
    PRECISION: tl.constexpr, P: tl.constexpr, LB: tl.constexpr, RB: tl.constexpr,
):  # fmt: skip
    position = tl.program_id(0).to(tl.int64) * P + tl.arange(0, P)
    column = tl.program_id(1) * RB + tl.arange(0, RB)
    total = tl.zeros([P, RB], dtype=tl.float32)
    for part in range(S * tl.cdiv(L, LB)):
        slot, word = _part(part, S, LB)
        place, inside = _of_words(position, slot, word, X, S, L)
        weight = tl.load(weight_ptr + place, mask=inside, other=0.0).to(tl.float32)
        left = _entries(entry_ptr, position, slot, X, S)
        entry = tl.max(left, axis=0)
        while entry >= 0:
            mine = left == entry
            token = _tokens(token_ptr, position, mine, slot, word, X, SKIP, S, L)
            row = _rows(table_ptr, token, column, R, SKIP).to(tl.float32)
            total = tl.dot(tl.where(mine[:, None], weight, 0.0), row, total, input_precision=PRECISION)
            left = tl.where(mine, -1, left)
            entry = tl.max(left, axis=0)
    inside = (position < X)[:, None] & (column < R)[None, :]
    to = sum_ptr + position[:, None] * R + column[None, :]
    tl.store(to, total.to(sum_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _spread(
    weight_ptr, vector_ptr, token_ptr, entry_ptr, table_ptr, X, R, SKIP: tl.constexpr, S: tl.constexpr, L: tl.constexpr,
    PRECISION: tl.constexpr, P: tl.constexpr, LB: tl.constexpr, RB: tl.constexpr, n_rows, n_copies,
):  # fmt: skip
    position = tl.program_id(0).to(tl.int64) * P + tl.arange(0, P)
    slot, word = _part(tl.program_id(1), S, LB)
    column = tl.program_id(2) * RB + tl.arange(0, RB)
    table_ptr += (tl.program_id(0) % n_copies).to(tl.int64) * n_rows * R
    vector = _vectors(vector_ptr, position, column, X, R).to(tl.float32)
    place, inside = _of_words(position, slot, word, X, S, L)
    weight = tl.load(weight_ptr + place, mask=inside, other=0.0).to(tl.float32)
    left = _entries(entry_ptr, position, slot, X, S)
    entry = tl.max(left, axis=0)
    while entry >= 0:
        mine = left == entry
        token = _tokens(token_ptr, position, mine, slot, word, X, SKIP, S, L)
        own = tl.where(mine[:, None], weight, 0.0)
        total = tl.dot(tl.trans(own), vector, input_precision=PRECISION)
        add = (token != SKIP)[:, None] & (column < R)[None, :]
        tl.atomic_add(table_ptr + token[:, None] * R + column[None, :], total, mask=add, sem="relaxed")
        left = tl.where(mine, -1, left)
        entry = tl.max(left, axis=0)


@triton.jit
def _by_word(
    weight_ptr, token_ptr, mass_ptr, weight_stride, W, V, SKIP: tl.constexpr, WB: tl.constexpr, VB: tl.constexpr
):  # fmt: skip
    position = tl.program_id(0).to(tl.int64)
    mass_ptr += position * V
    for begin in range(0, V, VB):
        row = begin + tl.arange(0, VB)
        tl.store(mass_ptr + row, tl.zeros([VB], dtype=mass_ptr.dtype.element_ty), mask=row < V)
    tl.debug_barrier()  # other threads wrote the zeros that a thread adds to
    for begin in range(0, W, WB):
        word = begin + tl.arange(0, WB)
        token = tl.load(token_ptr + position * W + word, mask=word < W, other=SKIP)
        weight = tl.load(weight_ptr + position * weight_stride + word, mask=word < W, other=0.0)
        tl.atomic_add(mass_ptr + token, weight.to(mass_ptr.dtype.element_ty), mask=token != SKIP, sem="relaxed")


TILES = {_score: (16, 1), _sum: (16, 2), _spread: (64, 4)}  # P and warps, measured on an H100 (docs/speed.md)


def _launch(kernel, first: Tensor, second: Tensor, token_XW: Tensor, entry_XS: Tensor, out: Tensor, skip: int, *more):
    (X, S), L, R = entry_XS.shape, token_XW.shape[1] // entry_XS.shape[1], second.shape[1]
    exact = first.dtype == second.dtype == torch.float32
    P, warps = (16, 4) if exact else TILES[kernel]
    block_L, block_R = (max(16, triton.next_power_of_2(n)) for n in (min(L, WORDS), min(R, COLUMNS)))
    parts, columns = S * triton.cdiv(L, block_L), triton.cdiv(R, block_R)
    grid = {_score: (parts,), _sum: (columns,), _spread: (parts, columns)}[kernel]
    tensors = (x.contiguous() for x in (first, second, token_XW, entry_XS))
    kernel[(triton.cdiv(X, P), *grid)](
        *tensors, out, X, R, skip, S, L, "ieee" if exact else "tf32", P, block_L, block_R, *more, num_warps=warps
    )
    return out


def _is_dense(token_XW: Tensor, n_rows: int) -> bool:
    X, W = token_XW.shape
    has_atomics = torch.cuda.get_device_capability(token_XW.device) >= DENSE_CAPABILITY
    return has_atomics and X >= DENSE_POSITIONS and n_rows <= DENSE_ROWS * W


def _by_words(weight_XW: Tensor, token_XW: Tensor, n_rows: int, dtype: torch.dtype, skip: int):
    """For each part of the positions: which they are, and (P, n_rows), their weights summed by word.

    The next part writes over the sums of the last. Those in 16 bits are rounded at each word.
    """
    X, W = token_XW.shape
    token_XW = token_XW.contiguous()
    if weight_XW.stride(1) != 1:  # rows may stand apart: those of a softmax with one column more
        weight_XW = weight_XW.contiguous()
    P = triton.cdiv(X, triton.cdiv(X * n_rows * dtype.itemsize, DENSE_BYTES))
    mass_PV = weight_XW.new_empty(P, n_rows, dtype=dtype)
    blocks = min(triton.next_power_of_2(W), 512), min(triton.next_power_of_2(n_rows), 2048)
    for begin in range(0, X, P):
        part = slice(begin, min(begin + P, X))
        own_PV = mass_PV[: part.stop - begin]
        _by_word[(len(own_PV),)](weight_XW[part], token_XW[part], own_PV, weight_XW.stride(0), W, n_rows, skip, *blocks)
        yield part, own_PV


def _spread_by_words(mass_PV: Tensor, vector_PR: Tensor) -> Tensor:
    out_VR = vector_PR.new_empty(mass_PV.shape[1], vector_PR.shape[1])
    return torch.mm(mass_PV.T, vector_PR, out=out_VR)  # with `out`, autocast changes no precision


def _total(spread: list[Tensor]) -> Tensor:
    return torch.stack(spread).sum(dim=0, dtype=torch.float32)


@custom_op
def score_tokens(query_XR: Tensor, table_VR: Tensor, token_XW: Tensor, entry_XS: Tensor, skip: int) -> Tensor:
    """(X, W) float32: the product of each position's query with the table's row of each of its words; 0 for `skip`.

    Args:
        entry_XS: int64, what stands in each slot, -1 for nothing; the same entry has the same words everywhere.
    """
    out = query_XR.new_empty(token_XW.shape, dtype=torch.float32)
    return _launch(_score, query_XR, table_VR, token_XW, entry_XS, out, skip)


@custom_op
def sum_tokens(weight_XW: Tensor, table_VR: Tensor, token_XW: Tensor, entry_XS: Tensor, skip: int) -> Tensor:
    """(X, R) in the table's dtype: the sum of the rows of a position's words, each times its weight."""
    n_rows, R = table_VR.shape
    out = table_VR.new_empty(token_XW.shape[0], R)
    if _is_dense(token_XW, n_rows):
        for part, mass_PV in _by_words(weight_XW, token_XW, n_rows, table_VR.dtype, skip):
            torch.mm(mass_PV, table_VR, out=out[part])
        return out
    return _launch(_sum, weight_XW, table_VR, token_XW, entry_XS, out, skip)


@custom_op
def spread_tokens(
    weight_XW: Tensor, vector_XR: Tensor, token_XW: Tensor, entry_XS: Tensor, n_rows: int, skip: int
) -> Tensor:
    """(n_rows, R) float32: each position's vector, times the weight of a word, added to the row of that word.

    The order in which sums are made is open.
    """
    R = vector_XR.shape[1]
    if _is_dense(token_XW, n_rows):
        masses = _by_words(weight_XW, token_XW, n_rows, vector_XR.dtype, skip)
        return _total([_spread_by_words(mass_PV, vector_XR[part]) for part, mass_PV in masses])
    n_copies = min(max(COPIED_FLOATS // (n_rows * R), 1), MOST_COPIES)
    out = vector_XR.new_zeros(n_copies, n_rows, R, dtype=torch.float32)
    return _launch(_spread, weight_XW, vector_XR, token_XW, entry_XS, out, skip, n_rows, n_copies).sum(dim=0)


@score_tokens.register_fake
def _(query_XR, table_VR, token_XW, entry_XS, skip):
    return query_XR.new_empty(token_XW.shape, dtype=torch.float32)


@sum_tokens.register_fake
def _(weight_XW, table_VR, token_XW, entry_XS, skip):
    return table_VR.new_empty(token_XW.shape[0], table_VR.shape[1])


@spread_tokens.register_fake
def _(weight_XW, vector_XR, token_XW, entry_XS, n_rows, skip):
    return vector_XR.new_empty(n_rows, vector_XR.shape[1], dtype=torch.float32)


def _setup(ctx, inputs, output) -> None:
    *tensors, ctx.skip = inputs
    ctx.save_for_backward(*tensors)


def _sum_backward(ctx, grad_XR: Tensor):
    weight_XW, table_VR, *words = ctx.saved_tensors
    grad_weight_XW = score_tokens(grad_XR, table_VR, *words, ctx.skip).to(weight_XW.dtype)
    grad_table_VR = spread_tokens(weight_XW, grad_XR, *words, table_VR.shape[0], ctx.skip).to(table_VR.dtype)
    return grad_weight_XW, grad_table_VR, None, None, None


sum_tokens.register_autograd(_sum_backward, setup_context=_setup)
