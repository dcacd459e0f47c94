"""A lock on a run folder, which the system lets go of when its process ends, however it ends (`flock`)."""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path

from leveret.errors import LeveretError


@contextlib.contextmanager
def locked(path: Path, *, wait_seconds: float = 0.0) -> Iterator[None]:
    """Hold the lock file `path` within the block; LeveretError naming the holder when another process has it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        _acquire(handle, path, time.monotonic() + wait_seconds)
        os.truncate(handle, 0)
        os.pwrite(handle, str(os.getpid()).encode(), 0)
        yield
    finally:
        os.close(handle)


def _acquire(handle: int, path: Path, deadline: float) -> None:
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() < deadline:
                time.sleep(0.05)
                continue
            holder = os.pread(handle, 32, 0).decode() or "unknown"
            raise LeveretError(
                f"process {holder} is at work in {path.parent}",
                hint="wait for it, stop it, or give this run another folder with output=...",
            ) from None
