"""What a container leaves a process of its machine: shares of processors, and memory, as Linux's control groups say.

In a container with two of 64 processors (`docker run --cpus 2`, a Kubernetes limit) a program still sees all 64. It
starts as many threads, these use up a tenth of a second's share in a thirtieth of the time, and all are stopped for the
rest. Its memory looks as large as the machine's, too. The truth is in files of the group and of those above it:

    v2    <mount>/<group>/cpu.max                            "200000 100000": microseconds in each period; or "max"
          <mount>/<group>/memory.max                         bytes; or "max"
    v1    <mount>/cpu/<group>/cpu.cfs_quota_us, _period_us   -1: no limit
          <mount>/memory/<group>/memory.limit_in_bytes       9e18: no limit

(docs.kernel.org/admin-guide/cgroup-v2.html). Elsewhere than on Linux, and without a limit, nothing is held back.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path

MOUNT = Path("/sys/fs/cgroup")
GROUPS = Path("/proc/self/cgroup")
UNLIMITED = 2**60
"""Bytes from which on a limit of version 1 is none."""


def allowed_cores() -> int:
    """Cores that this process may keep busy: those it may run on, or its share of their time if that is less."""
    cores, share = visible_cores(), cpu_share()
    return cores if share is None else max(1, min(cores, math.ceil(share)))


def visible_cores() -> int:
    """Cores that this process may run on, which is what libraries count."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cpu_share() -> float | None:
    """How many cores' time the process may use; None without a limit."""
    return min((share for folder in _folders("cpu") if (share := _share(folder)) is not None), default=None)


def memory_limit() -> int | None:
    """How many bytes the process and the others of its container may have together; None without a limit."""
    limits = (
        _number(folder / name) for folder in _folders("memory") for name in ("memory.max", "memory.limit_in_bytes")
    )
    return min((int(limit) for limit in limits if limit is not None and limit < UNLIMITED), default=None)


def _share(folder: Path) -> float | None:
    quota, _, period = _words(folder / "cpu.max").partition(" ")
    if not period:
        quota, period = _words(folder / "cpu.cfs_quota_us"), _words(folder / "cpu.cfs_period_us")
    try:
        return int(quota) / int(period) if int(quota) > 0 else None
    except (ValueError, ZeroDivisionError):
        return None


def _folders(controller: str) -> Iterator[Path]:
    """The folders of this process's group, and of those above it, that may hold limits.

    In a container the group's name may be that of the machine's own tree, of which only the root is to be seen.
    """
    for line in _words(GROUPS).splitlines():
        number, _, rest = line.partition(":")
        names, _, group = rest.partition(":")
        if number != "0" and controller not in names.split(","):
            continue
        root = MOUNT if number == "0" else MOUNT / controller
        inner = root / group.lstrip("/")
        yield from (folder for folder in (inner, *inner.parents) if folder.is_relative_to(root))


def _number(file: Path) -> int | None:
    text = _words(file)
    return int(text) if text.isdecimal() else None


def _words(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8").strip()
    except (OSError, ValueError):
        return ""
