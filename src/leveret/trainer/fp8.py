"""FP8 training: the model's Linears are swapped for the time of the run, and their scales move with the optimizer.

The scales belong to the state of a run as the optimizer's averages do: they move once a step, with the update; they are
in the checkpoint; and a step that is refused or skipped leaves them alone. So `ScaledOptimizer` is an optimizer around
the optimizer. It also sees to two things that concern the whole group of processes:

* the amaxes of a step are the largest of all processes, so all have the same scales and a checkpoint holds them once;
* an amax that is not finite makes the gradient's norm NaN, and the step is refused (step.py): saturation in the casts
  would otherwise turn an infinity into an ordinary large number, and the loss would look sound.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from leveret.console import Console
from leveret.errors import CheckpointError
from leveret.precision.fp8_linear import Rule, choose, fp8_linears
from leveret.precision.fp8_product import product_for
from leveret.precision.fp8_scaling import Recipe, Scaling
from leveret.trainer.config import TrainingConfig
from leveret.trainer.optimizer import Optimizer
from leveret.trainer.world import World


@contextlib.contextmanager
def in_fp8(model: nn.Module, config: TrainingConfig, world: World, console: Console) -> Iterator[Scaling | None]:
    """Within the block, the Linears of `model` multiply as `config.fp8` says; None when it says nothing.

    Raises ConfigError when it asks for what this model has not.
    """
    settings = config.fp8
    if settings is None:
        yield None
        return
    rule = Rule(
        names=settings.keep_bf16, first_layers=settings.keep_first_layers, last_layers=settings.keep_last_layers
    )
    chosen, kept = choose(model, rule)
    multiply, reason = product_for(world.device)
    stay = ", ".join(f"{len(names)} ({why})" for why, names in kept.items())
    console.info(f"FP8, {settings.recipe} scaling: {len(chosen)} Linears ({reason}); in bf16 stay {stay or 'none'}")
    recipe = Recipe(
        kind=settings.recipe,
        history=settings.history_steps,
        of_history=settings.of_history,
        margin=settings.margin,
    )
    with fp8_linears(model, chosen, recipe, multiply, world.device) as scaling:
        yield scaling


def with_scales(optimizer: Optimizer, scaling: Scaling | None, world: World) -> Optimizer:
    """`optimizer`, and the scales if there are any."""
    return optimizer if scaling is None else ScaledOptimizer(optimizer, scaling, world)


class ScaledOptimizer:
    """An optimizer and the scales of a model's Linears, which move together."""

    def __init__(self, optimizer: Optimizer, scaling: Scaling, world: World) -> None:
        self.optimizer, self.scaling, self.world = optimizer, scaling, world
        self.updates_in_backward = optimizer.updates_in_backward
        self._amax = scaling.amax

    @property
    def updates(self) -> int:
        """Updates made so far."""
        return self.optimizer.updates

    @updates.setter
    def updates(self, value: int) -> None:
        self.optimizer.updates = value

    def start_step(self, *, learning_rate: float) -> None:
        """Forget the gradients of the step before, and what was noted since it ended."""
        self.scaling.forget_step()
        self.optimizer.start_step(learning_rate=learning_rate)

    def gradient_norm(self) -> Tensor:
        """The length of the gradient; NaN when some number of the step was not finite before it was cast."""
        self._amax = torch.nan_to_num(self.scaling.amax, nan=torch.inf, posinf=torch.inf)
        self.world.largest_(self._amax)
        return self.optimizer.gradient_norm() + 0.0 * self._amax.max()

    def update(self, *, learning_rate: float, gradient_norm: float) -> None:
        """Move the weights, then the scales."""
        self.optimizer.update(learning_rate=learning_rate, gradient_norm=gradient_norm)
        self.scaling.amax.copy_(self._amax)  # whoever has looked at single rows since then has left no trace
        self.scaling.end_step()

    def state(self) -> dict[str, Tensor]:
        """The tensors of the optimizer, and the scales."""
        return self.optimizer.state() | self.scaling.state()

    def layout(self) -> dict[str, list[int]]:
        """The layout of the optimizer's tensors."""
        return self.optimizer.layout()

    def restore(self, state: dict[str, Tensor], *, updates: int, layout: dict[str, list[int]]) -> None:
        """Take over a checkpoint's tensors."""
        if missing := self.scaling.state().keys() - state.keys():
            raise CheckpointError(f"the checkpoint has no scales for FP8 ({', '.join(sorted(missing))})")
        self.optimizer.restore(state, updates=updates, layout=layout)
        self.scaling.restore(state)

    def close(self) -> None:
        """Let go of the optimizer's memory."""
        self.optimizer.close()
