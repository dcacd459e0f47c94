"""What the step, the loop and the checkpoints need of an optimizer, and which one a config asks for."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor, nn

from leveret.errors import ConfigError
from leveret.trainer.adamw import AdamW
from leveret.trainer.config import TrainingConfig
from leveret.trainer.lean_adamw import LeanAdamW
from leveret.trainer.world import World


class Optimizer(Protocol):
    """The optimizer of one model; between `start_step` and `update`, backward passes bring it gradients."""

    updates: int
    """Updates made so far."""
    updates_in_backward: bool
    """Whether the backward pass itself updates; it may then run once a step only."""

    def start_step(self, *, learning_rate: float) -> None:
        """Forget the gradients of the step before."""

    def gradient_norm(self) -> Tensor:
        """The length of the gradient of the whole model (before clipping), a scalar tensor; asked once a step, for with
        several processes it is here that their gradients are summed."""

    def update(self, *, learning_rate: float, gradient_norm: float) -> None:
        """One update from the gradients, clipped given their norm."""

    def state(self) -> dict[str, Tensor]:
        """The tensors a checkpoint holds. All processes of a group ask together; process 0 gets what is to be saved."""

    def layout(self) -> dict[str, list[int]]:
        """Name -> [start, *shape] of every trained parameter in the flat tensors of `state`."""

    def restore(self, state: dict[str, Tensor], *, updates: int, layout: dict[str, list[int]]) -> None:
        """Take over a checkpoint's tensors."""

    def close(self) -> None:
        """Take the hooks off the model and free everything but its weights."""


def is_lean(config: TrainingConfig) -> bool:
    """Whether the config asks for less memory than plain AdamW takes."""
    return (
        config.optimizer in ("adamw_bf16", "adamw_8bit") or config.stochastic_rounding or config.optimizer_in_backward
    )


def build_optimizer(
    model: nn.Module, config: TrainingConfig, *, dtype: torch.dtype, seed: int, world: World | None = None
) -> Optimizer:
    """The optimizer of `config`; `seed` decides how it rounds, where it rounds by chance."""
    if world is not None and world.is_group and config.parallel.is_sharded:
        from leveret.trainer.sharded_adamw import ShardedAdamW  # its imports take seconds

        return ShardedAdamW(model, config, world)
    add_up = None if world is None or world.size == 1 else world.sum_
    if add_up is not None and config.optimizer_in_backward:
        raise ConfigError(
            "optimizer_in_backward updates before the gradients of the other processes are known",
            hint="use parallel.mode: fsdp without it, or one process",
        )
    if is_lean(config):
        return LeanAdamW(model, config, dtype=dtype, seed=seed, sum_over_processes=add_up)
    return AdamW(model, config, dtype=dtype, sum_over_processes=add_up)
