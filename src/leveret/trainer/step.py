"""The one optimizer step of the project: micro-batches in, one update out, or a refusal that changed nothing.

Let a step hold micro-batches b = 1..B with token losses l and token weights w (1 where trained, unless given). The
gradient is of

    L = (sum over b, t of w * l) / (sum over b, t of w)

so the denominator is counted over the *whole* step before the first forward pass. Averaging each micro-batch and
then the averages (the classic accumulation bug) gives rare tokens of short batches too much say, and a last step
with fewer micro-batches would be divided by ones that never came; here neither can happen, and 8 x 1 row equals 1
x 8 rows.

Order matters for safety: backward of all, then one look at loss and gradient norm, and only if both are finite the
update. A NaN therefore never reaches the weights; the error names the step and the rows that were in it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from leveret.errors import NonFiniteLoss, NothingToTrain
from leveret.trainer.batches import Batch
from leveret.trainer.optimizer import Optimizer

Objective = Callable[[Batch], Tensor]
"""Batch -> the *sum* over its tokens of weight * loss, a scalar tensor that requires grad."""


@dataclass(frozen=True, kw_only=True)
class StepResult:
    """What one step did."""

    loss: float
    """Mean loss per trained token, nats."""
    gradient_norm: float
    """Before clipping."""
    learning_rate: float
    trained_tokens: int
    """Tokens that were targets."""
    tokens: int
    """Tokens that went through the model, padding included."""


def optimizer_step(
    objective: Objective, micro_batches: Sequence[Batch], optimizer: Optimizer, *, step: int, learning_rate: float
) -> StepResult:
    """Forward and backward over `micro_batches`, clip, update once.

    Raises NothingToTrain when no token is a target and NonFiniteLoss when the loss or the gradient is not finite; the
    weights and the optimizer are then as they were before the call.
    """
    total_weight = sum(batch.total_weight for batch in micro_batches)
    if total_weight <= 0:
        raise NothingToTrain(
            f"step {step}: none of its tokens is trained (rows {_name_rows(micro_batches)})",
            hint="look at xray.html: the mask or the template leaves nothing to learn in these rows",
        )
    optimizer.start_step(learning_rate=learning_rate)
    losses = []
    for batch in micro_batches:
        loss_sum = objective(batch)
        if optimizer.updates_in_backward:  # after backward it would be too late
            _refuse_non_finite([float(loss_sum.detach())], 0.0, [batch], step)
        torch.autograd.backward(loss_sum / total_weight)
        losses.append(loss_sum.detach())
    norm = optimizer.gradient_norm()
    *sums, gradient_norm = torch.stack([*(loss.float() for loss in losses), norm]).tolist()  # one sync with a GPU
    _refuse_non_finite(sums, gradient_norm, micro_batches, step, in_backward=optimizer.updates_in_backward)
    optimizer.update(learning_rate=learning_rate, gradient_norm=gradient_norm)
    return StepResult(
        loss=sum(sums) / total_weight,
        gradient_norm=gradient_norm,
        learning_rate=learning_rate,
        trained_tokens=sum(batch.trained_tokens for batch in micro_batches),
        tokens=sum(batch.input_ids.numel() for batch in micro_batches),
    )


def _refuse_non_finite(
    sums: list[float], gradient_norm: float, batches: Sequence[Batch], step: int, *, in_backward: bool = False
) -> None:
    for loss, batch in zip(sums, batches, strict=True):
        if not math.isfinite(loss):
            raise NonFiniteLoss(
                f"step {step}: the loss is {loss} in rows {_name_rows([batch])}; the weights were not updated",
                hint="look at these rows; if they are sound, lower learning_rate or raise warmup_steps",
            )
    if not math.isfinite(gradient_norm):
        raise NonFiniteLoss(
            f"step {step}: the gradient norm is {gradient_norm} though the loss is finite "
            f"(rows {_name_rows(batches)}); "
            + (
                "the weights behind it were updated, go on from a checkpoint"
                if in_backward
                else "the weights were not updated"
            ),
            hint="lower learning_rate, raise warmup_steps, or train with precision: fp32",
        )


def _name_rows(batches: Sequence[Batch], limit: int = 16) -> str:
    keys = [key for batch in batches for key in batch.keys]
    return ", ".join(keys[:limit]) + (f" and {len(keys) - limit} more" if len(keys) > limit else "")
