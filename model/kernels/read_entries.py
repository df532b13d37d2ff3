"""Mean embeddings of many short entries, also at unit scale: one program an entry, rows of the table from the L2 cache.

Axes: X entries · L tokens per entry · D width · V vocabulary
"""

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _read_entries(
    token_ptr, table_ptr, mean_ptr, scale_ptr, D, eps,
    PADDING: tl.constexpr, UNIT: tl.constexpr, L: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    entry = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    inside = column < D
    total = tl.zeros([BLOCK], dtype=tl.float32)
    n_words = 0
    for place in tl.static_range(L):
        token = tl.load(token_ptr + entry * L + place).to(tl.int64)
        width = tl.where(token != PADDING, D, 0)  # nothing of a padding's row is read
        n_words += (token != PADDING).to(tl.int32)
        total += tl.load(table_ptr + token * D + column, mask=column < width, other=0.0).to(tl.float32)
    mean = total / tl.maximum(n_words, 1).to(tl.float32)
    if UNIT:
        scale = tl.rsqrt(tl.sum(mean * mean, axis=0) / D + eps)
        tl.store(scale_ptr + entry, scale)
        mean *= scale
    tl.store(mean_ptr + entry * D + column, mean.to(mean_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _spread_gradient(
    token_ptr, grad_ptr, unit_ptr, scale_ptr, table_ptr, D,
    PADDING: tl.constexpr, UNIT: tl.constexpr, L: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    entry = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    inside = column < D
    n_words = 0
    for place in tl.static_range(L):
        n_words += (tl.load(token_ptr + entry * L + place) != PADDING).to(tl.int32)
    share = tl.load(grad_ptr + entry * D + column, mask=inside, other=0.0).to(tl.float32)
    if UNIT:
        unit = tl.load(unit_ptr + entry * D + column, mask=inside, other=0.0).to(tl.float32)
        share = (share - unit * (tl.sum(share * unit, axis=0) / D)) * tl.load(scale_ptr + entry)
    share = share / tl.maximum(n_words, 1).to(tl.float32)
    for place in tl.static_range(L):
        token = tl.load(token_ptr + entry * L + place).to(tl.int64)
        width = tl.where(token != PADDING, D, 0)
        tl.atomic_add(table_ptr + token * D + column, share, mask=column < width, sem="relaxed")


def _shape(D: int) -> dict[str, int]:
    """One warp an entry, for its sum needs no barrier then; more where a lane would hold too much."""
    block = triton.next_power_of_2(D)
    return {"BLOCK": block, "num_warps": max(1, block // 1024)}


@torch.library.custom_op("explicit_memory::read_entries", mutates_args=())
def read_entries(token_XL: Tensor, table_VD: Tensor, padding: int, eps: float | None = None) -> tuple[Tensor, Tensor]:
    """The mean of the rows of each entry's tokens, padding left out.

    The sum is in float32, as is that of the gradient, whose order atomics leave open.

    Args:
        eps: where given, the means are brought to a root mean square of 1, as `F.rms_norm` does.
    Returns:
        mean_XD: in the dtype of the table.
        scale_X: float32; what the means were multiplied by, empty without `eps`.
    """
    X, L = token_XL.shape
    D = table_VD.shape[1]
    mean_XD = table_VD.new_empty(X, D)
    scale_X = torch.empty(0 if eps is None else X, device=table_VD.device)
    _read_entries[(X,)](
        token_XL.contiguous(), table_VD.contiguous(), mean_XD, scale_X, D, eps or 0.0,
        padding, eps is not None, L, **_shape(D),
    )  # fmt: skip
    return mean_XD, scale_X


@read_entries.register_fake
def _(token_XL: Tensor, table_VD: Tensor, padding: int, eps: float | None = None) -> tuple[Tensor, Tensor]:
    X = token_XL.shape[0]
    return table_VD.new_empty(X, table_VD.shape[1]), table_VD.new_empty(0 if eps is None else X, dtype=torch.float32)


@torch.library.custom_op("explicit_memory::spread_gradient", mutates_args=())
def spread_gradient(
    token_XL: Tensor, grad_XD: Tensor, unit_XD: Tensor, scale_X: Tensor, n_rows: int, padding: int
) -> Tensor:
    """(n_rows, D) float32: the gradient of `read_entries` with respect to its table."""
    X, L = token_XL.shape
    D = grad_XD.shape[1]
    table_VD = grad_XD.new_zeros(n_rows, D, dtype=torch.float32)
    _spread_gradient[(X,)](
        token_XL.contiguous(), grad_XD.contiguous(), unit_XD, scale_X, table_VD, D,
        padding, scale_X.numel() > 0, L, **_shape(D),
    )  # fmt: skip
    return table_VD


@spread_gradient.register_fake
def _(token_XL, grad_XD: Tensor, unit_XD, scale_X, n_rows: int, padding: int) -> Tensor:
    return grad_XD.new_empty(n_rows, grad_XD.shape[1], dtype=torch.float32)


def _setup(ctx, inputs, output) -> None:
    token_XL, table_VD, ctx.padding, eps = inputs
    mean_XD, scale_X = output
    ctx.n_rows, ctx.dtype = table_VD.shape[0], table_VD.dtype
    ctx.mark_non_differentiable(scale_X)
    ctx.save_for_backward(token_XL, mean_XD if eps is not None else scale_X, scale_X)


def _backward(ctx, grad_XD: Tensor, _) -> tuple[None, Tensor, None, None]:
    token_XL, unit_XD, scale_X = ctx.saved_tensors
    grad_VD = spread_gradient(token_XL, grad_XD, unit_XD, scale_X, ctx.n_rows, ctx.padding)
    return None, grad_VD.to(ctx.dtype), None, None


read_entries.register_autograd(_backward, setup_context=_setup)
