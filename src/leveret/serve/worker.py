"""One thread that generates for all requests: new ones join between two steps.

    handler --submit--> waiting --thread--> the engine of its model --deltas--> handler

Every round of the loop starts what there is room for, drops what nobody wants any more or what took too long, and steps
every engine that has work: one, which answers for a model and its adapters together (models.py), and those of adapters
that cannot share it. A handler reads its events from its own `Ticket` and may cancel it at any time. An answer that
goes wrong ends alone; a step that does ends what it was for.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace

from leveret.engine.backend import Backend
from leveret.engine.reply import Delta
from leveret.engine.row import Progress, Row
from leveret.engine.text import TextModel
from leveret.errors import LeveretError, RequestError
from leveret.serve.metrics import Metrics
from leveret.serve.scoring import Scoring
from leveret.serve.ticket import Ticket


@dataclass(kw_only=True, eq=False)
class _Place:
    """A job being answered."""

    ticket: Ticket
    index: int
    engine: Backend
    last: float | None = None
    """When its last token came."""


class Worker:
    """Owns the model while it runs; made by `serve.app`."""

    def __init__(
        self,
        model: TextModel,
        *,
        max_running: int,
        max_waiting: int,
        max_seconds: float | None = None,
        metrics: Metrics | None = None,
    ) -> None:
        """`max_running`: jobs generated at the same time; `max_waiting`: jobs that may wait for a place;
        `max_seconds`: what takes longer, from submission to the end, ends with an error."""
        self._model = model
        self._max_running = max_running
        self._max_waiting = max_waiting
        self._max_seconds = max_seconds
        self.metrics = metrics or Metrics()
        self.metrics.watch("answers_running", "Answers being generated now.", lambda: self.num_running)
        self.metrics.watch("answers_waiting", "Answers that wait for a place.", lambda: self.num_waiting)
        self._wake = threading.Condition()
        self._waiting: deque[tuple[Ticket, int]] = deque()
        self._places: dict[Row, _Place] = {}
        self._scoring = Scoring(model)
        self._num_starting = 0
        self._draining = self._closing = False
        self._thread = threading.Thread(target=self._loop, name="leveret-worker", daemon=True)
        self._thread.start()

    @property
    def max_jobs(self) -> int:
        """Jobs that there is room for at a time, in the queue and out of it."""
        return self._max_waiting + self._max_running

    @property
    def num_running(self) -> int:
        """Jobs being generated now."""
        return len(self._places)

    @property
    def num_waiting(self) -> int:
        """Jobs that wait for a place."""
        return len(self._waiting)

    @property
    def busy(self) -> bool:
        """Whether a job is running or waiting."""
        return bool(self._num_in_hand)

    def submit(self, ticket: Ticket) -> None:
        """Queue the jobs of a ticket. Raises RequestError when one cannot be served or the queue is full."""
        engine = (ticket.model or self._model).engine
        for job in ticket.jobs:
            engine.check(job.request)
        with self._wake:
            if self._closing or self._draining:
                raise _shutting_down()
            if self._num_in_hand + len(ticket.jobs) > self.max_jobs:
                raise RequestError(
                    f"{self._num_in_hand} answers are under way or waiting already",
                    code="overloaded",
                    hint="try again later",
                )
            self._waiting.extend((ticket, index) for index in range(len(ticket.jobs)))
            self._wake.notify()

    def drain(self) -> None:
        """Take nothing new from now on; what has been submitted goes on. `busy` says when it is done."""
        self._draining = True

    def close(self) -> None:
        """Stop the thread; unfinished jobs end with an error."""
        with self._wake:
            self._closing = True
            self._wake.notify()
        self._thread.join()

    @property
    def _num_begun(self) -> int:
        """Jobs that have left the queue: running, or waiting for the scores of their prompts."""
        return len(self._places) + len(self._scoring.jobs)

    @property
    def _num_in_hand(self) -> int:
        return len(self._waiting) + self._num_starting + self._num_begun

    def _loop(self) -> None:
        while (admitted := self._admit()) is not None:
            try:
                self._round(admitted)
            except Exception as error:  # whatever a step raises ends the requests in flight, not the thread
                logging.getLogger(__name__).exception("a step failed; the requests in flight end with an error")
                self._fail_all(error, admitted)
            del admitted  # a thread that sleeps holds on to nobody's request
        self._fail_all(_shutting_down())

    def _round(self, admitted: Sequence[tuple[Ticket, int]]) -> None:
        for ticket, index in admitted:
            self.metrics.queue_seconds.observe(time.monotonic() - ticket.submitted)
            if ticket.jobs[index].prompt_logprobs is None:
                self._start(ticket, index)
            else:
                self._scoring.add(ticket, index)
            self._num_starting -= 1
        for ticket, index in self._scoring.step():
            self._start(ticket, index)
        self._drop_unwanted()
        for engine in self._engines():
            self._deliver(engine.step())

    def _admit(self) -> list[tuple[Ticket, int]] | None:
        """The waiting jobs that there is room for; sleeps when there is nothing to do. None when closing."""
        with self._wake:
            while not (self._waiting or self._num_begun or self._closing):
                self._wake.wait()
            if self._closing:
                return None
            admitted: list[tuple[Ticket, int]] = []
            if any(ticket.cancelled for ticket, _ in self._waiting):  # whose room in the queue others may have
                self._waiting = deque(each for each in self._waiting if not each[0].cancelled)
            while self._waiting and self._num_begun + len(admitted) < self._max_running:
                admitted.append(self._waiting.popleft())
            self._num_starting = len(admitted)
        return admitted

    def _start(self, ticket: Ticket, index: int) -> None:
        request, engine = ticket.jobs[index].request, (ticket.model or self._model).engine
        try:
            if (scores := ticket.prompt_scores.get(request.prompt_ids)) is not None:
                ticket.listener(index, [Delta(prompt_scores=scores)])
            self._places[engine.submit(request)] = _Place(ticket=ticket, index=index, engine=engine)
        except LeveretError as error:  # this request cannot be served; the others can
            ticket.fail(error)

    def _engines(self) -> set[Backend]:
        """The engines that have work."""
        return {place.engine.runs_in for place in tuple(self._places.values())}

    def _deliver(self, progress: list[Progress]) -> None:
        now = time.monotonic()
        for each in progress:
            if each.row not in self._places:
                continue  # somebody else's, who shares the engine
            place = self._places[each.row]
            try:
                deltas = _deltas(place, each)
            except Exception as error:
                if error is not each.row.error:
                    logging.getLogger(__name__).exception("an answer failed; the others go on")
                place.engine.cancel(each.row)
                self._count(self._places.pop(each.row), each.row, "cancelled")
                place.ticket.fail(error)  # and with it the other answers of this ticket
                continue
            self._clock(place, now)
            if each.completion is not None:
                self._count(self._places.pop(each.row), each.row, each.completion.finish_reason)
            if deltas and not place.ticket.cancelled:
                place.ticket.listener(place.index, deltas)

    def _clock(self, place: _Place, now: float) -> None:
        if place.last is None:
            self.metrics.first_token_seconds.observe(now - place.ticket.submitted)
        else:
            self.metrics.next_token_seconds.observe(now - place.last)
        place.last = now

    def _drop_unwanted(self) -> None:
        """Let go of jobs whose ticket was cancelled, or has taken too long."""
        late = self._late()
        for ticket in late:
            ticket.cancel()
        for row in [row for row, place in self._places.items() if place.ticket.cancelled]:
            place = self._places.pop(row)
            place.engine.cancel(row)
            self._count(place, row, "cancelled")
        for ticket in late:  # whoever hears of it finds nothing held any more
            ticket.fail(RequestError(f"the answer took longer than {self._max_seconds:g} s", code="timeout"))

    def _late(self) -> list[Ticket]:
        """Tickets that have taken too long."""
        if self._max_seconds is None:
            return []
        oldest = time.monotonic() - self._max_seconds
        with self._wake:
            tickets = {id(ticket): ticket for ticket, _ in (*self._waiting, *self._scoring.jobs)}
        tickets |= {id(place.ticket): place.ticket for place in self._places.values()}
        return [ticket for ticket in tickets.values() if ticket.submitted < oldest and not ticket.cancelled]

    def _count(self, place: _Place, row: Row, reason: str) -> None:
        """Into the books with a job that has ended."""
        metrics, model = self.metrics, place.ticket.model or self._model
        metrics.answers.labels(model.name, reason).inc()
        metrics.prompt_tokens.inc(len(row.request.prompt_ids))
        metrics.generated_tokens.inc(len(row.generated) + (row.stop_id is not None))
        metrics.answer_seconds.observe(time.monotonic() - place.ticket.submitted)

    def _fail_all(self, error: BaseException, admitted: Sequence[tuple[Ticket, int]] = ()) -> None:
        with self._wake:
            waiting = tuple(self._waiting)
            self._waiting.clear()
        tickets = {id(ticket): ticket for ticket, _ in (*admitted, *waiting, *self._scoring.jobs)}
        tickets |= {id(place.ticket): place.ticket for place in self._places.values()}
        for row, place in self._places.items():
            place.engine.cancel(row)
        self._places.clear()
        self._scoring.clear()
        self._num_starting = 0
        for ticket in tickets.values():
            ticket.fail(error)


def _deltas(place: _Place, progress: Progress) -> list[Delta]:
    """What became of an answer in a step. Raises what the row was given up for."""
    if progress.row.error is not None:
        raise progress.row.error
    answer = place.ticket.jobs[place.index].answer
    deltas = answer.drain()
    if place.ticket.counts:
        deltas = [replace(delta, num_generated=progress.row.num_generated) for delta in deltas]
    return deltas if progress.completion is None else [*deltas, *answer.finish(progress.completion)]


def _shutting_down() -> RequestError:
    return RequestError("the server is shutting down", code="shutting_down")
