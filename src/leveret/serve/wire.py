"""Replies in the shape of the OpenAI API: whole objects, streamed chunks, and errors.

    chat        {"id", "object": "chat.completion", "created", "model", "choices": [{"index", "message",
                "finish_reason", "logprobs"}], "usage"}
    streamed    data: {"object": "chat.completion.chunk", "choices": [{"index", "delta", ...}]}  ...  data: [DONE]
    error       {"error": {"message", "type", "param", "code"}}

A tool call is streamed as two chunks with the same `index`: its id and name, then its arguments, a JSON text. The
first chunk of each choice carries the role. With `include_usage`, every chunk has `usage: null` and one more at the end
has the usage and no choices.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from leveret.chat.messages import ToolCall
from leveret.engine.reply import Delta, Reply, Usage
from leveret.errors import LeveretError, RequestError

STATUS = {
    "invalid_api_key": 401,
    "model_not_found": 404,
    "not_found": 404,
    "method_not_allowed": 405,
    "request_too_large": 413,
    "overloaded": 429,
}
"""HTTP status by error code; every other mistake in a request is a 400."""

DONE = b"data: [DONE]\n\n"
"""The end of a stream."""


@dataclass(kw_only=True)
class Wire:
    """What all objects of one response share, and what has been streamed of its choices."""

    kind: str
    """`chat.completion` or `text_completion`."""
    model: str
    """The served model's name."""
    choices_per_prompt: int = 1
    """`n`: so many choices share a prompt, which is counted once."""
    include_usage: bool = False
    """Whether the stream ends with a usage chunk."""
    id: str = ""
    created: int = field(default_factory=lambda: int(time.time()))
    _num_calls: dict[int, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        prefix = "chatcmpl" if self.chat else "cmpl"
        self.id = self.id or f"{prefix}-{uuid.uuid4().hex}"

    @property
    def chat(self) -> bool:
        """Whether this answers /v1/chat/completions."""
        return self.kind == "chat.completion"

    def whole(self, replies: Sequence[Reply]) -> dict[str, Any]:
        """The response that is not streamed: one choice a reply."""
        choices = [self._choice(index, reply) for index, reply in enumerate(replies)]
        return {**self._head(self.kind), "choices": choices, "usage": self._usage([reply.usage for reply in replies])}

    def opening(self, num_choices: int) -> bytes:
        """The first chunks of a chat: each choice's role."""
        if not self.chat:
            return b""
        return b"".join(self._chunk(index, {"role": "assistant", "content": ""}) for index in range(num_choices))

    def piece(self, index: int, delta: Delta) -> bytes:
        """The chunks of one delta of choice `index`."""
        out = b""
        if delta.content:
            out += self._chunk(index, {"content": delta.content})
        if delta.tool_call is not None:
            number = self._num_calls.get(index, 0)
            self._num_calls[index] = number + 1
            call = call_body(delta.tool_call)
            arguments = call["function"].pop("arguments")
            call["function"]["arguments"] = ""
            out += self._chunk(index, {"tool_calls": [{"index": number, **call}]})
            out += self._chunk(index, {"tool_calls": [{"index": number, "function": {"arguments": arguments}}]})
        if delta.finish_reason is not None:
            out += self._chunk(index, {}, delta.finish_reason)
        return out

    def closing(self, usages: Sequence[Usage]) -> bytes:
        """The usage chunk, if asked for, and the end."""
        if not self.include_usage:
            return DONE
        return event({**self._head(self._chunk_kind), "choices": [], "usage": self._usage(usages)}) + DONE

    def _usage(self, usages: Sequence[Usage]) -> dict[str, int]:
        prompt = sum(usage.prompt_tokens for usage in usages[:: self.choices_per_prompt])
        completion = sum(usage.completion_tokens for usage in usages)
        return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}

    @property
    def _chunk_kind(self) -> str:
        return "chat.completion.chunk" if self.chat else self.kind

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}

    def _choice(self, index: int, reply: Reply) -> dict[str, Any]:
        choice: dict[str, Any] = {"index": index, "finish_reason": reply.finish_reason, "logprobs": None}
        if not self.chat:
            return {**choice, "text": reply.content}
        message: dict[str, Any] = {"role": "assistant", "content": reply.content}
        if reply.tool_calls:
            message["content"] = reply.content or None
            message["tool_calls"] = [call_body(call) for call in reply.tool_calls]
        return {**choice, "message": message}

    def _chunk(self, index: int, delta: dict[str, Any], finish_reason: str | None = None) -> bytes:
        choice: dict[str, Any] = {"index": index, "finish_reason": finish_reason, "logprobs": None}
        choice |= {"delta": delta} if self.chat else {"text": delta.get("content", "")}
        chunk = {**self._head(self._chunk_kind), "choices": [choice]}
        return event(chunk | ({"usage": None} if self.include_usage else {}))


def call_body(call: ToolCall) -> dict[str, Any]:
    """A tool call with its arguments as a JSON text, and an id of its own."""
    arguments = json.dumps(call.arguments, ensure_ascii=False)
    identity = call.id or f"call_{uuid.uuid4().hex[:24]}"
    return {"id": identity, "type": "function", "function": {"name": call.name, "arguments": arguments}}


def event(data: dict[str, Any]) -> bytes:
    """One server-sent event."""
    return f"data: {json.dumps(data, ensure_ascii=False)}\n\n".encode()


def error_body(error: BaseException) -> tuple[int, dict[str, Any]]:
    """HTTP status and body for an error. What is not the client's doing is a 500 that tells no internals."""
    if isinstance(error, RequestError):
        status = STATUS.get(error.code or "", 400)
        kind = "rate_limit_error" if status == 429 else "invalid_request_error"
        return status, _error(str(error), kind, error.param, error.code)
    message = str(error) if isinstance(error, LeveretError) else "the server failed to answer; its log says why"
    return 500, _error(message, "server_error", None, "internal_error")


def _error(message: str, kind: str, param: str | None, code: str | None) -> dict[str, Any]:
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}
