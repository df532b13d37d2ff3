"""Muon for the matrices of the blocks, AdamW for everything else, as one optimizer.

Axes: M matrices of one shape · I rows · O columns

Own code, because no library has all three: batches of equal shapes, joined matrices, skipping on the device. Compared:
torch.optim.Muon of torch 2.13 and timm 1.0.31 (one matrix after another); optimuon 0.1.1 and pytorch-optimizer 4.1
(batched; no skipping on the device); gram-newton-schulz 0.1.6 (batched and split; no skipping, and its kernels need
Hopper GPUs and further packages); heavyball 3.2.1 (no skipping either).
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from math import sqrt
from pathlib import Path

import torch
from torch import Tensor

COEFFICIENTS = 3.4445, -4.7750, 2.0315  # of the quintic; they give slope to small singular values
ITERATIONS = 5
SMALLEST_NORM = 1e-7
MOMENTUM = "momentum_"  # in the optimizer's state, with the number of the piece
SMALL = 1 / 16  # of the numbers in the largest stack
UPDATE_RMS = 0.2  # of AdamW's updates: with it AdamW's learning rate fits


def orthogonalized(x_MIO: Tensor) -> Tensor:
    """Each matrix, in bfloat16, with its singular values brought near 1, between about 0.7 and 1.2; zeros stay zeros.

    Source: Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/. Differs: many matrices at once; tall ones
    are multiplied from the right instead of being transposed; the norm is the trace of the first small matrix.
    """
    a, b, c = COEFFICIENTS
    tall = x_MIO.shape[-2] > x_MIO.shape[-1]
    for iteration in range(ITERATIONS):
        gram_MII = x_MIO.mT @ x_MIO if tall else x_MIO @ x_MIO.mT
        if iteration == 0:
            norm_M11 = diagonal(gram_MII).float().sum(dim=-1).sqrt()[:, None, None]
            scale_M11 = norm_M11.clamp(min=SMALLEST_NORM).reciprocal()
            gram_MII.mul_(scale_M11.square())
        factor_MII = torch.baddbmm(gram_MII, gram_MII, gram_MII, beta=b, alpha=c)
        if iteration == 0:  # The norm is divided out of the small factor; in later iterations this would round more.
            diagonal(factor_MII).add_(a)
            factor_MII.mul_(scale_M11)
        left, right = (x_MIO, factor_MII) if tall else (factor_MII, x_MIO)
        x_MIO = left @ right if iteration == 0 else torch.baddbmm(x_MIO, left, right, beta=a)
    return x_MIO


def diagonal(x_MII: Tensor) -> Tensor:
    return x_MII.diagonal(dim1=-2, dim2=-1)


def nesterov(gradient_X: Tensor, momentum_X: Tensor, decay: float, skip: Tensor) -> Tensor:
    """The update in bfloat16; the momentum, in float32, changes in place.

    Args:
        skip: float32 scalar; where 1, the update is zero and the momentum stays, whatever the gradient.
    """
    gradient_X = gradient_X.masked_fill(skip.bool(), 0.0)
    momentum_X.lerp_(gradient_X, (1 - decay) * (1 - skip))
    return gradient_X.lerp(momentum_X, decay).masked_fill(skip.bool(), 0.0).bfloat16()


# On a GPU one pass over the memory instead of one for each operation; the same code for every number of elements.
compiled_nesterov = torch.compile(nesterov, dynamic=True)


@dataclass
class Piece:
    """Neighbouring rows of a parameter that hold one matrix, or several of the same height below each other."""

    parameter: Tensor
    key: str  # of the optimizer's state
    first: int
    height: int
    n: int

    def of(self, tensor: Tensor) -> Tensor:
        """(n, I, O): the matrices in a tensor of the parameter's shape; a view."""
        rows = tensor[self.first : self.first + self.n * self.height]
        return rows.view(self.n, self.height, tensor.shape[1])


class Stack:
    """All matrices of one shape and group, with their momentum in one tensor; the optimizer's state holds views of it.

    Args:
        state: of the optimizer. The momentum found there is taken over; without any it begins at zero.
    """

    def __init__(self, pieces: list[Piece], state: dict):
        self.pieces, self.state = pieces, state
        self.parameters = [piece.of(piece.parameter.detach()) for piece in pieces]
        self.momentum_MIO = torch.cat(
            [state[piece.parameter].get(piece.key, torch.zeros_like(matrix)).float()
             for piece, matrix in zip(pieces, self.parameters, strict=True)]
        )  # fmt: skip
        self.views = self.momentum_MIO.split([piece.n for piece in pieces])
        for piece, view in zip(pieces, self.views, strict=True):
            state[piece.parameter][piece.key] = view

    @property
    def size(self) -> int:
        return self.momentum_MIO.numel()

    def is_current(self) -> bool:
        """Whether the optimizer's state is still this stack's: a checkpoint puts other tensors there."""
        views = zip(self.pieces, self.views, strict=True)
        return all(self.state[piece.parameter].get(piece.key) is view for piece, view in views)

    def gradients(self) -> Tensor:
        """(M, I, O) float32; zero where a parameter took no part in the loss."""
        gradients = [
            matrix.new_zeros(matrix.shape) if piece.parameter.grad is None else piece.of(piece.parameter.grad)
            for piece, matrix in zip(self.pieces, self.parameters, strict=True)
        ]
        return torch.cat(gradients).float()

    def step(self, lr: float, momentum: float, weight_decay: float, skip: Tensor) -> None:
        """Nesterov momentum, orthogonalisation, decoupled decay.

        Args:
            skip: float32 scalar on the device; 1 leaves parameters and momentum as they are, whatever the gradients.
        """
        make = compiled_nesterov if self.momentum_MIO.is_cuda else nesterov
        update_X = make(self.gradients().flatten(), self.momentum_MIO.view(-1), momentum, skip)
        update_MIO = orthogonalized(update_X.view_as(self.momentum_MIO)).float()
        updates = list(update_MIO.split([piece.n for piece in self.pieces]))
        scale = UPDATE_RMS * sqrt(max(update_MIO.shape[1:]))
        torch._fused_sgd_(  # decay and update in one pass over the memory
            self.parameters, updates, [], lr=lr * scale, weight_decay=weight_decay / scale, found_inf=skip,
            momentum=0.0, dampening=0.0, nesterov=False, maximize=False, is_first_step=False,
        )  # fmt: skip


