"""What a run leaves to look at: `metrics.jsonl`, one JSON object a line, and the page drawn from it.

Lines are appended and flushed to the disk, so they survive a kill. When a run resumes from step k, lines about later
steps are dropped first (the run makes them again): the file never holds two stories. A line cut in half by a kill is
dropped the same way. A run that goes back to a checkpoint drops the lines after it in the same way. The page is
rewritten whole, at most every few seconds.

A value is a number, a word for what happened at that step ("skipped": "spike"), or a table of numbers ("expert_load").
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from leveret.errors import TrainingError
from leveret.paths import atomic_write
from leveret.trainer.metrics_page import render_page
from leveret.trainer.reporters import Reporter

Value = float | str | list[list[float]]
"""What a line may say under a name."""

_SECONDS_BETWEEN_PAGES = 3.0


class Metrics:
    """The record of one run in `folder`. `steps_done` says where the run starts or resumes."""

    def __init__(
        self, folder: Path, *, title: str, total_steps: int, steps_done: int, reporters: Sequence[Reporter] = ()
    ) -> None:
        self.jsonl = folder / "metrics.jsonl"
        self.page = folder / "metrics.html"
        self.title = title
        self.total_steps = total_steps
        self.reporters = reporters
        folder.mkdir(parents=True, exist_ok=True)
        self.lines = read_metrics(self.jsonl)
        self._page_written = float("-inf")
        self.go_back(steps_done)

    def go_back(self, steps_done: int) -> None:
        """Forget what comes after `steps_done` steps."""
        self.lines = [line for line in self.lines if line["step"] <= steps_done]
        with self._explaining():
            atomic_write(self.jsonl, "".join(json.dumps(line) + "\n" for line in self.lines))

    def write(self, step: int, **values: Value) -> None:
        """Add a line. `step` counts steps done, so the first line of a run has step 1."""
        line = {"step": step, **values}
        self.lines.append(line)
        with self._explaining():
            with open(self.jsonl, "a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
                file.flush()
                os.fsync(file.fileno())
            if time.monotonic() - self._page_written >= _SECONDS_BETWEEN_PAGES:
                self.draw(status="running")
        numbers = {name: float(value) for name, value in values.items() if isinstance(value, int | float)}
        for reporter in self.reporters:
            reporter.write(step, numbers)

    def draw(self, *, status: str) -> None:
        """Write the page now; `status` is "running" (it reloads itself) or how the run ended."""
        atomic_write(self.page, render_page(self.title, self.lines, total_steps=self.total_steps, status=status))
        self._page_written = time.monotonic()

    def close(self, *, status: str) -> None:
        """End the record: the page says how, and no longer reloads. A full disk does not hide the error before it."""
        with contextlib.suppress(OSError):
            self.draw(status=status)
        for reporter in self.reporters:
            reporter.close()

    @contextlib.contextmanager
    def _explaining(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise TrainingError(
                f"cannot write {self.jsonl} and {self.page.name}: {error.strerror or error}",
                hint="free some space and run the same command again; it goes on from the last checkpoint",
            ) from error


class NoMetrics:
    """Stands for `Metrics` in a process that leaves the record to another."""

    def go_back(self, steps_done: int) -> None:
        """Nothing."""

    def write(self, step: int, **values: Value) -> None:
        """Nothing."""

    def close(self, *, status: str) -> None:
        """Nothing."""


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a metrics.jsonl, as far as they are whole; an absent file has none."""
    lines: list[dict[str, Any]] = []
    if not path.exists():
        return lines
    for text in path.read_bytes().splitlines():
        line = _line(text)
        if line is None:
            break  # cut by a kill; what follows would be about later steps
        lines.append(line)
    return lines


def _line(text: bytes) -> dict[str, Any] | None:
    """None for what is no whole line of a record."""
    try:
        line = json.loads(text)
    except ValueError:
        return None
    return line if isinstance(line, dict) and isinstance(line.get("step"), int) else None
