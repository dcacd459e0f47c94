"""Writing a large file past the system's cache.

A plain write copies into the cache, page by page, and the flush that makes a file durable then waits until the disk has
all of it. Linux writes from the caller's memory at once if a file is opened with O_DIRECT and if memory, place and
length are multiples of a page. So what lies in whole pages goes straight to the disk, by way of an aligned buffer where
memory is not, and the rest of a piece, less than a page at each end, the plain way: no page is written both ways. Where
there is no O_DIRECT (other systems, file systems in memory) everything goes the plain way: the file is the same.
"""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import threading
from pathlib import Path

import numpy as np

from leveret.allocator import PAGE

STAGE = 1 << 20
"""Bytes of the buffer that each writing thread has for content that does not begin at a page."""


class PlainFile:
    """A new file that is written at any place, from several threads, each place once."""

    def __init__(self, path: Path) -> None:
        self._plain = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o644)

    def allocate(self, size: int) -> None:
        """Make the file `size` bytes long."""
        os.ftruncate(self._plain, size)

    def write(self, content: memoryview | bytes, position: int) -> None:
        """Put `content` (bytes) at `position`. OSError if the disk is full."""
        content = memoryview(content)
        while content:
            written = os.pwrite(self._plain, content, position)
            content, position = content[written:], position + written

    def close(self) -> None:
        """No more writing."""
        os.close(self._plain)


class DirectFile(PlainFile):
    """The same, past the system's cache as far as that goes."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._stages = threading.local()
        self._direct: int | None = None
        with contextlib.suppress(OSError, AttributeError):  # a file system, or a system, that has no such thing
            self._direct = os.open(path, os.O_WRONLY | os.O_DIRECT)

    def write(self, content: memoryview | bytes, position: int) -> None:
        """Put `content` (bytes) at `position`. OSError if the disk is full."""
        content = memoryview(content)
        before = min(-position % PAGE, len(content))
        pages = (len(content) - before) // PAGE * PAGE
        past = before + self._write_pages(content[before : before + pages], position + before)
        super().write(content[:before], position)
        super().write(content[past:], position + past)

    def close(self) -> None:
        """No more writing."""
        super().close()
        if self._direct is not None:
            os.close(self._direct)

    def _write_pages(self, content: memoryview, position: int) -> int:
        """Write whole pages past the cache; returns how many bytes of them were, the rest being left to the caller."""
        if self._direct is None:
            return 0
        aligned, start = _address(content) % PAGE == 0, 0
        while start < len(content):
            part = content[start:] if aligned else self._staged(content[start : start + STAGE])
            try:
                written = os.pwrite(self._direct, part, position + start)
            except OSError as error:
                if error.errno != errno.EINVAL:  # what a file system answers that opens so, but does not write so
                    raise
                break
            start += written
            if written % PAGE:
                break
        return start

    def _staged(self, content: memoryview) -> memoryview:
        """`content` in this thread's buffer, which as mapped memory begins at a page."""
        if not hasattr(self._stages, "buffer"):
            self._stages.buffer = memoryview(mmap.mmap(-1, STAGE))
        self._stages.buffer[: len(content)] = content
        staged: memoryview = self._stages.buffer[: len(content)]
        return staged


def _address(content: memoryview) -> int:
    address: int = np.frombuffer(content, dtype=np.uint8).__array_interface__["data"][0]
    return address
