"""A small client for the server: one streamed chat request over the standard library's HTTP, as any program could.

Used by `ask`, which lets a recipe end with answers that really came through the endpoint.
"""

from __future__ import annotations

import http.client
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from leveret.chat.messages import ToolCall
from leveret.errors import LeveretError


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a streamed request came to."""

    content: str
    """The text."""
    tool_calls: tuple[ToolCall, ...]
    """The calls, their arguments parsed."""
    finish_reason: str
    """As the server gave it."""


def ask(
    url: str,
    question: str,
    *,
    tools: list[dict[str, Any]] | None = None,
    api_key: str | None = None,
    on_text: Callable[[str], None] = lambda text: None,
) -> Answer:
    """Ask one question at a server's base URL; `on_text` gets the text as it arrives.

    Raises LeveretError with the server's own words when it refuses.
    """
    content, reason = "", ""
    calls: dict[int, dict[str, str]] = {}
    for chunk in _chunks(url, question, tools, api_key):
        for choice in chunk["choices"]:
            piece = choice["delta"].get("content") or ""
            content += piece
            on_text(piece)
            for call in choice["delta"].get("tool_calls", ()):
                parts = calls.setdefault(call["index"], {"id": "", "name": "", "arguments": ""})
                parts["id"] += call.get("id", "")
                for key in ("name", "arguments"):
                    parts[key] += call["function"].get(key, "")
            reason = choice["finish_reason"] or reason
    return Answer(
        content=content,
        tool_calls=tuple(ToolCall(call["name"], json.loads(call["arguments"]), call["id"]) for call in calls.values()),
        finish_reason=reason,
    )


def _chunks(
    url: str, question: str, tools: list[dict[str, Any]] | None, api_key: str | None
) -> Iterator[dict[str, Any]]:
    """The chunks of the streamed response, up to [DONE]."""
    body = {"messages": [{"role": "user", "content": question}], "stream": True} | ({"tools": tools} if tools else {})
    headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {api_key}"} if api_key else {})
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=600)
    try:
        connection.request("POST", "/v1/chat/completions", json.dumps(body), headers)
        response = connection.getresponse()
        if response.status != 200:
            raise LeveretError(f"the server answered {response.status}: {response.read().decode(errors='replace')}")
        for line in response:
            data = line.decode().strip().removeprefix("data: ")
            if data == "[DONE]":
                return
            if data:
                chunk = json.loads(data)
                if "error" in chunk:
                    raise LeveretError(f"the server failed: {chunk['error']['message']}")
                yield chunk
        raise LeveretError("the server closed the connection before the answer was complete")
    finally:
        connection.close()
