"""One thread that generates for all requests: it hands new ones to the engine and takes its steps.

    handler --submit--> waiting --thread--> engine --> deltas

The engine sees to it that a long prompt does not hold up the answers that are already flowing (engine/scheduler.py). A
handler reads its events from its own `Ticket` and may cancel it at any time.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence

from leveret.engine.reply import Delta
from leveret.engine.row import Progress, Row
from leveret.engine.text import Job, TextModel
from leveret.errors import RequestError

Listener = Callable[[int, list[Delta]], None]
"""Called in the worker's thread with the place of the job in its ticket and the new deltas. It must not block."""


class Ticket:
    """Jobs submitted together; their deltas go to the listener as they come."""

    def __init__(self, jobs: Sequence[Job], listener: Listener, on_error: Callable[[BaseException], None]) -> None:
        self.jobs = tuple(jobs)
        self.listener = listener
        self.on_error = on_error
        self.cancelled = False

    def cancel(self) -> None:
        """Ask for no more; the worker drops the jobs before its next step. Safe from any thread, and more than once."""
        self.cancelled = True


class Worker:
    """Owns the model while it runs; made by `serve.app`."""

    def __init__(self, model: TextModel, *, max_running: int, max_waiting: int) -> None:
        """`max_running`: jobs generated at the same time; `max_waiting`: jobs that may wait for a place."""
        self._engine = model.engine
        self._max_running = max_running
        self._max_waiting = max_waiting
        self._wake = threading.Condition()
        self._waiting: deque[tuple[Ticket, int]] = deque()
        self._places: dict[Row, tuple[Ticket, int]] = {}
        self._closing = False
        self._thread = threading.Thread(target=self._loop, name="leveret-worker", daemon=True)
        self._thread.start()

    @property
    def num_running(self) -> int:
        """Jobs being generated now."""
        return len(self._places)

    def submit(self, ticket: Ticket) -> None:
        """Queue the jobs of a ticket. Raises RequestError when one cannot be served or the queue is full."""
        for job in ticket.jobs:
            self._engine.check(job.request)
        with self._wake:
            if self._closing:
                raise RequestError("the server is shutting down", code="overloaded")
            if len(self._waiting) + len(ticket.jobs) > self._max_waiting + self._max_running:
                raise RequestError(
                    f"{len(self._waiting)} requests are waiting already", code="overloaded", hint="try again later"
                )
            self._waiting.extend((ticket, index) for index in range(len(ticket.jobs)))
            self._wake.notify()

    def close(self) -> None:
        """Stop the thread; unfinished jobs end with an error."""
        with self._wake:
            self._closing = True
            self._wake.notify()
        self._thread.join()

    def _loop(self) -> None:
        while self._admit():
            try:
                self._drop_cancelled()
                self._deliver(self._engine.step())
            except Exception as error:  # whatever a step raises ends the requests in flight, not the thread
                logging.getLogger(__name__).exception("a step failed; the requests in flight end with an error")
                self._fail_all(error)
        self._fail_all(RequestError("the server is shutting down", code="overloaded"))

    def _admit(self) -> bool:
        """Start waiting jobs while there are places; sleeps when there is nothing to do. False when closing."""
        with self._wake:
            while not (self._waiting or self._places or self._closing):
                self._wake.wait()
            if self._closing:
                return False
            admitted: list[tuple[Ticket, int]] = []
            while self._waiting and len(self._places) + len(admitted) < self._max_running:
                ticket, index = self._waiting.popleft()
                if not ticket.cancelled:
                    admitted.append((ticket, index))
        for ticket, index in admitted:
            self._places[self._engine.submit(ticket.jobs[index].request)] = (ticket, index)
        return True

    def _deliver(self, progress: list[Progress]) -> None:
        for each in progress:
            if each.row not in self._places:
                continue  # somebody else's, who shares the engine
            ticket, index = self._places[each.row]
            answer = ticket.jobs[index].answer
            deltas = answer.drain()
            if each.completion is not None:
                del self._places[each.row]
                deltas += answer.finish(each.completion)
            if deltas and not ticket.cancelled:
                ticket.listener(index, deltas)

    def _drop_cancelled(self) -> None:
        for row in [row for row, (ticket, _) in self._places.items() if ticket.cancelled]:
            del self._places[row]
            self._engine.cancel(row)

    def _fail_all(self, error: BaseException) -> None:
        with self._wake:
            tickets = {id(ticket): ticket for ticket, _ in (*self._places.values(), *self._waiting)}
            self._waiting.clear()
        self._engine.cancel(*self._places)
        self._places.clear()
        for ticket in tickets.values():
            with contextlib.suppress(RuntimeError):  # its event loop is closed: nobody listens any more
                ticket.on_error(error)
