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
from leveret.engine.jobs import Job
from leveret.engine.reply import Delta, ReplyReason
from leveret.serve.ticket import Ticket

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


class Interruption:
    """A person's way to end an answer from another event: it then ends with the reason `cancelled`."""

    def __init__(self) -> None:
        self.asked = asyncio.Event()
        self.cleared = False
        """Whether what was said is to be forgotten as well."""

    def ask(self, *, clear: bool = False) -> None:
        """End the answer; called in the event loop."""
        self.cleared = self.cleared or clear
        self.asked.set()


async def answering(
    job: Job, submit: Callable[[Ticket], None], interruption: Interruption | None = None
) -> AsyncGenerator[Sofar]:
    """Views of the growing answer, the last one whole or cancelled. Raises what the worker raises."""
    loop = asyncio.get_running_loop()
    arrivals: asyncio.Queue[list[Delta] | BaseException] = asyncio.Queue()

    def arrive(item: list[Delta] | BaseException) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody looks at the page any more
            loop.call_soon_threadsafe(arrivals.put_nowait, item)

    interrupted = asyncio.create_task((interruption or Interruption()).asked.wait())
    ticket = Ticket([job], lambda index, deltas: arrive(deltas), arrive)
    sofar = Sofar()
    try:
        submit(ticket)
        while sofar.finish_reason is None:
            first = asyncio.create_task(arrivals.get())
            await asyncio.wait({first, interrupted}, return_when=asyncio.FIRST_COMPLETED)
            if interrupted.done():
                first.cancel()
                yield replace(sofar, finish_reason="cancelled")
                return
            items = [first.result()]
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
        interrupted.cancel()
        ticket.cancel()
