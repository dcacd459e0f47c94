"""H = X X^T: which inputs of a Linear are large, and which come together; all that GPTQ and AWQ ask of calibration.

It is summed in float32 and divided by the number of tokens at the end, so that figures of different texts compare.
Only the blocks on and above the diagonal are multiplied: half the work of the whole product.

Shape legend: N tokens, I inputs.
"""

from __future__ import annotations

import torch
from torch import Tensor

BLOCK_INPUTS = 1024
"""Inputs of a block; blocks below the diagonal are not computed."""


class Hessian:
    """Sums x x^T over the tokens that are shown to it."""

    def __init__(self, inputs: int) -> None:
        self.tokens = 0
        self._sum = torch.zeros(inputs, inputs)

    def add(self, x: Tensor) -> None:
        """Count the tokens of x (..., I)."""
        rows = x.detach().reshape(-1, x.shape[-1]).float()  # (N, I)
        self.tokens += len(rows)
        for start in range(0, rows.shape[1], BLOCK_INPUTS):
            end = start + BLOCK_INPUTS
            self._sum[start:end, start:].addmm_(rows[:, start:end].T, rows[:, start:])

    def mean(self) -> Tensor:
        """(I, I): the mean over all tokens."""
        upper = self._sum.triu()
        return (upper + upper.triu(1).T) / max(1, self.tokens)


def output_error(lost: Tensor, weight: Tensor, hessian: Tensor) -> float:
    """Root mean square of what the product lost, over that of the product: |lost X| / |weight X|; both (O, I)."""
    size = float(_energy(weight, hessian))
    return (float(_energy(lost, hessian)) / size) ** 0.5 if size > 0 else 0.0


def _energy(weight: Tensor, hessian: Tensor) -> Tensor:
    """The sum over outputs of w H w^T."""
    whole = weight.detach().float()
    return ((whole @ hessian) * whole).sum().clamp(min=0)
