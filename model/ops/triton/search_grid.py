"""Product-key search with its balance: the best sub-keys of each half and their usage, then the best pairs of them.

Axes: M positions · R sub-keys per half · C candidates · P pairs of ranks that can be among the best C · G programs

A score and its place are packed into one unsigned integer of the same order, so that a row's best is one integer
maximum. The next best needs no marks on what was taken: of `key - best`, in arithmetic that wraps around, the largest
belongs to the largest key below the best.

Of many sub-keys, groups of adjacent ones are compared first: the best C lie in the C groups with the highest maxima,
so the C rounds go over R / GROUP maxima and over the C * GROUP members of those, not over all R.
"""

from functools import lru_cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..rank_pairs import rank_pairs
from . import custom_op

LOG2E = tl.constexpr(1.4426950408889634)
PROGRAMS = 1024  # that share the positions of one half; each sums the probabilities of its own
GROUP = 8  # adjacent sub-keys; as many bfloat16 as a lane loads at once, so that their maximum stays in the lane


@triton.jit
def _ordered(score):
    """The bits of float32 scores as uint32 of the same order."""
    bits = score.to(tl.int32, bitcast=True)
    return (bits ^ ((bits >> 31) | -(2**31))).to(tl.uint32, bitcast=True)


@triton.jit
def _unordered(key):
    bits = key.to(tl.int32, bitcast=True)
    return (bits ^ (~(bits >> 31) | -(2**31))).to(tl.float32, bitcast=True)


@triton.jit
def _largest(key):
    """The largest unsigned integer, found by words of 32 bits: their maximum over a warp is one instruction."""
    if key.dtype == tl.uint32:
        return tl.max(key, axis=0)
    else:
        high = (key >> 32).to(tl.uint32)
        top = tl.max(high, axis=0)
        low = tl.max(tl.where(high == top, key.to(tl.uint32), 0), axis=0)
        return (top.to(tl.uint64) << 32) | low.to(tl.uint64)


@triton.jit
def _best(key, C: tl.constexpr, BLOCK_C: tl.constexpr):
    """The C largest of different unsigned integers, largest first."""
    place = tl.arange(0, BLOCK_C)
    top = _largest(key)
    best = tl.where(place == 0, top, 0).to(key.dtype)
    for c in range(1, C):
        top += _largest(key - top)
        best = tl.where(place == c, top, best)
    return best


@triton.jit
def _pack(score, place, n, NARROW: tl.constexpr):
    """Keys in the order of the scores, all different: of equal scores that at the first of the n places is largest."""
    if NARROW:  # the lower half of the bits of a bfloat16 is empty
        return (_ordered(score) & 0xFFFF0000) | (n - 1 - place).to(tl.uint32)
    else:
        return (_ordered(score).to(tl.uint64) << 32) | (n - 1 - place).to(tl.uint64)


@triton.jit
def _unpack(packed, n, NARROW: tl.constexpr):
    """The place and the score that a key was packed from."""
    if NARROW:
        key = packed.to(tl.uint32, bitcast=True)
        index = (key & 0xFFFF).to(tl.int32)
        score = (_unordered(key).to(tl.int32, bitcast=True) & -65536).to(tl.float32, bitcast=True)
    else:
        wide = packed.to(tl.uint64, bitcast=True)
        index = wide.to(tl.int32)
        score = _unordered((wide >> 32).to(tl.uint32))
    return n - 1 - index, score


