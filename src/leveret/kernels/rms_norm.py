"""RMSNorm, alone or after an addition, with its gradient: one pass each way in the compiled kernel, PyTorch otherwise.

y = s * r * w,   r = 1 / sqrt(mean(s^2) + eps),   s = x or x + added                    (1910.07467)
ds = r * (dy * w - s * r * mean(dy * w * s * r)) + what else reaches s,   dw = sum over rows of dy * s * r

A residual stream is added to and then normed, and its gradient is the sum of two: done together, each is read once.
"""

from __future__ import annotations

import ctypes
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from leveret.kernels.native.library import native_for, pointer, size


def rms_norm(x: Tensor, weight: Tensor, *, eps: float, scales_in_float32: bool) -> Tensor:
    """x (..., H), weight (H,) -> (..., H) in the dtype of x; in bfloat16 it is rounded before it is scaled unless
    `scales_in_float32`.
    """
    if native_for(x, weight) is None:
        return plain_rms_norm(x, weight, eps=eps, scales_in_float32=scales_in_float32)
    y: Tensor = _RmsNorm.apply(x, weight, eps, scales_in_float32)  # type: ignore[no-untyped-call]
    return y


def plain_rms_norm(x: Tensor, weight: Tensor, *, eps: float, scales_in_float32: bool) -> Tensor:
    """The same by PyTorch; its mean is float32 too."""
    if scales_in_float32 or x.dtype == torch.float32:
        return F.rms_norm(x, weight.shape, weight, eps)  # rounds once, after the weight
    return F.rms_norm(x, weight.shape, None, eps) * weight


def add_rms_norm(
    x: Tensor, added: Tensor, weight: Tensor, *, eps: float, scales_in_float32: bool
) -> tuple[Tensor, Tensor]:
    """x + added, and the norm of that: x and added (..., H) of one shape -> two of that shape."""
    if x.shape != added.shape or native_for(x, added, weight) is None:
        return plain_add_rms_norm(x, added, weight, eps=eps, scales_in_float32=scales_in_float32)
    both: tuple[Tensor, Tensor] = _AddRmsNorm.apply(  # type: ignore[no-untyped-call]
        x, added, weight, eps, scales_in_float32
    )
    return both


def plain_add_rms_norm(
    x: Tensor, added: Tensor, weight: Tensor, *, eps: float, scales_in_float32: bool
) -> tuple[Tensor, Tensor]:
    """The same by PyTorch."""
    total = x + added
    return total, plain_rms_norm(total, weight, eps=eps, scales_in_float32=scales_in_float32)


def _forward(
    x: Tensor, added: Tensor | None, weight: Tensor, eps: float, scales_in_float32: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """The sum (x itself without `added`), its norm, and 1 / root mean square of each row."""
    width = x.shape[-1]
    total = x if added is None else torch.empty_like(x)
    y, scales = torch.empty_like(x), torch.empty(x.numel() // width, dtype=torch.float32)
    library = native_for(x, weight)
    assert library is not None
    library.leveret_rms_norm(
        pointer(x), pointer(added), pointer(weight), pointer(total), pointer(y), pointer(scales), size(len(scales)),
        size(width), ctypes.c_float(eps), int(not scales_in_float32), torch.get_num_threads(),
    )  # fmt: skip
    return total, y, scales


def _backward(slope: Tensor, beside: Tensor | None, saved: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
    """The gradients by the sum and by the weight; `beside` reaches the sum past the norm."""
    total, weight, scales = saved
    slope, beside = slope.contiguous(), None if beside is None else beside.contiguous()
    dtotal, dweight = torch.empty_like(total), torch.empty(weight.shape, dtype=torch.float32)
    library = native_for(total, weight)
    assert library is not None
    library.leveret_rms_norm_backward(
        pointer(slope), pointer(beside), pointer(total), pointer(weight), pointer(scales), pointer(dtotal),
        pointer(dweight), size(len(scales)), size(total.shape[-1]), torch.get_num_threads(),
    )  # fmt: skip
    return dtotal, dweight.to(weight.dtype)


class _RmsNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float, scales_in_float32: bool) -> Tensor:
        _, y, scales = _forward(x, None, weight, eps, scales_in_float32)
        ctx.save_for_backward(x, weight, scales)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        dx, dweight = _backward(grads[0], None, ctx.saved_tensors)
        return dx, dweight, None, None


class _AddRmsNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, added: Tensor, weight: Tensor, eps: float, scales_in_float32: bool
    ) -> tuple[Tensor, Tensor]:
        total, y, scales = _forward(x, added, weight, eps, scales_in_float32)
        ctx.save_for_backward(total, weight, scales)
        ctx.set_materialize_grads(False)
        return total, y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        beside, slope = grads
        if slope is None:
            return beside, beside, None, None, None
        dtotal, dweight = _backward(slope, beside, ctx.saved_tensors)
        return dtotal, dtotal, dweight, None, None
