"""Python's garbage collector, told when there is nothing for it to find.

It looks for objects that only refer to each other, and looks again whenever some hundreds more are alive. Whoever makes
a million objects that stay (a package's classes, the samples of a training set) waits a sixth of the time for it.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def without_collecting() -> Iterator[None]:
    """Inside, no garbage is looked for; for work whose objects stay, and that makes no circles."""
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()
