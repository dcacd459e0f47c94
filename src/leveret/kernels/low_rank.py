"""A frozen matrix plus a trained product of two thin ones, y = x W^T + s (x A^T) B^T, without the gradient of W.

Written out, the two products make two tensors as large as y, and backward adds two as large as x; on a CPU such passes
over memory cost as much as a fifth of the product with W. Here the thin products are added into what is there:

    h = x A^T            y  = x W^T,  then  y  += s h B^T
    g = s dy B           dx = dy W,   then  dx += g A            dA = g^T x       dB = s dy^T h

Kept for backward are x, which others keep anyway, and h, which is thin. W needs no gradient and gets none, so one of
the three large products of a trained Linear is saved.

Shape legend: N tokens, I inputs, O outputs, R rank.
"""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor

from leveret.kernels.dense import matmul


@runtime_checkable
class FrozenMatrix(Protocol):
    """A matrix W (O, I) that is multiplied by and not otherwise at hand, such as a quantized one."""

    def multiply(self, x: Tensor) -> Tensor:
        """x (N, I) -> x W^T, which is the caller's to write to."""

    def multiply_back(self, slope: Tensor) -> Tensor:
        """slope (N, O) -> slope W, likewise."""


def low_rank_linear(
    x: Tensor, weight: Tensor | FrozenMatrix, a: Tensor, b: Tensor, *, scale: float, kept: Tensor | None = None
) -> Tensor:
    """x (..., I), weight (O, I) frozen, a (R, I), b (O, R), all of one dtype -> (..., O).

    kept: of `draw_kept`; what is not kept the thin matrices see as 0. Whoever drops inputs also raises `scale`.
    """
    assert not (isinstance(weight, Tensor) and weight.requires_grad), "the matrix under an adapter is frozen"
    flat = x.reshape(-1, x.shape[-1])
    mask = None if kept is None else kept.view(flat.shape)
    y: Tensor = _LowRankLinear.apply(flat, weight, a, b, scale, mask)  # type: ignore[no-untyped-call]
    return y.view(*x.shape[:-1], b.shape[0])


def plain_low_rank_linear(
    x: Tensor, weight: Tensor, a: Tensor, b: Tensor, *, scale: float, kept: Tensor | None = None
) -> Tensor:
    """The same written out."""
    seen = x if kept is None else masked(x, kept)
    return F.linear(x, weight) + scale * F.linear(F.linear(seen, a), b)


def draw_kept(x: Tensor, dropout: float) -> Tensor:
    """An int16 tensor like x: all bits set with the chance 1 - dropout (to 1 / 32768), else none.

    PyTorch's dropout draws one number an entry and turns bools into factors, on a CPU for as long as a product with a
    small matrix takes. Here 64 bits are four entries, and bits of numbers are masked.
    """
    limit = round(dropout * 2**15)
    if x.device.type == "cpu":
        draws = torch.empty(-(-x.numel() // 4), dtype=torch.int64).random_(-(2**63), None).view(torch.int16)
        draws = draws[: x.numel()].bitwise_and_(2**15 - 1)
    else:
        draws = torch.randint(2**15, (x.numel(),), dtype=torch.int16, device=x.device)
    # limit - 1 - draw is negative where the draw reaches the limit, and a shift spreads its sign.
    return draws.neg_().add_(limit - 1).bitwise_right_shift_(15).view(x.shape)


def masked(x: Tensor, kept: Tensor) -> Tensor:
    """x where `kept` has its bits set, else 0; differentiable."""
    return x * (kept != 0)


class _LowRankLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | FrozenMatrix, a: Tensor, b: Tensor, scale: float, kept: Tensor | None
    ) -> Tensor:
        h = matmul(_seen(x, kept), a.t())  # (N, R)
        dense = isinstance(weight, Tensor)
        y = matmul(x, weight.t()) if isinstance(weight, Tensor) else weight.multiply(x)  # (N, O)
        matmul(h, b.t(), out=y, adds=True, scale=scale)
        ctx.save_for_backward(x, weight if dense else None, a, b, h, kept)
        ctx.frozen = None if dense else weight
        ctx.scale = scale
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, a, b, h, kept = ctx.saved_tensors
        slope = grads[0]  # (N, O)
        needs_x, _, needs_a, needs_b, *_ = ctx.needs_input_grad
        g = matmul(slope, b, scale=ctx.scale) if needs_x or needs_a else None  # (N, R)
        dx = da = db = None
        if needs_x and g is not None:
            dx = matmul(slope, weight) if ctx.frozen is None else ctx.frozen.multiply_back(slope)
            dx = matmul(g, a, out=dx, adds=True) if kept is None else dx.add_(_seen(matmul(g, a), kept))
        if needs_a and g is not None:
            da = matmul(g.t(), _seen(x, kept))
        if needs_b:
            db = matmul(slope.t(), h, scale=ctx.scale)
        return dx, None, da, db, None, None


def _seen(x: Tensor, kept: Tensor | None) -> Tensor:
    if kept is None:
        return x
    return (x.view(torch.int16) & kept).view(x.dtype) if x.element_size() == 2 else masked(x, kept)
