"""An answer on its way to a page: a job goes to the server's worker, and what is there of it comes back, view by view.

The page and the API share one worker, so one model, one queue and its limits. Whoever stops listening (the stop button,
a closed tab) cancels the job.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass, replace

from leveret.chat.messages import ToolCall
from leveret.engine.reply import Delta, ReplyReason
from leveret.engine.text import Job
from leveret.serve.worker import Ticket

SECONDS_BETWEEN_VIEWS = 0.05
"""A page is redrawn this often at most, however fast the tokens come."""


@dataclass(frozen=True, kw_only=True)
class Sofar:
    """What there is of an answer."""

    content: str = ""
    calls: tuple[ToolCall, ...] = ()
    finish_reason: ReplyReason | None = None
    """Set when it is whole."""

    def grown(self, delta: Delta) -> Sofar:
        """With the next piece."""
        return replace(
            self,
            content=self.content + delta.content,
            calls=self.calls if delta.tool_call is None else (*self.calls, delta.tool_call),
            finish_reason=delta.finish_reason or self.finish_reason,
        )


async def answering(job: Job, submit: Callable[[Ticket], None]) -> AsyncGenerator[Sofar]:
    """Views of the growing answer, the last one whole. Raises what the worker raises."""
    loop = asyncio.get_running_loop()
    arrivals: asyncio.Queue[list[Delta] | BaseException] = asyncio.Queue()

    def arrive(item: list[Delta] | BaseException) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody looks at the page any more
            loop.call_soon_threadsafe(arrivals.put_nowait, item)

    ticket = Ticket([job], lambda index, deltas: arrive(deltas), arrive)
    submit(ticket)
    sofar = Sofar()
    try:
        while sofar.finish_reason is None:
            items = [await arrivals.get()]
            while not arrivals.empty():
                items.append(arrivals.get_nowait())
            for item in items:
                if isinstance(item, BaseException):
                    raise item
                for delta in item:
                    sofar = sofar.grown(delta)
            yield sofar
            if sofar.finish_reason is None:
                await asyncio.sleep(SECONDS_BETWEEN_VIEWS)
    finally:
        ticket.cancel()
