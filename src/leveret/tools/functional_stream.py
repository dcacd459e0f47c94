"""A functional call while it is being written: its name at once, each argument as soon as it is certain.

    <api_3>( "Alice" , "I am late" ) <api_end>        what the model writes
    {"name": "Alice"   , "message": "I am late"   }   what a client of the OpenAI API is sent, piece by piece

A value is certain when the comma or the parenthesis behind it is there. The pieces of a whole call together are the
JSON of the arguments as `FunctionalDialect.parse` gives them.
"""

from __future__ import annotations

import json

from leveret.chat.messages import CallPiece
from leveret.errors import ToolError
from leveret.tools.functional import read_value, without_space
from leveret.tools.tool import Tool, Value


class FunctionalStream:
    """Takes one call apart; a call that turns out to be wrong gives no more pieces."""

    def __init__(self, tool: Tool, index: int) -> None:
        """`index`: which call of the answer it is."""
        self._tool = tool
        self._index = index
        self._position = 0
        self._num_values = 0
        self._num_given = 0
        self._started = False
        self._over = False

    def push(self, text: str) -> list[CallPiece]:
        """The pieces that became certain; `text` is all that follows the tool token so far."""
        pieces: list[CallPiece] = []
        if not self._started:
            self._started = True
            pieces.append(CallPiece(self._index, self._tool.name, ""))
        if self._position == 0 and text.startswith("("):
            self._position = 1
        try:
            while self._position and not self._over and (more := self._next(text)) is not None:
                if more:
                    pieces.append(CallPiece(self._index, None, more))
        except ToolError:
            self._over = True
        return pieces

    def _next(self, text: str) -> str | None:
        """The JSON of the next argument ("" for an absent one) or of the end; None when it is not certain yet."""
        try:
            value, end = read_value(self._tool, text, self._position)
        except ToolError:
            return None  # half a value, or none that will ever be one
        separator = text[end : end + 1]
        if separator not in (",", ")"):
            return None
        written = self._argument(value) if value is not None else ""
        self._num_values += 1
        self._position = end + 1
        if separator == ")":
            self._over = True
            written += "}" if self._num_given else "{}"
        return written

    def _argument(self, value: Value) -> str:
        parameters = self._tool.parameters
        if self._num_values >= len(parameters):
            raise ToolError(f"{self._tool.name}: too many arguments")
        parameter = parameters[self._num_values]
        value = parameter.taken(without_space(parameter, value))
        if problem := parameter.problem(value):
            raise ToolError(f"{self._tool.name}: {parameter.name} {problem}")
        opening = ", " if self._num_given else "{"
        self._num_given += 1
        return f"{opening}{json.dumps(parameter.name, ensure_ascii=False)}: {json.dumps(value, ensure_ascii=False)}"
