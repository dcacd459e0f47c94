"""The inbox: everything that came is taken at once and in order, and an error comes after the news before it."""

from __future__ import annotations

import asyncio
import threading

import pytest

from leveret.engine.reply import Delta
from leveret.serve.inbox import Inbox


def test_news_from_another_thread_come_in_order_and_together() -> None:
    async def scenario() -> list[list[str]]:
        inbox = Inbox(asyncio.get_running_loop())

        def work() -> None:
            for number in range(100):
                inbox.put(0, [Delta(content=str(number))])

        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        taken = []
        while sum(map(len, taken)) < 100:
            taken.append([deltas[0].content for _, deltas in await inbox.take()])
        return taken

    taken = asyncio.run(scenario())
    assert [each for some in taken for each in some] == [str(number) for number in range(100)]
    assert len(taken) < 5


def test_an_error_is_raised_after_the_news_that_came_before_it() -> None:
    async def scenario() -> None:
        inbox = Inbox(asyncio.get_running_loop())
        inbox.put(3, [Delta(content="last words")])
        inbox.fail(RuntimeError("the end"))
        assert [index for index, _ in await inbox.take()] == [3]
        with pytest.raises(RuntimeError, match="the end"):
            await inbox.take()

    asyncio.run(scenario())


def test_who_has_gone_gets_nothing_and_waits_for_nothing() -> None:
    async def scenario() -> None:
        inbox = Inbox(asyncio.get_running_loop())
        waiting = asyncio.create_task(inbox.take())
        await asyncio.sleep(0)
        inbox.hang_up()
        assert await waiting == []

    asyncio.run(scenario())
