"""The product of two matrices in 8 bits, summed in fp32: by the tensor cores of a GPU, or written out anywhere.

Both operands lie with the dimension that is summed last, a (M, K) and b (N, K), and the result is a b^T (M, N) in 16
or 32 bits. That is how the hardware wants them (the second operand "column-major"), and all three products of a
Linear y = x W^T can be put so, with transposed copies for the last two:

    y      = x  (W)^T           E4M3 x E4M3, sums may be a little coarser (`fast`)
    dL/dx  = g  (W^T)^T         E5M2 x E4M3
    dL/dW  = g^T (x^T)^T        E5M2 x E4M3; what is summed are tokens, padded with zeros to a multiple of 16

`scaled_mm` is `torch._scaled_mm`; `emulated` does the same in fp32, whose only difference is the order of the sum.
"""

from __future__ import annotations

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from leveret.errors import ConfigError
from leveret.precision.fp8_format import Fp8Tensor

MULTIPLE = 16
"""Sizes of what tensor cores multiply in 8 bits are multiples of this."""

FIRST_CAPABILITY = (8, 9)
"""The compute capability of the first GPUs that multiply in 8 bits: Ada (4090), then Hopper."""


class Product(Protocol):
    """One way to multiply."""

    def __call__(self, a: Fp8Tensor, b: Fp8Tensor, *, dtype: torch.dtype, fast: bool) -> Tensor:
        """a (M, K) and b (N, K) -> a b^T (M, N) in `dtype`."""


def multiply_emulated(a: Fp8Tensor, b: Fp8Tensor, *, dtype: torch.dtype, fast: bool) -> Tensor:
    """The product in fp32, then scaled and rounded. The twin of `multiply_scaled`; `fast` changes nothing."""
    product = a.data.float() @ b.data.float().t()
    return (product * (a.inverse_scale * b.inverse_scale)).to(dtype)


def multiply_scaled(a: Fp8Tensor, b: Fp8Tensor, *, dtype: torch.dtype, fast: bool) -> Tensor:
    """The product by `torch._scaled_mm`. ConfigError when b has not a multiple of 16 rows."""
    if b.data.shape[0] % MULTIPLE:
        raise ConfigError(
            f"a product in FP8 would have {b.data.shape[0]} columns, which is no multiple of {MULTIPLE}",
            hint="leave this layer in bf16 (training.fp8.keep_bf16)",
        )
    left, right = (_padded(each.data).contiguous() for each in (a, b))
    product: Tensor = torch._scaled_mm(
        left, right.t(), scale_a=a.inverse_scale, scale_b=b.inverse_scale, out_dtype=dtype, use_fast_accum=fast
    )
    return product


def product_for(device: torch.device) -> tuple[Product, str]:
    """How to multiply on `device`, and a line that says so and why."""
    if device.type == "cuda":
        capability = torch.cuda.get_device_capability(device)
        if capability >= FIRST_CAPABILITY:
            return multiply_scaled, f"tensor cores of {torch.cuda.get_device_name(device)}"
        what = f"{torch.cuda.get_device_name(device)} cannot multiply in 8 bits"
    else:
        what = f"no GPU ({device.type})"
    return multiply_emulated, f"emulated, slower than bf16: {what}"


def _padded(data: Tensor) -> Tensor:
    """Zeros at the end of the last dimension, up to a multiple of 16."""
    missing = -data.shape[-1] % MULTIPLE
    if not missing:
        return data
    return F.pad(data.view(torch.uint8), (0, missing)).view(data.dtype)  # the byte 0 is the number 0
