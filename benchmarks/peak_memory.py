"""The most memory a process has held, or a program that it started.

Nothing but the standard library: peers run in environments of their own.
"""

from __future__ import annotations

import resource
import sys
from pathlib import Path


def peak_bytes() -> int:
    """Of this process since its program began, or of a program that it started and that has ended, if that held more.

    Linux's `ru_maxrss` begins with what the process that started it held; VmHWM does not. Of programs that were started
    it is no more than the larger of what they and this process held.
    """
    unit = 1 if sys.platform == "darwin" else 1024
    started = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * unit
    try:
        status = Path("/proc/self/status").read_text("ascii")
        own = 1024 * next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM:"))
    except (OSError, StopIteration):
        own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return max(own, started)
