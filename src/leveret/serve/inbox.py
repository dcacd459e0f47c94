"""The way back from the worker's thread to a handler: news of a ticket, until all has come or nobody listens.

A handler that was busy finds all that came meanwhile at once, and writes it in one piece. Nothing is made per token but
a place in a list: with a small model and a crowd, tokens come thousands a second.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator

from starlette.requests import Request

from leveret.engine.reply import Delta
from leveret.serve.ticket import Ticket

News = list[tuple[int, list[Delta]]]
"""Places of jobs in their ticket, and their new deltas."""


class Inbox:
    """Brings news from the worker's thread into a handler's event loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._news: News = []
        self._error: BaseException | None = None
        self._gone = False
        self._wake = asyncio.Event()

    def put(self, index: int, deltas: list[Delta]) -> None:
        """Take news of a job; from any thread."""
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody listens any more
            self._loop.call_soon_threadsafe(self._arrive, index, deltas)

    def fail(self, error: BaseException) -> None:
        """Take the error that ended the ticket; from any thread."""
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._break, error)

    def hang_up(self) -> None:
        """The client has gone: `take` waits for nothing more."""
        self._gone = True
        self._wake.set()

    async def take(self) -> News:
        """All news since the last time, at least one; [] when the client has gone. Raises what ended the ticket."""
        await self._wake.wait()
        self._wake.clear()
        if self._gone:
            return []
        if self._error is not None and not self._news:
            raise self._error
        news, self._news = self._news, []
        if self._error is not None:
            self._wake.set()
        return news

    def _arrive(self, index: int, deltas: list[Delta]) -> None:
        self._news.append((index, deltas))
        self._wake.set()

    def _break(self, error: BaseException) -> None:
        self._error = error
        self._wake.set()


async def events(request: Request, ticket: Ticket, inbox: Inbox) -> AsyncGenerator[News]:
    """News of a ticket until all its jobs have ended or the client has gone; cancels the ticket on the way out."""
    gone = asyncio.create_task(_disconnected(request))
    gone.add_done_callback(lambda _: inbox.hang_up())
    unfinished = len(ticket.jobs)
    try:
        while unfinished and (news := await inbox.take()):
            unfinished -= sum(deltas[-1].finish_reason is not None for _, deltas in news)
            yield news
    finally:
        ticket.cancel()
        gone.cancel()


async def _disconnected(request: Request) -> None:
    """Returns when the client has closed the connection."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
