"""Tool calls in a conversation: which tools a request offers, how old calls are shown to the model, what it may answer.

A model fine-tuned on a tool set has one functional token a tool (`tools/functional.py`), listed in its tools.json. A
request names the tools it offers; the names are matched with those. The schemas themselves were learned, so nothing
about tools enters the prompt. The answer is constrained to calls of the offered tools, or the no-tool token.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np

from leveret.chat.messages import Message
from leveret.config import suggest
from leveret.engine.request import Constraint
from leveret.errors import RequestError, ToolError
from leveret.tools.functional import FunctionalDialect
from leveret.tools.schema import ToolSet

ListedTools = Literal["all"] | Sequence[str | Mapping[str, Any]] | None
"""Tools a request offers: all the model knows; names or OpenAI declarations of some; or none (None or empty)."""

OfferedTools = ListedTools | ToolSet
"""The same, or a tool set."""

ToolChoice = Literal["auto", "none", "required"]
"""Whether the model may call tools, must not, or must."""


def offered_names(tools: ListedTools, toolset: ToolSet | None, tool_choice: ToolChoice = "auto") -> tuple[str, ...]:
    """Names of the tools that a request offers, in the order of the model's tool set; () for plain text.

    Raises RequestError when tools are offered that the model has no functional token for.
    """
    if tools is None or tool_choice == "none" or len(tools) == 0:
        if tool_choice == "required":
            raise RequestError(
                "tool_choice is 'required' but no tools are offered", param="tool_choice", code="invalid_value"
            )
        return ()
    if toolset is None:
        raise RequestError(
            "this model has no tools: its directory has no tools.json",
            param="tools",
            code="tools_unavailable",
            hint="use a model fine-tuned to call tools (leveret finetune --help)",
        )
    if tools == "all":
        return tuple(toolset.names)
    wanted = [_name(tool) for tool in tools]
    for name in wanted:
        if name not in toolset.names:
            near = suggest(name, toolset.names)
            hint = f"did you mean {near!r}?" if near else f"it knows {', '.join(toolset.names)}"
            raise RequestError(
                f"the model has no functional token for the tool {name!r}",
                param="tools",
                code="unknown_tool",
                hint=hint,
            )
    return tuple(name for name in toolset.names if name in set(wanted))


def last_query(messages: Sequence[Message]) -> str:
    """What the user asked last: arguments copied from the request are copied from this text."""
    for message in reversed(messages):
        if message.role == "user":
            return message.content
    raise RequestError("a request with tools needs a user message", param="messages", code="invalid_value")


def with_calls_rendered(messages: Iterable[Message], dialect: FunctionalDialect | None) -> list[Message]:
    """The messages with the calls of assistant turns written in functional tokens, as in training.

    Without a dialect they stay as they are, for templates that write calls themselves.
    Raises RequestError for calls that the tool set does not have.
    """
    if dialect is None:
        return list(messages)
    rendered, query = [], ""
    for message in messages:
        if message.role == "user":
            query = message.content
        rendered.append(_with_calls_as_text(message, dialect, query) if message.tool_calls else message)
    return rendered


class CallPolicy:
    """A call constraint made narrower: some tool must be called, or at most one call may be made."""

    def __init__(self, inner: Constraint, *, refusal_id: int | None = None, last_id: int | None = None) -> None:
        """`refusal_id` is never allowed (the no-tool token); `last_id` finishes the answer (the end of a call)."""
        self._inner = inner
        self._refusal_id = refusal_id
        self._last_id = last_id
        self._ended = False

    @property
    def finished(self) -> bool:
        """True when the answer is complete."""
        return self._ended or self._inner.finished

    def allowed_ids(self) -> np.ndarray:
        """Ids allowed now, sorted."""
        allowed = self._inner.allowed_ids()
        return allowed if self._refusal_id is None else allowed[allowed != self._refusal_id]

    def advance(self, token_id: int) -> None:
        """Take an allowed id."""
        self._inner.advance(token_id)
        self._ended = token_id == self._last_id


def _with_calls_as_text(message: Message, dialect: FunctionalDialect, query: str) -> Message:
    try:
        content = dialect.render(list(message.tool_calls), query)
    except ToolError as error:
        raise RequestError(error.message, param="messages", code="invalid_value", hint=error.hint) from None
    return replace(message, content=content, tool_calls=(), trusted=True)


def _name(tool: str | Mapping[str, Any]) -> str:
    if isinstance(tool, str):
        return tool
    function = tool.get("function", tool)
    name = function.get("name") if isinstance(function, Mapping) else None
    if not isinstance(name, str):
        raise RequestError(
            f"a tool must be a name or an OpenAI declaration, not {tool!r}", param="tools", code="invalid_value"
        )
    return name
