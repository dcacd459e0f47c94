"""Fp8Config: the Linears of a model multiplied in 8 bits while it is trained; how they are scaled and which are not."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from leveret.config import Config

_OF_DELAYED = ("history_steps", "of_history")


class Fp8Config(Config):
    """Products in FP8: E4M3 for weights and activations, E5M2 for gradients, one scale a tensor. The defaults are
    HARE's recipe (Transformer Engine's delayed scaling, hybrid formats)."""

    recipe: Literal["delayed", "current"] = "delayed"
    """Where a scale comes from. delayed: the largest magnitudes of the steps before. current: that of the tensor
    itself, which never saturates."""
    history_steps: Annotated[int, Field(ge=1)] = 1024
    """With delayed: how many steps are looked back on."""
    of_history: Literal["max", "most_recent"] = "max"
    """With delayed: scale by the largest magnitude in the history, or by that of the last step."""
    margin: Annotated[int, Field(ge=0, le=16)] = 0
    """Powers of two of room left above the largest magnitude: fewer saturated numbers, more small ones lost."""
    keep_bf16: list[str] = Field(default_factory=list)
    """Linears that stay in bf16, as patterns of names: "*.down_proj", "layers.0.*". Head, embedding, norms, routers and
    experts always stay, and sizes that are no multiple of 16."""
    keep_first_layers: Annotated[int, Field(ge=0)] = 0
    """So many layers from the first on stay in bf16."""
    keep_last_layers: Annotated[int, Field(ge=0)] = 0
    """So many layers up to the last stay in bf16."""

    @model_validator(mode="after")
    def _consistent(self) -> Fp8Config:
        for name in _OF_DELAYED:
            if self.recipe == "current" and getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(f"{name} ({getattr(self, name)}) is read by recipe: delayed only")
        return self
