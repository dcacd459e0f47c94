"""glibc's malloc, told to reuse memory instead of giving it back: fewer page faults for large temporaries.

By default malloc gives every large block straight back to the kernel, and gets it again as fresh pages that must each
be faulted in and zeroed: tens of thousands of page faults a training step of 8,192 tokens, a tenth of its CPU time
(docs/log.md), and a seventh of the time in which the engine reads prompts. Allocators that keep their memory (tcmalloc)
do not pay this; nobody should have to preload one. So glibc is told from inside:

    keep_freed_memory     for a block (a training run, a merge): everything comes from the heap, and stays there
    reuse_freed_blocks    from now on (an engine): blocks below 32 MiB come from the heap, which keeps 64 MiB at its end

After the first, malloc is left as by the second: once told anything it no longer adapts, and its first settings are the
worst, with every block above 128 KiB mapped anew. On other C libraries nothing happens.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import platform
from collections.abc import Iterator

from leveret.console import Console

PAGE = max(4096, mmap.PAGESIZE)
"""Bytes of a page: of memory, of what the system's cache holds as one, and a multiple of the block of usual disks."""

# Options of malloc.h, with the values that keep all, and those that reuse blocks of a usual size.
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD, _M_MMAP_MAX = -1, -2, -3, -4
_KEEPING = ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, 2**31 - 1), (_M_TOP_PAD, 64 * 2**20))
_REUSING = (
    (_M_MMAP_MAX, 65536),
    (_M_MMAP_THRESHOLD, 32 * 2**20),
    (_M_TRIM_THRESHOLD, 64 * 2**20),
    (_M_TOP_PAD, 128 * 2**10),
)

_keeping: list[bool] = []
"""One entry for each `keep_freed_memory` that is entered."""


@contextlib.contextmanager
def keep_freed_memory(console: Console) -> Iterator[bool]:
    """Within the block, freed memory stays in the process; yields whether that could be arranged."""
    if not _set(_KEEPING):
        yield False
        return
    console.info("memory: glibc malloc keeps freed blocks while training (fewer page faults)")
    _keeping.append(True)
    try:
        yield True
    finally:
        _keeping.pop()
        if not _keeping:
            _set(_REUSING)
            ctypes.CDLL(None).malloc_trim(0)


def reuse_freed_blocks() -> None:
    """From now on blocks of a usual size are reused. Within `keep_freed_memory`, which does more, nothing happens."""
    if not _keeping:
        _set(_REUSING)


def _set(options: tuple[tuple[int, int], ...]) -> bool:
    """Tell malloc; whether it took all of it."""
    if platform.libc_ver()[0] != "glibc":
        return False
    libc = ctypes.CDLL(None)
    return all([libc.mallopt(option, value) == 1 for option, value in options])
