"""The way back from the worker's thread to a handler: events of a ticket, until all has come or nobody listens."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator

from starlette.requests import Request

from leveret.engine.reply import Delta
from leveret.serve.worker import Ticket


class Inbox:
    """Brings events from the worker's thread into a handler's event loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._queue: asyncio.Queue[tuple[int, list[Delta]] | BaseException] = asyncio.Queue()

    def put(self, index: int, deltas: list[Delta]) -> None:
        """Take news of a job; from any thread."""
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody listens any more
            self._loop.call_soon_threadsafe(self._queue.put_nowait, (index, deltas))

    def fail(self, error: BaseException) -> None:
        """Take the error that ended the ticket; from any thread."""
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._queue.put_nowait, error)

    async def get(self) -> tuple[int, list[Delta]]:
        """The next event; raises the error that ended the ticket."""
        item = await self._queue.get()
        if isinstance(item, BaseException):
            raise item
        return item


async def events(request: Request, ticket: Ticket, inbox: Inbox) -> AsyncGenerator[tuple[int, list[Delta]]]:
    """Events of a ticket until all its jobs have ended or the client has gone; cancels the ticket on the way out."""
    gone = asyncio.create_task(_disconnected(request))
    arrival: asyncio.Task[tuple[int, list[Delta]]] | None = None
    unfinished = len(ticket.jobs)
    try:
        while unfinished:
            arrival = asyncio.create_task(inbox.get())
            await asyncio.wait({arrival, gone}, return_when=asyncio.FIRST_COMPLETED)
            if not arrival.done():
                return
            index, deltas = arrival.result()
            unfinished -= deltas[-1].finish_reason is not None
            yield index, deltas
    finally:
        ticket.cancel()
        gone.cancel()
        if arrival is not None:  # this task itself may have been cancelled while it waited
            arrival.cancel()


async def _disconnected(request: Request) -> None:
    """Returns when the client has closed the connection."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
