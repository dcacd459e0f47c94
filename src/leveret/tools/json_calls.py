"""A call written as a JSON object, `{"name": ..., "arguments": {...}}`, read while it is being written.

Several dialects write calls so and differ in what stands around them. The object ends where its JSON ends, whatever
its strings hold; the name is given out once it is there, the arguments, respelled (json_spelling.py), as they grow.
"""

from __future__ import annotations

import json
import re
from dataclasses import replace

from leveret.chat.messages import CallPiece, ToolCall
from leveret.errors import ToolError
from leveret.tools.json_spelling import JsonSpelling, finite_number

LONGEST_CALL = 100_000
"""Characters of a call; longer ones are an error."""

_HEAD = re.compile(r'\s*\{\s*"name"\s*:\s*("(?:[^"\\]|\\.)*")\s*,\s*"arguments"\s*:\s*(?=\{)')
"""The beginning of a call up to its arguments."""


class OpenCall:
    """One call that is being written."""

    def __init__(self, index: int) -> None:
        """`index`: which call of the answer it is."""
        self._index = index
        self._whole = _Scan()
        self._arguments: _Scan | None = None
        self._spelling = JsonSpelling()
        self._given = ""

    def push(self, text: str) -> tuple[list[CallPiece], int | None]:
        """The pieces that became certain, and where the object ends once it does; `text` is all there is of it.

        Raises ToolError when it is no JSON object, or longer than any call.
        """
        end = self._whole.end(text)
        if end is None and len(text) > LONGEST_CALL:
            raise ToolError(f"a tool call does not end within {LONGEST_CALL} characters")
        return self._pieces(text), end

    def finish(self, text: str) -> tuple[list[CallPiece], ToolCall]:
        """The rest of the pieces and the call, from its whole text. ToolError when it is none."""
        call = _read_call(text)
        pieces: list[CallPiece] = []
        if self._arguments is None:  # they stood before the name
            self._given = self._spelling.push(json.dumps(call.arguments))
            pieces.append(CallPiece(self._index, call.name, self._given))
        return pieces, replace(call, arguments=json.loads(self._given), written=self._given)

    def _pieces(self, text: str) -> list[CallPiece]:
        pieces: list[CallPiece] = []
        if self._arguments is None:
            head = _HEAD.match(text)
            if head is None:
                return []
            pieces.append(CallPiece(self._index, json.loads(head[1], strict=False), ""))
            self._arguments = _Scan(head.end())
        elif self._arguments.ended:
            return []
        given = self._arguments.position
        end = self._arguments.end(text)
        if more := self._spelling.push(text[given:end]):
            self._given += more
            pieces.append(CallPiece(self._index, None, more))
        return pieces


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
        entry = json.loads(text, parse_float=finite_number, parse_constant=_no_number)
    except (ValueError, RecursionError) as error:
        raise ToolError(f"a tool call is not JSON: {error}") from None
    name, arguments = entry.get("name"), entry.get("arguments", {})
    if not isinstance(name, str) or not isinstance(arguments, dict):
        raise ToolError('a tool call needs a "name" and an object "arguments"', hint=f"it was {text.strip()[:80]!r}")
    return ToolCall(name=name, arguments=arguments)


def _no_number(text: str) -> float:
    raise ValueError(f"{text} is no number")


def possible_start(text: str, marker: str) -> int:
    """Length of the longest end of the text that may become a marker."""
    longest = min(len(marker) - 1, len(text))
    return next((size for size in range(longest, 0, -1) if marker.startswith(text[-size:])), 0)
