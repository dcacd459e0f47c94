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

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def low_rank_linear(x: Tensor, weight: Tensor, a: Tensor, b: Tensor, *, scale: float) -> Tensor:
    """x (..., I), weight (O, I) frozen, a (R, I), b (O, R), all of one dtype -> (..., O)."""
    assert not weight.requires_grad, "the matrix under an adapter is frozen"
    y: Tensor = _LowRankLinear.apply(x.reshape(-1, x.shape[-1]), weight, a, b, scale)  # type: ignore[no-untyped-call]
    return y.view(*x.shape[:-1], weight.shape[0])


def plain_low_rank_linear(x: Tensor, weight: Tensor, a: Tensor, b: Tensor, *, scale: float) -> Tensor:
    """The same written out."""
    return F.linear(x, weight) + scale * F.linear(F.linear(x, a), b)


class _LowRankLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, a: Tensor, b: Tensor, scale: float) -> Tensor:
        h = x @ a.t()  # (N, R)
        y = x @ weight.t()  # (N, O)
        y.addmm_(h, b.t(), alpha=scale)
        ctx.save_for_backward(x, weight, a, b, h)
        ctx.scale = scale
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, a, b, h = ctx.saved_tensors
        slope = grads[0]  # (N, O)
        needs_x, _, needs_a, needs_b, _ = ctx.needs_input_grad
        g = (slope @ b).mul_(ctx.scale) if needs_x or needs_a else None  # (N, R)
        dx = da = db = None
        if needs_x and g is not None:
            dx = (slope @ weight).addmm_(g, a)
        if needs_a and g is not None:
            da = g.t() @ x
        if needs_b:
            db = (slope.t() @ h).mul_(ctx.scale)
        return dx, None, da, db, None
