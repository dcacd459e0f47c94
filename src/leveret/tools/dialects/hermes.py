"""Hermes: a JSON object between tags, as NousResearch's Hermes and Qwen write it.

    <tool_call>
    {"name": "set_timer", "arguments": {"minutes": 5}}
    </tool_call>

The object ends where its JSON ends, not at the first end tag: `</tool_call>` inside a string is part of the string
(a known bug of parsers that look for the tag). Text before and between calls is the model's plain text.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from leveret.chat.messages import CallPiece, ToolCall
from leveret.errors import ToolError
from leveret.tools.json_calls import OpenCall, possible_start

_START, _END = "<tool_call>", "</tool_call>"


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
        self._open: OpenCall | None = None
        self._num_calls = 0
        self._pieces: list[CallPiece] = []

    def push(self, text: str) -> tuple[str, list[ToolCall]]:
        """Plain text and whole calls that became certain; the beginning of a possible tag is held back."""
        self._held += text
        content: list[str] = []
        calls: list[ToolCall] = []
        while True:
            if self._open is not None:
                call = self._take_call(self._open)
                if call is None:
                    break
                calls.append(call)
            elif (start := self._held.find(_START)) >= 0:
                content.append(self._held[:start])
                self._held = self._held[start + len(_START) :]
                self._open = OpenCall(self._num_calls)
            else:
                certain = len(self._held) - possible_start(self._held, _START)
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
        return self._held if self._open is None else f"{_START}{self._held}"

    def finish(self) -> str:
        """Text that looked like the beginning of a tag and was none."""
        if self._open is not None:
            raise ToolError(f"a tool call is cut off: {self._held[:80]!r}")
        rest, self._held = self._held, ""
        return rest

    def _take_call(self, call: OpenCall) -> ToolCall | None:
        """The call at the front of what is held, once it is all there with its end tag."""
        pieces, end = call.push(self._held)
        self._pieces += pieces
        if end is None:
            return None
        rest = self._held[end:].lstrip()
        if not rest.startswith(_END):
            if _END.startswith(rest):
                return None
            raise ToolError(f"{_END} is missing at {rest[:40]!r}")
        pieces, whole = call.finish(self._held[:end])
        self._pieces += pieces
        self._held, self._open = rest[len(_END) :], None
        self._num_calls += 1
        return whole


DIALECT = HermesDialect()
