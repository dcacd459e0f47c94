"""Confinement: what a process can give up for good before it runs a tool, with what the operating system offers.

    memory, processor time, size of files, open files    setrlimit, on every Unix
    the network                                          a network namespace of its own, or Landlock, on Linux
    writing outside one folder                           Landlock, Linux 5.13 and later

`confine` tries each and says in words what holds. It is no virtual machine: whatever the user may read can be read,
other processes can be seen, and where the system offers nothing only Python's own `socket` is shut, which a program
that wants out can get around.
"""

from __future__ import annotations

import ctypes
import os
import socket
import struct
import sys
from pathlib import Path
from typing import Any, NoReturn

_NEW_USER, _NEW_NETWORK = 0x10000000, 0x40000000
_LANDLOCK_CREATE, _LANDLOCK_ADD, _LANDLOCK_RESTRICT = 444, 445, 446
_NO_NEW_PRIVILEGES = 38
_WRITE = sum(1 << bit for bit in (1, 4, 5, 6, 7, 8, 9, 10, 11, 12))
"""Landlock's rights to write, remove and make files, directories, links, sockets and devices."""
_REFER, _TRUNCATE = 1 << 13, 1 << 14
_TCP = 0b11
"""Landlock's rights to bind and to connect."""
_LARGEST_FILE_BYTES = 64 * 2**20
_MAX_OPEN_FILES = 256


def confine(*, folder: Path, memory_mib: int, seconds: int, network: bool) -> list[str]:
    """Give up everything but `folder` to write in, so much memory and processor time, and perhaps the network.

    Nothing of it can be taken back by this process. Returns what holds now, in words.
    """
    held = _limit(memory_mib, seconds)
    alone = not network and _leave_network()
    landlock = _landlock(folder, network=network or alone)
    if not network:
        if alone:
            held.append("no network (a namespace of its own)")
        elif landlock >= 4:
            held.append("no TCP (Landlock)")
        else:
            _shut_sockets()
            held.append("no sockets in Python only")
    held.append("writes in its own folder only (Landlock)" if landlock else "writes wherever you may")
    return held


def _limit(memory_mib: int, seconds: int) -> list[str]:
    if sys.platform == "win32":
        return []
    import resource

    limits = {
        resource.RLIMIT_CPU: seconds,
        resource.RLIMIT_FSIZE: _LARGEST_FILE_BYTES,
        resource.RLIMIT_NOFILE: _MAX_OPEN_FILES,
        resource.RLIMIT_CORE: 0,
    }
    if sys.platform == "linux":  # elsewhere the limit is refused or not obeyed
        limits[resource.RLIMIT_AS] = memory_mib * 2**20
    for kind, wanted in limits.items():
        highest = resource.getrlimit(kind)[1]
        most = wanted if highest == resource.RLIM_INFINITY else min(wanted, highest)
        spare = int(kind == resource.RLIMIT_CPU and most != highest)  # so that the signal says which limit it was
        resource.setrlimit(kind, (most, most + spare))
    memory = f"{memory_mib} MiB of memory and " if sys.platform == "linux" else ""
    return [f"{memory}{seconds} s of processor time"]


def _leave_network() -> bool:
    """Enter a network namespace with nothing in it; False where the system does not let us."""
    if sys.platform != "linux":
        return False
    library = ctypes.CDLL(None, use_errno=True)
    return any(library.unshare(flags) == 0 for flags in (_NEW_USER | _NEW_NETWORK, _NEW_NETWORK))


def _landlock(folder: Path, *, network: bool) -> int:
    """Allow writing in `folder` only, and no TCP unless `network`; the version of Landlock, 0 where there is none."""
    if sys.platform != "linux":
        return 0
    library = ctypes.CDLL(None, use_errno=True)
    version = int(library.syscall(_LANDLOCK_CREATE, None, ctypes.c_size_t(0), 1))
    if version < 1:
        return 0
    rights = _WRITE | (_REFER if version >= 2 else 0) | (_TRUNCATE if version >= 3 else 0)
    attributes = struct.pack("QQ", rights, _TCP) if version >= 4 and not network else struct.pack("Q", rights)
    ruleset = library.syscall(_LANDLOCK_CREATE, attributes, ctypes.c_size_t(len(attributes)), 0)
    if ruleset < 0:
        return 0
    for path, allowed in ((str(folder), rights), (os.devnull, rights & (1 << 1 | _TRUNCATE))):
        place = os.open(path, os.O_PATH | os.O_CLOEXEC)
        library.syscall(_LANDLOCK_ADD, ruleset, 1, struct.pack("=Qi", allowed, place), 0)
        os.close(place)
    library.prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0)
    done = library.syscall(_LANDLOCK_RESTRICT, ruleset, 0)
    os.close(ruleset)
    return version if done == 0 else 0


def _shut_sockets() -> None:
    def refuse(*arguments: Any, **keywords: Any) -> NoReturn:
        raise PermissionError("a tool has no network here")

    for name in ("socket", "create_connection", "getaddrinfo", "socketpair"):
        setattr(socket, name, refuse)
