"""A small client for the server: one streamed chat request, as any program could make it.

Used by `ask`, which lets a recipe end with answers that really came through the endpoint.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from leveret.chat.messages import ToolCall
from leveret.openai_http import answer_of, events


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a streamed request came to."""

    content: str
    """The text."""
    tool_calls: tuple[ToolCall, ...]
    """The calls, their arguments parsed; without one that was cut off."""
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
    """Ask one question at a server's URL (without /v1); `on_text` gets the text as it arrives.

    Raises RequestError with the server's own words when it refuses.
    """
    content, reason = "", ""
    calls: dict[int, dict[str, str]] = {}
    body = {"messages": [{"role": "user", "content": question}], "stream": True} | ({"tools": tools} if tools else {})
    with answer_of(f"{url}/v1/chat/completions", body, api_key=api_key) as response:
        for choice in (choice for chunk in events(response) for choice in chunk["choices"]):
            piece = choice["delta"].get("content") or ""
            content += piece
            on_text(piece)
            for call in choice["delta"].get("tool_calls", ()):
                parts = calls.setdefault(call["index"], {"id": "", "name": "", "arguments": ""})
                parts["id"] += call.get("id", "")
                for key in ("name", "arguments"):
                    parts[key] += call["function"].get(key, "")
            reason = choice["finish_reason"] or reason
    read = (_read(call) for call in calls.values())
    return Answer(content=content, tool_calls=tuple(call for call in read if call), finish_reason=reason)


def _read(call: Mapping[str, str]) -> ToolCall | None:
    """A call from its parts; None when its arguments have no end."""
    try:
        return ToolCall(call["name"], json.loads(call["arguments"]), call["id"])
    except ValueError:
        return None
