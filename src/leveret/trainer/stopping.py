"""Ending a run politely: SIGTERM or Ctrl-C is noted, the step in hand is finished, and the loop saves and leaves.

A second signal of the same kind, after a second or later, acts at once, as if this file did not exist; what was saved
before is still good.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator
from types import FrameType


class StopRequest:
    """Whether someone asked the run to end, and by which signal."""

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None

    def __bool__(self) -> bool:
        return self.signal is not None


_SAME_SECONDS = 1.0
"""What comes again within this time is the same request: Linux tells of the death of a parent once for each thread."""


@contextlib.contextmanager
def listen_for_stop() -> Iterator[StopRequest]:
    """Within the block, the first SIGTERM and the first SIGINT only set the request (in the main thread)."""
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

    came: dict[int, float] = {}

    def note(number: int, frame: FrameType | None) -> None:
        request.signal = signal.Signals(number)
        if time.monotonic() - came.setdefault(number, time.monotonic()) > _SAME_SECONDS:
            signal.signal(number, before[signal.Signals(number)])
            os.kill(os.getpid(), number)

    for number in before:
        signal.signal(number, note)
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
