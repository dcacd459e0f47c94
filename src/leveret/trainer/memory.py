"""Memory while training: freed blocks stay in the process, and how high it went is known at the end.

glibc's malloc gives every large block straight back to the kernel, and gets it again as fresh pages that must
each be faulted in and zeroed: tens of thousands of page faults a step, a tenth of the CPU time of a step of 8,192
tokens (docs/log.md). Allocators that keep their memory (tcmalloc) do not pay this; nobody should have to preload
one. So for the length of a training run glibc is told, from inside, to take everything from its heap and not to
trim it. Afterwards free memory goes back, and malloc is left where its own adaptation would have led (once told
anything, it no longer adapts, and its first settings are the worst: every block above 128 KiB is mapped anew). On
other C libraries nothing happens.
"""

from __future__ import annotations

import contextlib
import ctypes
import platform
import resource
import sys
from collections.abc import Iterator
from pathlib import Path

import torch

from leveret.console import Console

# Options of malloc.h, with the values while training and after it.
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD, _M_MMAP_MAX = -1, -2, -3, -4
_TRAINING = ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, 2**31 - 1), (_M_TOP_PAD, 64 * 2**20))
_AFTERWARDS = (
    (_M_MMAP_MAX, 65536),
    (_M_MMAP_THRESHOLD, 32 * 2**20),
    (_M_TRIM_THRESHOLD, 64 * 2**20),
    (_M_TOP_PAD, 128 * 2**10),
)


@contextlib.contextmanager
def keep_freed_memory(console: Console) -> Iterator[bool]:
    """Within the block, freed memory stays in the process; yields whether that could be arranged."""
    if platform.libc_ver()[0] != "glibc":
        yield False
        return
    libc = ctypes.CDLL(None)
    done = all([libc.mallopt(option, value) == 1 for option, value in _TRAINING])
    if done:
        console.info("memory: glibc malloc keeps freed blocks while training (fewer page faults)")
    try:
        yield done
    finally:
        for option, value in _AFTERWARDS:
            libc.mallopt(option, value)
        libc.malloc_trim(0)


def peak_memory_bytes(device: torch.device) -> int:
    """The most that an accelerator's allocator held, or that this process held in RAM, up to now."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:  # Linux's ru_maxrss begins with what the process that started this one held
        status = Path("/proc/self/status").read_text("ascii")
        return 1024 * next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM:"))
    except (OSError, StopIteration):
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024
