"""The spike detector: a loss far above what the last steps had, judged by the median, which no outlier moves.

    typical = median of the last `window` losses
    spread  = 1.4826 * median of |loss - typical|       (the standard deviation, if losses were normally distributed)
    spike     when loss > typical + threshold * max(spread, 1 % of typical, 0.02)

A mean and a standard deviation would be pulled up by the very thing that is looked for; half of the window would have
to be spikes before the median is. The floor keeps a run whose loss hardly varies from crying wolf. A loss that stays
high is told once, when it begins: all losses enter the window, so that after half a window it is the typical one.
"""

from __future__ import annotations

import statistics
from collections import deque
from dataclasses import dataclass
from typing import Any

FEWEST = 16
"""Losses that must have been seen before any can be a spike (or a whole window, if that is shorter)."""
_SMALLEST_SPREAD = 0.02
_SMALLEST_SHARE = 0.01


@dataclass(frozen=True, kw_only=True)
class Spike:
    """A loss that stands out, and from what."""

    loss: float
    typical: float
    """The median of the losses before it."""
    limit: float
    """What it would have had to stay below."""


class SpikeDetector:
    """Sees the loss of every step in order; its whole memory is `state`."""

    def __init__(self, *, window: int, threshold: float) -> None:
        self.threshold = threshold
        self._losses: deque[float] = deque(maxlen=window)
        self._high = False

    def see(self, loss: float) -> Spike | None:
        """The spike that begins with this loss, if one does."""
        spike = self._judge(loss)
        begins = spike is not None and not self._high
        self._high = spike is not None
        self._losses.append(loss)
        return spike if begins else None

    @property
    def typical(self) -> float | None:
        """The median of the losses seen."""
        return statistics.median(self._losses) if self._losses else None

    def state(self) -> dict[str, Any]:
        """What `restore` needs, as JSON values."""
        return {"losses": list(self._losses), "high": self._high}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from there; of a longer window, with its end."""
        self._losses.clear()
        self._losses.extend(state.get("losses", []))
        self._high = bool(state.get("high", False))

    def _judge(self, loss: float) -> Spike | None:
        if len(self._losses) < min(FEWEST, self._losses.maxlen or FEWEST):
            return None
        typical = statistics.median(self._losses)
        spread = 1.4826 * statistics.median(abs(seen - typical) for seen in self._losses)
        limit = typical + self.threshold * max(spread, _SMALLEST_SHARE * abs(typical), _SMALLEST_SPREAD)
        return Spike(loss=loss, typical=typical, limit=limit) if loss > limit else None
