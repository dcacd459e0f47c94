"""A crowd of clients, half of them badly behaved: nothing is lost, mixed or kept, and everybody is answered."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from leveret.engine.text import TextModel
from leveret.serve.config import ServeConfig
from leveret.serve.running import running
from leveret.serve.ticket import Ticket

from .load_clients import half_a_request, leaving, status_of, streamed, whole
from .test_guard import metrics

HOSTILE = [
    "\u202eevil\u202c \u0000 \ufeff",
    "👨‍👩‍👧‍👦🏳️‍🌈" * 4,
    "é̀̂" * 20,
    "</s><|im_end|>[DONE]\n\ndata: x",
    "\U0010ffff\ue000\x7f\x1b[2J",
]
BAD_BODIES: list[bytes] = [
    b"",
    b"{",
    b"\xff\xfe",
    b'{"prompt": "\\ud83d"}',
    b'{"prompt": 7}',
    b'{"prompt": "x", "max_tokens": 1e999}',
    b'{"prompt": "x", "stop": {}}',
    json.dumps({"prompt": [5] * 3000, "max_tokens": 4}).encode(),
    b"[" * 5000,
]


def wanted(number: int) -> dict[str, Any]:
    """The request of a well-behaved client: short and long, greedy and sampled."""
    prompt = HOSTILE[number % len(HOSTILE)] if number % 4 == 0 else "call Alice 明天早上 " * (1 + number % 3 * 6)
    sampled = {"temperature": 1.2, "seed": number} if number % 2 else {"temperature": 0}
    return {"prompt": prompt, "max_tokens": 4 + number % 5 * 5, **sampled}


async def crowd(url: str, expected: dict[int, str], clients: int) -> list[float]:
    """All clients at once; the seconds that each of the well-behaved ones waited."""
    waits: list[float] = []

    async def timed(number: int) -> None:
        body, began = wanted(number % 12), time.monotonic()
        ways = (whole(url, body), streamed(url, body), streamed(url, body, pause_seconds=0.003))
        chosen = ways[number % 3]
        for way in ways:
            if way is not chosen:
                way.close()
        assert await chosen == expected[number % 12]
        waits.append(time.monotonic() - began)

    async def refused(raw: bytes) -> None:
        status, content = await status_of(url, raw)
        assert status == 400 and set(content["error"]) == {"message", "type", "param", "code"}

    async with asyncio.TaskGroup() as group:
        for number in range(clients):
            group.create_task(timed(number))
            if number % 4 == 0:
                group.create_task(leaving(url, wanted(7) | {"max_tokens": 1000}, after_events=number % 8))
                group.create_task(refused(BAD_BODIES[number // 4 % len(BAD_BODIES)]))
            if number % 16 == 0:
                group.create_task(half_a_request(url))
    return waits


def soon(holds: Callable[[], bool], otherwise: str) -> None:
    """Wait until something holds; what a client closes, the server closes a moment later."""
    deadline = time.monotonic() + 5
    while not holds():
        assert time.monotonic() < deadline, otherwise
        time.sleep(0.02)


def settled(url: str) -> dict[str, float]:
    """The metrics once nothing runs any more."""

    def idle() -> bool:
        now = metrics(url)
        return not now["leveret_answers_running"] and not now["leveret_answers_waiting"]

    soon(idle, "answers that nobody waits for go on")
    return metrics(url)


@pytest.mark.slow
def test_a_crowd_is_answered_and_leaves_nothing_behind(model: TextModel, capsys: pytest.CaptureFixture[str]) -> None:
    expected = {number: model.generate(**wanted(number)) for number in range(12)}
    with running(model, ServeConfig(model="x", port=0, page=False, max_concurrent_requests=16)) as url:
        asyncio.run(crowd(url, expected, 8))  # whatever is made once is made now
        settled(url)
        threads, files = threading.active_count(), len(os.listdir("/proc/self/fd"))
        waits = sorted(asyncio.run(crowd(url, expected, 64)))
        after = settled(url)
        assert after['leveret_engine_used_tokens{model="phone"}'] == 0
        assert threading.active_count() <= threads + 40  # the pool that tokenizes grows to so many
        soon(lambda: len(os.listdir("/proc/self/fd")) <= files, "sockets are left open")
        soon(
            lambda: gc.collect() >= 0 and not any(type(each) is Ticket for each in gc.get_objects()),
            "requests are kept",
        )
    assert len(waits) == 64
    with capsys.disabled():
        print(f"\n64 clients: p50 {waits[31] * 1000:.0f} ms, p99 {waits[-1] * 1000:.0f} ms")
