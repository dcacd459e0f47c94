"""LaunchConfig: what is started how often, and on which machines."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, Field

from leveret.config import Config, Positional


def _command(text: str) -> str:
    """`text`, if a shell could read it as a program and its options."""
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise ValueError(f"cannot be read as a command: {error}") from None
    if not words:
        raise ValueError("names no program")
    return text


class LaunchConfig(Config):
    """Start torchrun for a recipe or a training command: on this machine, on those of a hostfile (over ssh), or on
    those of a SLURM job. Training stages run in all processes, everything else in the first. When one process dies, the
    others are ended, and the same command goes on from the last checkpoint."""

    words: Annotated[tuple[str, ...], Positional(0)] = Field(min_length=1)
    """A recipe, or pretrain, finetune, run or rehearse with what follows it; options of theirs as key=value."""
    nproc: Annotated[int | None, Field(ge=1)] = None
    """Processes on each machine. None: what the hostfile or SLURM says, else one for each accelerator here, or one."""
    hostfile: Path | None = None
    """The machines, a line `HOST slots=N` for each, as DeepSpeed has it. All must see the same files and Python."""
    master_port: Annotated[int, Field(ge=1, le=65535)] = 29500
    """Where the processes of several machines meet: a free port of the first machine."""
    restarts: Annotated[int, Field(ge=0)] = 0
    """How often everything is started again after a failure, to go on from the last checkpoint."""
    ssh: Annotated[str, AfterValidator(_command)] = "ssh"
    """The program that reaches other machines, with its options."""
    grace_seconds: Annotated[float, Field(gt=0)] = 30.0
    """How long processes that are told to end may take, to save what they have, before they are killed."""
