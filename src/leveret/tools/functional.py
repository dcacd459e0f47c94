"""Functional tokens: a whole function name is one token, and a call is `<api_3>("Alice","I am late")<api_end>`.

After Octopus v2 (arXiv 2404.01744) and HARE's tool model. Tool i of the set gets the token `<api_i>`; a request
for several actions is several calls in a row; a request no tool fits is answered with `<no_tool>`. A small model thus
writes five to fifteen tokens where JSON takes fifty, and needs no tool descriptions in its prompt. Arguments:

* JSON values in parameter order, separated by commas, no keywords: `(5)`, `("wifi",true)`. Enums, dates and times
  are JSON strings.
* An absent optional argument is nothing between its commas; trailing ones are left out with their comma.
* A string without a format may begin with ONE space that is not part of the value. `Call Alice` becomes
  `<api_1>(" Alice")`: BPE gives the word after a space and the word after a quote different tokens, and copying is far
  easier for a model when the token is the one it has just read. `render` spells a string as the request does.
* `<` inside a string is written `\\u003c`. So no value can spell a special token, and text rendered here may be encoded
  with special tokens allowed. Names in `reserved` (special tokens that do not begin with `<`) are escaped alike.

`parse(render(calls)) == calls` for every valid call; `parse` never evaluates anything and takes nothing invalid.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence

from leveret.chat.messages import ToolCall
from leveret.errors import ToolError
from leveret.tools.schema import ToolSet
from leveret.tools.tool import Parameter, Tool, Value
from leveret.tools.words import find_words

END_TOKEN = "<api_end>"
NO_TOOL_TOKEN = "<no_tool>"

_TOKEN = re.compile(r"<[^<>]*>")
_LITERAL = re.compile(r'true\b|false\b|-?[0-9][0-9.eE+-]*|"')
_DECODER = json.JSONDecoder()


class FunctionalDialect:
    """Renders and parses the calls of one tool set."""

    def __init__(self, tools: ToolSet, *, reserved: Iterable[str] = ()) -> None:
        self.tools = tools
        self.tool_tokens: tuple[str, ...] = tools.functional_tokens
        """`<api_0>`, `<api_1>`, ... in tool order."""
        self.end_token = END_TOKEN
        self.no_tool_token = NO_TOOL_TOKEN
        self._index = {token: index for index, token in enumerate(self.tool_tokens)}
        self._reserved = tuple(text for text in reserved if text and not text.startswith("<"))

    @property
    def tokens(self) -> tuple[str, ...]:
        """All special tokens, in the order in which they are added to a tokenizer."""
        return (*self.tool_tokens, self.end_token, self.no_tool_token)

    def render(self, calls: Sequence[ToolCall], query: str | None = None) -> str:
        """The answer that makes these calls; strings found in `query` are spelled with the space they have there.

        Raises ToolError when a call does not fit its tool.
        """
        return "".join(self._render_call(call, query or "") for call in calls) or self.no_tool_token

    def parse(self, text: str) -> list[ToolCall]:
        """The calls of an answer, none for the no-tool token. Raises ToolError, with the reason, for anything else."""
        text = text.strip()
        if text == self.no_tool_token:
            return []
        if not text:
            raise ToolError("the answer is empty", hint=f"no call is written {self.no_tool_token}")
        calls, position = [], 0
        while position < len(text):
            call, position = self._parse_call(text, position)
            calls.append(call)
        return calls

    def spell(self, value: str) -> str:
        """The characters of a string between its quotes."""
        return self.without_tokens(json.dumps(value, ensure_ascii=False)[1:-1])

    def without_tokens(self, text: str) -> str:
        """JSON text with the same meaning in which no string spells a special token."""
        text = text.replace("<", "\\u003c")
        for reserved in self._reserved:
            text = text.replace(reserved, f"\\u{ord(reserved[0]):04x}{reserved[1:]}")
        return text

    def _render_call(self, call: ToolCall, query: str) -> str:
        tool = self.tools.get(call.name)
        arguments = tool.validate(call.arguments)
        items = [self._render_value(each, arguments.get(each.name), query) for each in tool.parameters]
        while items and not items[-1]:
            items.pop()
        return f"{self.tool_tokens[self.tools.index(call.name)]}({','.join(items)}){self.end_token}"

    def _render_value(self, parameter: Parameter, value: Value | None, query: str) -> str:
        if value is None:
            return ""
        if not isinstance(value, str):
            return json.dumps(value)
        return f'"{_leading_space(value, query) if parameter.free else ""}{self.spell(value)}"'

    def _parse_call(self, text: str, start: int) -> tuple[ToolCall, int]:
        token = _TOKEN.match(text, start)
        if token is None or token[0] not in self._index:
            raise ToolError(f"unknown token at {_excerpt(text, start)}; a call begins like {self.tool_tokens[0]}")
        tool = self.tools[self._index[token[0]]]
        if not text.startswith("(", token.end()):
            raise ToolError(f"{tool.name}: '(' is missing at {_excerpt(text, token.end())}")
        values, position = _parse_values(tool, text, token.end() + 1)
        if not text.startswith(self.end_token, position):
            raise ToolError(f"{tool.name}: {self.end_token} is missing at {_excerpt(text, position)}")
        if len(values) > len(tool.parameters):
            raise ToolError(f"{tool.name}: wrong arity, {len(values)} arguments for {len(tool.parameters)} parameters")
        given = zip(tool.parameters, values, strict=False)
        arguments = {each.name: without_space(each, value) for each, value in given if value is not None}
        return ToolCall(name=tool.name, arguments=tool.validate(arguments)), position + len(self.end_token)


def _parse_values(tool: Tool, text: str, position: int) -> tuple[list[Value | None], int]:
    """The values up to and including `)`; None for an empty place."""
    if text.startswith(")", position):
        return [], position + 1
    values: list[Value | None] = []
    while True:
        value, position = read_value(tool, text, position)
        values.append(value)
        separator = text[position : position + 1]
        if separator not in (",", ")"):
            raise ToolError(f"{tool.name}: ',' or ')' is missing at {_excerpt(text, position)}")
        position += 1
        if separator == ")":
            return values, position


def read_value(tool: Tool, text: str, position: int) -> tuple[Value | None, int]:
    """One argument, None when it is absent, and where it ends. ToolError when there is no JSON value."""
    if text[position : position + 1] in (",", ")"):
        return None, position
    if _LITERAL.match(text, position) is None:
        raise ToolError(f"{tool.name}: no JSON value at {_excerpt(text, position)}")
    try:
        value, end = _DECODER.raw_decode(text, position)
    except ValueError as error:
        raise ToolError(f"{tool.name}: bad JSON value at {_excerpt(text, position)}: {error}") from None
    assert isinstance(value, str | int | float | bool)
    return value, end


def without_space(parameter: Parameter, value: Value) -> Value:
    """The value without the one space that may be written before a free string."""
    return value[1:] if parameter.free and isinstance(value, str) and value.startswith(" ") else value


def _leading_space(value: str, query: str) -> str:
    """The one space to write before a value: always if the value begins with a space, else as the request has it."""
    if value.startswith(" "):
        return " "
    position = find_words(query, value)
    return " " if position > 0 and query[position - 1] == " " else ""


def _excerpt(text: str, position: int) -> str:
    rest = text[position : position + 40]
    return f"character {position}: {rest!r}" if rest else f"character {position}: the end of the answer"
