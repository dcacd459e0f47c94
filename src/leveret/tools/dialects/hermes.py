"""Hermes: a JSON object between tags, as NousResearch's Hermes and Qwen write it.

    <tool_call>
    {"name": "set_timer", "arguments": {"minutes": 5}}
    </tool_call>

The object ends where its JSON ends, not at the first end tag: `</tool_call>` inside a string is part of the string
(a known bug of parsers that look for the tag). Text before and between calls is the model's plain text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from leveret.chat.messages import CallPiece, ToolCall
from leveret.errors import ToolError

_START, _END = "<tool_call>", "</tool_call>"
_LONGEST_CALL = 100_000
_HEAD = re.compile(r'\s*\{\s*"name"\s*:\s*("(?:[^"\\]|\\.)*")\s*,\s*"arguments"\s*:\s*(?=\{)')
"""The beginning of a call up to its arguments."""


class HermesDialect:
    """Renders and parses tagged JSON calls."""

    start_marker = _START
    end_marker = _END
    before = ""
    between = "\n"
    after = ""
    closing = f"}}\n{_END}"

    def opening(self, name: str) -> str:
        """What stands before the arguments of a call."""
        return f'{_START}\n{{"name": {json.dumps(name, ensure_ascii=False)}, "arguments": '

    def instructions(self, tools: Sequence[Mapping[str, Any]]) -> str:
        """What a model is told of the tools, one declaration a line."""
        functions = [tool.get("function", tool) for tool in tools]
        said = ({key: value for key, value in function.items() if value != ""} for function in functions)
        declared = "\n".join(json.dumps(function, ensure_ascii=False) for function in said)
        return (
            f"These functions can be called:\n<tools>\n{declared}\n</tools>\n"
            f"To call one, write its name and its arguments as JSON:\n{_START}\n"
            f'{{"name": "the function", "arguments": {{"an argument": "its value"}}}}\n{_END}'
        )

    def result(self, text: str) -> str:
        """The result of a call, in tags."""
        return f"<tool_response>\n{text}\n</tool_response>"

    def render(self, calls: Sequence[ToolCall]) -> str:
        """One tagged object a call, separated by line ends."""
        return self.between.join(
            f"{self.opening(call.name)}{json.dumps(call.arguments, ensure_ascii=False)}{self.closing}" for call in calls
        )

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
        self._num_calls = 0
        self._pieces: list[CallPiece] = []
        self._scan = _Scan()
        """Of the open call, for its end."""
        self._arguments: _Scan | None = None
        """Of its arguments, once they have begun."""

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
                self._in_call, self._scan, self._arguments = True, _Scan(), None
            else:
                certain = len(self._held) - _possible_start(self._held)
                content.append(self._held[:certain])
                self._held = self._held[certain:]
                break
        return "".join(content), calls

    def pieces(self) -> list[CallPiece]:
        """What became certain of the calls."""
        pieces, self._pieces = self._pieces, []
        return pieces

    @property
    def held(self) -> str:
        """What was pushed and not given out."""
        return f"{_START}{self._held}" if self._in_call else self._held

    def finish(self) -> str:
        """Text that looked like the beginning of a tag and was none."""
        if self._in_call:
            raise ToolError(f"a tool call is cut off: {self._held[:80]!r}")
        rest, self._held = self._held, ""
        return rest

    def _take_call(self) -> ToolCall | None:
        """The call at the front of what is held, once it is all there with its end tag."""
        end = self._scan.end(self._held)
        self._give_pieces()
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
        if self._arguments is None:  # they stood before the name
            self._piece(call.name, json.dumps(call.arguments, ensure_ascii=False))
        self._held, self._in_call = rest[len(_END) :], False
        self._num_calls += 1
        return call

    def _give_pieces(self) -> None:
        """The name of the open call once it is there, and what is there of its arguments."""
        if self._arguments is None:
            head = _HEAD.match(self._held)
            if head is None:
                return
            self._piece(json.loads(head[1], strict=False), "")
            self._arguments = _Scan(head.end())
        elif self._arguments.ended:
            return
        given = self._arguments.position
        end = self._arguments.end(self._held)
        if more := self._held[given : len(self._held) if end is None else end]:
            self._piece(None, more)

    def _piece(self, name: str | None, arguments: str) -> None:
        self._pieces.append(CallPiece(self._num_calls, name, arguments))


class _Scan:
    """Looks for the end of a JSON object in a text that grows: braces are counted outside strings only."""

    def __init__(self, start: int = 0) -> None:
        self.position = start
        """Characters before it have been read."""
        self.ended = False
        self._depth = 0
        self._in_string = False
        self._escaped = False

    def end(self, text: str) -> int | None:
        """Where the object ends, once it does. ToolError when it is none."""
        while self.position < len(text) and not self.ended:
            character = text[self.position]
            self._read(character)
            self.position += 1
            if self._depth == 0 and not character.isspace():
                if character != "}":
                    raise ToolError(f"a tool call must be a JSON object, not {text.strip()[:40]!r}")
                self.ended = True
        return self.position if self.ended else None

    def _read(self, character: str) -> None:
        if self._in_string:
            self._in_string = self._escaped or character != '"'
            self._escaped = character == "\\" and not self._escaped
        elif character == '"':
            self._in_string = True
        elif character == "{":
            self._depth += 1
        elif character == "}":
            self._depth -= 1


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
