"""The process in which a file's functions run: one task in, one answer out, confined before the file is read.

    stdin   {"file", "folder", "memory_mib", "seconds", "network", "call": null | {"name", "arguments"}}
    fd      {"tools": [...], "acts": [...], "held": [...]}  or  {"text": ..., "failed": ...}

Started by `sandbox.py`; what the functions print is their result when they return nothing. One that is `async` is
awaited, and one that yields gives a list.
"""

from __future__ import annotations

import contextlib
import enum
import inspect
import io
import json
import os
import runpy
import signal
import sys
import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from leveret.errors import ToolError
from leveret.tools.act import is_act
from leveret.tools.confinement import confine
from leveret.tools.signature import tool_from_function

MAX_RESULT_CHARACTERS = 8_000
"""Longer results are cut."""


def main(answer_fd: int) -> None:
    """Do the task on the standard input."""
    task = json.load(sys.stdin)
    answer: dict[str, Any]
    held = confine(
        folder=Path(task["folder"]), memory_mib=task["memory_mib"], seconds=task["seconds"], network=task["network"]
    )
    signal.setitimer(signal.ITIMER_REAL, task["seconds"])  # what only waits uses no processor time
    printed = io.StringIO()
    try:
        with contextlib.redirect_stdout(printed):
            functions = _functions(task["file"])
            if task["call"] is None:
                answer = _description(functions) | {"held": held}
            else:
                answer = {"text": _call(functions, task["call"], printed), "failed": False}
    except BaseException as error:  # SystemExit as well: whatever a tool does is told to the model
        answer = {"text": _in_words(error), "failed": True}
    with os.fdopen(answer_fd, "w", encoding="utf-8") as out:
        json.dump(answer, out)


def _functions(file: str) -> dict[str, Callable[..., Any]]:
    """The public functions that the file itself defines, in the order in which they stand there."""
    names = runpy.run_path(file, run_name="leveret_tools")
    return {
        name: value
        for name, value in names.items()
        if inspect.isfunction(value) and not name.startswith("_") and value.__module__ == "leveret_tools"
    }


def _description(functions: Mapping[str, Callable[..., Any]]) -> dict[str, Any]:
    tools = [tool_from_function(function).to_openai() for function in functions.values()]
    return {"tools": tools, "acts": [name for name, function in functions.items() if is_act(function)]}


def _call(functions: Mapping[str, Callable[..., Any]], call: Mapping[str, Any], printed: io.StringIO) -> str:
    function = functions.get(call["name"])
    if function is None:
        raise ToolError(f"there is no function {call['name']!r}", hint=f"there are: {', '.join(functions)}")
    tool = tool_from_function(function)
    arguments = tool.validate(call["arguments"])
    hints = typing.get_type_hints(function)
    value = function(**{name: _as_declared(hints[name], given) for name, given in arguments.items()})
    if inspect.iscoroutine(value):
        import asyncio  # as long to import as the whole call takes

        value = asyncio.run(value)
    elif inspect.isgenerator(value):
        value = list(value)
    if value is None:
        return _cut(printed.getvalue().strip() or "done")
    return _cut(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str))


def _as_declared(annotation: Any, value: Any) -> Any:
    """A member of an Enum where one is declared; other values as they are."""
    for choice in (annotation, *typing.get_args(annotation)):
        if isinstance(choice, type) and issubclass(choice, enum.Enum):
            return choice(value)
    return value


def _in_words(error: BaseException) -> str:
    if isinstance(error, ToolError):
        return _cut(str(error))
    return _cut(f"{type(error).__name__}: {error}" if str(error) else type(error).__name__)


def _cut(text: str) -> str:
    text = text.encode(errors="replace").decode()  # names of files may hold bytes that are no text
    if len(text) <= MAX_RESULT_CHARACTERS:
        return text
    return f"{text[:MAX_RESULT_CHARACTERS]} ... (cut; {len(text):,} characters)"
