"""Clients of a load test: well-behaved ones that check what they get, and those that a server meets in the wild.

Plain sockets, so that a client can stop in the midst of anything. Each coroutine returns what it saw, or raises.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import urlsplit

COMPLETIONS = "/v1/completions"


@asynccontextmanager
async def connected(
    url: str, *, limit: int = 65536
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    host, _, port = urlsplit(url).netloc.partition(":")
    reader, writer = await asyncio.open_connection(host, int(port), limit=limit)
    try:
        yield reader, writer
    finally:
        writer.close()


def request_bytes(raw: bytes, path: str = COMPLETIONS) -> bytes:
    return (
        f"POST {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: {len(raw)}\r\n\r\n".encode()
        + raw
    )


async def status_of(url: str, raw: bytes, path: str = COMPLETIONS) -> tuple[int, Any]:
    """The status and the body of a request."""
    async with connected(url) as (reader, writer):
        writer.write(request_bytes(raw, path))
        await writer.drain()
        head, _, content = (await reader.read()).partition(b"\r\n\r\n")
        status = int(head.split(b" ", 2)[1])
        if b"chunked" in head.lower():
            content = b"".join(chunks_of(content))
        return status, json.loads(content)


async def whole(url: str, body: dict[str, Any]) -> str:
    """The text of an answer that is not streamed."""
    status, content = await status_of(url, json.dumps(body).encode())
    assert status == 200, content
    assert content["usage"]["completion_tokens"] <= body["max_tokens"]
    return str(content["choices"][0]["text"])


async def streamed(url: str, body: dict[str, Any], *, pause_seconds: float = 0.0) -> str:
    """The text of a streamed answer, every piece of which belongs to the same one; with pauses a slow reader."""
    async with connected(url, limit=4096) as (reader, writer):
        writer.write(request_bytes(json.dumps(body | {"stream": True}).encode()))
        await writer.drain()
        assert b" 200 " in await reader.readline()
        text, identities, ended = "", set(), False
        async for event in events_of(reader):
            await asyncio.sleep(pause_seconds)
            if event == "[DONE]":
                ended = True
                continue
            chunk = json.loads(event)
            assert "error" not in chunk, chunk
            identities.add(chunk["id"])
            text += chunk["choices"][0]["text"]
        assert ended and len(identities) == 1, f"a stream was cut or mixed: {identities}"
        return text


async def leaving(url: str, body: dict[str, Any], *, after_events: int) -> None:
    """A client that goes away in the midst of its answer, or before the first word of it."""
    async with connected(url) as (reader, writer):
        writer.write(request_bytes(json.dumps(body | {"stream": True}).encode()))
        await writer.drain()
        for _ in range(after_events):
            await reader.readline()
        writer.transport.abort()


async def half_a_request(url: str) -> None:
    """A client that promises more than it sends."""
    async with connected(url) as (_, writer):
        writer.write(request_bytes(b'{"prompt": "' + b"x" * 100)[:-50])
        await writer.drain()
        await asyncio.sleep(0.05)


async def events_of(reader: asyncio.StreamReader) -> AsyncIterator[str]:
    """The data of server-sent events; lines of the chunked encoding between them are passed over."""
    while line := await reader.readline():
        if line.startswith(b"data: "):
            yield line[6:].decode().strip()


def chunks_of(content: bytes) -> list[bytes]:
    """The pieces of a chunked body."""
    pieces = []
    while content:
        size, _, content = content.partition(b"\r\n")
        pieces.append(content[: int(size, 16)])
        content = content[int(size, 16) + 2 :]
    return pieces
