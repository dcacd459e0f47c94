"""A message of a conversation, and the forms in which the outside world writes one.

Inside Leveret a message is a small frozen dataclass; the OpenAI form (a dict, content perhaps a list of text parts,
tool arguments a JSON string) is read once, here, and anything wrong in it is a RequestError that names the place.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from leveret.errors import RequestError

ROLE_ALIASES = {"系统": "system", "用户": "user", "助手": "assistant", "developer": "system", "function": "tool"}
"""Other names for a role; Huozi's API writes them in Chinese, OpenAI's newer models write `developer`, its older ones
`function` for what answers a `function_call`."""

READ_KEYS = frozenset({
    "role", "content", "tool_calls", "function_call", "tool_call_id", "name", "reasoning_content", "loss", "weight",
})  # fmt: skip
"""The keys of a message in the OpenAI form that `messages_from` looks at."""


@dataclass(frozen=True)
class ToolCall:
    """One call of a function by the model."""

    name: str
    arguments: dict[str, Any]
    id: str | None = None
    written: str | None = field(default=None, compare=False, kw_only=True, repr=False)
    """The arguments as JSON text, where the call was given out piece by piece; else they are written when needed."""


@dataclass(frozen=True)
class CallPiece:
    """A piece of a call that is still being written: first its name, then its arguments as JSON text, bit by bit."""

    index: int
    """Which call of the answer, from 0."""
    name: str | None
    """Set on the first piece of a call."""
    arguments: str
    """More of the JSON text; all pieces of a call together are the whole of it."""


@dataclass(frozen=True)
class Message:
    """One message: who said it, and what."""

    role: str
    """`system`, `user`, `assistant` or `tool`."""
    content: str
    tool_calls: tuple[ToolCall, ...] = field(default=(), kw_only=True)
    tool_call_id: str | None = field(default=None, kw_only=True)
    """Which call this tool message answers."""
    name: str | None = field(default=None, kw_only=True)
    reasoning: str | None = field(default=None, kw_only=True)
    """What the assistant thought before its reply (`reasoning_content`). Not every template writes it."""
    trusted: bool = field(default=False, kw_only=True)
    """Whether special-token text in `content` means the token. Only for content that our own code has written."""
    trained: bool | None = field(default=None, kw_only=True)
    """Whether to train on it; None: yes for an assistant's message. Only an assistant's message can be trained."""

    def to_dict(self) -> dict[str, Any]:
        """The form that chat templates read: OpenAI's, with arguments as an object and absent things left out."""
        message: dict[str, Any] = {"role": self.role, "content": self.content}
        if self.tool_calls:
            message["tool_calls"] = [_call_to_dict(call) for call in self.tool_calls]
        if self.tool_call_id is not None:
            message["tool_call_id"] = self.tool_call_id
        if self.name is not None:
            message["name"] = self.name
        if self.reasoning is not None:
            message["reasoning_content"] = self.reasoning
        return message


def messages_from(dicts: Sequence[Mapping[str, Any]]) -> list[Message]:
    """Read messages in the OpenAI form; RequestError naming `messages[i].key` for anything wrong.

    Content is never trusted. A message may say `"loss": false` (or `"weight": 0`) to be left out of training.
    """
    if isinstance(dicts, str) or not isinstance(dicts, Sequence):
        raise RequestError("messages must be a list", param="messages")
    return [_message(message, f"messages[{index}]") for index, message in enumerate(dicts)]


def _message(message: Mapping[str, Any], place: str) -> Message:
    if not isinstance(message, Mapping):
        raise RequestError(f"{place} must be an object with a role and content", param=place)
    role = message.get("role")
    if not isinstance(role, str) or not role:
        raise RequestError(f"{place}.role is missing", param=f"{place}.role")
    calls = _calls(message, place)
    content = _content(message.get("content"), f"{place}.content", may_be_missing=bool(calls))
    return Message(
        ROLE_ALIASES.get(role, role),
        content,
        tool_calls=calls,
        tool_call_id=_optional_text(message, "tool_call_id", place),
        name=_optional_text(message, "name", place),
        reasoning=_optional_text(message, "reasoning_content", place),
        trained=said_to_be_trained(message, place),
    )


