"""Replies in the shape of the OpenAI API: whole objects, streamed chunks, and errors.

    chat        {"id", "object": "chat.completion", "created", "model", "choices": [{"index", "message",
                "finish_reason", "logprobs"}], "usage"}
    streamed    data: {"object": "chat.completion.chunk", "choices": [{"index", "delta", ...}]}  ...  data: [DONE]
    error       {"error": {"message", "type", "param", "code"}}

A tool call is streamed as chunks with the same `index`: its id and name, then its arguments, a JSON text, as they are
written. One that the answer ends within has the beginning of its arguments, streamed or not. The first chunk of each
choice carries the role. With `include_usage`, every chunk has `usage: null` and one more at the end has the usage and
no choices; with `continuous_usage_stats` too, every chunk has the usage of its choice so far. How log probabilities are
written is in `probabilities.py`.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from leveret.chat.messages import CallPiece, ToolCall
from leveret.engine.reply import Delta, Reply, Usage
from leveret.engine.score_line import PlacedScore
from leveret.engine.token_score import TokenScore
from leveret.errors import LeveretError, RequestError
from leveret.serve.probabilities import chat_logprobs, text_logprobs
from leveret.tokenizer.files import Tokenizer

STATUS = {
    "invalid_api_key": 401,
    "forbidden": 403,
    "model_not_found": 404,
    "not_found": 404,
    "method_not_allowed": 405,
    "body_too_slow": 408,
    "request_too_large": 413,
    "overloaded": 429,
    "shutting_down": 503,
    "timeout": 503,
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
    """`n`: so many choices share a prompt."""
    jobs_per_prompt: int = 1
    """So many answers were generated for a prompt, which is counted once."""
    include_usage: bool = False
    """Whether the stream ends with a usage chunk."""
    prompt_tokens: tuple[int, ...] = ()
    """The length of each choice's prompt, where every chunk is to have the usage so far."""
    role: str = "assistant"
    """Who speaks in a chat."""
    tokenizer: Tokenizer | None = None
    """Given when log probabilities are wanted."""
    echoes: tuple[str, ...] = ()
    """The prompts, when they are to come before their completions."""
    id: str = ""
    created: int = field(default_factory=lambda: int(time.time()))
    _num_calls: dict[int, int] = field(default_factory=dict)
    _num_generated: dict[int, int] = field(default_factory=dict)
    _num_in_pieces: dict[int, int] = field(default_factory=dict)
    _prompt_logprobs: dict[int, dict[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        prefix = "chatcmpl" if self.chat else "cmpl"
        self.id = self.id or f"{prefix}-{uuid.uuid4().hex}"

    @property
    def chat(self) -> bool:
        """Whether this answers /v1/chat/completions."""
        return self.kind == "chat.completion"

    def whole(self, replies: Sequence[Reply], *, usages: Sequence[Usage]) -> dict[str, Any]:
        """The response that is not streamed: one choice a reply; `usages` of all that was generated."""
        choices = [self._choice(index, reply) for index, reply in enumerate(replies)]
        return {**self._head(self.kind), "choices": choices, "usage": self._usage(usages)}

    def opening(self, num_choices: int) -> bytes:
        """The first chunks: each choice's role in a chat, its prompt where that is echoed."""
        if self.chat:
            first: dict[str, Any] = {"role": self.role, "content": ""}
            return b"".join(self._chunk(index, first) for index in range(num_choices))
        if not self.echoes or self.tokenizer is not None:  # an echo with scores waits for them
            return b""
        return b"".join(self._chunk(index, {"content": self._echo(index)}) for index in range(num_choices))

    def piece(self, index: int, delta: Delta) -> bytes:
        """The chunks of one delta of choice `index`."""
        out = b""
        count = delta.num_generated if delta.usage is None else delta.usage.completion_tokens
        if count is not None:
            self._num_generated[index] = count
        if delta.prompt_scores:
            scores = self._logprobs(index, (), delta.prompt_scores)
            out += self._chunk(index, {"content": self._echo(index)}, logprobs=scores)
        if delta.content or delta.scores:
            scores = self._logprobs(index, delta.scores)
            out += self._chunk(index, {"content": delta.content}, logprobs=scores)
        if delta.call_piece is not None:
            out += self._call_piece(index, delta.call_piece)
        if delta.tool_call is not None and not self._was_in_pieces(index):
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

    def _call_piece(self, index: int, piece: CallPiece) -> bytes:
        function: dict[str, Any] = {"arguments": piece.arguments}
        call: dict[str, Any] = {"index": piece.index, "function": function}
        if piece.name is not None:
            self._num_in_pieces[index] = piece.index + 1
            function = {"name": piece.name, **function}
            call |= {"id": call_id(), "type": "function", "function": function}
        return self._chunk(index, {"tool_calls": [call]})

    def _was_in_pieces(self, index: int) -> bool:
        """Whether the call that is whole now has been streamed while it was written; counts it if so."""
        number = self._num_calls.get(index, 0)
        if number >= self._num_in_pieces.get(index, 0):
            return False
        self._num_calls[index] = number + 1
        return True

    def closing(self, usages: Sequence[Usage]) -> bytes:
        """The usage chunk, if asked for, and the end."""
        if not self.include_usage:
            return DONE
        return event({**self._head(self._chunk_kind), "choices": [], "usage": self._usage(usages)}) + DONE

    def _usage(self, usages: Sequence[Usage]) -> dict[str, int]:
        prompt = sum(usage.prompt_tokens for usage in usages[:: self.jobs_per_prompt])
        completion = sum(usage.completion_tokens for usage in usages)
        return _tokens(prompt, completion)

    @property
    def _chunk_kind(self) -> str:
        return "chat.completion.chunk" if self.chat else self.kind

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}

    def _choice(self, index: int, reply: Reply) -> dict[str, Any]:
        scores = self._logprobs(index, reply.scores, reply.prompt_scores)
        choice: dict[str, Any] = {"index": index, "finish_reason": reply.finish_reason, "logprobs": scores}
        if not self.chat:
            return {**choice, "text": self._echo(index) + reply.content}
        message: dict[str, Any] = {"role": self.role, "content": reply.content}
        calls = [call_body(call) for call in reply.tool_calls]
        if (cut := reply.cut_call) is not None:
            calls.append(_body(call_id(), cut.name, cut.arguments))
        if calls:
            message["content"] = reply.content or None
            message["tool_calls"] = calls
        return {**choice, "message": message}

    def _echo(self, index: int) -> str:
        return self.echoes[index // self.choices_per_prompt] if self.echoes else ""

    def _logprobs(
        self, index: int, scores: Sequence[PlacedScore], prompt: Sequence[TokenScore] = ()
    ) -> dict[str, Any] | None:
        if self.tokenizer is None:
            return None
        if self.chat:
            return chat_logprobs(scores, self.tokenizer)
        own = text_logprobs(scores, self.tokenizer, offset=len(self._echo(index)))
        if not prompt:
            return own
        number = index // self.choices_per_prompt
        if number not in self._prompt_logprobs:  # long, and the same for all choices
            self._prompt_logprobs[number] = text_logprobs((), self.tokenizer, prompt=prompt)
        return {name: [*values, *own[name]] for name, values in self._prompt_logprobs[number].items()}

    def _chunk(
        self,
        index: int,
        delta: dict[str, Any],
        finish_reason: str | None = None,
        *,
        logprobs: dict[str, Any] | None = None,
    ) -> bytes:
        choice: dict[str, Any] = {"index": index, "finish_reason": finish_reason, "logprobs": logprobs}
        choice |= {"delta": delta} if self.chat else {"text": delta.get("content", "")}
        chunk = {**self._head(self._chunk_kind), "choices": [choice]}
        return event(chunk | ({"usage": self._usage_so_far(index)} if self.include_usage else {}))

    def _usage_so_far(self, index: int) -> dict[str, int] | None:
        if not self.prompt_tokens:
            return None
        return _tokens(self.prompt_tokens[index], self._num_generated.get(index, 0))


def call_body(call: ToolCall) -> dict[str, Any]:
    """A tool call with its arguments as a JSON text, and an id of its own."""
    written = json.dumps(call.arguments, ensure_ascii=False) if call.written is None else call.written
    return _body(call.id or call_id(), call.name, written)


def _body(identity: str, name: str | None, arguments: str) -> dict[str, Any]:
    return {"id": identity, "type": "function", "function": {"name": name, "arguments": arguments}}


def _tokens(prompt: int, completion: int) -> dict[str, int]:
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


def call_id() -> str:
    """A new id for a tool call."""
    return f"call_{uuid.uuid4().hex[:24]}"


def event(data: dict[str, Any]) -> bytes:
    """One server-sent event."""
    return f"data: {json.dumps(data, ensure_ascii=False)}\n\n".encode()


def error_body(error: BaseException) -> tuple[int, dict[str, Any]]:
    """HTTP status and body for an error. What is not the client's doing is a 500 that tells no internals."""
    if isinstance(error, RequestError):
        status = STATUS.get(error.code or "", 400)
        kinds = {429: "rate_limit_error", 503: "service_unavailable_error"}
        kind = kinds.get(status, "invalid_request_error")
        return status, _error(str(error), kind, error.param, error.code)
    message = str(error) if isinstance(error, LeveretError) else "the server failed to answer; its log says why"
    return 500, _error(message, "server_error", None, "internal_error")


def _error(message: str, kind: str, param: str | None, code: str | None) -> dict[str, Any]:
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}
