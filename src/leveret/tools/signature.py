"""A Python function becomes a `Tool`: its name, annotations, defaults and Google-style docstring say everything.

    def set_alarm(time: str, label: str | None = None) -> None:
        \"\"\"Sets an alarm.

        Args:
            time: When it rings, HH:MM.
            label: What it is for.
        \"\"\"

`str`, `int`, `float`, `bool`, `Literal["a", "b"]` and a string `Enum` are types; `X | None` or a default makes an
argument optional; `Annotated[str, {"format": "HH:MM", "x-extractive": True}]` adds JSON Schema keywords.
"""

from __future__ import annotations

import enum
import inspect
import re
import types
import typing
from collections.abc import Callable
from typing import Any

from leveret.errors import ToolError
from leveret.tools.parameter_schema import read_parameter
from leveret.tools.tool import Tool

_JSON_TYPES = {str: "string", int: "integer", float: "number", bool: "boolean"}
_SECTION = re.compile(r"^(Args|Arguments|Parameters|Returns|Return|Yields|Raises|Examples?|Notes?):\s*$")


def tool_from_function(function: Callable[..., Any]) -> Tool:
    """The tool that calls `function`. Raises ToolError naming a parameter whose type cannot be expressed."""
    name = getattr(function, "__name__", None)
    if not isinstance(name, str):
        raise ToolError(f"{function!r} has no name to be called by", hint="write a function with `def`")
    try:
        hints = typing.get_type_hints(function, include_extras=True)
        signature = inspect.signature(function)
    except (NameError, SyntaxError, AttributeError) as error:
        raise ToolError(f"tool {name}: its annotations cannot be resolved: {error}") from None
    except (TypeError, ValueError) as error:
        raise ToolError(
            f"tool {name}: its arguments are not known: {error}", hint="write a function with `def`"
        ) from None
    summary, notes = _read_docstring(inspect.getdoc(function) or "")
    parameters = []
    for key, argument in signature.parameters.items():
        where = f"tool {name}, parameter {key}"
        if argument.kind in (argument.VAR_POSITIONAL, argument.VAR_KEYWORD):
            raise ToolError(f"{where}: * and ** arguments are not supported", hint="name every argument")
        if key not in hints:
            raise ToolError(f"{where} has no type", hint=f"annotate it, e.g. {key}: str")
        schema, nullable = _schema_of(where, hints[key])
        schema |= {"description": notes[key]} if key in notes else {}
        optional = argument.default is not argument.empty
        if optional and argument.default is not None:
            value = argument.default
            schema["default"] = value.value if isinstance(value, enum.Enum) else value
        parameters.append(read_parameter(name, key, schema, required=not (optional or nullable)))
    return Tool(name=name, description=summary, parameters=tuple(parameters))


def _schema_of(where: str, annotation: Any) -> tuple[dict[str, Any], bool]:
    """The JSON Schema of an annotation, and whether None is allowed."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        schema, nullable = _schema_of(where, arguments[0])
        for extra in arguments[1:]:
            schema |= extra if isinstance(extra, dict) else {"description": extra} if isinstance(extra, str) else {}
        return schema, nullable
    if origin in (typing.Union, types.UnionType):
        concrete = [argument for argument in arguments if argument is not type(None)]
        if len(concrete) == 1:
            return _schema_of(where, concrete[0])[0], True
    if origin is typing.Literal:
        return {"type": "string", "enum": list(arguments)}, False
    if isinstance(annotation, type) and issubclass(annotation, enum.Enum):
        return {"type": "string", "enum": [member.value for member in annotation]}, False
    if isinstance(annotation, type) and annotation in _JSON_TYPES:
        return {"type": _JSON_TYPES[annotation]}, False
    raise ToolError(
        f"{where}: the type {getattr(annotation, '__name__', annotation)} is not supported",
        hint="use str, int, float, bool, Literal of strings, or one of these with `| None`",
    )


def _read_docstring(docstring: str) -> tuple[str, dict[str, str]]:
    """The text before the first section, and the notes of the Args section by argument."""
    summary: list[str] = []
    notes: dict[str, str] = {}
    section, current = "", ""
    for line in docstring.splitlines():
        if heading := _SECTION.match(line):
            section, current = heading[1], ""
        elif not section:
            summary.append(line.strip())
        elif section in ("Args", "Arguments", "Parameters") and line.strip():
            if entry := re.match(r"^(?: {1,4}|\t)\*{0,2}(\w+)\s*(?:\([^)]*\))?:\s*(.*)$", line):
                current, notes[entry[1]] = entry[1], entry[2].strip()
            elif current:
                notes[current] = f"{notes[current]} {line.strip()}".strip()
    return " ".join(word for word in summary if word), notes
