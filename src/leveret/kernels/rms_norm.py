"""RMSNorm with its gradient: one pass each way in the compiled kernel, PyTorch's own otherwise.

y = x * r * w,   r = 1 / sqrt(mean(x^2) + eps)                         (1910.07467)
dx = r * (dy * w - x * r * mean(dy * w * x * r)),   dw = sum over rows of dy * x * r
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
    if torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad):
        y: Tensor = _RmsNorm.apply(x, weight, eps, scales_in_float32)  # type: ignore[no-untyped-call]
        return y
    return _forward(x, weight, eps, scales_in_float32)[0]


def plain_rms_norm(x: Tensor, weight: Tensor, *, eps: float, scales_in_float32: bool) -> Tensor:
    """The same by PyTorch; its mean is float32 too."""
    if scales_in_float32 or x.dtype == torch.float32:
        return F.rms_norm(x, weight.shape, weight, eps)  # rounds once, after the weight
    return F.rms_norm(x, weight.shape, None, eps) * weight


def _forward(x: Tensor, weight: Tensor, eps: float, scales_in_float32: bool) -> tuple[Tensor, Tensor]:
    width = x.shape[-1]
    y, scales = torch.empty_like(x), torch.empty(x.numel() // width, dtype=torch.float32)
    library = native_for(x, weight)
    assert library is not None
    library.leveret_rms_norm(
        pointer(x), pointer(weight), pointer(y), pointer(scales), size(len(scales)), size(width),
        ctypes.c_float(eps), int(not scales_in_float32), torch.get_num_threads(),
    )  # fmt: skip
    return y, scales


class _RmsNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float, scales_in_float32: bool) -> Tensor:
        y, scales = _forward(x, weight, eps, scales_in_float32)
        ctx.save_for_backward(x, weight, scales)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, scales = ctx.saved_tensors
        slope = grads[0].contiguous()
        dx, dweight = torch.empty_like(x), torch.empty(weight.shape, dtype=torch.float32)
        library = native_for(x, weight)
        assert library is not None
        library.leveret_rms_norm_backward(
            pointer(slope), pointer(x), pointer(weight), pointer(scales), pointer(dx), pointer(dweight),
            size(len(scales)), size(x.shape[-1]), torch.get_num_threads(),
        )  # fmt: skip
        return dx, dweight.to(weight.dtype), None, None
