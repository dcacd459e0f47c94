"""Whether a phrase book's pattern fits its tool: the arguments it names, the values it fixes, what it leaves out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from leveret.errors import ToolError
from leveret.tools.phrases import Pattern
from leveret.tools.schema import Parameter, Tool


def check_pattern(pattern: Pattern, tool: Tool, said: Mapping[str, Iterable[str]], where: str, *, whole: bool) -> None:
    """Every argument exists and fits, no way through the choices fills one twice or, if `whole`, lacks one.

    said: the values that a slot's closed set has, by argument. Raises ToolError that shows the line.
    """
    parameters = {parameter.name: parameter for parameter in tool.parameters}
    for argument in (*(slot.argument for slot in pattern.slots), *pattern.fixed):
        if argument not in parameters:
            hint = f"arguments: {', '.join(sorted(parameters))}"
            raise ToolError(f"{where} has no argument {argument!r}, used in: {pattern.text}", hint=hint)
    for argument, text in pattern.fixed.items():
        _check_value(parameters[argument], text, f"{where}: {pattern.text}")
    for argument, values in said.items():
        for value in values:
            _check_value(parameters[argument], value, f"{where}: {pattern.text}")
    for way in pattern.ways:
        for parameter in tool.parameters:
            if way.count(parameter.name) > 1:
                raise ToolError(f"{where}: the argument {parameter.name!r} is filled twice in: {pattern.text}")
            if whole and parameter.required and parameter.name not in (*way, *pattern.fixed):
                raise ToolError(
                    f"{where}: nothing fills the required argument {parameter.name!r} in: {pattern.text}",
                    hint="it must be filled whichever choices are drawn, by a slot or after =>",
                )


def _check_value(parameter: Parameter, text: str, where: str) -> None:
    if problem := parameter.problem(typed_value(text, parameter)):
        raise ToolError(f"{where}: {parameter.name} {problem}")


def typed_value(value: str | int, parameter: Parameter) -> str | int | float | bool:
    """The JSON value of an argument, since phrase books write everything as text; `value` itself if it is no such."""
    try:
        if parameter.type == "integer":
            return int(value)
        if parameter.type == "number":
            return float(value)
    except ValueError:
        return value
    if parameter.type == "boolean":
        return {"true": True, "false": False}.get(str(value).lower(), value)
    return str(value)
