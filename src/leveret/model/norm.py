"""RMSNorm: divide a vector by its root mean square, then scale each entry (1910.07467).

    y = x / sqrt(mean(x^2) + eps) * weight

The mean is always float32. In bfloat16 the families differ in one rounding: Llama rounds before it scales, Aquila
scales in float32 and rounds once. In float32 the two are the same.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class RMSNorm(nn.Module):
    """x (..., H) -> (..., H), in the dtype of x."""

    def __init__(self, size: int, *, eps: float, scales_in_float32: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps
        self.scales_in_float32 = scales_in_float32

    def forward(self, x: Tensor) -> Tensor:
        if self.scales_in_float32 or x.dtype == torch.float32:
            return F.rms_norm(x, self.weight.shape, self.weight, self.eps)  # rounds once, after the weight
        return F.rms_norm(x, self.weight.shape, None, self.eps) * self.weight
