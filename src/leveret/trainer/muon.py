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

U V^T is found by matrix products only (kernels/orthogonal.py).
"""

from __future__ import annotations

import math

from torch import Tensor

from leveret.kernels.orthogonal import orthogonalize_unit_
from leveret.kernels.updates import muon_apply_, muon_directions

MOMENTUM = 0.95


def update_size(rows: int, columns: int) -> float:
    """What an orthogonal (rows, columns) update is multiplied by, to be about as large as AdamW's."""
    return 0.2 * math.sqrt(max(rows, columns))


def muon_(
    masters: Tensor, weights: Tensor | None, gradients: Tensor, momenta: Tensor, starts: Tensor,
    shape: tuple[int, int], *, factor: float = 1.0, lr: float, weight_decay: float,
) -> None:  # fmt: skip
    """One update in place of all matrices of one shape (R, C) in flat buffers (P,), from `factor` times the gradients.

    starts: (G,) int64, where each begins. weights: what the model computes with, gets the rounding; None: the masters.
    """
    directions = muon_directions(gradients, momenta, starts, shape, factor=factor, momentum=MOMENTUM)
    updates = orthogonalize_unit_(directions)
    muon_apply_(masters, weights, starts, updates, keep=1 - lr * weight_decay, step_size=lr * update_size(*shape))
