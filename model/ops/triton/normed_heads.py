"""Norm, gain and rotation of queries and keys, each with its gradient in one pass over memory.

A row is one head of one position, in two halves: channel e of the first is rotated with channel e of the second. The
gradient of a gain is summed by each program over its rows, so that no tensor is read again for it.

Axes: B batch · T position · H query heads · G key/value heads · E per-head width · X = (H + 2 G) E · P programs
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import custom_op

ROWS = 32  # of a program at a time
MOST_PROGRAMS = 2048  # of a gradient: several for each multiprocessor, and few partial sums of the gain


@triton.jit
def _places(row, n_rows, T, H, X, E: tl.constexpr, EB: tl.constexpr):
    """Of each row: batch, position, head, place in the joined tensor, and which channels of a half there are."""
    half = tl.arange(0, EB)
    inside = (row < n_rows)[:, None] & (half < E // 2)[None, :]
    of_all = row // H
    joined = of_all.to(tl.int64)[:, None] * X + (row % H * E)[:, None] + half[None, :]
    return (of_all // T).to(tl.int64), of_all % T, row % H, joined, half, inside


@triton.jit
def _halves(pointer, offset, inside, E: tl.constexpr):
    return (
        tl.load(pointer + offset, mask=inside, other=0.0).to(tl.float32),
        tl.load(pointer + offset + E // 2, mask=inside, other=0.0).to(tl.float32),
    )


@triton.jit
def _angles(cos_ptr, sin_ptr, position, half, inside, E: tl.constexpr):
    """Cosine, and sine of the first half and of the second."""
    offset = position[:, None] * E + half[None, :]
    first, second = _halves(sin_ptr, offset, inside, E)
    return tl.load(cos_ptr + offset, mask=inside, other=0.0), first, second


@triton.jit
def _normed(a, b, eps, E: tl.constexpr):
    """Both halves at unit scale, and the scale."""
    scale = tl.rsqrt(tl.sum(a * a + b * b, axis=1) / E + eps)[:, None]
    return a * scale, b * scale, scale


@triton.jit
def _forward(
    qkv_ptr, gain_ptr, cos_ptr, sin_ptr, out_ptr, n_rows, T, H, X, eps, E: tl.constexpr, EB: tl.constexpr,
    R: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0) * R + tl.arange(0, R)
    _, position, _, joined, half, inside = _places(row, n_rows, T, H, X, E, EB)
    a, b = _halves(qkv_ptr, joined, inside, E)
    a, b, _ = _normed(a, b, eps, E)
    gain_a, gain_b = _halves(gain_ptr, half, half < E // 2, E)
    a, b = a * gain_a[None, :], b * gain_b[None, :]
    cos, sin_a, sin_b = _angles(cos_ptr, sin_ptr, position, half, inside, E)
    out = out_ptr + row.to(tl.int64)[:, None] * E + half[None, :]
    tl.store(out, (a * cos + b * sin_a).to(out_ptr.dtype.element_ty), mask=inside)
    tl.store(out + E // 2, (b * cos + a * sin_b).to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _backward(
    grad_ptr, qkv_ptr, gain_ptr, cos_ptr, sin_ptr, grad_qkv_ptr, grad_gain_ptr, n_turns, n_rows, T, H, X, of_batch,
    of_position, of_head, eps, E: tl.constexpr, EB: tl.constexpr, R: tl.constexpr,
):  # fmt: skip
    total_a, total_b = tl.zeros([R, EB], dtype=tl.float32), tl.zeros([R, EB], dtype=tl.float32)
    for turn in range(n_turns):
        row = (turn * tl.num_programs(0) + tl.program_id(0)) * R + tl.arange(0, R)
        batch, position, head, joined, half, inside = _places(row, n_rows, T, H, X, E, EB)
        gain_a, gain_b = _halves(gain_ptr, half, half < E // 2, E)
        cos, sin_a, sin_b = _angles(cos_ptr, sin_ptr, position, half, inside, E)
        given = (batch * of_batch + position * of_position + head * of_head)[:, None] + half[None, :]
        a, b = _halves(grad_ptr, given, inside, E)
        a, b = a * cos + b * sin_b, b * cos + a * sin_a  # rotated back
        x_a, x_b = _halves(qkv_ptr, joined, inside, E)
        x_a, x_b, scale = _normed(x_a, x_b, eps, E)
        total_a, total_b = total_a + a * x_a, total_b + b * x_b
        a, b = a * gain_a[None, :], b * gain_b[None, :]
        along = (tl.sum(a * x_a + b * x_b, axis=1) / E)[:, None]
        out = grad_qkv_ptr + joined
        tl.store(out, (scale * (a - x_a * along)).to(grad_qkv_ptr.dtype.element_ty), mask=inside)
        tl.store(out + E // 2, (scale * (b - x_b * along)).to(grad_qkv_ptr.dtype.element_ty), mask=inside)
    half = tl.arange(0, EB)
    gain = grad_gain_ptr + tl.program_id(0) * E + half
    tl.store(gain, tl.sum(total_a, axis=0), mask=half < E // 2)
    tl.store(gain + E // 2, tl.sum(total_b, axis=0), mask=half < E // 2)


@custom_op
def normed_heads(
    qkv_BTX: Tensor, q_gain_E: Tensor, k_gain_E: Tensor, cos_T1E: Tensor, sin_T1E: Tensor, H: int, G: int, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """See the reference; the tables, the gains and what is between are float32."""
    qkv_BTX = qkv_BTX.contiguous()
    (B, T, X), E = qkv_BTX.shape, len(q_gain_E)
    q_BTHE, k_BTGE = qkv_BTX.new_empty(B, T, H, E), qkv_BTX.new_empty(B, T, G, E)
    for out, gain_E, begin in ((q_BTHE, q_gain_E, 0), (k_BTGE, k_gain_E, H * E)):
        n_rows = B * T * out.shape[2]
        _forward[(triton.cdiv(n_rows, ROWS),)](
            qkv_BTX[..., begin:], gain_E, cos_T1E.contiguous(), sin_T1E.contiguous(), out, n_rows, T, out.shape[2], X,
            eps, E=E, EB=triton.next_power_of_2(E // 2), R=ROWS,
        )  # fmt: skip
    return (
        q_BTHE,
        k_BTGE,
        qkv_BTX[..., (H + G) * E :].unflatten(-1, (G, E)).clone(memory_format=torch.contiguous_format),
    )


@custom_op
def normed_heads_gradient(
    grad_q_BTHE: Tensor, grad_k_BTGE: Tensor, grad_v_BTGE: Tensor, qkv_BTX: Tensor, q_gain_E: Tensor, k_gain_E: Tensor,
    cos_T1E: Tensor, sin_T1E: Tensor, H: int, G: int, eps: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """The gradients of joined projections and gains; those of the heads may have any strides."""
    qkv_BTX = qkv_BTX.contiguous()
    (B, T, X), E = qkv_BTX.shape, len(q_gain_E)
    grad_qkv_BTX, grad_gains = qkv_BTX.new_empty(B, T, X), []
    for grad, gain_E, begin in ((grad_q_BTHE, q_gain_E, 0), (grad_k_BTGE, k_gain_E, H * E)):
        grad = grad if grad.stride(-1) == 1 else grad.contiguous()
        n_rows = B * T * grad.shape[2]
        n_programs = min(triton.cdiv(n_rows, ROWS), MOST_PROGRAMS)
        grad_gain_PE = grad.new_empty(n_programs, E, dtype=torch.float32)
        _backward[(n_programs,)](
            grad, qkv_BTX[..., begin:], gain_E, cos_T1E.contiguous(), sin_T1E.contiguous(), grad_qkv_BTX[..., begin:],
            grad_gain_PE, triton.cdiv(n_rows, ROWS * n_programs), n_rows, T, grad.shape[2], X, *grad.stride()[:3], eps,
            E=E, EB=triton.next_power_of_2(E // 2), R=ROWS,
        )  # fmt: skip
        grad_gains.append(grad_gain_PE.sum(dim=0).to(gain_E.dtype))
    grad_qkv_BTX[..., (H + G) * E :].unflatten(-1, (G, E)).copy_(grad_v_BTGE)
    return grad_qkv_BTX, *grad_gains


@normed_heads.register_fake
def _(qkv_BTX, q_gain_E, k_gain_E, cos_T1E, sin_T1E, H, G, eps):
    (B, T, _), E = qkv_BTX.shape, len(q_gain_E)
    return tuple(qkv_BTX.new_empty(B, T, n, E) for n in (H, G, G))


@normed_heads_gradient.register_fake
def _(grad_q_BTHE, grad_k_BTGE, grad_v_BTGE, qkv_BTX, q_gain_E, k_gain_E, cos_T1E, sin_T1E, H, G, eps):
    return qkv_BTX.new_empty(qkv_BTX.shape), torch.empty_like(q_gain_E), torch.empty_like(k_gain_E)


def _setup(ctx, inputs, output) -> None:
    *tensors, ctx.H, ctx.G, ctx.eps = inputs
    ctx.save_for_backward(*tensors)


def _gradient(ctx, *grads: Tensor):
    grads = normed_heads_gradient(*grads, *ctx.saved_tensors, ctx.H, ctx.G, ctx.eps)
    return *grads, None, None, None, None, None


normed_heads.register_autograd(_gradient, setup_context=_setup)
