"""What a run leaves to look at: `metrics.jsonl`, one JSON object a line, and the page drawn from it.

Lines are appended and flushed to the disk, so they survive a kill. When a run resumes from step k, lines about later
steps are dropped first (the run makes them again): the file never holds two stories. A line cut in half by a kill is
dropped the same way. The page is rewritten whole, at most every few seconds.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from pathlib import Path
from typing import Any

from leveret.errors import TrainingError
from leveret.paths import atomic_write
from leveret.trainer.metrics_page import render_page

_SECONDS_BETWEEN_PAGES = 3.0


class Metrics:
    """The record of one run in `folder`. `steps_done` says where the run starts or resumes."""

    def __init__(self, folder: Path, *, title: str, total_steps: int, steps_done: int) -> None:
        self.jsonl = folder / "metrics.jsonl"
        self.page = folder / "metrics.html"
        self.title = title
        self.total_steps = total_steps
        folder.mkdir(parents=True, exist_ok=True)
        self.lines = [line for line in read_metrics(self.jsonl) if line["step"] <= steps_done]
        atomic_write(self.jsonl, "".join(json.dumps(line) + "\n" for line in self.lines))
        self._file = open(self.jsonl, "a", encoding="utf-8")  # noqa: SIM115 - held open for the run
        self._page_written = float("-inf")

    def write(self, step: int, **values: float) -> None:
        """Add a line. `step` counts steps done, so the first line of a run has step 1."""
        line = {"step": step, **values}
        self.lines.append(line)
        try:
            self._file.write(json.dumps(line) + "\n")
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            raise TrainingError(
                f"cannot write {self.jsonl}: {error}",
                hint="free some space and run the same command again; it goes on from the last checkpoint",
            ) from error
        if time.monotonic() - self._page_written >= _SECONDS_BETWEEN_PAGES:
            self.draw(status="running")

    def draw(self, *, status: str) -> None:
        """Write the page now; `status` is "running" (it reloads itself) or how the run ended."""
        atomic_write(self.page, render_page(self.title, self.lines, total_steps=self.total_steps, status=status))
        self._page_written = time.monotonic()

    def close(self, *, status: str) -> None:
        """End the record: the page says how, and no longer reloads. A full disk does not hide the error before it."""
        with contextlib.suppress(OSError):
            self.draw(status=status)
        with contextlib.suppress(OSError):
            self._file.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a metrics.jsonl, as far as they are whole; an absent file has none."""
    lines: list[dict[str, Any]] = []
    if not path.exists():
        return lines
    for text in path.read_text(encoding="utf-8").splitlines():
        try:
            lines.append(json.loads(text))
        except ValueError:
            break  # cut by a kill; what follows would be about later steps
    return lines
