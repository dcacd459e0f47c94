"""Hermes: a JSON object between tags, as NousResearch's Hermes and Qwen write it.

    <tool_call>
    {"name": "set_timer", "arguments": {"minutes": 5}}
    </tool_call>

The object ends where its JSON ends, not at the first end tag: `</tool_call>` inside a string is part of the string
(a known bug of parsers that look for the tag). Text before and between calls is the model's plain text.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from leveret.chat.messages import ToolCall
from leveret.errors import ToolError

_START, _END = "<tool_call>", "</tool_call>"
_LONGEST_CALL = 100_000


class HermesDialect:
    """Renders and parses tagged JSON calls."""

    start_marker = _START
    end_marker = _END

    def render(self, calls: Sequence[ToolCall]) -> str:
        """One tagged object a call, separated by line ends."""
        objects = ({"name": call.name, "arguments": call.arguments} for call in calls)
        return "\n".join(f"{_START}\n{json.dumps(each, ensure_ascii=False)}\n{_END}" for each in objects)

    def parse(self, text: str) -> tuple[str, list[ToolCall]]:
        """The plain text, outer white space off, and the calls; the same as streaming the text at once."""
        stream = self.stream()
        content, calls = stream.push(text)
        return (content + stream.finish()).strip(), calls

    def stream(self) -> HermesStream:
        """A parser for one answer."""
        return HermesStream()


class HermesStream:
    """Takes an answer in pieces of any size; what is given out never depends on how the text was cut."""

    def __init__(self) -> None:
        self._held = ""
        self._in_call = False

    def push(self, text: str) -> tuple[str, list[ToolCall]]:
        """Plain text and whole calls that became certain; the beginning of a possible tag is held back."""
        self._held += text
        content: list[str] = []
        calls: list[ToolCall] = []
        while True:
            if self._in_call:
                call = self._take_call()
                if call is None:
                    break
                calls.append(call)
            elif (start := self._held.find(_START)) >= 0:
                content.append(self._held[:start])
                self._held = self._held[start + len(_START) :]
                self._in_call = True
            else:
                certain = len(self._held) - _possible_start(self._held)
                content.append(self._held[:certain])
                self._held = self._held[certain:]
                break
        return "".join(content), calls

    def finish(self) -> str:
        """Text that looked like the beginning of a tag and was none."""
        if self._in_call:
            raise ToolError(f"a tool call is cut off: {self._held[:80]!r}")
        rest, self._held = self._held, ""
        return rest

    def _take_call(self) -> ToolCall | None:
        """The call at the front of what is held, once it is all there with its end tag."""
        end = _object_end(self._held)
        if end is None:
            if len(self._held) > _LONGEST_CALL:
                raise ToolError(f"a tool call does not end within {_LONGEST_CALL} characters")
            return None
        rest = self._held[end:].lstrip()
        if not rest.startswith(_END):
            if _END.startswith(rest):
                return None
            raise ToolError(f"{_END} is missing at {rest[:40]!r}")
        call = _read_call(self._held[:end])
        self._held, self._in_call = rest[len(_END) :], False
        return call


def _object_end(text: str) -> int | None:
    """Where the JSON object that begins the text ends: braces are counted outside strings only."""
    depth, in_string, escaped = 0, False, False
    for position, character in enumerate(text):
        if in_string:
            in_string = escaped or character != '"'
            escaped = character == "\\" and not escaped
        elif character == '"':
            in_string = True
        elif character == "{":
            depth += 1
        elif character == "}":
            depth -= 1
        if depth == 0 and not character.isspace():
            if character != "}":
                raise ToolError(f"a tool call must be a JSON object, not {text.strip()[:40]!r}")
            return position + 1
    return None


def _read_call(text: str) -> ToolCall:
    try:
        entry = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ToolError(f"a tool call is not JSON: {error}") from None
    name, arguments = entry.get("name"), entry.get("arguments", {})
    if not isinstance(name, str) or not isinstance(arguments, dict):
        raise ToolError('a tool call needs a "name" and an object "arguments"', hint=f"it was {text.strip()[:80]!r}")
    return ToolCall(name=name, arguments=arguments)


def _possible_start(text: str) -> int:
    """Length of the longest end of the text that may become a start tag."""
    return next((size for size in range(min(len(_START) - 1, len(text)), 0, -1) if _START.startswith(text[-size:])), 0)


DIALECT = HermesDialect()
