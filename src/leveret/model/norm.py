"""RMSNorm: divide a vector by its root mean square, then scale each entry (1910.07467).

    y = x / sqrt(mean(x^2) + eps) * weight

The mean is always float32. In bfloat16 the families differ in one rounding: Llama rounds before it scales, Aquila
scales in float32 and rounds once. In float32 the two are the same.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from leveret.kernels.rms_norm import add_rms_norm, rms_norm


class RMSNorm(nn.Module):
    """x (..., H) -> (..., H), in the dtype of x."""

    def __init__(self, size: int, *, eps: float, scales_in_float32: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps
        self.scales_in_float32 = scales_in_float32

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.weight, eps=self.eps, scales_in_float32=self.scales_in_float32)

    def after_adding(self, x: Tensor, added: Tensor) -> tuple[Tensor, Tensor]:
        """The stream with `added` in it, x + added, and its norm."""
        return add_rms_norm(x, added, self.weight, eps=self.eps, scales_in_float32=self.scales_in_float32)
