"""Tool-call dialects of other models: one file a syntax, found by its file name.

A dialect file defines `DIALECT`, an object of the `Dialect` protocol below. To add one, write the file and a row in
tests/tools/test_dialects.py (docs/contributing/tool_dialect.md). Functional tokens are not among them: they belong to
one tool set and live in tools/functional.py.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Sequence
from typing import Protocol

from leveret.chat.messages import ToolCall
from leveret.errors import ToolError


class CallStream(Protocol):
    """Takes an answer apart while it is still coming."""

    def push(self, text: str) -> tuple[str, list[ToolCall]]:
        """Take more text; returns the plain text and the whole calls that became certain. ToolError when malformed."""

    def finish(self) -> str:
        """The plain text held back. ToolError when a call is cut off."""


class Dialect(Protocol):
    """How one family of models writes tool calls."""

    start_marker: str
    end_marker: str

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