class Muon(torch.optim.Optimizer):
    """Steps the groups that have `rows` by Muon and the others by a fused AdamW.

    Every process steps all matrices, and so needs the same gradients. Like a fused AdamW it obeys `found_inf`, a
    float32 scalar on the device (1: skip this step), and waits for nothing. The versions of parameters may stay.

    Args:
        groups: a Muon group holds matrices, `momentum`, and `rows`: for each parameter the heights of the matrices that
            stand in it below each other.
        adamw: options of AdamW, for all groups.
    Source: Jordan et al. 2024; scale of the update and decay as Liu et al. 2025, arXiv:2502.16982.
    """

    def __init__(self, groups: list[dict], **adamw):
        self.adamw = torch.optim.AdamW([dict(group) for group in groups], **adamw)
        super().__init__(groups, self.adamw.defaults)
        self._step_supports_amp_scaling = True  # a gradient scaler then sets `found_inf`, too
        self.stacks: list[tuple[dict, list[Stack]]] = []
        self.side: torch.cuda.Stream | None = None

    @torch.no_grad()
    def step(self, closure=None):
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        found_inf = getattr(self, "found_inf", None)
        if getattr(self, "grad_scale", None) is not None:
            raise ValueError("Muon takes gradients without a scale: unscale them, as clipping does, before the step")
        # AdamW works on this optimizer's own groups and state, which loading a checkpoint replaces.
        self.adamw.param_groups = [group for group in self.param_groups if "rows" not in group]
        self.adamw.state, self.adamw.found_inf, self.adamw.grad_scale = self.state, found_inf, None
        self.adamw.step()
        if not self._stacks_are_current():
            self.stacks = [(group, self._make_stacks(group)) for group in self.param_groups if "rows" in group]
        all_stacks = [(stack, group) for group, stacks in self.stacks for stack in stacks]
        if not all_stacks:
            return loss
        device, most = all_stacks[0][0].momentum_MIO.device, max(stack.size for stack, _ in all_stacks)
        skip = torch.zeros((), device=device) if found_inf is None else found_inf
        with self._beside(device) as side:
            for stack, group in all_stacks:
                with torch.cuda.stream(side if stack.size < SMALL * most else None):
                    stack.step(group["lr"], group["momentum"], group["weight_decay"], skip)
        return loss

    @contextmanager
    def _beside(self, device: torch.device) -> Iterator[torch.cuda.Stream | None]:
        """A stream whose work begins after what the current one has done, and ends before what it will do.

        Small stacks go there: they need as many launches as large ones, and each leaves most of a GPU idle.
        """
        if device.type != "cuda":
            yield None
            return
        self.side, current = self.side or torch.cuda.Stream(device, priority=-1), torch.cuda.current_stream(device)
        self.side.wait_stream(current)
        yield self.side
        current.wait_stream(self.side)

    def _stacks_are_current(self) -> bool:
        groups = [group for group in self.param_groups if "rows" in group]
        same = len(groups) == len(self.stacks)
        same = same and all(group is mine for group, (mine, _) in zip(groups, self.stacks, strict=True))
        return same and all(stack.is_current() for _, stacks in self.stacks for stack in stacks)

    def _make_stacks(self, group: dict) -> list[Stack]:
        by_shape = defaultdict(list)
        for parameter, heights in zip(group["params"], group["rows"], strict=True):
            for piece in pieces_of(parameter, heights):
                by_shape[piece.height, parameter.shape[1], parameter.device].append(piece)
        return [Stack(pieces, self.state) for pieces in by_shape.values()]


def pieces_of(parameter: Tensor, heights: list[int]) -> Iterator[Piece]:
    """The parameter's rows, cut where the height of its matrices changes."""
    first = 0
    for index, (height, equal) in enumerate(groupby(heights)):
        n = len(list(equal))
        yield Piece(parameter, f"{MOMENTUM}{index}", first, height, n)
        first += n * height
    if first != len(parameter):
        raise ValueError(f"matrices of {heights} rows do not fill a parameter of {len(parameter)}")


def require_same_optimizer(checkpoint: Path, tensors: Iterable[str], optimizer: torch.optim.Optimizer) -> None:
    """Refuse the state of AdamW for Muon, and the other way round.

    Args:
        tensors: names in the checkpoint, `<parameter>/<key of its state>`.
    """
    was_muon = any(name.rsplit("/", 1)[1].startswith(MOMENTUM) for name in tensors)
    if was_muon != isinstance(optimizer, Muon):
        before = "muon" if was_muon else "adamw"
        raise ValueError(
            f"{checkpoint} was written with --optimizer {before}: use the same, or start over with --no_resume"
        )
