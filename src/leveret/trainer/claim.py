"""One run at a time in a folder: the system holds a lock on it (`flock`) for as long as the process lives.

The same command started twice would write the same checkpoints and the same record, and each would delete what the
other needs. A process that was told to end may still be saving when its command is started again, so the second one
waits a while. The lock is on the folder itself and leaves no file behind.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path

from leveret.console import Console
from leveret.errors import ConfigError, TrainingError
from leveret.trainer.world import World

WAIT_SECONDS = 30.0
"""How long a process may take to end and save."""
_POLL_SECONDS = 0.1


@contextlib.contextmanager
def claimed(folder: Path, world: World, console: Console, *, wait_seconds: float = WAIT_SECONDS) -> Iterator[None]:
    """Within the block, no other run works in `folder`, which is made. TrainingError when one does and does not end.

    A folder that was made here and is still empty at the end, as nothing could begin, is removed again.
    Of several processes the first one sees to it.
    """
    if not world.is_main:
        yield
        return
    handle, made = _locked(folder, console, wait_seconds)
    try:
        yield
    finally:
        if made:
            with contextlib.suppress(OSError):  # there is something in it
                folder.rmdir()
        os.close(handle)


def _locked(folder: Path, console: Console, wait_seconds: float) -> tuple[int, bool]:
    """A handle that holds the lock on `folder`, and whether the folder was made for it."""
    while True:
        made, handle = _make(folder), os.open(folder, os.O_RDONLY)
        try:
            if not _try(handle):
                console.info(f"another process is at work in {folder}; waiting up to {wait_seconds:.0f} s for its end")
                _wait(handle, folder, time.monotonic() + wait_seconds)
        except BaseException:
            os.close(handle)
            raise
        if folder.is_dir() and os.path.samestat(os.fstat(handle), folder.stat()):
            return handle, made
        os.close(handle)  # the one before us could not begin and took its folder away


def _make(folder: Path) -> bool:
    """Make the folder; whether it was not there."""
    try:
        there = folder.is_dir()
        folder.mkdir(parents=True, exist_ok=True)
        return not there
    except (FileExistsError, NotADirectoryError) as error:
        file = next((place for place in (folder, *folder.parents) if place.is_file()), folder)
        raise ConfigError(
            f"the output {folder} must be a folder, but {file} is a file", hint="give another place with output=..."
        ) from error


def _wait(handle: int, folder: Path, until: float) -> None:
    while not _try(handle):
        if time.monotonic() > until:
            raise TrainingError(
                f"another process is at work in {folder}",
                hint="wait for it, stop it, or give this run another folder with output=...",
            )
        time.sleep(_POLL_SECONDS)


def _try(handle: int) -> bool:
    """Whether the lock is ours now; also when the file system knows no locks."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True
