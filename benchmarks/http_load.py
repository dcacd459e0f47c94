"""A crowd of HTTP clients for a server of the OpenAI API: streams that are timed, and clients that misbehave.

Plain sockets of the standard library, so that a client costs next to nothing and can stop anywhere.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

PATH = "/v1/completions"


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What one client saw."""

    tokens: int
    """Tokens that it asked for and got."""
    first_seconds: float
    """Time to the first text."""
    seconds: float
    """Time to the end."""
    wrong: str | None = None
    """What was wrong with the stream."""


async def stream(url: str, body: dict[str, Any], *, pause_seconds: float = 0.0, start: float = 0.0) -> Outcome:
    """One streamed answer; `start`: this client comes so many seconds later; a pause a piece makes a slow reader."""
    await asyncio.sleep(start)
    began, first, reason, ended = time.perf_counter(), None, None, False
    identities: set[str] = set()
    reader, writer = await _opened(url)
    try:
        writer.write(_request(json.dumps(body | {"stream": True}).encode()))
        await writer.drain()
        status = await reader.readline()
        async for event in _events(reader):
            if event == "[DONE]":
                ended = True
                break
            chunk = json.loads(event)
            if "error" in chunk:
                return Outcome(tokens=0, first_seconds=0, seconds=0, wrong=str(chunk["error"]))
            identities.add(chunk["id"])
            first = first or time.perf_counter() - began
            reason = chunk["choices"][0]["finish_reason"] or reason
            await asyncio.sleep(pause_seconds)
    finally:
        writer.close()
    took = time.perf_counter() - began
    wrong = None
    if not ended or len(identities) != 1 or reason != "length":
        wrong = f"{status!r}, finish reason {reason}, ended {ended}, {len(identities)} answers in one stream"
    return Outcome(tokens=0 if wrong else body["max_tokens"], first_seconds=first or took, seconds=took, wrong=wrong)


async def crowd(url: str, bodies: Sequence[dict[str, Any]]) -> list[Outcome]:
    """All at once."""
    return list(await asyncio.gather(*(stream(url, body) for body in bodies)))


async def leave(url: str, body: dict[str, Any], *, after_lines: int) -> None:
    """Go away in the midst of an answer."""
    reader, writer = await _opened(url)
    writer.write(_request(json.dumps(body | {"stream": True}).encode()))
    await writer.drain()
    for _ in range(after_lines):
        await reader.readline()
    writer.transport.abort()


async def status(url: str, raw: bytes) -> int:
    """The status that a body gets."""
    reader, writer = await _opened(url)
    try:
        writer.write(_request(raw))
        await writer.drain()
        return int((await reader.read()).split(b" ", 2)[1])
    finally:
        writer.close()


async def stop_halfway(url: str) -> None:
    """Promise more than is sent."""
    _, writer = await _opened(url)
    writer.write(_request(b'{"prompt": "' + b"x" * 200)[:-100])
    await writer.drain()
    await asyncio.sleep(0.1)
    writer.transport.abort()


async def _opened(url: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    parts = urlsplit(url)
    return await asyncio.open_connection(parts.hostname, parts.port)


def _request(raw: bytes) -> bytes:
    lines = [f"POST {PATH} HTTP/1.1", "Host: here", "Content-Type: application/json", "Connection: close"]
    return "\r\n".join([*lines, f"Content-Length: {len(raw)}", "", ""]).encode() + raw


async def _events(reader: asyncio.StreamReader) -> AsyncIterator[str]:
    while line := await reader.readline():
        if line.startswith(b"data: "):
            yield line[6:].decode().strip()
