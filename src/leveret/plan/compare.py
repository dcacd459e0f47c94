"""Forecast against measured: what a finished training stage wrote down, beside what was expected of it.

A training stage leaves `outcome.json` with its figures (trainer/outcome.py): tokens and seconds of its steps, and the
peak of the process's memory. The forecast is that of the device called CPU, or of the one device that was asked for.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from leveret.plan.forecast import Forecast
from leveret.plan.work import Work


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """One figure."""

    stage: str
    figure: str
    forecast: float | None
    measured: float | None

    @property
    def ratio(self) -> float | None:
        """measured / forecast."""
        return self.measured / self.forecast if self.measured and self.forecast else None


def compare(work: Work, expected: Forecast) -> list[Comparison]:
    """The figures of a finished stage; [] when it is not finished, or trains nothing."""
    figures = _figures(work)
    if figures is None:
        return []
    steps, resumed = figures.get("steps"), figures.get("resumed_from_step", 0)
    seconds = None
    if expected.seconds is not None and steps:
        done = figures.get("stopped_early_after_step") or steps
        seconds = expected.seconds * (done - resumed) / steps  # the part that the measured process did
    pairs = {
        "tokens per second": (expected.tokens_per_second, figures.get("tokens_per_second")),
        "seconds of steps": (seconds, figures.get("seconds")),
        "peak memory, bytes": (expected.bytes_per_device, figures.get("peak_memory_bytes")),
    }
    return [
        Comparison(stage=work.stage.name, figure=name, forecast=wanted, measured=got)
        for name, (wanted, got) in pairs.items()
    ]


def _figures(work: Work) -> dict[str, Any] | None:
    if work.kind != "training" or work.stage.output is None:
        return None
    try:
        outcome = json.loads((work.stage.output / "outcome.json").read_text(encoding="utf-8"))
        figures = outcome["figures"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return figures if isinstance(figures, dict) else None
