"""The queue that backends of other programs share: rows wait, run in a place each, and leave; and the counts of it.

A place is whatever the program needs to know of a running row: a sequence of its cache, a connection.
"""

from __future__ import annotations

import threading
from abc import abstractmethod
from collections import Counter, deque
from typing import Generic, TypeVar

from leveret.engine.backend import Backend
from leveret.engine.request import Request
from leveret.engine.row import Progress, Row
from leveret.engine.stats import EngineStats

Place = TypeVar("Place")


class QueuedBackend(Backend, Generic[Place]):
    """Keeps the rows; who comes first runs first. What runs them is written below it."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._waiting: deque[Row] = deque()
        self._running: dict[Row, Place] = {}
        self._counts: Counter[str] = Counter()

    @property
    def stats(self) -> EngineStats:
        """Counts; the cache is the program's own, and nothing that is known of is reused, preempted or guessed."""
        counts = self._counts
        return EngineStats(
            waiting_requests=len(self._waiting),
            running_requests=len(self._running),
            capacity_tokens=self._capacity_tokens,
            used_tokens=sum(row.num_cached for row in tuple(self._running)),
            kept_tokens=0,
            cache_bytes=0,
            submitted_requests=counts["submitted"],
            finished_requests=counts["finished"],
            cancelled_requests=counts["cancelled"],
            prompt_tokens=counts["prompt"],
            prefill_tokens=counts["prefill"],
            reused_tokens=0,
            generated_tokens=counts["generated"],
            preemptions=0,
            drafted_tokens=0,
            accepted_tokens=0,
            steps=counts["steps"],
        )

    def submit(self, request: Request) -> Row:
        """Queue a request. Raises RequestError when it cannot be served."""
        self.check(request)
        with self._lock:
            row = Row(request)
            self._waiting.append(row)
            self._counts.update(submitted=1, prompt=len(request.prompt_ids))
            return row

    def cancel(self, *rows: Row) -> None:
        """End rows now; they report nothing more."""
        with self._lock:
            for row in rows:
                if row.finish_reason is None:
                    row.finish_reason = "cancelled"
                    self._counts["cancelled"] += 1
                    self._leave(row)

    def close(self) -> None:
        """End all rows."""
        with self._lock:
            self.cancel(*self._running, *self._waiting)

    @property
    @abstractmethod
    def _capacity_tokens(self) -> int:
        """Tokens that the program keeps of all rows; 0 where nobody knows."""

    @abstractmethod
    def _release(self, place: Place) -> None:
        """Give up the place of a row that has left."""

    def _progress(self, row: Row, ids: list[int]) -> Progress:
        """What became of a row that has taken `ids`; a row that has ended by them leaves."""
        self._counts["generated"] += len(ids)
        if row.finish_reason is not None:
            self._leave(row)
            self._counts["finished" if row.error is None else "cancelled"] += 1
        ended = row.finish_reason is not None and row.error is None
        return Progress(row=row, ids=ids, completion=row.completion() if ended else None)

    def _leave(self, row: Row) -> None:
        if row in self._running:
            self._release(self._running.pop(row))
        elif row in self._waiting:
            self._waiting.remove(row)
