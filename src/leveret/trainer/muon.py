"""Muon: momentum whose update is made orthogonal, for the matrices inside the model (Jordan et al. 2024).

Adam scales every entry of a gradient on its own. But a layer's gradient is a matrix of low effective rank: a few
directions dominate, and the many small ones, which carry the rare lessons, hardly move. Muon replaces the momentum
M = U S V^T by U V^T, so that every direction moves alike:

    m <- mu * m + g
    u = orthogonalize(g + mu * m)
    w <- w - lr * decay * w - lr * 0.2 * sqrt(max(R, C)) * u

for a matrix of R rows and C columns. The factor makes the update about as large as AdamW's, so that one learning rate
and one weight decay suit both ("Muon is scalable for LLM training", arXiv 2502.16982). Embeddings, the head, norms and
biases are not such maps and stay with AdamW.

U V^T is found without a decomposition: with X scaled below norm 1, five rounds of the odd polynomial

    X <- a X + b (X X^T) X + c (X X^T)^2 X          a, b, c = 3.4445, -4.7750, 2.0315

push every singular value towards 1 (to between about 0.7 and 1.2, which is near enough and fast). It is matrix products
only; matrices of one shape go through together.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from leveret.kernels.updates import muon_apply_, muon_directions

MOMENTUM = 0.95
ROUNDS = 5
_A, _B, _C = 3.4445, -4.7750, 2.0315


def update_size(rows: int, columns: int) -> float:
    """What an orthogonal (rows, columns) update is multiplied by, to be about as large as AdamW's."""
    return 0.2 * math.sqrt(max(rows, columns))


def orthogonalize(matrices: Tensor) -> Tensor:
    """(G, R, C) -> (G, R, C): each with its singular values brought to about 1. Products in bf16, as published."""
    x = matrices.to(torch.bfloat16)
    return orthogonalize_unit(x / (torch.linalg.vector_norm(x, dim=(1, 2), keepdim=True) + 1e-7)).to(matrices.dtype)


def orthogonalize_unit(x: Tensor) -> Tensor:
    """The same for bf16 matrices (G, R, C) of norm 1 (or less)."""
    tall = x.shape[1] > x.shape[2]  # then X^T X is the smaller square, and the polynomial goes on the right
    for _ in range(ROUNDS):
        turned = x.transpose(1, 2)
        square = torch.bmm(turned, x) if tall else torch.bmm(x, turned)  # (G, r, r) with r = min(R, C)
        square = torch.baddbmm(square, square, square, beta=_B, alpha=_C)
        x = torch.baddbmm(x, x, square, beta=_A) if tall else torch.baddbmm(x, square, x, beta=_A)
    return x


def plain_orthogonalize(matrix: Tensor) -> Tensor:
    """What `orthogonalize` approximates: U V^T of one (R, C) matrix."""
    u, _, vh = torch.linalg.svd(matrix.double(), full_matrices=False)
    exact: Tensor = (u @ vh).to(matrix.dtype)
    return exact


def muon_(
    masters: Tensor, weights: Tensor | None, gradients: Tensor, momenta: Tensor, starts: Tensor,
    shape: tuple[int, int], *, factor: float = 1.0, lr: float, weight_decay: float,
) -> None:  # fmt: skip
    """One update in place of all matrices of one shape (R, C) in flat buffers (P,), from `factor` times the gradients.

    starts: (G,) int64, where each begins. weights: what the model computes with, gets the rounding; None: the masters.
    """
    directions = muon_directions(gradients, momenta, starts, shape, factor=factor, momentum=MOMENTUM)
    updates = orthogonalize_unit(directions)
    muon_apply_(masters, weights, starts, updates, keep=1 - lr * weight_decay, step_size=lr * update_size(*shape))
