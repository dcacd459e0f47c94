"""How evenly a mixture's experts are used, for the record and the progress line, and a warning where one is not.

A load of 1 is an even share: in a layer with E experts, the E-th part of all choices. An expert can have at most E / k
when each token chooses k. The counts of all steps since the last line of the record are added up on the device, and
summed over the processes when the line is written, so looking costs nothing that could be measured.

    expert_load                    for each layer, the load of each expert
    busiest_expert, idlest_expert  the largest and the smallest of these
    balance_loss, router_z_loss    before their coefficients, mean over tokens

An expert that nearly nobody chooses learns nothing and is never chosen again; the warning names it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from leveret.console import Console
from leveret.trainer.world import World

IDLE_LOAD = 0.02
"""Below this an expert gets nearly nothing."""
IDLE_STEPS = 100
"""For so many steps in a row it may."""


class ExpertLoad:
    """Collects choices, step by step."""

    def __init__(self) -> None:
        self._choices: Tensor | None = None
        self._losses: Tensor | None = None
        self._tokens = 0
        self._steps = 0
        self._idle_steps: Tensor | None = None
        self._range: tuple[float, float] | None = None

    def start_step(self) -> None:
        """A step begins."""
        self._steps += 1

    def add(self, choices: Tensor, *, balance: Tensor, z: Tensor, tokens: int) -> None:
        """One micro-batch: choices (L, E), its two losses as means over its tokens."""
        choices, losses = choices.double(), torch.stack([balance, z]).double() * tokens
        self._choices = choices if self._choices is None else self._choices.add_(choices)
        self._losses = losses if self._losses is None else self._losses.add_(losses)
        self._tokens += tokens

    def record(self, world: World, console: Console) -> dict[str, Any]:
        """What was collected since the last time; all processes ask together. Warns, once, of each idle expert."""
        if self._choices is None or self._losses is None:
            return {}
        world.sum_(self._choices)
        world.sum_(self._losses)
        (tokens,) = world.sum(self._tokens)
        load = (self._choices / self._choices.mean(dim=1, keepdim=True)).cpu()  # (L, E)
        balance, z = (self._losses / max(tokens, 1)).tolist()
        self._warn(load, console)
        self._choices = self._losses = None
        self._tokens = self._steps = 0
        self._range = (float(load.min()), float(load.max()))
        return {
            "balance_loss": balance,
            **({"router_z_loss": z} if z else {}),
            "busiest_expert": round(self._range[1], 4),
            "idlest_expert": round(self._range[0], 4),
            "expert_load": [[round(value, 4) for value in layer] for layer in load.tolist()],
        }

    def progress(self) -> dict[str, str]:
        """The range of loads at the last record."""
        return {} if self._range is None else {"experts": "{:.2f}-{:.2f}".format(*self._range)}

    def _warn(self, load: Tensor, console: Console) -> None:
        before = torch.zeros_like(load) if self._idle_steps is None else self._idle_steps
        now = torch.where(load < IDLE_LOAD, before + self._steps, torch.zeros_like(before))
        found = torch.nonzero((now >= IDLE_STEPS) & (before < IDLE_STEPS)).tolist()
        self._idle_steps = now
        if found:
            names = ", ".join(f"layer {layer} expert {expert}" for layer, expert in found[:8])
            names += f" and {len(found) - 8} more" if len(found) > 8 else ""
            console.warn(
                f"hardly any token has chosen these experts for {IDLE_STEPS} steps: {names}; "
                "a higher training.router_aux_loss_coef spreads the load"
            )
