"""The time a run spends on training, without validation and saving: tokens a second in all, and since the last look."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator


class Clock:
    """Counts tokens and seconds from its making on."""

    def __init__(self) -> None:
        self.tokens = 0
        self._started = time.perf_counter()
        self._lap = (0, 0.0)

    def add(self, tokens: int) -> None:
        """Count the tokens of a step that is done."""
        self.tokens += tokens

    def seconds(self) -> float:
        """Seconds spent on training."""
        return time.perf_counter() - self._started

    def rate(self) -> float:
        """Tokens a second since the start of this process."""
        return self.tokens / max(self.seconds(), 1e-9)

    def lap(self) -> float:
        """Tokens a second since the last lap."""
        now = (self.tokens, self.seconds())
        rate = (now[0] - self._lap[0]) / max(now[1] - self._lap[1], 1e-9)
        self._lap = now
        return rate

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Within the block, no time passes."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self._started += time.perf_counter() - began
