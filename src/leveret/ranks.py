"""Which of the processes that torchrun started this one is, as the environment says.

torchrun starts a group of processes and tells each of them, in RANK, WORLD_SIZE and so on, which one it is. Process 0
is the *main* one: it prints and writes. A process that was started in any other way belongs to no group.

Nothing large is imported for this: the command line asks it too.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Mapping
from dataclasses import dataclass

from leveret.errors import ConfigError

GATHERING = "LEVERET_GATHERING"
"""The variable that tells apart the gatherings of one group: a recipe has one for each stage that all processes run."""

AGENT = "LEVERET_AGENT"
"""The variable with the number of the process that starts those of this machine, where `leveret launch` started it."""


@dataclass(frozen=True, kw_only=True)
class Ranks:
    """One process of a group."""

    rank: int
    """Its number among all processes, from 0."""
    world_size: int
    """How many processes there are."""
    local_rank: int
    """Its number among those on its machine: which accelerator is its own."""
    local_world_size: int
    """How many of them are on its machine."""
    address: str
    """Where the store is that the group meets at; torchrun keeps it."""
    port: int
    attempt: int = 0
    """How often torchrun has started the group anew."""
    gathering: str = "command"
    """What the group meets for."""

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] | None = None) -> Ranks | None:
        """What torchrun said (in `os.environ` by default); None in a process that it did not start."""
        variables = os.environ if environment is None else environment
        if not {"RANK", "WORLD_SIZE", "TORCHELASTIC_RUN_ID"} <= variables.keys():
            return None
        try:
            return cls(
                rank=int(variables["RANK"]),
                world_size=int(variables["WORLD_SIZE"]),
                local_rank=int(variables["LOCAL_RANK"]),
                local_world_size=int(variables["LOCAL_WORLD_SIZE"]),
                address=variables["MASTER_ADDR"],
                port=int(variables["MASTER_PORT"]),
                attempt=int(variables.get("TORCHELASTIC_RESTART_COUNT", "0")),
                gathering=variables.get(GATHERING, "command"),
            )
        except (KeyError, ValueError) as error:
            raise ConfigError(
                f"RANK is set, but the other variables of torchrun are not: {error}",
                hint="start the group with `leveret launch` or torchrun, or unset RANK",
            ) from error

    @property
    def is_main(self) -> bool:
        """Whether this is the process that prints and writes."""
        return self.rank == 0

    def __str__(self) -> str:
        return f"process {self.rank} of {self.world_size}"


def end_with_parent(parent: int | None = None) -> None:
    """Ask the system (Linux) to end this process, politely, when the one that started it ends in whatever way.

    parent: its number, if known (in AGENT by default); should it have ended before this was asked, this one ends now.
    """
    if sys.platform != "linux":
        return
    set_parent_death_signal = 1
    ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGTERM)
    known = os.environ.get(AGENT) if parent is None else parent
    if known is not None and os.getppid() != int(known):
        os.kill(os.getpid(), signal.SIGTERM)
