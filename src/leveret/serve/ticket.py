"""A ticket: jobs handed to the worker together, and the way in which what becomes of them is told."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence

from leveret.engine.jobs import Job
from leveret.engine.reply import Delta
from leveret.engine.text import TextModel
from leveret.engine.token_score import TokenScore

Listener = Callable[[int, list[Delta]], None]
"""Called in the worker's thread with the place of the job in its ticket and the new deltas. It must not block."""


class Ticket:
    """Jobs submitted together; their deltas go to the listener as they come."""

    def __init__(
        self,
        jobs: Sequence[Job],
        listener: Listener,
        on_error: Callable[[BaseException], None],
        *,
        model: TextModel | None = None,
        counts: bool = False,
    ) -> None:
        """`model`: whose jobs these are; None: those of the worker's own model. `counts`: deltas tell how many tokens
        there are."""
        self.jobs = tuple(jobs)
        self.listener = listener
        self.on_error = on_error
        self.model = model
        self.counts = counts
        self.cancelled = False
        self.prompt_scores: dict[tuple[int, ...], tuple[TokenScore, ...]] = {}
        """The scores of prompts that are echoed, by their ids (scoring.py)."""
        self.submitted = time.monotonic()

    def cancel(self) -> None:
        """Ask for no more; the worker drops the jobs before its next step. Safe from any thread, and more than once."""
        self.cancelled = True

    def fail(self, error: BaseException) -> None:
        """End all of its jobs with an error."""
        self.cancel()
        with contextlib.suppress(RuntimeError):  # its event loop is closed: nobody listens any more
            self.on_error(error)