def _calls(message: Mapping[str, Any], place: str) -> tuple[ToolCall, ...]:
    """Under `tool_calls`, or the one under `function_call`, as OpenAI wrote it before."""
    given = message.get("tool_calls") or ()
    if not isinstance(given, list | tuple):
        raise RequestError(f"{place}.tool_calls must be a list, not {_kind(given)}", param=f"{place}.tool_calls")
    if not given and message.get("function_call") is not None:
        return (_call({"function": message["function_call"]}, f"{place}.function_call", older=True),)
    return tuple(_call(call, f"{place}.tool_calls[{index}]") for index, call in enumerate(given))


def _content(content: Any, place: str, *, may_be_missing: bool) -> str:
    if content is None and may_be_missing:
        return ""
    if isinstance(content, list):
        content = "".join(_part(part, f"{place}[{index}]") for index, part in enumerate(content))
    if not isinstance(content, str):
        raise RequestError(f"{place} must be a text, not {_kind(content)}", param=place)
    return checked_text(content, place)


def checked_text(text: str, place: str) -> str:
    """`text` itself; RequestError if it holds half of a surrogate pair, which no encoding can write."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise RequestError(
            f"{place} holds a lone surrogate (U+{ord(text[error.start]):04X}) at character {error.start}",
            param=place,
        ) from error
    return text


def said_to_be_trained(message: Mapping[str, Any], place: str) -> bool | None:
    """`loss` (a bool) or `weight` (0 or 1), as the messages format of other trainers has it. None: it says neither."""
    for key in ("loss", "weight"):
        if (value := message.get(key)) is not None:
            if value not in (0, 1):
                raise RequestError(f"{place}.{key} must be true or false (1 or 0), not {value!r}", param=place)
            return bool(value)
    return None


def _part(part: Any, place: str) -> str:
    if isinstance(part, Mapping) and part.get("type") == "text" and isinstance(part.get("text"), str):
        return str(part["text"])
    kind = part.get("type") if isinstance(part, Mapping) else _kind(part)
    raise RequestError(f'{place} is {kind!r}, but only parts {{"type": "text", "text": ...}} are read', param=place)


def _call(call: Any, place: str, *, older: bool = False) -> ToolCall:
    function = call.get("function") if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        form = '{"name": ..., "arguments": ...}' if older else '{"function": {"name": ..., "arguments": ...}}'
        raise RequestError(f"{place} must be {form}", param=place)
    arguments = function.get("arguments", {})
    where = f"{place}.arguments" if older else f"{place}.function.arguments"
    try:
        if isinstance(arguments, str):
            arguments = json.loads(arguments or "{}")
        json.dumps(arguments, allow_nan=False)  # what Python reads or holds and JSON does not
    except (TypeError, ValueError, RecursionError) as error:
        raise RequestError(f"{where} is not valid JSON: {error}", param=place) from error
    if not isinstance(arguments, Mapping):
        raise RequestError(f"{where} must be a JSON object", param=place)
    return ToolCall(str(function["name"]), dict(arguments), id=_optional_text(call, "id", place))


def _call_to_dict(call: ToolCall) -> dict[str, Any]:
    identity = {} if call.id is None else {"id": call.id}
    return {**identity, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}


def _optional_text(message: Mapping[str, Any], key: str, place: str) -> str | None:
    value = message.get(key)
    if value is not None and not isinstance(value, str):
        raise RequestError(f"{place}.{key} must be a text, not {_kind(value)}", param=f"{place}.{key}")
    return None if value is None else checked_text(value, f"{place}.{key}")


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", bool: "a truth value", int: "a number", float: "a number"}
    return "missing" if value is None else names.get(type(value), type(value).__name__)
