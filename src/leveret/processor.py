"""What the processor of this machine is and can do, as Linux says in /proc/cpuinfo; elsewhere only its name."""

from __future__ import annotations

import functools
import platform
from dataclasses import dataclass
from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")


@dataclass(frozen=True, kw_only=True)
class Processor:
    """The first processor; the others of a machine are like it."""

    name: str
    flags: frozenset[str]
    """Of instructions and other features, by the kernel's names; empty where nobody says."""


@functools.cache
def processor() -> Processor:
    """Read once a process."""
    try:
        lines = CPUINFO.read_text().splitlines()
    except OSError:
        return Processor(name=platform.processor() or platform.machine(), flags=frozenset())
    values = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    flags = values.get("flags") or values.get("Features") or ""
    return Processor(name=values.get("model name", "unknown"), flags=frozenset(flags.split()))
