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


def low_rank_linear(
    x: Tensor, weight: Tensor, a: Tensor, b: Tensor, *, scale: float, kept: Tensor | None = None
) -> Tensor:
    """x (..., I), weight (O, I) frozen, a (R, I), b (O, R), all of one dtype -> (..., O).

    kept: bool like x; where it is False, the thin matrices see 0. Whoever drops inputs also raises `scale`.
    """
    assert not weight.requires_grad, "the matrix under an adapter is frozen"
    flat = x.reshape(-1, x.shape[-1])
    mask = None if kept is None else kept.view(flat.shape)
    y: Tensor = _LowRankLinear.apply(flat, weight, a, b, scale, mask)  # type: ignore[no-untyped-call]
    return y.view(*x.shape[:-1], weight.shape[0])


def plain_low_rank_linear(
    x: Tensor, weight: Tensor, a: Tensor, b: Tensor, *, scale: float, kept: Tensor | None = None
) -> Tensor:
    """The same written out."""
    seen = x if kept is None else x * kept
    return F.linear(x, weight) + scale * F.linear(F.linear(seen, a), b)


def draw_kept(x: Tensor, dropout: float) -> Tensor:
    """A bool tensor like x, each entry True with the chance 1 - dropout (to 1 / 65536).

    PyTorch draws one number an entry, on a CPU for as long as a product with a small matrix takes; here 64 bits are
    four entries.
    """
    if x.device.type != "cpu":
        return torch.empty(x.shape, dtype=torch.bool, device=x.device).bernoulli_(1 - dropout)
    draws = torch.empty(-(-x.numel() // 4), dtype=torch.int64).random_(-(2**63), None).view(torch.int16)
    return (draws[: x.numel()] >= round(dropout * 2**16) - 2**15).view(x.shape)


class _LowRankLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, a: Tensor, b: Tensor, scale: float, kept: Tensor | None) -> Tensor:
        h = _seen(x, kept) @ a.t()  # (N, R)
        y = x @ weight.t()  # (N, O)
        y.addmm_(h, b.t(), alpha=scale)
        ctx.save_for_backward(x, weight, a, b, h, kept)
        ctx.scale = scale
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, a, b, h, kept = ctx.saved_tensors
        slope = grads[0]  # (N, O)
        needs_x, _, needs_a, needs_b, *_ = ctx.needs_input_grad
        g = (slope @ b).mul_(ctx.scale) if needs_x or needs_a else None  # (N, R)
        dx = da = db = None
        if needs_x and g is not None:
            dx = slope @ weight
            dx = dx.addmm_(g, a) if kept is None else dx.add_(_seen(g @ a, kept))
        if needs_a and g is not None:
            da = g.t() @ _seen(x, kept)
        if needs_b:
            db = (slope.t() @ h).mul_(ctx.scale)
        return dx, None, da, db, None, None


def _seen(x: Tensor, kept: Tensor | None) -> Tensor:
    return x if kept is None else torch.where(kept, x, 0)
