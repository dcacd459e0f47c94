"""The one optimizer step of the project: micro-batches in, one update out, or a refusal that changed nothing.

Let a step hold micro-batches b = 1..B with token losses l and token weights w (1 where trained, unless given). The
gradient is of

    L = (sum over b, t of w * l) / (sum over b, t of w)

so the denominator is counted over the *whole* step before the first forward pass. Averaging each micro-batch and
then the averages (the classic accumulation bug) gives rare tokens of short batches too much say, and a last step
with fewer micro-batches would be divided by ones that never came; here neither can happen, and 8 x 1 row equals 1
x 8 rows.

Several processes each bring some of the micro-batches (batches.py): the denominator is then the sum over all of them,
and so are the gradient and the loss that is reported. What is refused is refused by all.

Order matters for safety: backward of all, then one look at loss and gradient norm, and only if both are finite the
update. A NaN therefore never reaches the weights; the error names the step and the rows that were in it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from leveret.console import Console
from leveret.errors import NonFiniteLoss, NothingToTrain
from leveret.trainer.batches import Batch
from leveret.trainer.optimizer import Optimizer
from leveret.trainer.world import World, naming_the_lost

Objective = Callable[[Batch], Tensor]
"""Batch -> the *sum* over its tokens of weight * loss, a scalar tensor that requires grad."""


@runtime_checkable
class WatchingObjective(Protocol):
    """An objective that is told of each step before it, and has more to say than its loss."""

    def start_step(self, batches: Sequence[Batch], world: World) -> None:
        """Called before the first forward pass with this process's micro-batches; all processes have as many."""

    def record(self, world: World, console: Console) -> dict[str, Any]:
        """What it has seen since it was last asked, for a line of metrics.jsonl; all processes ask together."""

    def progress(self) -> dict[str, str]:
        """What to show beside the loss."""


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
    objective: Objective,
    micro_batches: Sequence[Batch],
    optimizer: Optimizer,
    *,
    step: int,
    learning_rate: float,
    world: World | None = None,
    before_update: Callable[[StepResult], object] | None = None,
) -> StepResult:
    """Forward and backward over `micro_batches`, clip, update once. With a `world`, these are this process's share.

    before_update: sees the result while the weights are those it was measured on, and may stop the step by raising.
    Where the optimizer updates in backward, they have moved by then, and who stops the step must go back to a
    checkpoint.

    Raises NothingToTrain when no token is a target and NonFiniteLoss when the loss or the gradient is not finite; the
    weights and the optimizer are then as they were before the call, unless they were updated in backward and it is the
    gradient that is not finite.
    """
    world = world or World(torch.device("cpu"))
    total_weight, trained, tokens = world.sum(
        sum(batch.total_weight for batch in micro_batches),
        sum(batch.trained_tokens for batch in micro_batches),
        sum(batch.input_ids.numel() for batch in micro_batches if batch.keys),
    )
    if total_weight <= 0:
        raise NothingToTrain(
            f"step {step + 1}: none of its tokens is trained (rows {_name_rows(micro_batches, world)})",
            hint="look at xray.html: the mask or the template leaves nothing to learn in these rows",
        )
    optimizer.start_step(learning_rate=learning_rate)
    if isinstance(objective, WatchingObjective):
        objective.start_step(micro_batches, world)
    losses = []
    for batch in micro_batches:
        with naming_the_lost():
            loss_sum = objective(batch)
            if optimizer.updates_in_backward:  # after backward it would be too late
                _refuse_non_finite([float(loss_sum.detach())], 0.0, [batch], step, world)
            torch.autograd.backward(loss_sum / total_weight)
        losses.append(loss_sum.detach())
    norm = optimizer.gradient_norm()
    *sums, gradient_norm = torch.stack([*(loss.float() for loss in losses), norm]).tolist()  # one sync with a GPU
    in_backward = optimizer.updates_in_backward
    loss = _refuse_non_finite(sums, gradient_norm, micro_batches, step, world, in_backward=in_backward)
    result = StepResult(
        loss=loss / total_weight,
        gradient_norm=gradient_norm,
        learning_rate=learning_rate,
        trained_tokens=round(trained),
        tokens=round(tokens),
    )
    if before_update is not None:
        before_update(result)
    optimizer.update(learning_rate=learning_rate, gradient_norm=gradient_norm)
    return result


def _refuse_non_finite(
    sums: list[float], gradient_norm: float, batches: Sequence[Batch], step: int, world: World,
    *, in_backward: bool = False,
) -> float:  # fmt: skip
    """The summed loss of all processes. All of them raise, or none."""
    (loss,) = world.sum(sum(sums))
    if not math.isfinite(loss):
        bad = [batch for batch, one in zip(batches, sums, strict=True) if not math.isfinite(one)]
        raise NonFiniteLoss(
            f"step {step + 1}: the loss is {loss} in rows {_name_rows(bad, world)}; the weights were not updated",
            hint="look at these rows; if they are sound, lower learning_rate or raise warmup_steps",
        )
    if not math.isfinite(gradient_norm):
        raise NonFiniteLoss(
            f"step {step + 1}: the gradient norm is {gradient_norm} though the loss is finite "
            f"(rows {_name_rows(batches, world)}); "
            + (
                "the weights behind it were updated, go on from a checkpoint"
                if in_backward
                else "the weights were not updated"
            ),
            hint="lower learning_rate, raise warmup_steps, or train with precision: fp32",
        )
    return loss


def _name_rows(batches: Sequence[Batch], world: World, limit: int = 16) -> str:
    keys = [key for part in world.gather([key for batch in batches for key in batch.keys]) for key in part]
    return ", ".join(keys[:limit]) + (f" and {len(keys) - limit} more" if len(keys) > limit else "")