@triton.jit
def _best_of_half(
    score, row_ptr, R, C: tl.constexpr, NARROW: tl.constexpr, GROUP: tl.constexpr, BLOCK: tl.constexpr,
    BLOCK_C: tl.constexpr,
):  # fmt: skip
    """The best C sub-keys of a half, best first, each as a number that `_unpack` takes apart; and the highest score.

    GROUP is 1, or divides R into more than C groups.
    """
    place, n = tl.arange(0, BLOCK // GROUP), R // GROUP
    if GROUP > 1:
        key = _pack(tl.max(tl.reshape(score, [BLOCK // GROUP, GROUP]), axis=1), place, n, NARROW)
    else:
        key = _pack(score, place, n, NARROW)
    key = tl.where(place < n, key, 0)
    highest = _unpack(_largest(key), n, NARROW)[1]
    best = _best(key, C, BLOCK_C)
    if GROUP > 1:
        column = _unpack(best, n, NARROW)[0][:, None] * GROUP + tl.arange(0, GROUP)[None, :]
        inside = tl.broadcast_to((tl.arange(0, BLOCK_C) < C)[:, None], [BLOCK_C, GROUP])
        score = tl.load(row_ptr + column, mask=inside, other=0.0).to(tl.float32)
        key = tl.where(inside, _pack(score, column, R, NARROW), 0)
        best = _best(tl.reshape(key, [BLOCK_C * GROUP], can_reorder=True), C, BLOCK_C)
    return best, highest


@triton.jit
def _best_pairs(
    row, key_ptr, pair_ptr, score_ptr, entry_ptr, R, P, scale,
    C: tl.constexpr, NARROW: tl.constexpr, BLOCK: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Write the best C entries of a row, whose best sub-keys stand in memory."""
    pair, place = tl.arange(0, BLOCK), tl.arange(0, BLOCK_C)
    inside = pair < P
    total = tl.zeros([BLOCK], dtype=tl.float32)
    entry = tl.zeros([BLOCK], dtype=tl.int32)
    for half in tl.static_range(2):
        rank = tl.load(pair_ptr + half * P + pair, mask=inside, other=0)
        index, score = _unpack(tl.load(key_ptr + (row * 2 + half) * C + rank), R, NARROW)
        total += score
        entry = entry * R + index
    key = (_ordered(total).to(tl.uint64) << 32) | (2**31 - 1 - entry).to(tl.uint64)
    best = _best(tl.where(inside, key, 0), C, BLOCK_C)
    tl.store(score_ptr + row * C + place, _unordered((best >> 32).to(tl.uint32)) * scale, mask=place < C)
    tl.store(entry_ptr + row * C + place, (2**31 - 1 - best.to(tl.int32)).to(tl.int64), mask=place < C)


@triton.jit
def _search(
    score_ptr, key_ptr, pair_ptr, best_ptr, entry_ptr, R, P, row_stride, half_stride, scale,
    C: tl.constexpr, NARROW: tl.constexpr, GROUP: tl.constexpr, BLOCK: tl.constexpr, BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
):  # fmt: skip
    """One program a position: both halves, then the pairs."""
    row = tl.program_id(0).to(tl.int64)
    column, place = tl.arange(0, BLOCK), tl.arange(0, BLOCK_C)
    for half in tl.static_range(2):
        row_ptr = score_ptr + row * row_stride + half * half_stride
        score = tl.load(row_ptr + column, mask=column < R, other=float("-inf")).to(tl.float32)
        best, _ = _best_of_half(score, row_ptr, R, C, NARROW, GROUP, BLOCK, BLOCK_C)
        packed = best.to(key_ptr.dtype.element_ty, bitcast=True)
        tl.store(key_ptr + (row * 2 + half) * C + place, packed, mask=place < C)
    tl.debug_barrier()  # what other threads have just written is read
    _best_pairs(row, key_ptr, pair_ptr, best_ptr, entry_ptr, R, P, scale, C, NARROW, BLOCK_P, BLOCK_C)


@triton.jit
def _search_halves(
    score_ptr, key_ptr, total_ptr, partial_ptr, count_ptr, n_rows, R, row_stride, half_stride, scale,
    C: tl.constexpr, NARROW: tl.constexpr, GROUP: tl.constexpr, BLOCK: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    half = tl.program_id(1)
    column, place = tl.arange(0, BLOCK), tl.arange(0, BLOCK_C)
    inside = column < R
    probability = tl.zeros([BLOCK], dtype=tl.float32)
    first = tl.program_id(0).to(tl.int64)
    for turn in range(tl.cdiv(n_rows - tl.program_id(0), tl.num_programs(0))):
        row = first + turn * tl.num_programs(0)
        start = row * 2 + half
        row_ptr = score_ptr + row * row_stride + half * half_stride
        score = tl.load(row_ptr + column, mask=inside, other=float("-inf")).to(tl.float32)
        best, highest = _best_of_half(score, row_ptr, R, C, NARROW, GROUP, BLOCK, BLOCK_C)
        tl.store(key_ptr + start * C + place, best.to(key_ptr.dtype.element_ty, bitcast=True), mask=place < C)
        tl.atomic_add(count_ptr + half * R + _unpack(best, R, NARROW)[0], 1, mask=place < C, sem="relaxed")
        shift = highest * (scale * LOG2E)
        power = tl.exp2(score * (scale * LOG2E) - shift)
        total = tl.sum(power, axis=0)
        probability += power * (1 / total)
        tl.store(total_ptr + start, shift + tl.log2(total))
    tl.store(partial_ptr + (tl.program_id(0) * 2 + half) * R + column, probability, mask=inside)


@triton.jit
def _search_pairs(
    key_ptr, pair_ptr, score_ptr, entry_ptr, R, P, scale,
    C: tl.constexpr, NARROW: tl.constexpr, BLOCK: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    _best_pairs(row, key_ptr, pair_ptr, score_ptr, entry_ptr, R, P, scale, C, NARROW, BLOCK, BLOCK_C)


@triton.jit
def _search_gradient(
    score_ptr, total_ptr, entry_ptr, grad_score_ptr, grad_probability_ptr, grad_ptr, n_rows, R,
    row_stride, half_stride, grad_row_stride, grad_half_stride, scale,
    C: tl.constexpr, USAGE: tl.constexpr, BLOCK: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    half = tl.program_id(1)
    column, place = tl.arange(0, BLOCK), tl.arange(0, BLOCK_C)
    inside = column < R
    wanted_ptr = grad_probability_ptr + half * R
    if USAGE:
        wanted = tl.load(wanted_ptr + column, mask=inside, other=0.0)
    first = tl.program_id(0).to(tl.int64)
    for turn in range(tl.cdiv(n_rows - tl.program_id(0), tl.num_programs(0))):
        row = first + turn * tl.num_programs(0)
        row_ptr = score_ptr + row * row_stride + half * half_stride
        out_ptr = grad_ptr + row * grad_row_stride + half * grad_half_stride
        read = place < C
        entry = tl.load(entry_ptr + row * C + place, mask=read, other=0).to(tl.int32)
        chosen = tl.where(half == 0, entry // R, entry % R)
        share = tl.load(grad_score_ptr + row * C + place, mask=read, other=0.0)
        # Entries of one row may share a sub-key: each of them writes the sum of all.
        sparse = tl.sum(tl.where(chosen[:, None] == chosen[None, :], share[None, :], 0.0), axis=1)
        dense = tl.zeros([BLOCK], dtype=tl.float32)
        if USAGE:
            score = tl.load(row_ptr + column, mask=inside, other=float("-inf")).to(tl.float32)
            total = tl.load(total_ptr + row * 2 + half)
            probability = tl.exp2(score * (scale * LOG2E) - total)
            mean = tl.sum(probability * wanted, axis=0)
            dense = probability * (wanted - mean)
            score_there = tl.load(row_ptr + chosen, mask=read, other=float("-inf")).to(tl.float32)
            wanted_there = tl.load(wanted_ptr + chosen, mask=read, other=0.0)
            sparse += tl.exp2(score_there * (scale * LOG2E) - total) * (wanted_there - mean)
        tl.store(out_ptr + column, (dense * scale).to(grad_ptr.dtype.element_ty), mask=inside)
        tl.debug_barrier()  # what other threads have just written is overwritten
        tl.store(out_ptr + chosen, (sparse * scale).to(grad_ptr.dtype.element_ty), mask=read)


@lru_cache
def _pairs(n_candidates: int, device: torch.device) -> Tensor:
    """(2, P) int32: `rank_pairs` on the device, copied there before any graph is captured."""
    return torch.tensor(rank_pairs(n_candidates), dtype=torch.int32, device=device).T.contiguous()


@custom_op
def search_grid(
    score_M2R: Tensor, n_candidates: int, usage: bool, scale: float
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The best C entries and, with `usage`, how evenly the sub-keys are used; the same at every run.

    Args:
        score_M2R: float on CUDA, its last axis contiguous, R at most 46,340.
        scale: positive, what all scores are multiplied by.
    Returns:
        score_MC: float32, best first.  entry_MC: int64.
        count_2R: int32, how often each sub-key is among the best C of its half.  probability_2R: float32, the sum over
        positions of the softmax over the sub-keys.  total_M2: float32, log2 of its normaliser. Without `usage` they
        are empty.
    """
    M, _, R = score_M2R.shape
    if score_M2R.stride(-1) != 1 or R > 46_340:
        raise ValueError(
            f"the scores must be contiguous along R, at most 46,340: {score_M2R.shape}, {score_M2R.stride()}"
        )
    C, device, narrow = n_candidates, score_M2R.device, score_M2R.dtype == torch.bfloat16
    pair_2P = _pairs(C, device)
    P, strides = pair_2P.shape[1], score_M2R.stride()[:2]
    key_M2C = torch.empty(M, 2, C, dtype=torch.int32 if narrow else torch.int64, device=device)
    score_MC = torch.empty(M, C, device=device)
    entry_MC = torch.empty(M, C, dtype=torch.int64, device=device)
    block_R, block_P = triton.next_power_of_2(R), triton.next_power_of_2(P)
    block_C = triton.next_power_of_2(C)
    # GROUP must divide R. Where rows cannot be loaded 16 bytes at a time, or the C groups hold much of R, groups cost
    # more than they save.
    group = GROUP if R % 16 == 0 and block_R > 2 * GROUP * block_C else 1
    blocks = {"BLOCK_C": block_C, "num_warps": 1}  # a row's maxima need no barrier
    if not usage:  # nothing is summed over positions, so one launch does it
        _search[(M,)](
            score_M2R, key_M2C, pair_2P, score_MC, entry_MC, R, P, *strides, scale, C, narrow, group, block_R,
            block_P, **blocks,
        )  # fmt: skip
        count_2R = torch.empty(2, 0, dtype=torch.int32, device=device)
        return score_MC, entry_MC, count_2R, score_MC.new_empty(2, 0), score_MC.new_empty(0, 2)
    n_programs = min(PROGRAMS, M)
    count_2R = torch.zeros(2, R, dtype=torch.int32, device=device)
    partial_G2R = torch.empty(n_programs, 2, R, device=device)
    total_M2 = torch.empty(M, 2, device=device)
    _search_halves[(n_programs, 2)](
        score_M2R, key_M2C, total_M2, partial_G2R, count_2R, M, R, *strides, scale, C, narrow, group, block_R, **blocks
    )
    _search_pairs[(M,)](key_M2C, pair_2P, score_MC, entry_MC, R, P, scale, C, narrow, block_P, **blocks)
    return score_MC, entry_MC, count_2R, partial_G2R.sum(dim=0), total_M2


@search_grid.register_fake
def _(score_M2R: Tensor, n_candidates: int, usage: bool, scale: float):
    M, _, R = score_M2R.shape
    M_used, R_used = (M, R) if usage else (0, 0)

    def empty(*shape: int, dtype=torch.float32) -> Tensor:
        return score_M2R.new_empty(shape, dtype=dtype)

    return (
        empty(M, n_candidates), empty(M, n_candidates, dtype=torch.int64),
        empty(2, R_used, dtype=torch.int32), empty(2, R_used), empty(M_used, 2),
    )  # fmt: skip


@custom_op
def search_grid_gradient(
    score_M2R: Tensor, total_M2: Tensor, entry_MC: Tensor, grad_score_MC: Tensor, grad_probability_2R: Tensor,
    scale: float,
) -> Tensor:  # fmt: skip
    """(M, 2, R) in the dtype of the scores: the gradient of `search_grid`."""
    M, _, R = score_M2R.shape
    grad_M2R = torch.empty_like(score_M2R)  # with the strides of the scores, if those leave nothing out
    C = entry_MC.shape[1]
    _search_gradient[(min(PROGRAMS, M), 2)](
        score_M2R, total_M2, entry_MC, grad_score_MC.contiguous(), grad_probability_2R.contiguous(), grad_M2R, M, R,
        *score_M2R.stride()[:2], *grad_M2R.stride()[:2], scale,
        C, total_M2.numel() > 0, triton.next_power_of_2(R), triton.next_power_of_2(C), num_warps=1,
    )  # fmt: skip
    return grad_M2R


@search_grid_gradient.register_fake
def _(score_M2R, total_M2, entry_MC, grad_score_MC, grad_probability_2R, scale) -> Tensor:
    return torch.empty_like(score_M2R)


def _setup(ctx, inputs, output) -> None:
    _, entry_MC, count_2R, _, total_M2 = output
    ctx.mark_non_differentiable(entry_MC, count_2R, total_M2)
    ctx.scale = inputs[3]
    ctx.save_for_backward(inputs[0], total_M2, entry_MC)


def _backward(ctx, grad_score_MC: Tensor, _entry, _count, grad_probability_2R: Tensor, _total):
    score_M2R, total_M2, entry_MC = ctx.saved_tensors
    grad_M2R = search_grid_gradient(score_M2R, total_M2, entry_MC, grad_score_MC, grad_probability_2R, ctx.scale)
    return grad_M2R, None, None, None


search_grid.register_autograd(_backward, setup_context=_setup)
