"""The language-model head and its loss in one, chunk by chunk: (tokens, vocabulary) logits never exist at once.

    loss = sum over tokens n with a target of  w_n * (log sum_v exp(z_nv) - z_n,target),      z = hidden @ weight^T

With V = 100,000 the logits of 8,192 tokens are 3 GB in float32, and backward wants them again. But the gradient is
known as soon as a chunk's softmax is, dz = w (softmax(z) - onehot(target)), so forward takes a chunk of tokens, adds
its loss, turns its logits into dz in place, and adds dz @ weight and dz^T @ hidden to the two gradients. Backward
only scales them. One buffer serves all chunks: on a CPU, fresh memory costs more than the arithmetic.

Positions without a target are left out before the product, so fine-tuning pays only for the tokens it trains. The
softmax and the sums are float32 whatever the inputs are; for bfloat16 on a CPU they are one pass of a compiled kernel
over the logits. `plain_cross_entropy` is the same loss written out.

Shape legend: N positions, H hidden, V vocabulary, C positions of one chunk.
"""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from torch import Tensor

from leveret.kernels.dense import matmul
from leveret.kernels.native.library import native_for, pointer, size
from leveret.kernels.updates import collect_

IGNORED = -100
"""The target of a position that trains nothing."""

CHUNK_LOGITS = 2**22
"""Logits computed at a time, if they are enough positions: 8 MB in bfloat16, small next to the model."""

CHUNK_POSITIONS = 1024
"""Positions computed at a time, if they are not too many logits: each chunk costs a pass over the weight's gradient."""

MOST_CHUNK_LOGITS = 2**26
"""Too many logits: 128 MB in bfloat16."""


