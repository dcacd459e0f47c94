"""Which scale a tensor gets when it is cast to 8 bits: by its own amax now, or by those of the steps before.

    current    the tensor's own amax, so nothing is ever saturated
    delayed    the amax of past steps; the tensor's own is only noted, for the steps to come

A kernel that notes the amax while it casts would read a tensor once with `delayed`; ours read it twice in both cases.

Delayed scaling keeps, for each of the tensors of a model, the amaxes of the last `history` steps (newest first):

    after a step     history = [amax of the step, *history[:-1]]
                     scale   = (largest of the format / max(history)) / 2^margin      or of history[0]: `most_recent`

where an amax of 0 or one that is not finite leaves the scale as it is. The formulas are Transformer Engine's. In two
points we do otherwise. Its scales move after every forward or backward pass, ours once a step, by the largest amax of
all micro-batches (and of all processes): so what is learnt does not depend on how a step is cut up. And a tensor
without a history is cast by its own amax, where theirs begins with scale 1, by which the small gradients of a first
step become 0.

Activations that several Linears read (q, k and v) are cast once.
"""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from leveret.precision.fp8_format import E4M3, E5M2, Format, Fp8Tensor, amax_of, cast, scale_of

ROLES: tuple[Format, Format, Format] = (E4M3, E4M3, E5M2)
"""What a Linear casts, in the order of its places: its input, its weight, the gradient of its output."""

INPUT, WEIGHT, GRADIENT = range(3)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How scales are chosen."""

    kind: Literal["delayed", "current"] = "delayed"
    history: int = 1024
    """Steps that delayed scaling looks back on."""
    of_history: Literal["max", "most_recent"] = "max"
    margin: int = 0
    """Powers of two of room above the amax."""


class Scaling:
    """The scales of all the Linears of a model; three places each, see `ROLES`."""

    def __init__(self, recipe: Recipe, *, num_linears: int, device: torch.device | str = "cpu") -> None:
        self.recipe = recipe
        places = num_linears * len(ROLES)
        self.amax = torch.zeros(places, device=device)
        """Of the step that is under way."""
        self.history = torch.zeros(recipe.history if recipe.kind == "delayed" else 0, places, device=device)
        self.scale = torch.zeros(places, device=device)
        """0: not known yet."""
        self._largest = torch.tensor([role.largest for role in ROLES], device=device).repeat(num_linears)
        self._inverse: Tensor | None = None
        """1 / scale, once all scales are known."""
        self._shared: tuple[weakref.ref[Tensor], int, Tensor, Fp8Tensor] | None = None

    @torch.no_grad()
    def cast(self, tensor: Tensor, linear: int, role: int) -> Fp8Tensor:
        """`tensor` in 8 bits, for this role in the Linear of this number; its amax is noted."""
        amax = amax_of(tensor)
        self._note(amax, linear, role)
        return self._cast(tensor, amax, linear, role)

    @torch.no_grad()
    def cast_input(self, x: Tensor, linear: int) -> Fp8Tensor:
        """The input (..., features) of a Linear as rows in 8 bits; the last one is remembered, for others that read it.

        They all have the same scale, for they have seen the same tensors.
        """
        if self._shared is not None:
            seen, version, amax, cast_before = self._shared
            if seen() is x and x._version == version:
                self._note(amax, linear, INPUT)
                return cast_before
        rows = x.reshape(-1, x.shape[-1])
        amax = amax_of(rows)
        self._note(amax, linear, INPUT)
        result = self._cast(rows, amax, linear, INPUT)
        self._shared = (weakref.ref(x), x._version, amax, result)
        return result

    @torch.no_grad()
    def end_step(self) -> None:
        """Take the amaxes of the step into the history and choose the scales of the next."""
        self._shared = None
        if self.recipe.kind == "delayed":
            self.history = torch.cat([self.amax.unsqueeze(0), self.history[:-1]])
            amax = self.history.amax(0) if self.recipe.of_history == "max" else self.history[0]
            self.scale = scale_of(amax, self._largest, margin=self.recipe.margin, otherwise=self.scale)
            self._invert()
        self.amax.zero_()

    def forget_step(self) -> None:
        """Drop the amaxes noted since the last step ended: it is begun again, or was never finished."""
        self._shared = None
        self.amax.zero_()

    def state(self) -> dict[str, Tensor]:
        """What a checkpoint holds between steps; nothing with current scaling."""
        if self.recipe.kind == "current":
            return {}
        return {"fp8_amax_history": self.history, "fp8_scale": self.scale}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Take over the tensors of a checkpoint."""
        for name, mine in self.state().items():
            assert mine.shape == state[name].shape, f"{name} has shape {state[name].shape}, not {mine.shape}"
            mine.copy_(state[name])
        self.forget_step()
        self._inverse = None
        self._invert()

    def _note(self, amax: Tensor, linear: int, role: int) -> None:
        place = self.amax[linear * len(ROLES) + role]
        torch.maximum(place, amax, out=place)

    def _cast(self, tensor: Tensor, amax: Tensor, linear: int, role: int) -> Fp8Tensor:
        place = linear * len(ROLES) + role
        if self._inverse is not None:
            return cast(tensor, self.scale[place], ROLES[role], inverse=self._inverse[place])
        own = scale_of(amax, ROLES[role].largest, margin=self.recipe.margin, otherwise=1.0)
        return cast(tensor, torch.where(self.scale[place] > 0, self.scale[place], own), ROLES[role])

    def _invert(self) -> None:
        # Asking the device whether all are known waits for it, so that is done until they are, and never again.
        if self._inverse is not None or bool((self.scale > 0).all()):
            self._inverse = self.scale.reciprocal()
