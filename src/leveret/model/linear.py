"""The Linear of our models: `nn.Linear`, multiplied by the way that is fast on this processor (kernels/dense.py).

It is an `nn.Linear` in all else: names, weights, what swaps it out. `is_dense` says of a module whether calling it
multiplies by its weight and does nothing else that its class would know of.
"""

from __future__ import annotations

from typing import TypeGuard

from torch import Tensor, nn

from leveret.kernels.dense import linear


class Linear(nn.Linear):
    """x (..., inputs) -> (..., outputs)."""

    def forward(self, input: Tensor) -> Tensor:  # torch's name of it
        return linear(input, self.weight, self.bias)


def is_dense(module: nn.Module) -> TypeGuard[nn.Linear]:
    """Whether it is a Linear of ours or PyTorch's, and no other kind of one."""
    return type(module) in (Linear, nn.Linear)
