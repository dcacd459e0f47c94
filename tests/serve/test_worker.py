"""The worker without HTTP: order, fairness, cancellation, closing."""

from __future__ import annotations

import queue
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from leveret.engine.jobs import Job
from leveret.engine.reply import Answer, Delta, Reply, reply_from
from leveret.engine.request import Request
from leveret.engine.row import Row
from leveret.engine.text import TextModel
from leveret.errors import RequestError
from leveret.serve.ticket import Ticket
from leveret.serve.worker import Worker


class Listening:
    """A ticket whose deltas land in a queue."""

    def __init__(self, *jobs: Job) -> None:
        self.events: queue.Queue[tuple[int, list[Delta]] | BaseException] = queue.Queue()
        self.ticket = Ticket(jobs, lambda index, deltas: self.events.put((index, deltas)), self.events.put)

    def next(self) -> tuple[int, list[Delta]]:
        event = self.events.get(timeout=60)
        if isinstance(event, BaseException):
            raise event
        return event

    def replies(self) -> list[Reply]:
        deltas: list[list[Delta]] = [[] for _ in self.ticket.jobs]
        while not all(pieces and pieces[-1].finish_reason for pieces in deltas):
            index, fresh = self.next()
            deltas[index] += fresh
        return [reply_from(pieces) for pieces in deltas]


@pytest.fixture
def worker(model: TextModel) -> Iterator[Worker]:
    worker = Worker(model, max_running=4, max_waiting=100)
    yield worker
    worker.close()


def test_many_jobs_through_few_places_give_what_each_gives_alone(worker: Worker, model: TextModel) -> None:
    def jobs() -> list[Job]:
        return [model.prepare_text("call Alice " * (i % 4 + 1), max_tokens=3 + 2 * i, seed=i) for i in range(11)]

    listening = Listening(*jobs())
    worker.submit(listening.ticket)
    assert listening.replies() == model.run(jobs())


def test_a_short_request_overtakes_a_long_one_that_came_first(worker: Worker, model: TextModel) -> None:
    long = Listening(model.prepare_text([5] * 1200, max_tokens=800))
    worker.submit(long.ticket)
    short = Listening(model.prepare_text("Set", max_tokens=4))
    worker.submit(short.ticket)
    assert short.replies()[0].usage.completion_tokens == 4
    assert worker.num_running == 1
    long.ticket.cancel()


def test_cancelled_jobs_free_their_places_and_waiting_ones_never_start(worker: Worker, model: TextModel) -> None:
    first = Listening(*[model.prepare_text("Set", max_tokens=1500) for _ in range(4)])
    waiting = Listening(model.prepare_text("Set", max_tokens=1500))
    last = Listening(model.prepare_text("Set", max_tokens=2))
    for listening in (first, waiting, last):
        worker.submit(listening.ticket)
    waiting.ticket.cancel()
    first.next()
    first.ticket.cancel()
    assert last.replies()[0].usage.completion_tokens == 2
    assert waiting.events.empty()


def test_who_leaves_the_queue_makes_room_in_it(model: TextModel) -> None:
    worker = Worker(model, max_running=1, max_waiting=1)
    long = Listening(model.prepare_text("Set", max_tokens=1500, ignore_eos=True))
    worker.submit(long.ticket)
    long.next()
    for _ in range(5):
        waiting = Listening(model.prepare_text("Set", max_tokens=2))
        worker.submit(waiting.ticket)
        assert worker.busy and worker.num_waiting
        waiting.ticket.cancel()
        for _ in range(100):  # deltas that were on their way already say nothing about the next round
            if worker.num_waiting == 0:
                break
            long.next()
        assert worker.num_waiting == 0
    long.ticket.cancel()
    worker.close()
    assert not worker.busy


def test_a_job_that_fails_at_its_start_harms_no_other(
    worker: Worker, model: TextModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    submit = model.engine.submit

    def refusing(request: Request) -> Row:
        if len(request.prompt_ids) == 7:
            raise RequestError("not this one")
        return submit(request)

    monkeypatch.setattr(model.engine, "submit", refusing)
    good, bad = Listening(model.prepare_text("Set", max_tokens=40)), Listening(model.prepare_text([5] * 7))
    for listening in (good, bad):
        worker.submit(listening.ticket)
    with pytest.raises(RequestError, match="not this one"):
        bad.next()
    assert good.replies()[0].finish_reason


def test_an_answer_that_goes_wrong_ends_alone(worker: Worker, model: TextModel) -> None:
    """In the step, in what is made of it, and at its end."""
    good = Listening(model.prepare_text("Set", max_tokens=40, ignore_eos=True))
    worker.submit(good.ticket)
    for name in ("watch", "drain", "finish"):
        job = model.prepare_text("Set", max_tokens=3, ignore_eos=True)
        broken = Listening(replace(job, answer=Broken(job.answer, name)))
        if name == "watch":
            broken = Listening(replace(job, request=replace(job.request, watch=Broken(job.answer, name).watch)))
        worker.submit(broken.ticket)
        with pytest.raises(ZeroDivisionError):
            broken.replies()
        assert broken.ticket.cancelled
    assert good.replies()[0].usage.completion_tokens == 40
    assert not worker.busy and model.engine.stats.running_requests == 0


class Broken:
    """An answer of which one method fails."""

    def __init__(self, answer: Answer, name: str) -> None:
        self._answer = answer
        self._name = name

    def __getattr__(self, name: str) -> Any:
        return (lambda *_: 1 // 0) if name == self._name else getattr(self._answer, name)


def test_a_job_that_cannot_be_served_is_refused_at_submission(worker: Worker, model: TextModel) -> None:
    with pytest.raises(RequestError, match="2048"):
        worker.submit(Listening(model.prepare_text("x", max_tokens=5000)).ticket)


def test_closing_ends_open_jobs_with_an_error_and_refuses_new_ones(model: TextModel) -> None:
    worker = Worker(model, max_running=1, max_waiting=5)
    listening = Listening(*[model.prepare_text("x", max_tokens=1500) for _ in range(2)])
    worker.submit(listening.ticket)
    worker.close()
    with pytest.raises(RequestError, match="shutting down"):
        while True:
            listening.next()
    with pytest.raises(RequestError, match="shutting down"):
        worker.submit(Listening(model.prepare_text("x")).ticket)
