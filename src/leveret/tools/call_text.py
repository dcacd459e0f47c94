"""A tool call as a person reads it: as a programmer would write it, and what an Android phone would do."""

from __future__ import annotations

import json

from leveret.chat.messages import ToolCall
from leveret.errors import ToolError
from leveret.tools.android import plan


def name_call(call: ToolCall) -> str:
    """A call as a programmer would write it."""
    arguments = ", ".join(f"{key}={json.dumps(value, ensure_ascii=False)}" for key, value in call.arguments.items())
    return f"{call.name}({arguments})"


def describe_call(call: ToolCall) -> str:
    """A call as a programmer would write it, and below it what an Android phone would be told."""
    lines = [name_call(call)]
    try:
        intent = plan(call)
    except ToolError:
        return lines[0]  # a tool of the user's own, for which we know no intent
    if intent.action is not None:
        lines.append(f"  dry run: {' '.join(intent.command())}")
    if intent.lookup is not None:
        lines.append(f"  after looking up the {intent.lookup[0]} {intent.lookup[1]!r}")
    if intent.needs_confirmation:
        lines.append("  to be confirmed by the user first")
    if intent.note is not None:
        lines.append(f"  note: {intent.note}")
    return "\n".join(lines)
