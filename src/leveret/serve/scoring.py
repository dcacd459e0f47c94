"""Prompts whose tokens are to be scored before they are answered (`echo` with `logprobs`): one piece in a round.

Reading a prompt takes as long as many steps, and everybody waits for it. So a round of the worker reads one piece of
one prompt, in the order of arrival, and the answers of a request that have one prompt share its scores.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterator

from leveret.engine.logprobs import score_prompt
from leveret.engine.text import TextModel
from leveret.engine.token_score import TokenScore
from leveret.errors import LeveretError
from leveret.serve.ticket import Ticket


class Scoring:
    """Jobs that wait for the scores of their prompts."""

    def __init__(self, model: TextModel) -> None:
        """`model`: whose the jobs of a ticket without a model are."""
        self._model = model
        self.jobs: deque[tuple[Ticket, int]] = deque()
        """The jobs by their places in their tickets."""
        self._reading: tuple[Ticket, int, Iterator[list[TokenScore]]] | None = None
        self._scores: list[TokenScore] = []

    def add(self, ticket: Ticket, index: int) -> None:
        """Let a job wait for the scores of its prompt."""
        self.jobs.append((ticket, index))

    def step(self) -> list[tuple[Ticket, int]]:
        """Read one more piece; the jobs whose prompts are scored now, in `Ticket.prompt_scores`, and wait no longer."""
        self.jobs = deque((ticket, index) for ticket, index in self.jobs if not ticket.cancelled)
        if self.jobs and not _is_scored(*self.jobs[0]):
            ticket, index = self.jobs[0]
            try:
                self._read(ticket, index)
            except Exception as error:  # this request cannot be served; the others can
                if not isinstance(error, LeveretError):
                    logging.getLogger(__name__).exception("a prompt could not be scored")
                ticket.fail(error)
        ready = []
        while self.jobs and _is_scored(*self.jobs[0]):
            ready.append(self.jobs.popleft())
        return ready

    def clear(self) -> None:
        """Nobody waits any more."""
        self.jobs.clear()
        self._reading = None

    def _read(self, ticket: Ticket, index: int) -> None:
        """One piece of the prompt of a job."""
        job = ticket.jobs[index]
        assert job.prompt_logprobs is not None, "only such a job waits here"
        if self._reading is None or self._reading[:2] != (ticket, index):
            model = (ticket.model or self._model).model
            pieces = score_prompt(model, job.request.prompt_ids, job.prompt_logprobs)
            self._reading, self._scores = (ticket, index, pieces), []
        piece = next(self._reading[2], None)
        if piece is not None:
            self._scores += piece
            return
        ticket.prompt_scores[job.request.prompt_ids] = tuple(self._scores)
        self._reading = None


def _is_scored(ticket: Ticket, index: int) -> bool:
    return ticket.jobs[index].request.prompt_ids in ticket.prompt_scores
