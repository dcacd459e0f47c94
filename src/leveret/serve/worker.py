"""One thread that generates for all requests: new ones join the running batch between two steps.

    handler --submit--> waiting --thread--> own prefill, chunk by chunk --absorbed--> running batch --> deltas

Every round of the loop takes one step of the running batch and one step of the oldest prompt that is still being
read. So a long prompt does not hold up the answers that are already flowing, and requests are served in the order in
which they came. A handler reads its events from its own `Ticket` and may cancel it at any time.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence

from leveret.engine.batch import Batch, Progress, Row
from leveret.engine.reply import Delta
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
        self._reading: deque[Batch] = deque()
        self._running: Batch | None = None
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
                self._step()
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
            batch = self._engine.start([ticket.jobs[index].request])
            self._places[batch.rows[0]] = (ticket, index)
            self._reading.append(batch)
        return True

    def _step(self) -> None:
        if self._running is not None and not self._running.finished:
            self._deliver(self._running.step())
        if not self._reading:
            return
        progress = self._reading[0].step()
        if not progress:
            return  # a chunk of a long prompt; the rest follows in the next rounds
        self._deliver(progress)
        batch = self._reading.popleft()
        if self._running is None or self._running.finished:
            self._running = batch
        else:
            self._running.absorb(batch)

    def _deliver(self, progress: list[Progress]) -> None:
        for each in progress:
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
            for batch in self._batches():
                if row in batch.rows:
                    batch.cancel(row)
        self._reading = deque(batch for batch in self._reading if not batch.finished)

    def _batches(self) -> Iterator[Batch]:
        yield from self._reading
        if self._running is not None:
            yield self._running

    def _fail_all(self, error: BaseException) -> None:
        with self._wake:
            tickets = {id(ticket): ticket for ticket, _ in (*self._places.values(), *self._waiting)}
            self._waiting.clear()
        self._places.clear()
        self._reading.clear()
        self._running = None
        for ticket in tickets.values():
            with contextlib.suppress(RuntimeError):  # its event loop is closed: nobody listens any more
                ticket.on_error(error)
