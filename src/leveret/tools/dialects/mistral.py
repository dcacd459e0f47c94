"""Mistral: one JSON list of calls behind a token, as Mistral's models of the tokenizers v2 and v3 write it.

    [TOOL_CALLS] [{"name": "set_timer", "arguments": {"minutes": 5}}, {"name": ...}]

A call may have an "id" besides, which is left out here. Text after the list, which these models do not write, is plain
text.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from leveret.chat.messages import CallPiece, ToolCall
from leveret.errors import ToolError
from leveret.tools.json_calls import OpenCall, possible_start

_START = "[TOOL_CALLS]"


class MistralDialect:
    """Renders and parses lists of calls."""

    start_marker = _START
    end_marker = "]"
    before = f"{_START} ["
    between = ", "
    after = "]"
    closing = "}"

    def opening(self, name: str) -> str:
        """What stands before the arguments of a call."""
        return f'{{"name": {json.dumps(name, ensure_ascii=False)}, "arguments": '

    def instructions(self, tools: Sequence[Mapping[str, Any]]) -> str:
        """What a model is told of the tools."""
        declared = json.dumps([tool.get("function", tool) for tool in tools], ensure_ascii=False)
        call = '{"name": "the function", "arguments": {"an argument": "its value"}}'
        return f"[AVAILABLE_TOOLS] {declared}[/AVAILABLE_TOOLS]\nA call is written {self.before}{call}{self.after}"

    def result(self, text: str) -> str:
        """The result of a call."""
        return f"[TOOL_RESULTS] {json.dumps({'content': text}, ensure_ascii=False)}[/TOOL_RESULTS]"

    def render(self, calls: Sequence[ToolCall]) -> str:
        """The list of the calls."""
        written = (
            f"{self.opening(call.name)}{json.dumps(call.arguments, ensure_ascii=False)}{self.closing}" for call in calls
        )
        return f"{self.before}{self.between.join(written)}{self.after}"

    def parse(self, text: str) -> tuple[str, list[ToolCall]]:
        """The plain text, outer white space off, and the calls; the same as streaming the text at once."""
        stream = self.stream()
        content, calls = stream.push(text)
        return (content + stream.finish()).strip(), calls

    def stream(self) -> MistralStream:
        """A parser for one answer."""
        return MistralStream()


class MistralStream:
    """Takes an answer in pieces of any size; what is given out never depends on how the text was cut."""

    def __init__(self) -> None:
        self._held = ""
        self._place: Literal["text", "list", "call", "behind"] = "text"
        """In plain text; before the list; in a call of it; behind a call."""
        self._open = OpenCall(0)
        self._num_calls = 0
        self._pieces: list[CallPiece] = []

    def push(self, text: str) -> tuple[str, list[ToolCall]]:
        """Plain text and whole calls that became certain; the beginning of a possible token is held back."""
        self._held += text
        content: list[str] = []
        calls: list[ToolCall] = []
        while self._advance(content, calls):
            pass
        return "".join(content), calls

    def pieces(self) -> list[CallPiece]:
        """What became certain of the calls."""
        pieces, self._pieces = self._pieces, []
        return pieces

    @property
    def held(self) -> str:
        """What was pushed and not given out."""
        return self._held if self._place == "text" else f"{_START}{self._held}"

    def finish(self) -> str:
        """Text that looked like the beginning of the token and was none."""
        if self._place != "text":
            raise ToolError(f"a tool call is cut off: {self._held[:80]!r}")
        rest, self._held = self._held, ""
        return rest

    def _advance(self, content: list[str], calls: list[ToolCall]) -> bool:
        """Read on to the next place; False when more text is needed for that."""
        if self._place == "text":
            return self._read_text(content)
        if self._place == "call":
            return self._read_call(calls)
        rest = self._held.lstrip()
        if not rest:
            return False
        following = {"list": {"[": "call"}, "behind": {",": "call", "]": "text"}}[self._place]
        if rest[0] not in following:
            raise ToolError(f"a list of tool calls is broken at {rest[:40]!r}")
        self._held = rest[1:]
        self._place = "call" if following[rest[0]] == "call" else "text"
        self._open = OpenCall(self._num_calls)
        return True

    def _read_text(self, content: list[str]) -> bool:
        start = self._held.find(_START)
        end = start if start >= 0 else len(self._held) - possible_start(self._held, _START)
        content.append(self._held[:end])
        self._held = self._held[end + len(_START) :] if start >= 0 else self._held[end:]
        self._place = "list" if start >= 0 else "text"
        return start >= 0

    def _read_call(self, calls: list[ToolCall]) -> bool:
        pieces, end = self._open.push(self._held)
        self._pieces += pieces
        if end is None:
            return False
        pieces, call = self._open.finish(self._held[:end])
        self._pieces += pieces
        calls.append(call)
        self._held, self._place = self._held[end:], "behind"
        self._num_calls += 1
        return True


DIALECT = MistralDialect()
