"""ParallelConfig: how the processes of a launched run share a model; one process alone reads none of it."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from leveret.config import Config


class ParallelConfig(Config):
    """How processes started by `leveret launch` (or torchrun) share the model. What is learnt does not depend on it."""

    mode: Literal["ddp", "fsdp", "hsdp"] = "ddp"
    """ddp: every process holds the whole model, gradients are summed. fsdp: each holds a share of weights, gradients
    and optimizer, and gathers a layer when it needs it. hsdp: fsdp within groups of `shard_size`, ddp between them."""
    shard_size: Annotated[int | None, Field(ge=1)] = None
    """Processes that share one copy of the model in hsdp. None: those of one machine."""
    reshard: bool = True
    """With fsdp or hsdp, drop a layer's gathered weights after its forward pass and gather them again for backward.
    false: keep them until then, which is faster and takes the memory of the whole model in `precision`."""
    offload: bool = False
    """With fsdp or hsdp on accelerators, keep the shares of weights, gradients and optimizer in the host's memory."""
    timeout_minutes: Annotated[float, Field(gt=0)] = 10.0
    """How long a process waits for another in the middle of a step before it gives up."""

    @model_validator(mode="after")
    def _consistent(self) -> ParallelConfig:
        if self.shard_size is not None and self.mode != "hsdp":
            raise ValueError(f"shard_size ({self.shard_size}) is read by mode: hsdp only, and mode is {self.mode}")
        if self.mode == "ddp" and (self.offload or not self.reshard):
            raise ValueError("offload and reshard are read by mode: fsdp and hsdp only, and mode is ddp")
        return self

    @property
    def is_sharded(self) -> bool:
        """Whether a process holds only a share of the weights."""
        return self.mode != "ddp"