def chunked_cross_entropy(
    hidden: Tensor, weight: Tensor, targets: Tensor, *, token_weights: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Summed loss in nats (float32 scalar, differentiable) and the number of trained positions (int64 scalar).

    hidden: (N, H); weight: (V, H) of the same dtype; targets: (N,) ids, -100 trains nothing; token_weights: (N,) float
    factors on each position's loss (they do not change the number). The gradient can be taken once, not twice.
    """
    trained = torch.nonzero(targets != IGNORED).squeeze(1)
    if trained.numel() != targets.numel():
        hidden, targets = hidden.index_select(0, trained), targets.index_select(0, trained)
        token_weights = None if token_weights is None else token_weights.index_select(0, trained)
    wanted = torch.is_grad_enabled() and (hidden.requires_grad or weight.requires_grad)
    loss_sum: Tensor = _ChunkedLoss.apply(  # type: ignore[no-untyped-call]  # torch types it so
        hidden, weight, targets.long(), token_weights, wanted
    )
    return loss_sum, torch.tensor(trained.numel(), device=targets.device)


def plain_cross_entropy(
    hidden: Tensor, weight: Tensor, targets: Tensor, *, token_weights: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The same as `chunked_cross_entropy` with all logits at once."""
    logits = (hidden @ weight.t()).float()
    losses = torch.nn.functional.cross_entropy(logits, targets.long(), ignore_index=IGNORED, reduction="none")
    if token_weights is not None:
        losses = losses * token_weights
    return losses.sum(), (targets != IGNORED).sum()


def chunk_positions(positions: int, vocabulary: int) -> int:
    """How many positions are computed at a time."""
    wanted = max(CHUNK_LOGITS // vocabulary, min(CHUNK_POSITIONS, MOST_CHUNK_LOGITS // vocabulary))
    return max(1, min(positions, wanted))


class _ChunkedLoss(torch.autograd.Function):
    """Loss and both gradients in forward; backward multiplies them by the incoming scalar."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, token_weights: Tensor | None, wanted: bool
    ) -> Tensor:
        loss_sum = torch.zeros((), dtype=torch.float32, device=hidden.device)
        hidden_grad = torch.empty_like(hidden) if wanted else None
        chunk = chunk_positions(len(hidden), len(weight))
        several = torch.float32 if chunk < len(hidden) else None  # the dtype of a sum over chunks; one chunk needs none
        trains_weight = wanted and ctx.needs_input_grad[1]  # a frozen head needs none
        weight_grad = torch.zeros_like(weight, dtype=several) if trains_weight else None
        buffer = hidden.new_empty((chunk, len(weight)))
        native = native_for(hidden, weight, buffer)
        same = hidden.dtype == torch.float32 or native is not None
        floats = buffer if same else torch.empty_like(buffer, dtype=torch.float32)
        for start in range(0, len(hidden), chunk):
            rows = slice(start, start + chunk)
            piece = hidden[rows]  # (C, H)
            logits = matmul(piece, weight.t(), out=buffer[: len(piece)])  # (C, V)
            factors = None if token_weights is None else token_weights[rows].float()
            scores = floats[: len(piece)]
            if native is not None:
                loss_sum += _native_loss_and_slope(native, logits, targets[rows], factors, slope=wanted)
            else:
                if scores.dtype != logits.dtype:
                    scores.copy_(logits)
                loss_sum += _loss_and_slope(scores, targets[rows], factors, slope=wanted)
            if hidden_grad is not None:
                slope = logits if scores.dtype == logits.dtype else logits.copy_(scores)
                matmul(slope, weight, out=hidden_grad[rows])
                if weight_grad is not None:
                    _add_product(weight_grad, slope, piece, first=start == 0)
        ctx.dtypes = hidden.dtype, weight.dtype
        ctx.save_for_backward(hidden_grad, weight_grad)
        return loss_sum

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        hidden_grad, weight_grad = ctx.saved_tensors
        hidden_dtype, weight_dtype = ctx.dtypes
        scale = grads[0]
        from_hidden = hidden_grad.mul_(scale).to(hidden_dtype) if ctx.needs_input_grad[0] else None
        from_weight = weight_grad.mul_(scale).to(weight_dtype) if ctx.needs_input_grad[1] else None
        return from_hidden, from_weight, None, None, None


def _loss_and_slope(scores: Tensor, targets: Tensor, factors: Tensor | None, *, slope: bool) -> Tensor:
    """The chunk's loss from its float32 logits (C, V); with `slope` these become dloss/dlogits, in place."""
    column = targets.unsqueeze(1)  # (C, 1)
    scores.sub_(scores.amax(dim=1, keepdim=True))
    target_scores = scores.gather(1, column)
    totals = scores.exp_().sum(dim=1, keepdim=True)
    losses = totals.log() - target_scores  # (C, 1)
    if slope:
        scores.div_(totals).scatter_add_(1, column, torch.full_like(totals, -1.0))
        if factors is not None:
            scores.mul_(factors.unsqueeze(1))
    return losses.sum() if factors is None else (losses.squeeze(1) * factors).sum()


def _native_loss_and_slope(
    library: ctypes.CDLL, logits: Tensor, targets: Tensor, factors: Tensor | None, *, slope: bool
) -> float:
    """As `_loss_and_slope` in one pass over bfloat16 logits."""
    loss = ctypes.c_double()
    library.leveret_cross_entropy(
        pointer(logits), pointer(targets), pointer(factors), ctypes.byref(loss), size(len(logits)),
        size(logits.shape[1]), int(slope), torch.get_num_threads(),
    )  # fmt: skip
    return loss.value


def _add_product(total: Tensor, slope: Tensor, piece: Tensor, *, first: bool) -> None:
    """total (V, H) += slope^T (V, C) @ piece (C, H), where total is 0 before the `first`."""
    if piece.dtype != total.dtype:
        collect_(total, matmul(slope.t(), piece), adds=True)
    elif first:
        matmul(slope.t(), piece, out=total)
    else:
        matmul(slope.t(), piece, out=total, adds=True)
