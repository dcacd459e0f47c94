"""Products of bfloat16 matrices, also where the processor has no instruction for them.

Many processors multiply bfloat16 only by way of float32: all with AVX2 and no more, which most laptops are, and
Intel's AVX-512 up to Ice Lake. PyTorch's products of bfloat16 take two to five times as long there as those of
float32, and some without AVX-512 a hundred times (docs/benchmarks.md). So where the compiled kernels are of a build
for such a processor, theirs multiplies; anywhere else PyTorch does.

    matmul      left right, or scale * left right + out
    linear      x W^T, and its gradients dx = dy W, dW = dy^T x

Shape legend: M rows, N columns, K what is summed over.
"""

from __future__ import annotations

import ctypes
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn import Parameter

from leveret.kernels.native.library import chosen_for, pointer, size

BUILDS = ("avx512_vnni", "avx512", "avx2_vnni", "avx2")
"""Whose processors have no product of bfloat16, and were measured."""

FEWEST_ROWS = 4
"""With fewer, a product is over as soon as the matrix has been read; PyTorch reads it without making a copy first."""


def matmul(left: Tensor, right: Tensor, *, out: Tensor | None = None, adds: bool = False, scale: float = 1.0) -> Tensor:
    """left (M, K), right (K, N) -> (M, N), in `out` if there is one; with `adds`, added to what it holds. No gradients.

    `out` has the dtype of the factors, or float32, which takes our sums before they are rounded (PyTorch's after).
    """
    if (library := _library(left, right, out)) is None:
        return plain_matmul(left, right, out=out, adds=adds, scale=scale)
    if out is None:
        out = left.new_empty(left.shape[0], right.shape[1])
    library.leveret_multiply(
        pointer(left), size(left.stride(0)), size(left.stride(1)),
        pointer(right), size(right.stride(0)), size(right.stride(1)),
        pointer(out), size(out.stride(0)), int(out.dtype == torch.float32),
        size(left.shape[0]), size(right.shape[1]), size(left.shape[1]),
        ctypes.c_float(scale), int(adds), torch.get_num_threads(),
    )  # fmt: skip
    return out


def plain_matmul(
    left: Tensor, right: Tensor, *, out: Tensor | None = None, adds: bool = False, scale: float = 1.0
) -> Tensor:
    """The same by PyTorch."""
    if out is not None and out.dtype != left.dtype:
        product = torch.mm(left, right).to(out.dtype)
        return out.add_(product, alpha=scale) if adds else torch.mul(product, scale, out=out)
    if adds:
        assert out is not None, "there is nothing to add to"
        return out.addmm_(left, right, alpha=scale)
    product = torch.mm(left, right, out=out)
    return product if scale == 1.0 else product.mul_(scale)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x (..., K), weight (N, K) -> (..., N), as `torch.nn.functional.linear`.

    The gradient can be taken once, not twice.
    """
    if bias is not None or x.ndim == 0 or x.numel() < FEWEST_ROWS * x.shape[-1] or _library(x, weight) is None:
        return F.linear(x, weight, bias)
    flat = x.reshape(-1, x.shape[-1])
    if torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad):
        y: Tensor = _Linear.apply(flat, weight)  # type: ignore[no-untyped-call]
    else:
        y = matmul(flat, weight.t())
    return y.view(*x.shape[:-1], weight.shape[0])


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return matmul(x, weight.t())

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        slope = grads[0]
        dx = matmul(slope, weight) if ctx.needs_input_grad[0] else None
        dweight = matmul(slope.t(), x) if ctx.needs_input_grad[1] else None
        return dx, dweight


def _library(left: Tensor, right: Tensor, out: Tensor | None = None) -> ctypes.CDLL | None:
    """The kernels, if they multiply these matrices here and it pays."""
    if (library := chosen_for(BUILDS)) is None:
        return None
    for factor in (left, right):
        if factor.dtype != torch.bfloat16 or factor.device.type != "cpu" or factor.numel() == 0:
            return None
        if type(factor) not in (Tensor, Parameter):  # a compiler's or a device mesh's stand-in
            return None
    if left.ndim == 2 and left.shape[0] < FEWEST_ROWS:
        return None
    if out is not None and (out.stride(1) != 1 or out.dtype not in (torch.bfloat16, torch.float32)):
        return None
    return library
