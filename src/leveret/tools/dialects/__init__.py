"""Tool-call dialects of other models: one file a syntax, found by its file name.

A dialect file defines `DIALECT`, an object of the `Dialect` protocol below. To add one, write the file and a row in
tests/tools/test_dialects.py (docs/contributing/tool_dialect.md). Functional tokens are not among them: they belong to
one tool set and live in tools/functional.py.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from leveret.chat.messages import CallPiece, ToolCall
from leveret.errors import ToolError


class CallStream(Protocol):
    """Takes an answer apart while it is still coming."""

    @property
    def held(self) -> str:
        """What was pushed and not given out yet, as it was written."""

    def push(self, text: str) -> tuple[str, list[ToolCall]]:
        """Take more text; returns the plain text and the whole calls that became certain. ToolError when malformed."""

    def pieces(self) -> list[CallPiece]:
        """What became certain of calls, whole or still open, since the last time; empty for arguments before a name."""

    def finish(self) -> str:
        """The plain text held back. ToolError when a call is cut off."""


class Dialect(Protocol):
    """How one family of models writes tool calls:

    before  opening("f") {...} closing  between  opening("g") {...} closing  after
    """

    start_marker: str
    """What the text before the first arguments begins with, and plain text never holds."""
    end_marker: str
    before: str
    between: str
    after: str
    closing: str

    def opening(self, name: str) -> str:
        """What stands before the arguments of a call, a JSON object."""

    def instructions(self, tools: Sequence[Mapping[str, Any]]) -> str:
        """What a model is told, in its system message, where its chat template does not list tools itself."""

    def result(self, text: str) -> str:
        """What a user message says when it brings the result of a call, for templates without a role for that."""

    def render(self, calls: Sequence[ToolCall]) -> str:
        """The text that makes these calls."""

    def parse(self, text: str) -> tuple[str, list[ToolCall]]:
        """The plain text around the calls, and the calls. ToolError when malformed."""

    def stream(self) -> CallStream:
        """A parser for one answer that comes in pieces of any size."""


def dialect_names() -> tuple[str, ...]:
    """The dialects there are: the names of the files beside this one."""
    return tuple(sorted(module.name for module in pkgutil.iter_modules(__path__)))


def dialect_named(name: str) -> Dialect:
    """The dialect of that name; ToolError when there is no such file."""
    if name not in dialect_names():
        raise ToolError(f"unknown tool-call dialect {name!r}", hint=f"known: {', '.join(dialect_names())}")
    dialect: Dialect = importlib.import_module(f"{__name__}.{name}").DIALECT
    return dialect
